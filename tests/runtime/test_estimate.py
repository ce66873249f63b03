"""Estimates against the truth: corpora and runs drawn at random, and the edges of both."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.activity import (
    Estimate,
    FileSample,
    FileSums,
    SampledFile,
    added,
    stratum,
    sums_of,
)
from corpus_asr.runtime import estimate, preflight
from corpus_asr.runtime.estimate import Survey, estimate_audio, rest_s, surveying
from corpus_asr.runtime.preflight import ReadyCheck
from corpus_asr.runtime.speeds import measured_machines
from corpus_asr.stages.extract import ExtractStage
from corpus_asr.stages.inspection import (
    HEADER_BLOCK_BYTES,
    READ_DURATION,
    FileInspector,
    InspectionRequest,
)
from corpus_asr.stages.messages import Header
from corpus_asr.stages.transcribe import TranscribeStage
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.run_files import result_settings, write_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, wav_bytes
from tests.support.engines import EXTRACTOR, ScriptedEngine, always, scripted_job
from tests.support.stores import web_server
from tests.support.tables import run_config, snapshot

# Usual seconds per byte of a type, and how much they differ, as logarithms.
TYPES = {
    "mp3": (1 / 16_000, 0.5), "wav": (1 / 32_000, 0.3), "flac": (1 / 50_000, 0.35),
    "opus": (1 / 6_000, 0.4), "mp4": (1 / 125_000, 0.8),
}  # fmt: skip
MOMENTS = (0.1, 0.26, 0.5, 0.76, 0.9)
RUNS = 100


@dataclass(frozen=True)
class Drawn:
    """A recording; a broken one has less audio than its header says, or none and no header."""

    uri: str
    size_bytes: int
    audio_s: float
    header_s: float | None


def corpus(rng: np.random.Generator) -> list[Drawn]:
    """Draw a corpus of clips, talks or both, with broken files and files without a header."""
    kinds = rng.choice(list(TYPES), size=rng.integers(1, 4), replace=False)
    shares = rng.dirichlet(np.ones(len(kinds)))
    usual_s = {kind: math.exp(rng.uniform(math.log(8), math.log(2400))) for kind in kinds}
    apart = {kind: rng.uniform(0.1, 1.2) for kind in kinds}
    broken, headless = rng.choice([0, 0.02, 0.2]), rng.choice([0, 0, 0.1])
    files = []
    for number in range(int(math.exp(rng.uniform(math.log(6), math.log(600))))):
        kind = rng.choice(kinds, p=shares)
        audio_s = float(np.clip(usual_s[kind] * math.exp(apart[kind] * rng.normal()), 0.5, 2e4))
        ratio = TYPES[kind][0] * math.exp(TYPES[kind][1] * rng.normal())
        size, header_s = 50 + int(audio_s / ratio), None if rng.random() < headless else audio_s
        if rng.random() < broken:
            size = int(rng.choice([54, size]))
            audio_s, header_s = (0.0, None) if rng.random() < 0.7 else (audio_s / 2, audio_s)
        files.append(Drawn(f"{number}.{kind}", size, audio_s, header_s))
    return sorted(files, key=lambda file: -file.size_bytes)  # as plans have them


def run(
    files: list[Drawn], rng: np.random.Generator, *, sampled: bool
) -> Iterator[tuple[Estimate | None, float, Estimate | None, float, float]]:
    """Yield at `MOMENTS`: the audio and the rest as estimated, each with its truth; the whole."""
    speed, cost_s = math.exp(rng.uniform(math.log(2), math.log(200))), rng.choice([0, 3, 10])
    ahead_s, calm = rng.choice([60, 600, 3000]), rng.choice([0.05, 0.2, 0.4])
    noise, ends = 0.0, [0.0]
    for file in files:
        noise = 0.8 * noise + 0.6 * calm * rng.normal()  # neighbors are alike
        work_s = (file.audio_s + cost_s) * math.exp(noise) / speed if file.audio_s else 0.0
        ends.append(ends[-1] + work_s)
    times = np.array(ends)
    times *= max(1.0, 60 / times[-1])  # of the first two seconds nothing is said
    audio_s = np.array([file.audio_s for file in files])
    opened_by_s = np.cumsum(audio_s)
    sample = FileSample()
    sample.add(
        [f"{at:016x}" for at in rng.permutation(len(files))],
        [file.uri for file in files],
        [file.size_bytes for file in files],
    )
    by_uri = {file.uri: file for file in files}
    headers = sums_of(
        (drawn.uri, drawn.size_bytes, by_uri[drawn.uri].header_s or 0.0)
        for drawn in sample.draw()
        if by_uri[drawn.uri].header_s is not None or not by_uri[drawn.uri].audio_s
    )
    for share in MOMENTS:
        now_s = share * times[-1]
        parts = np.clip((now_s - times[:-1]) / np.maximum(np.diff(times), 1e-9), 0, 1)
        done = int((times[1:] <= now_s).sum())
        done_s = float((audio_s * parts).sum())
        failed = int((audio_s[:done] <= 0).sum())
        last = max(int(np.searchsorted(opened_by_s, done_s + ahead_s)), done)
        opened = [(file.uri, file.size_bytes, file.audio_s) for file in files[:last]]
        if last < len(files) and (header_s := files[last].header_s) is not None:
            opened.append((files[last].uri, files[last].size_bytes, header_s))
        audio = estimate_audio(sample.strata, sums_of(opened), headers if sampled else None)
        rest = rest_s(
            audio, done_s=done_s, working_s=now_s, done=done - failed, files=len(files) - done
        )
        yield audio, float(opened_by_s[-1]), rest, times[-1] - now_s, times[-1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("sampled", "medians", "eighties", "shares_held"),
    [
        (True, (0.12, 0.1, 0.05, 0.03, 0.02), (0.22, 0.18, 0.13, 0.07, 0.04), 0.75),
        (False, (0.32, 0.2, 0.125, 0.06, 0.03), (0.6, 0.33, 0.2, 0.1, 0.05), 0.7),
    ],
)
def test_ranges_hold_the_truth_and_errors_fall(sampled, medians, eighties, shares_held):
    """Of the whole time of a run, the error falls from a tenth to hundredths."""
    rng = np.random.default_rng(7)
    inside: list[list[bool]] = [[] for _ in MOMENTS]
    errors: list[list[float]] = [[] for _ in MOMENTS]
    audio_errors: list[list[float]] = [[] for _ in MOMENTS]
    for _ in range(RUNS):
        files = corpus(rng)
        if not any(file.audio_s for file in files):
            continue
        for at, (audio, all_s, rest, left_s, whole_s) in enumerate(
            run(files, rng, sampled=sampled)
        ):
            if rest is None or audio is None:
                continue
            inside[at].append(rest.low <= left_s <= rest.high)
            errors[at].append(abs(rest.value - left_s) / whole_s)
            audio_errors[at].append(abs(audio.value / all_s - 1))
    # Without headers, first of all a quarter has to be opened.
    told = [len(held) / RUNS for held in inside]
    assert min(told[not sampled :]) > 0.9
    assert (told[0] < 0.7) == (not sampled)
    assert min(float(np.mean(held)) for held in inside) >= shares_held
    for quantile, limits in ((0.5, medians), (0.8, eighties)):
        values = [float(np.quantile(moment_errors, quantile)) for moment_errors in errors]
        assert values == sorted(values, reverse=True)
        assert all(value < limit for value, limit in zip(values, limits, strict=True))
    assert float(np.median(audio_errors[-1])) < 0.02


MP3, WAV = "mp3:11", "wav:11"


def files_of(*sizes_s: tuple[int | None, float]) -> FileSums:
    return sum((FileSums.of(size, audio_s) for size, audio_s in sizes_s), FileSums())


def test_two_broken_files_are_no_ground_for_an_estimate_and_do_not_spoil_the_next():
    planned = {"mp3:3": FileSums(files=2, size=108), MP3: FileSums(files=10, size=10e6)}
    broken = {"mp3:3": files_of((54, 0.0), (54, 0.0))}
    assert estimate_audio(planned, {}) is None
    assert estimate_audio(planned, broken, broken) is None
    assert rest_s(None, done_s=0.0, working_s=60.0, done=0, files=10) is None
    one = estimate_audio(planned, broken, {MP3: files_of((1_000_000, 60.0))})
    assert one is not None
    assert 500 < one.value < 650  # the ten of them have ten minutes
    assert one.low < 600 < one.high


def test_without_headers_nothing_is_said_until_a_quarter_is_opened():
    planned = {MP3: FileSums(files=8, size=8e6)}
    one, two = files_of((1_000_000, 60.0)), files_of(*[(1_000_000, 60.0)] * 2)
    assert estimate_audio(planned, {MP3: one}) is None
    audio = estimate_audio(planned, {MP3: two})
    assert audio is not None
    assert audio.value == 480.0
    assert estimate_audio(planned, {}, {MP3: one}) is not None


def test_what_is_known_of_all_is_exact_and_failures_have_what_they_had():
    planned = {MP3: FileSums(files=3, size=3e6)}
    opened = {MP3: files_of((1_000_000, 60.0), (1_000_000, 7.0), (1_000_000, 0.0))}
    assert estimate_audio(planned, opened) == Estimate(67.0, 67.0, 67.0)
    assert estimate_audio(planned, {}, opened) == Estimate(67.0, 67.0, 67.0)
    assert estimate_audio(planned, {MP3: files_of((1_000_000, 60.0))}, opened) == Estimate(
        67.0, 67.0, 67.0
    )
    # Twice as many bytes as planned, after a worker died: nothing is subtracted.
    assert estimate_audio(planned, added(opened, opened)) == Estimate(134.0, 134.0, 134.0)


def test_recordings_of_unknown_size_count_by_number():
    names = [stratum(uri, None) for uri in ("a.mp3", "a.wav")]
    planned = {name: files_of(*[(None, 0.0)] * 10) for name in names}
    audio = estimate_audio(planned, {}, {names[0]: files_of((None, 30.0), (None, 50.0))})
    assert audio is not None
    assert audio.value == pytest.approx(20 * 40.0)
    assert audio.high > 1.5 * audio.value  # of the other type nothing is known


def test_nothing_is_said_before_a_window_or_a_tenth_is_done():
    hour, minute = (Estimate(audio_s, audio_s, audio_s) for audio_s in (3600.0, 60.0))
    for audio, done_s, is_told in ((hour, 29.0, False), (hour, 31.0, True), (minute, 7.0, True)):
        rest = rest_s(audio, done_s=done_s, working_s=20.0, done=1, files=50)
        assert (rest is not None) == is_told
    assert rest_s(hour, done_s=31.0, working_s=1.0, done=1, files=50) is None


def test_a_sample_is_the_same_in_any_order_and_large_ones_are_likelier():
    files: list[tuple[str, str, int | None]] = [
        (f"{at * 7919 % 10_000:016x}", f"f{at}.mp3", 10_000 + at) for at in range(5000)
    ]
    files += [(f"{at:015x}a", f"s{at}.wav", None) for at in range(50)]
    files += [("f" * 16, "huge.flac", 10**13)]
    first, second = FileSample(), FileSample()
    first.add(*zip(*files, strict=True))
    for name, uri, size_bytes in reversed(files):
        second.add([name], [uri], [size_bytes])
    assert first.draw() == second.draw()
    kinds = Counter(drawn.uri.rpartition(".")[2] for drawn in first.draw())
    assert (kinds.total(), kinds["flac"]) == (64, 1)
    assert 5 < kinds["wav"] < 35, "of a hundredth of the recordings"
    assert first.strata == second.strata
    assert sum(sums.files for sums in first.strata.values()) == 5051
    assert FileSample().draw() == []


@pytest.mark.parametrize(
    ("uri", "size_bytes", "name"),
    [
        ("s3://b/a.MP3", 3_000_000, "mp3:11"),
        ("https://h/a.wav?token=x.y", 4, "wav:1"),
        ("/a.part0001", 0, "other:0"),
        ("/folder.mp3/a", None, "other:12"),
    ],
)
def test_strata_are_few_whatever_names_there_are(uri, size_bytes, name):
    assert stratum(uri, size_bytes) == name


def test_estimates_are_written_with_their_ranges():
    assert Estimate(750.0, 600.0, 960.0).clock_words() == "0:12:30 (0:10:00-0:16:00)"
    assert Estimate(75.0, 60.0, 96.0).clock_words() == "0:01:15 (0:01:00-0:01:36)"
    assert Estimate(7200.0, 3600.0, 14_400.0).hours_words() == "2.00 h (1.00-4.00)"
    assert Estimate(60.0, 60.0, 60.0).hours_words() == "1.0 min"


def write(path: Path, seconds: float, *, channels: int = 1) -> Path:
    path.write_bytes(wav_bytes(noise(seconds, num_channels=channels), rate_hz=SAMPLE_RATE_HZ))
    return path


def surveyed(names: Sequence[str], folder: Path, **options: Any) -> Survey:
    sample = [SampledFile(name, str(folder / name), 1000) for name in names]
    config = scripted_job(folder, extract=options.pop("extract", {}))
    return estimate.survey(sample, config, **options)


@pytest.mark.long
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
    assert found.sums["wav:5"] == FileSums(files=3, size=3000.0, audio_s=5.0)
    assert found.sums["mp3:5"] == FileSums.of(1000, 0.0)
    apart = surveyed(["stereo.wav"], tmp_path, extract={"channels": "each"})
    assert apart.sums["wav:5"].audio_s == 4.0
    limited = surveyed(["a.wav"], tmp_path, extract={"max_duration_h": 0.0005})
    assert limited.sums["wav:5"].audio_s == pytest.approx(1.8)


def test_a_few_small_ranges_are_read_of_a_remote_file(tmp_path: Path):
    data = write(tmp_path / "long.wav", 120.0).read_bytes()
    with web_server() as web:
        web.files["long.wav"] = data
        arguments = {"settings": run_config("/in", "/out").extract, "languages": ()}
        files = {0: (web.url("long.wav"), None)}
        request = InspectionRequest(
            READ_DURATION, DEFAULT_STORE, HEADER_BLOCK_BYTES, files, arguments
        )
        answers = dict(FileInspector()(request))
    assert answers[0] == Header(audio_s=120.0)
    ranges = [asked.removeprefix("bytes=").split("-") for _, _, asked in web.requests if asked]
    assert ranges
    assert sum(int(last) + 1 - int(first) for first, last in ranges) < len(data) / 3


@pytest.mark.slow
def test_what_was_read_before_the_reader_died_or_stalled_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(estimate, "SILENCE_S", 0.5)
    for reader, names, num_read in (
        ("make_crashing_reader", ["b.wav", "crash.wav", "c.wav"], 1),
        ("make_silent_reader", ["a.wav", "b.wav"], 1),
        ("crash_at_start", ["a.wav"], 0),
    ):
        found = surveyed(names, tmp_path, inspector=f"tests.support.isolated:{reader}")
        assert (found.read, found.failures) == (num_read, {}), reader


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
    monkeypatch.setattr(estimate, "WORTH_BYTES", 1000)
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
    monkeypatch.setattr(estimate, "survey", lambda *_, **__: 1 / 0)
    with surveying(plan, config, found.append):
        time.sleep(0.05)
    assert len(found) == 1


def test_speeds_come_from_what_was_measured(tmp_path: Path):
    store = OutputStore(str(tmp_path / "out"))
    config = run_config("/in", store.uri, model="whisper-base")
    assert measured_machines(config, store) == []
    store.write_json("_run/fingerprint.json", {"settings": result_settings(config)})
    write_snapshot(store, snapshot(rtfx=7.5, transcribe_workers=3))
    [known] = measured_machines(config, store)
    assert (known.rtfx, known.count) == (2.5, 3)
    assert known.name.startswith("measured by the run of ")
    # Of another search or model its speed says little.
    decoding = config.decoding.model_copy(update={"beam_size": 1})
    assert measured_machines(config.model_copy(update={"decoding": decoding}), store) == []
    store.write_json("run.json", {"model": "openai/whisper-base"})
    assert measured_machines(config, store) == [known]
    store.write_json("run.json", {"model": "other"})
    assert measured_machines(config, store) == []
    store.remove("run.json")
    write_snapshot(store, snapshot(audio_s=9.0))  # mostly its start
    assert measured_machines(config, store) == []


def test_a_check_measures_this_machine_with_its_slots_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = ScriptedEngine()
    monkeypatch.setattr(preflight, "ExtractStage", partial(ExtractStage, extractor=EXTRACTOR))
    monkeypatch.setattr(
        preflight, "TranscribeStage", partial(TranscribeStage, engine_factory=always(engine))
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"parts of a script")
    config = scripted_job(tmp_path, source={"uri": str(tmp_path / "in")})
    store = OutputStore(config.output.uri)
    check = ReadyCheck(config, store, make_plan(config, store), store)
    names = [line.split()[0] for line in check.lines()]
    assert names == ["output", "recording", "machines", "model", "speed", "memory"]
    # The first with speech is tried alone, then eight times at once.
    assert len(engine.requests) == 1 + 8
    assert len({request.num_samples for request in engine.requests}) == 1
    assert check.rtfx is not None
    assert check.rtfx > 0
    assert engine.closed
