"""What fleets need and cost: speeds that were measured, workers of the settings, requests."""

import json
import re

import pytest

from benchmarks.capacity import GPUS, PAGE, drawn, planned
from corpus_asr.config.load import default_config
from corpus_asr.errors import ConfigError
from corpus_asr.runtime import capacity as module
from corpus_asr.runtime.capacity import Capacity, RequestPrices, capacity, fleets, machines_of
from corpus_asr.runtime.speeds import GPU_SLOTS, GPU_TIMES

REPOSITORY = PAGE.parents[1]


def fleet(*keys: str, gpus: int | None = 8, speed: str = "900", hours: float = 1000) -> Capacity:
    config = default_config(keys)
    machines = machines_of(config, [speed], ["2"], gpus=gpus, card=None, measured=True)
    [found] = fleets(config, machines, gpus=gpus, hours=hours)
    return found


def test_the_page_has_what_the_function_answers() -> None:
    assert f"<!-- measured: capacity -->\n{drawn()}\n<!-- end -->" in PAGE.read_text()


def test_times_are_those_that_were_measured() -> None:
    for (model, card), times in GPU_TIMES.items():
        name = f"{card}-{model.removeprefix('whisper-')}.json".lower()
        newest = max((REPOSITORY / "docs" / "benchmarks").glob(f"2026-*-{name}"))
        measured = {
            (each["stage"], each["key"]): each["value"]
            for each in json.loads(newest.read_text())["figures"]
        }
        steps = {
            f"{kind}_ms": measured.get(("step", f"slots_{GPU_SLOTS}.graph.{kind}"))
            for kind in ("greedy", "beams")
        }
        known = {key: value for key, value in steps.items() if value is not None}
        assert times == {"rate": measured["offline", f"slots_{GPU_SLOTS}.rate"]} | known
    extraction = (REPOSITORY / "benchmarks" / "README.md").read_text()
    of_mp3 = re.findall(r"^\| mp3.*\| (\d+) \|$", extraction, re.MULTILINE)
    assert min(map(int, of_mp3)) == module.EXTRACT_RTFX
    driver = REPOSITORY / "docs" / "benchmarks" / "2026-11-27-epyc-2-cores-driver.json"
    for each in json.loads(driver.read_text()):
        per_part_s = module.DRIVER_BLOCK_S / each["parts_per_block"] + module.DRIVER_PART_S
        assert 1e3 * per_part_s == pytest.approx(each["driver_ms_per_part"], rel=0.16)


def test_a_fleet_is_as_fast_as_the_workers_of_the_settings() -> None:
    usual = fleet()
    assert (usual.rtfx, usual.workers, usual.waits) == (7200.0, 8, None)
    assert usual.duration_s == 1000 * 3600 / 7200
    assert usual.cost == pytest.approx(8 * 2 * usual.duration_s / 3600)
    assert usual.extract_cores == 19  # 7200 / 385
    assert fleet("extract.dnsmos=true").extract_cores == 257  # 7200 / 28.1
    assert fleet("extract.audio_tagger=tagger.onnx").extract_cores == 41  # 7200 / 178.7
    four = fleet("transcribe.workers=4")
    assert (four.rtfx, four.machine.count, four.workers) == (3600.0, 4.0, 4)
    assert four.cost == pytest.approx(8 * 2 * four.duration_s / 3600), "all eight are paid"
    shared = fleet("transcribe.workers=4", "transcribe.gpus_per_worker=0.5")
    assert (shared.rtfx, shared.machine.count) == (1800.0, 2.0)
    assert fleet("transcribe.gpus_per_worker=0.5").workers == 16
    assert fleet("transcribe.workers=3", gpus=None).gpus == 3
    slow = fleet("extract.workers=10")
    assert (slow.rtfx, slow.waits) == (3850.0, "GPUs, for extraction")
    assert "RTFx 3,850.0 of 7,200.0 (8 x 900.0)" in "\n".join(slow.lines())
    assert fleet("extract.workers=40").waits == "extraction, for GPUs"


def test_drivers_and_requests_follow_from_blocks_and_commits() -> None:
    usual = fleet(hours=1e6)
    # 10 million recordings: a range of each, commits by size and by time, looks.
    by_size = 1e6 * 3600 * module.RESULT_BYTES_PER_S / (4 * 2**20)
    by_time = usual.duration_s / 30
    beats = 2 * usual.duration_s / 15
    writes = 1e7 / 1000 + 2 * (by_size + by_time) + beats
    assert usual.writes == pytest.approx(writes, abs=1)
    reads = 1e7 + 2 * (by_size + by_time) + beats + usual.duration_s / 5
    assert usual.reads == pytest.approx(reads, abs=1)
    assert usual.request_cost == pytest.approx((0.4 * usual.reads + 5 * usual.writes) / 1e6)
    larger = fleet("output.commit_mb=64", "output.commit_every_s=300", hours=1e6)
    assert usual.writes - larger.writes == pytest.approx(
        2 * (by_size * 15 / 16 + by_time * 9 / 10), abs=1
    )
    # Blocks grow with GPUs until fourteen parts of six minutes fill one.
    drivers = [planned("large-v3, greedy", gpus, 1e6).drivers for gpus in GPUS]
    assert drivers == [1, 1, 1, 3]
    assert fleet("extract.part_s=60", gpus=500).drivers > fleet(gpus=500).drivers


def test_what_was_not_measured_is_asked_for() -> None:
    def found(
        *keys: str, speeds: tuple[str, ...] = (), card: str | None = None
    ) -> dict[str, float]:
        config = default_config(keys)
        machines = machines_of(config, speeds, [], gpus=2, card=card, measured=True)
        return {each.name: each.rtfx for each in machines}

    large = "model.checkpoint=large-v3"
    assert found(large) == found(large, card="h200") == found(large, "transcribe.slots=64")
    assert found(large, speeds=("1800",), card="H100") == {"H100": 1800.0}
    turbo = "model.checkpoint=large-v3-turbo"
    assert found(turbo, "decoding.beam_size=1")
    for keys, card, words in (
        (("model.checkpoint=small",), None, "times of small on any card with auto slots"),
        ((large,), "H100", "large-v3 on H100 .*--speed RTFX.*whisper-large-v3 on H200"),
        ((large, "transcribe.slots=100"), "H200", "on H200 with 100 slots"),
        ((large, "decoding.word_timestamps=true"), "H200", "word times, expected --speed RTFX"),
        ((turbo,), None, "5 beams where uncertain, .*turbo on H200 .greedy"),
    ):
        with pytest.raises(ConfigError, match=words):
            found(*keys, card=card)


def test_the_speed_of_a_fleet_depends_on_what_is_decoded() -> None:
    def planned_s(*keys: str) -> tuple[float, str]:
        config = default_config(["model.checkpoint=large-v3", *keys])
        machines = machines_of(config, [], ["4"], gpus=8, card="H200", measured=True)
        [found] = fleets(config, machines, gpus=8, hours=10_000)
        return found.duration_s, "\n".join(found.lines())

    fast, usual, accurate = (
        planned_s(f"decoding.quality={quality}") for quality in ("fast", "balanced", "accurate")
    )
    assert 1.5 * fast[0] < usual[0] < accurate[0] / 1.3
    assert planned_s("decoding.beam_size=5")[0] == accurate[0]
    assert planned_s("decoding.strategy=sequential")[0] < usual[0], "windows are fuller"
    found = re.search(r"takes +(\S+) \((\S+)-(\S+)\) .* costs \S+ \(\S+-\S+\)", usual[1])
    assert found, usual[1]
    assert "H200, calculated for windows in chunks, 5 beams where uncertain from times" in usual[1]
    assert "random weights, without extraction" in usual[1]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("transcribe.workers=9", "transcribe.workers is 9, but there are GPUs for 8"),
        ("model.device=cpu", "planning 8 GPUs: found model.device or .* for CPUs"),
    ],
)
def test_workers_that_do_not_fit_are_refused(keys: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fleet(keys)


def test_prices_of_requests_are_two_numbers() -> None:
    assert RequestPrices.parse("0.4,5") == RequestPrices(0.4, 5.0)
    config = default_config()
    [machine] = machines_of(config, ["900"], [], gpus=1, card=None, measured=True)
    free = capacity(config, machine, gpus=1, audio_s=3600, prices=RequestPrices(0, 0))
    assert (free.request_cost, free.cost) == (0, None)
    for text in ("5", "a,b", "-1,2", "1,2,3", "inf,1"):
        with pytest.raises(ConfigError, match="expected the prices of a million"):
            RequestPrices.parse(text)
