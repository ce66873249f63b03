"""Counts are exact, contradictions are told, and all of it reads well."""

import json
import re
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.report.numbers import (
    Accounting,
    ClassShare,
    FailureExample,
    FailureGroup,
    RunNumbers,
    reconcile,
)
from corpus_asr.report.page import write_page
from corpus_asr.report.run import (
    HISTORY_FOLDER,
    MOST_RUNS,
    Entry,
    OutputNumbers,
    Report,
    as_data,
    last_runs,
    load_report,
    render,
    run_entry,
    write_entry,
)
from corpus_asr.report.text import duration
from corpus_asr.schemas import FILES, OUTCOMES, RECORDINGS
from corpus_asr.storage.run_state.current_rows import read_confidences
from corpus_asr.storage.run_state.run_files import write_snapshot
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import LABEL_ROWS, RUN_NAME, SEGMENT_ROWS, PartRows
from corpus_asr.storage.run_state.tables import OutputStore, projected
from tests.support.nightly import past
from tests.support.pages import parsed
from tests.support.runs import NAMES, REVISION, ManualRun
from tests.support.tables import put_nested, snapshot

_SHARED = {"recording_id", "part", "confidence"}


def outcome(recording: str, part: int = 0, **values: Any) -> dict[str, Any]:
    status = values.get("status", "ok")
    spoken = status == "ok"
    row = {
        "run_id": "run-1", "recording_id": recording,
        "uri": f"s3://bucket/{recording}.mp3", "part": part, "last_part": True, "status": status,
        "duration_s": 0.0 if status == "failed" else 100.0, "speech_s": 60.0 if spoken else 0.0,
        "segments_written": 2 if spoken else 0, "decode_errors": 0,
        "language": "en" if spoken else None, "device": "cpu" if spoken else None,
        "decode_s": 0.5, "transcribe_s": 2.0 if spoken else None,
    }  # fmt: skip
    if status == "failed":
        row |= {
            "error_stage": "extract", "error_kind": "no_audio_stream",
            "error_message": f"decoding {recording}: no audio stream", "retryable": False,
        }  # fmt: skip
    return row | values


def segments_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"confidence": 0.95} | {name: row[name] for name in _SHARED & row.keys()}
        for row in rows
        for _ in range(row["segments_written"])
    ]


@contextmanager
def read(
    rows: list[dict[str, Any]],
    segments: list[dict[str, Any]] | None = None,
    *,
    listed: list[str] | None = None,
    size: int = 100,
    kind: PartRows = SEGMENT_ROWS,
) -> Iterator[RunTables]:
    """Commit outcomes, so many at once, and read them with their segments."""
    store = OutputStore(f"memory://{uuid.uuid4().hex}")
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        theirs = segments_of(some) if segments is None else segments
        put_nested(store,
            pa.Table.from_pylist(some, OUTCOMES), pa.Table.from_pylist(theirs, kind.schema),
            kind,
        )  # fmt: skip
    files = [{"recording_id": name, "uri": name} for name in listed or ()]
    listing = pa.Table.from_pylist(files, FILES).to_batches()
    with RunTables(store, listing=listing) as tables:
        read_confidences(store, tables, kind)
        yield tables


def count(
    rows: list[dict[str, Any]],
    segments: list[dict[str, Any]] | None = None,
    *,
    listed: list[str] | None = None,
    recordings: list[tuple[str, str]] | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Return the numbers of outcomes, and how they are accounted for."""
    written = None
    if recordings is not None:
        pairs = [{"recording_id": name, "status": status} for name, status in recordings]
        schema = projected(RECORDINGS, ("recording_id", "status"))
        written = pa.Table.from_pylist(pairs, schema).to_batches(max_chunksize=2)
    with read(rows, segments, listed=listed, **reading) as tables:
        numbers = RunNumbers.of(tables)
        return asdict(numbers) | asdict(reconcile(tables, written, is_listed=listed is not None))


def shares(*expected: tuple[str, int, float, int]) -> tuple[dict[str, Any], ...]:
    names = ("name", "recordings", "audio_s", "segments")
    return tuple(dict(zip(names, share, strict=True)) for share in expected)


def probabilities(name: str, part: int, seconds: float, *likeliest: float) -> list[dict[str, Any]]:
    return [
        {"recording_id": name, "part": part, "rank": rank, "probability": probability,
         "start_s": 0.0, "end_s": seconds}
        for rank, probability in enumerate(likeliest, start=1)
    ]  # fmt: skip


# What counts is said in tests/storage/test_fold.py: here, that the sums are of that.
FAILED: dict[str, Any] = {"status": "failed"}
MUSIC, SPEECH = ([{"label": name, "probability": 0.9}] for name in ("music", "speech"))
COUNTED: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "nothing": ([], {"listed": ["a", "b"]},
        {"ok": 0, "parts": 0, "audio_s": 0.0, "speech_s": None, "listed": 2, "waiting": 2,
         "processed": 0, "problems": ()}),
    "speech not looked for": ([outcome("a", speech_s=None)], {}, {"speech_s": None}),
    "worst and best parts": (
        [outcome("a", 0, last_part=False), outcome("a", 1, status="no_speech"),
         outcome("b", status="no_speech"), outcome("c", 0, last_part=False),
         outcome("c", 1, **FAILED)], {},
        {"ok": 1, "no_speech": 1, "failed": 1, "parts": 5, "audio_s": 400.0, "speech_s": 120.0,
         "segments": 4, "extract_s": 2.5, "transcribe_s": 4.0, "devices": (("cpu", 2),),
         "processed": 3, "listed": None}),
    "parts that are missing": (
        [outcome("a", 0, last_part=False), outcome("b", 1), outcome("c")],
        {"listed": ["a", "b", "c", "d"]}, {"ok": 1, "unfinished": 2, "waiting": 1}),
    "a row that does not count": (
        [outcome("a"), outcome("b"), outcome("a", duration_s=999.0)], {},
        {"audio_s": 200.0, "parts": 2, "segments": 4, "audio_by_run_s": (("run-1", 200.0),),
         "superseded_parts": 1, "problems": ()}),
    "a failure that does not count": ([outcome("a"), outcome("a", **FAILED)], {}, {"failures": ()}),
    "segments of rows that count": (
        [outcome("a"), outcome("a", confidence=0.05), outcome("b", confidence=0.55)], {"size": 1},
        {"confidence": (0, 0, 0, 0, 0, 2, 0, 0, 0, 2), "mean_confidence": 0.75,
         "low_confidence": 1, "problems": ()}),
    "languages by audio, confidence by tenths": (
        [outcome("a", confidence=0.0), outcome("c", confidence=1.0),
         outcome("b", language="de", duration_s=500.0, confidence=0.55)], {},
        {"languages": shares(("de", 1, 500.0, 2), ("en", 2, 200.0, 4)),
         "confidence": (2, 0, 0, 0, 0, 2, 0, 0, 0, 2)}),
    # The column counts from the start of the recording, so its maximum is the total.
    "skipped packets": (
        [outcome("a", last_part=False, decode_errors=2), outcome("a", 1, decode_errors=5),
         outcome("b")], {},
        {"skipped_packets": 5, "recordings_with_skipped_packets": 1}),
    "channels apart hold the same time": (
        [outcome("two", 0, last_part=False, channel=0),
         outcome("two", 1, last_part=False, channel=1), outcome("two", 2, **FAILED),
         outcome("one", 0, channel=3), outcome("mixed", 0, run_id="run-2")],
        {"listed": ["two", "one", "mixed"]},
        {"audio_s": 300.0, "speech_s": 180.0, "segments": 8,
         "audio_by_run_s": (("run-1", 200.0), ("run-2", 100.0)),
         "languages": shares(("en", 3, 300.0, 8))}),
    "labels by part, windows by their likeliest": (
        [outcome("a", 0, label_means=MUSIC, duration_s=30.0, last_part=False),
         outcome("a", 1, label_means=MUSIC, duration_s=30.0),
         outcome("b", 0, label_means=SPEECH, duration_s=40.0), outcome("c", 0)],
        {"kind": LABEL_ROWS, "segments": [
            *probabilities("a", 0, 30.0, 0.95, 0.05), *probabilities("a", 1, 30.0, 0.95, 0.05),
            *probabilities("b", 0, 10.0, 0.5, 0.5), *probabilities("c", 0, 10.0, 0.5, 0.5)]},
        {"confidence": (0, 0, 0, 0, 0, 2, 0, 0, 0, 2), "problems": (),
         "mean_confidence": pytest.approx((0.95 * 60 + 0.5 * 20) / 80, abs=1e-4),
         "labels": shares(("music", 1, 60.0, 4), ("speech", 1, 40.0, 2))}),
    **{f"a failure without {column}": (
        [outcome("a", status="failed") | {column: None}], {}, {"failed": 1})
       for column in ("error_stage", "error_kind", "error_message", "retryable")},
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_numbers_are_of_what_counts(name: str) -> None:
    rows, reading, expected = COUNTED[name]
    found = count(rows, **reading)
    assert {each: found[each] for each in expected} == expected
    assert sum(group["recordings"] for group in found["failures"]) == found["failed"]


def test_a_folder_without_outcomes_has_a_report() -> None:
    assert render(BEGUN).splitlines() == [
        "out (not finished: still running, or stopped)",
        "  recordings  none yet",
        "  audio       0.0 s in 0 parts; speech was not detected",
        "  segments    0",
        "  accounting  0 have exactly one outcome; the listing is not known",
    ]


@pytest.mark.long
def test_contradictions_between_tables_are_told() -> None:
    rows = [outcome("a"), outcome("b", status="failed"), outcome("c", status="no_speech")]
    truth = [("a", "ok"), ("b", "failed"), ("c", "no_speech")]
    assert count(rows, recordings=truth, listed=["a", "b", "c"])["problems"] == ()
    differ = "recordings table and outcomes differ on 1 recording, such as b"
    cases: tuple[tuple[list[dict[str, Any]], dict[str, Any], str], ...] = (
        (rows, {"recordings": [truth[0], ("b", "ok"), truth[2]]}, differ),
        (rows, {"recordings": [truth[0], truth[2]]}, differ),
        (rows, {"recordings": [*truth, truth[1]]},
         "twice in the recordings table: 1 recording"),
        ([outcome("a")], {"listed": ["a", "a"]}, "listed more than once: 1 file"),
    )  # fmt: skip
    for messages, others, problem in cases:
        assert count(messages, **others)["problems"] == (problem,)
    with read([outcome("a"), outcome("b"), outcome("a")]) as tables:
        ids = pa.array(range(3))
        mistaken = pa.table({"id": ids, "counts": [True] * 3, "failing": [False] * 3})
        tables.add("row_states", mistaken)
        accounting = reconcile(tables, is_listed=False)
    assert accounting.problems == ("counted more than once: 1 part",)


@pytest.fixture
def job(tmp_path: Path) -> ManualRun:
    return ManualRun(tmp_path)


def done(job: ManualRun, *names: str) -> Report:
    job.begin()
    for name in names:
        job.commit(name)
    job.finish()
    return load_report(job.store)


@pytest.mark.long
def test_a_run_that_has_only_begun_and_one_under_way(job: ManualRun) -> None:
    job.begin()
    found = load_report(job.store)
    assert (found.finished, found.model, found.model_revision) == (False, "some/model", REVISION)
    assert (found.run_id, found.wall_s, found.rtfx) == (None, None, None)
    assert (found.accounting.listed, found.accounting.waiting) == (3, 3)
    job.commit("a.wav")
    job.commit("b.wav", last_part=False)
    found = load_report(job.store)
    accounting = found.accounting
    assert (accounting.processed, accounting.unfinished, accounting.waiting) == (1, 1, 1)
    assert accounting.problems == ()
    assert found.run_id == job.run.run_id
    assert found.rtfx is None
    # The figures of a run that goes on are what it says itself: those of `status` as well.
    seen = snapshot(run_id=job.run.run_id, audio_s=120.0, elapsed_s=60.0, rtfx=2.0)
    write_snapshot(job.store, seen)
    found = load_report(job.store)
    assert (found.wall_s, found.rtfx, found.snapshot) == (60.0, 2.0, seen)


@pytest.mark.long
def test_an_object_replaced_since_keeps_its_text_until_it_is_done_again(job: ManualRun) -> None:
    done(job, *NAMES)
    (job.source / "a.wav").write_bytes(b"something longer")
    job.begin()
    found = load_report(job.store)
    assert not found.finished
    accounting = found.accounting
    assert (accounting.processed, accounting.waiting, accounting.outdated) == (3, 0, 1)
    assert accounting.superseded_parts == 0
    words = " ".join(render(found).split())
    assert "changed 1 recording with the text of an earlier version: 1 to be transcribed" in words
    assert "2 of 3 listed files have an outcome of their present version" in words
    job.commit("a.wav", duration_s=90.0)
    assert load_report(job.store).statistics.audio_s == 210.0


@pytest.mark.long
def test_a_recording_taken_out_of_the_source_is_kept(job: ManualRun) -> None:
    done(job, *NAMES)
    (job.source / "d.wav").write_bytes(b"d")
    job.begin()
    job.commit("d.wav", last_part=False)  # is in no count: half of it is no transcript
    for name in ("a.wav", "d.wav"):
        (job.source / name).unlink()
    found = done(job)
    assert (found.statistics.ok, found.accounting.listed, found.accounting.unlisted) == (3, 2, 1)
    assert job.store.read_json(RUN_NAME)["counts"]["gone"] == 1
    assert found.accounting.problems == ()
    words = " ".join(render(found).split())
    assert "recordings 3: 3 with text gone 1 recording not listed any more" in words
    write_page(job.store, page := str(job.source.parent / "page.html"))
    shown = parsed(Path(page).read_text()).text
    assert "Recordings3of 3" in shown
    assert "1 recording not listed any more" in shown


def test_recordings_of_an_archive_that_cannot_be_read_are_not_gone(job: ManualRun) -> None:
    with tarfile.open(packed := job.source / "s.tar", "w") as tar:
        tar.add(job.source / "a.wav", "d.wav")
    done(job, *NAMES, "s.tar#d.wav")
    packed.write_bytes(b"cut off")
    job.begin()
    job.fail("s.tar#*", error_kind="bad_archive")
    job.finish()
    assert load_report(job.store).accounting.unlisted == 0
    assert job.store.read_json(RUN_NAME)["counts"]["gone"] == 0
    assert "gone" not in render(load_report(job.store))


SOUND = Accounting(
    listed=100, processed=100, unfinished=0, waiting=0, unlisted=0, superseded_parts=0, problems=()
)
BEGUN = Report(
    uri="out", finished=False, run_id=None, model=None, model_revision=None, wall_s=None, rtfx=None,
    statistics=RunNumbers(), accounting=replace(SOUND, listed=None, processed=0),
)  # fmt: skip
MISSING = FailureGroup(
    stage="extract", kind="no_audio_stream", recordings=2, retryable=False,
    examples=(
        FailureExample(uri="s3://b/1.mp3", message="decoding s3://b/1.mp3: no audio stream " * 5),
        FailureExample(uri="s3://b/2.mp3", message="the store said no"),
    ),
)  # fmt: skip
FULL = Report(
    uri="s3://transcripts/podcasts", finished=True, run_id="20260101",
    model="openai/whisper-small", model_revision="abc123", wall_s=7200.0, rtfx=120.5,
    accounting=SOUND,
    statistics=RunNumbers(
        ok=95, no_speech=3, failed=2, parts=140, audio_s=360_000.0, speech_s=180_000.0,
        speech_without_text_s=1800.0,
        segments=12_345, extract_s=900.0, transcribe_s=1400.0, skipped_packets=7,
        recordings_with_skipped_packets=1, devices=(("NVIDIA H200", 140),),
        languages=(
            ClassShare(name="en", recordings=90, audio_s=300_000.0, segments=12_000),
            ClassShare(name="de", recordings=5, audio_s=60_000.0, segments=345),
        ),
        confidence=(1, 0, 0, 0, 0, 10, 20, 200, 2_000, 10_114),
        failures=(MISSING,), audio_by_run_s=(("20260101", 867_600.0),),
    ),
)  # fmt: skip


def with_balance(accounting: Accounting, *, finished: bool = True) -> str:
    text = render(replace(FULL, accounting=accounting, finished=finished))
    return " ".join(text.rpartition("\n  accounting")[2].split()).removeprefix("OFF ")


def test_a_full_report_says_everything_within_the_width() -> None:
    text = render(FULL)
    for messages in (
        "s3://transcripts/podcasts (finished)",
        "openai/whisper-small, revision abc123",
        "100: 95 with text, 3 without speech, 2 failed",
        "100.0 h in 140 parts; 50.0 h of it speech (50%)",
        "no text     30.0 min of the speech",
        "RTFx 120.5 in the last run, which took 2.0 h",
        "10.0 s per part from queue to result, on NVIDIA H200",
        "7 broken packets skipped in 1 recording",
        "en  83.3 h  83%  90 recordings  12,000 segments",
        "de  16.7 h  17%   5 recordings     345 segments",
        "2 recordings: no_audio_stream, in extract",
        "s3://b/2.mp3: the store said no",
        "What to do: these contain no audio: exclude them",
        "all 100 listed files have exactly one outcome",
    ):
        assert messages in text
    assert max(map(len, text.splitlines())) <= 100
    words = [duration(seconds) for seconds in (1.25, 90, 5_400, 36_000_000)]
    assert words == ["1.2 s", "1.5 min", "1.5 h", "10,000.0 h"]
    data = json.loads(json.dumps(as_data(FULL)))["statistics"]
    assert data["devices"] == {"NVIDIA H200": 140}
    assert data["failures"][0]["examples"][1]["uri"] == "s3://b/2.mp3"
    assert data["accounting"]["listed"] == 100


def test_a_balance_that_is_not_even_says_why_or_how_to_go_on() -> None:
    stopped = replace(SOUND, listed=10, processed=6, unfinished=1, waiting=3)
    words = with_balance(stopped, finished=False)
    assert "6 of 10 listed files have an outcome" in words
    assert "run the same command again" in words
    assert with_balance(stopped).startswith(
        "- the run finished, yet left 1 recording only started and 3"
    )
    broken = replace(SOUND, problems=("committed more than once: 1 part",))
    assert with_balance(broken) == "- committed more than once: 1 part"


def test_labels_are_told_in_place_of_text_the_most_frequent_first() -> None:
    shares = tuple(
        ClassShare(name=f"class {number}", recordings=1, audio_s=3600.0 / (number + 1), segments=0)
        for number in range(22)
    )
    found = replace(FULL, statistics=replace(FULL.statistics, labels=shares, languages=()))
    text = render(found)
    for words in ("95 with labels", "labels      12,345", "class 0 ", "2 other labels, 5.6 min"):
        assert words in text
    assert not {"class 20", "segments"} & set(re.split(r"\s{2,}", text))
    assert as_data(found)["statistics"]["labels"][0]["label"] == "class 0"


NUMBERS = OutputNumbers(
    ok=90, no_speech=5, failed=5, audio_s=3600.0, segments=1000, mean_confidence=0.9,
    low_confidence=None, rtfx=20.0, wall_s=180.0,
)  # fmt: skip


def note(store: OutputStore, run_id: str, finished_at: str = "2026-01-01", **numbers: Any) -> None:
    entry = run_entry(store, run_id, finished_at=finished_at)
    write_entry(store, replace(entry, **numbers))


def test_a_run_is_kept_once_and_the_last_few_are_read(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    assert last_runs(store) == []
    for number in range(1, MOST_RUNS + 5):
        for ok in (0, number):
            output = replace(NUMBERS, ok=ok)
            note(store, f"run-{number:02}", f"2026-01-{number:02}", output=output)
    entries = last_runs(store)
    assert [entry.output and entry.output.ok for entry in entries] == [*range(MOST_RUNS + 4, 4, -1)]


def test_a_run_has_numbers_of_its_output_and_of_its_night(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    note(store, "run-1", "then", output=NUMBERS)
    note(store, "run-1", "later", night=past())
    assert last_runs(store) == [
        Entry(run_id="run-1", finished_at="then", output=NUMBERS, night=past())
    ]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"run_id": 1}', b"[" * 100_000, b"\xff"]
)
def test_what_is_damaged_is_passed_over_and_written_again(data: bytes, tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    note(store, "run-1", "2026-01-01", output=NUMBERS)
    note(store, "run-2", "2026-01-02", output=NUMBERS)
    store.write_bytes(f"{HISTORY_FOLDER}/run-2.json", data)
    assert [entry.run_id for entry in last_runs(store)] == ["run-1"]
    note(store, "run-2", "2026-01-02", night=past())
    assert [entry.run_id for entry in last_runs(store)] == ["run-2", "run-1"]
