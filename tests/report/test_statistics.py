"""Counts are exact in any order of batches, and what contradicts `exactly once` is said."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.report.statistics import COUNTS, Statistics, as_segments, summarise
from corpus_asr.schemas import FILES, OUTCOMES, RECORDINGS, SEGMENTS

SETTLED = OUTCOMES.append(COUNTS)


def outcome(recording: str, part: int = 0, **values: Any) -> dict[str, Any]:
    status = values.get("status", "ok")
    spoken = status == "ok"
    row = {
        "run_id": "run-1",
        "counts": True,
        "recording_id": recording,
        "uri": f"s3://bucket/{recording}.mp3",
        "part": part,
        "last_part": True,
        "status": status,
        "duration_s": 0.0 if status == "failed" else 100.0,
        "speech_s": 60.0 if spoken else 0.0,
        "segments_written": 2 if spoken else 0,
        "decode_errors": 0,
        "language": "en" if spoken else None,
        "device": "cpu" if spoken else None,
        "decode_s": 0.5,
        "transcribe_s": 2.0 if spoken else None,
    }
    if status == "failed":
        row |= {
            "error_stage": "extract",
            "error_kind": "no_audio_stream",
            "error_message": f"decoding {recording}: no audio stream",
            "retryable": False,
        }
    return row | values


def segments_of(rows: list[dict[str, Any]], confidence: float = 0.95) -> list[dict[str, Any]]:
    return [
        {"recording_id": row["recording_id"], "confidence": confidence}
        for row in rows
        for _ in range(row["segments_written"])
    ]


def batches(
    rows: list[dict[str, Any]], schema: pa.Schema, size: int = 3
) -> Iterator[pa.RecordBatch]:
    table = pa.Table.from_pylist(rows, schema=schema)
    yield from table.to_batches(max_chunksize=size)


def count(
    rows: list[dict[str, Any]],
    *,
    segments: list[dict[str, Any]] | None = None,
    listed: list[str] | None = None,
    recordings: dict[str, str] | None = None,
) -> Statistics:
    segments = segments_of(rows) if segments is None else segments
    listing = None
    if listed is not None:
        listing = batches([{"recording_id": name, "uri": name} for name in listed], FILES)
    table = None
    if recordings is not None:
        pairs = [{"recording_id": name, "status": status} for name, status in recordings.items()]
        table = batches(pairs, RECORDINGS)
    return summarise(batches(rows, SETTLED), batches(segments, SEGMENTS), listing, table)


def test_a_folder_without_outcomes_counts_nothing() -> None:
    found = count([], listed=["a", "b"])
    assert (found.ok, found.parts, found.audio_s, found.speech_s) == (0, 0, 0.0, None)
    assert (found.balance.listed, found.balance.waiting, found.balance.ended) == (2, 2, 0)
    assert found.balance.problems == ()


def test_recordings_end_by_their_worst_and_best_part() -> None:
    found = count(
        [
            outcome("a", 0, last_part=False),
            outcome("a", 1, status="no_speech"),
            outcome("b", status="no_speech"),
            outcome("c", 0, last_part=False),
            outcome("c", 1, status="failed"),
        ]
    )
    assert (found.ok, found.no_speech, found.failed, found.parts) == (1, 1, 1, 5)
    assert found.audio_s == 400.0
    assert found.speech_s == 120.0
    assert found.segments == 4
    assert found.extract_s == 2.5
    assert found.transcribe_s == 4.0
    assert found.devices == (("cpu", 2),)
    assert found.balance.ended == 3
    assert found.balance.listed is None


def test_a_recording_without_its_last_part_or_with_a_gap_has_not_ended() -> None:
    found = count(
        [outcome("a", 0, last_part=False), outcome("b", 1), outcome("c")],
        listed=["a", "b", "c", "d"],
    )
    assert (found.ok, found.balance.unfinished, found.balance.waiting) == (1, 2, 1)
    assert found.balance.listed == 4


def test_a_row_that_does_not_count_is_left_out_of_all_numbers_but_its_own() -> None:
    rows = [outcome("a"), outcome("b"), outcome("a", duration_s=999.0, counts=False)]
    found = count(rows)
    assert (found.audio_s, found.parts, found.segments) == (200.0, 2, 4)
    assert found.balance.superseded_parts == 1
    assert found.balance.problems == ()
    failed = count([outcome("a"), outcome("a", status="failed", counts=False)])
    assert failed.failures == ()


def test_a_part_counted_twice_is_told() -> None:
    found = count([outcome("a"), outcome("b"), outcome("a")])
    assert found.balance.problems == ("counted more than once: 1 part",)


def test_parts_after_a_last_one_do_not_keep_a_recording_open() -> None:
    # One attempt failed at part 1 for good; another had committed part 3 before it was killed.
    rows = [outcome("a", 0, last_part=False), outcome("a", 3, last_part=False)]
    rows.append(outcome("a", 1, status="failed"))
    found = count(rows)
    assert (found.failed, found.balance.ended, found.balance.unfinished) == (1, 1, 0)


def test_recordings_no_longer_listed_are_kept_apart() -> None:
    found = count([outcome("old"), outcome("a")], listed=["a", "b"])
    assert found.ok == 2
    balance = found.balance
    assert (balance.listed, balance.ended, balance.waiting, balance.unlisted) == (2, 1, 1, 1)


def test_a_recordings_table_that_says_something_else_is_told() -> None:
    rows = [outcome("a"), outcome("b", status="failed"), outcome("c", status="no_speech")]
    truth = {"a": "ok", "b": "failed", "c": "no_speech"}
    assert count(rows, recordings=truth).balance.problems == ()
    for wrong in ({"a": "ok", "b": "ok", "c": "no_speech"}, {"a": "ok", "c": "no_speech"}):
        (problem,) = count(rows, recordings=wrong).balance.problems
        assert problem == "recordings table and outcomes differ on 1 recording, such as b"


def test_audio_is_known_by_run() -> None:
    rows = [outcome("a"), outcome("b", run_id="run-2"), outcome("c", run_id="run-2")]
    assert count(rows).audio_by_run_s == (("run-1", 100.0), ("run-2", 200.0))


def test_segments_that_no_outcome_claims_are_told() -> None:
    rows = [outcome("a"), outcome("b")]
    (problem,) = count(rows, segments=segments_of(rows)[:-1]).balance.problems
    assert problem.startswith("other segments than their outcomes claim: 1 recording, such as b")
    assert problem.endswith("(3 rows in all, 4 claimed)")
    (problem,) = count([], segments=segments_of(rows)).balance.problems
    assert "such as a, b" in problem


def test_a_file_listed_twice_is_told() -> None:
    problems = count([outcome("a")], listed=["a", "a"]).balance.problems
    assert problems == ("listed more than once: 1 file",)


def test_failures_are_grouped_with_three_examples_in_order_of_address() -> None:
    rows = [outcome(f"{number:03}", status="failed") for number in range(400, 0, -1)]
    rows.append(
        outcome("x", status="failed", error_stage="transcribe", error_kind="poison", retryable=True)
    )
    missing, poison = count(rows).failures
    assert (missing.stage, missing.kind, missing.recordings) == ("extract", "no_audio_stream", 400)
    assert [example.uri for example in missing.examples] == [
        f"s3://bucket/{number:03}.mp3" for number in (1, 2, 3)
    ]
    assert not missing.retryable
    assert (poison.kind, poison.recordings, poison.retryable) == ("poison", 1, True)


def test_languages_come_by_audio_and_confidence_by_tenths() -> None:
    rows = [outcome("a"), outcome("b", language="de", duration_s=500.0), outcome("c")]
    segments = (
        segments_of(rows[:1], 0.0) + segments_of(rows[1:2], 0.55) + segments_of(rows[2:], 1.0)
    )
    found = count(rows, segments=segments)
    assert [(share.language, share.audio_s) for share in found.languages] == [
        ("de", 500.0),
        ("en", 200.0),
    ]
    assert [share.recordings for share in found.languages] == [1, 2]
    assert found.confidence == (2, 0, 0, 0, 0, 2, 0, 0, 0, 2)


def test_skipped_packets_are_counted_once_per_recording() -> None:
    # The column counts from the start of the recording, so its maximum is the total.
    found = count(
        [
            outcome("a", 0, last_part=False, decode_errors=2),
            outcome("a", 1, decode_errors=5),
            outcome("b"),
        ]
    )
    assert (found.skipped_packets, found.recordings_with_skipped_packets) == (5, 1)


def test_speech_is_unknown_where_it_was_not_looked_for() -> None:
    assert count([outcome("a", speech_s=None)]).speech_s is None


@given(order=st.permutations(range(6)), size=st.integers(1, 6))
def test_the_order_and_size_of_batches_do_not_matter(order: list[int], size: int) -> None:
    rows = [
        outcome("a", 0, last_part=False),
        outcome("a", 1),
        outcome("b", status="no_speech"),
        outcome("c", status="failed"),
        outcome("d", language="de"),
        outcome("e", status="failed", error_kind="timeout"),
    ]
    shuffled = [rows[index] for index in order]
    found = summarise(
        batches(shuffled, SETTLED, size), batches(segments_of(shuffled), SEGMENTS, size), None
    )
    assert found == count(rows)


@pytest.mark.parametrize("column", ["error_stage", "error_kind", "error_message", "retryable"])
def test_a_failure_without_words_is_still_counted(column: str) -> None:
    (group,) = count([outcome("a", status="failed") | {column: None}]).failures
    assert group.recordings == 1


def test_channels_apart_hold_the_same_time() -> None:
    rows = [
        outcome("two", 0, last_part=False, channel=0),
        outcome("two", 1, last_part=False, channel=1),
        outcome("two", 2, status="failed"),
        outcome("one", 0, channel=3),
        outcome("mixed", 0, run_id="run-2"),
    ]
    found = count(rows, listed=["two", "one", "mixed"])
    assert (found.audio_s, found.speech_s) == (300.0, 180.0)
    assert found.audio_by_run_s == (("run-1", 200.0), ("run-2", 100.0))
    assert [language.audio_s for language in found.languages] == [300.0]
    assert found.segments == 8


def test_labels_are_counted_by_part_and_windows_by_their_likeliest() -> None:
    table = pa.table(
        {
            "recording_id": ["a", "a", "b", "b"],
            "rank": pa.array([1, 2, 1, 2], pa.int32()),
            "probability": pa.array([0.95, 0.05, 0.5, 0.5], pa.float32()),
        }
    )
    turned = pa.Table.from_batches([as_segments(batch) for batch in table.to_batches()])
    assert turned["recording_id"].to_pylist() == ["a", "a", "b", "b"]
    assert turned["confidence"].is_valid().to_pylist() == [True, False, True, False]
    rows = [
        outcome("a", 0, label="music", duration_s=30.0, last_part=False),
        outcome("a", 1, label="music", duration_s=30.0),
        outcome("b", 0, label="speech", duration_s=40.0),
        outcome("c", 0),
    ]
    found = count(rows).labels
    assert [(one.label, one.recordings, one.audio_s) for one in found] == [
        ("music", 1, 60.0),
        ("speech", 1, 40.0),
    ]
