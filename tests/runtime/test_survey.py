"""Hours of a corpus from headers of a few recordings; what is broken or hangs costs an estimate."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.activity import Estimate, FileSums
from corpus_asr.errors import ConfigError
from corpus_asr.runtime import preflight, survey
from corpus_asr.runtime.estimate import estimate_audio
from corpus_asr.runtime.outlook import BENCHMARKED, given_machines, known_machines, outlooks
from corpus_asr.runtime.preflight import ReadyCheck
from corpus_asr.runtime.survey import Survey, surveying
from corpus_asr.stages.extract import ExtractStage
from corpus_asr.stages.headers import HeaderReader
from corpus_asr.stages.messages import Header
from corpus_asr.stages.transcribe import TranscribeStage
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.run_files import write_snapshot
from corpus_asr.storage.run_state.sample import SampledFile
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, wav_bytes
from tests.support.engines import EXTRACTOR, ScriptedEngine, always, scripted_job
from tests.support.stores import web_server
from tests.support.tables import run_config, snapshot

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "README.md"


def write(path: Path, seconds: float, *, channels: int = 1) -> Path:
    path.write_bytes(wav_bytes(noise(seconds, num_channels=channels), rate_hz=SAMPLE_RATE_HZ))
    return path


def surveyed(names: Sequence[str], folder: Path, **options: Any) -> Survey:
    sample = [SampledFile(name, str(folder / name), 1000) for name in names]
    config = scripted_job(folder, extract=options.pop("extract", {}))
    return survey.survey(sample, config, **options)


def test_headers_are_read_failures_are_counted_and_nothing_is_decoded(tmp_path: Path):
    write(tmp_path / "a.wav", 3.0)
    write(tmp_path / "stereo.wav", 2.0, channels=2)
    (tmp_path / "page.mp3").write_bytes(b"<html>404 not found")
    (tmp_path / "empty.wav").write_bytes(b"")
    names = ["a.wav", "stereo.wav", "page.mp3", "empty.wav", "lost.wav"]
    found = surveyed(names, tmp_path)
    assert (found.asked, found.read, found.without_duration) == (5, 2, 0)
    assert found.failures == {"not_audio": 1, "empty_file": 1, "not_found": 1}
    # What is broken has no audio; of what the store does not give nothing is known.
    assert found.sums["wav:5"] == FileSums(files=3, size=3000, audio_s=5.0, squares=0.013, empty=1)
    assert found.sums["mp3:5"] == FileSums.of(1000, 0.0)
    apart = surveyed(["stereo.wav"], tmp_path, extract={"channels": "each"})
    assert apart.sums["wav:5"].audio_s == 4.0
    limited = surveyed(["a.wav"], tmp_path, extract={"max_duration_h": 0.0005})
    assert limited.sums["wav:5"].audio_s == pytest.approx(1.8)


def test_a_few_small_ranges_are_read_of_a_remote_file(tmp_path: Path):
    data = write(tmp_path / "long.wav", 120.0).read_bytes()
    with web_server() as web:
        web.files["long.wav"] = data
        [header] = HeaderReader(settings=run_config("/in", "/out").extract)([web.url("long.wav")])
    assert header == Header(index=0, audio_s=120.0)
    ranges = [asked.removeprefix("bytes=").split("-") for _, _, asked in web.requests if asked]
    assert ranges
    assert sum(int(last) + 1 - int(first) for first, last in ranges) < len(data) / 3


@pytest.mark.slow
def test_a_header_that_kills_its_reader_costs_one_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    crashing = "tests.support.isolated:make_crashing_reader"
    found = surveyed(["crash1.wav", "b.wav", "c.wav"], tmp_path, reader=crashing)
    assert (found.read, found.failures) == (2, {"decoder_crashed": 1})
    assert found.sums["wav:5"].audio_s == 20.0
    monkeypatch.setattr(survey, "_CRASHES", 1)
    found = surveyed(["crash1.wav", "crash2.wav", "crash3.wav"], tmp_path, reader=crashing)
    assert found.failures == {"decoder_crashed": 1}, "and no more are tried"
    monkeypatch.setattr(survey, "SILENCE_S", 0.5)
    began_s = time.monotonic()
    found = surveyed(
        ["a.wav", "b.wav"], tmp_path, reader="tests.support.isolated:make_silent_reader"
    )
    assert (found.read, found.failures) == (1, {})
    assert time.monotonic() - began_s < 30
    refused = surveyed(["a.wav"], tmp_path, reader="tests.support.isolated:crash_at_start")
    assert (refused.asked, refused.read) == (1, 0)


def test_a_long_run_is_surveyed_beside_its_work_and_a_short_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        write(source / f"{number}.wav", 2.0)
    config = run_config(source, tmp_path / "out")
    plan = make_plan(config, OutputStore(config.output.uri))
    found: list[dict[str, FileSums]] = []
    with surveying(plan, config, found.append):
        time.sleep(0.05)
    assert found == []
    monkeypatch.setattr(survey, "WORTH_BYTES", 1000)
    with surveying(plan, config, found.append):
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            time.sleep(0.02)
    [sums] = found
    audio = estimate_audio(plan.remaining.strata, {}, sums)
    assert audio is not None
    assert (audio.low, audio.high) == (audio.value, audio.value), "all of it was read"
    assert audio.value == pytest.approx(6.0)
    # Whatever happens there, the run goes on without it.
    monkeypatch.setattr(survey, "survey", lambda *_, **__: 1 / 0)
    with surveying(plan, config, found.append):
        time.sleep(0.05)
    assert len(found) == 1


def test_speeds_come_from_what_was_measured(tmp_path: Path):
    store = OutputStore(str(tmp_path / "out"))
    config = run_config("/in", store.uri, model="whisper-base")
    [benchmark] = known_machines(config, store)
    assert benchmark.rtfx == BENCHMARKED["whisper-base"]
    document = DOCUMENT.read_text()
    assert all(f"**{rtfx}**" in document for rtfx in BENCHMARKED.values())
    assert known_machines(run_config("/in", store.uri, model="some/model"), store) == []
    times = {"started_at": "2026-01-01T12:00:00+00:00", "finished_at": "2026-01-01T13:00:00+00:00"}
    run = {"model": "openai/whisper-base", "committed": {"audio_s": 36_000.0}} | times
    for changes, expected in (
        ({}, [("as the run of 2026-01-01 here", 10.0)]),
        ({"model": "other"}, []),
        ({"committed": {"audio_s": 9.0}}, []),  # mostly its start
    ):
        store.write_json("run.json", run | changes)
        here = [(each.name, each.rtfx) for each in known_machines(config, store)[:-1]]
        assert here == expected
    store.remove("run.json")
    write_snapshot(store, snapshot(rtfx=7.5))
    assert known_machines(config, store)[0].rtfx == 7.5


def test_a_check_measures_this_machine_with_its_slots_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = ScriptedEngine()
    monkeypatch.setattr(preflight, "PIECE_S", 0.25)
    monkeypatch.setattr(preflight, "ExtractStage", partial(ExtractStage, extractor=EXTRACTOR))
    monkeypatch.setattr(
        preflight, "TranscribeStage", partial(TranscribeStage, engine_factory=always(engine))
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"parts of a script")
    config = scripted_job(tmp_path, source={"uri": str(tmp_path / "in")})
    store = OutputStore(config.output.uri)
    check = ReadyCheck(config, store, make_plan(config, store))
    names = [line.split()[0] for line in check.lines()]
    assert names == ["output", "recording", "machines", "model", "memory", "speed"]
    # Of a second, half a second has speech: two pieces, of which one is tried, then eight at once.
    assert len(engine.requests) == 1 + 8
    assert {request.num_samples for request in engine.requests} == {4000}
    assert check.rtfx is not None
    assert check.rtfx > 0
    assert engine.closed


def test_machines_are_given_by_speed_and_price():
    found = given_machines(["l4=180", "900"], ["0.5", "l4=0.8"])
    assert [(each.name, each.rtfx, each.price_per_hour) for each in found] == [
        ("l4", 180.0, 0.8),
        ("as given", 900.0, 0.5),
    ]
    [l4, _] = outlooks(Estimate(648_000.0, 600_000.0, 700_000.0), found)
    assert l4.duration_s.value == 3600.0
    assert l4.cost is not None
    assert l4.cost.value == pytest.approx(0.8)
    assert l4.duration_s.low < 600_000 / 180 < l4.duration_s.high
    for speeds, prices, words in (
        (["fast"], [], "--speed fast: found 'fast', expected a number above 0"),
        (["l4=0"], [], "expected a number above 0"),
        (["l4=9"], ["h100=2"], "found no --speed h100=RTFX"),
    ):
        with pytest.raises(ConfigError, match=words):
            given_machines(speeds, prices)
