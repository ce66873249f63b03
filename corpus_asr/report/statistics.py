"""What a run achieved, counted from its tables.

In: batches of the outcomes and segments tables and, where it is known, of the listing; in any
order, in one pass each. Out: frozen counts and the balance of files. Pure functions over Arrow:
knows no store, no clock and no console.

Only narrow columns are held (about 60 bytes per part), so a report of millions of recordings fits
the memory of a laptop.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.schemas import OUTCOMES

OUTCOME_COLUMNS = (
    "recording_id", "uri", "part", "last_part", "status", "duration_s", "speech_s",
    "segments_written", "decode_errors", "language", "device", "decode_s", "transcribe_s",
    "error_stage", "error_kind", "error_message", "retryable",
)  # fmt: skip
SEGMENT_COLUMNS = ("recording_id", "confidence")
CONFIDENCE_BINS = 10  # of equal width over 0-1
EXAMPLES = 3

_EXAMPLE_COLUMNS = ("uri", "error_message")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageShare:
    """What was decoded in one language."""

    language: str
    recordings: int
    audio_s: float
    segments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureExample:
    """One failed recording."""

    uri: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failures of one kind."""

    stage: str
    kind: str
    recordings: int
    retryable: bool
    examples: tuple[FailureExample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Whether every listed file ended exactly once."""

    listed: int | None
    """Files listed or decided earlier; None where the listing is not known."""
    ended: int
    unfinished: int
    """Recordings with some parts committed and others not."""
    waiting: int
    """Listed files of which nothing is committed yet."""
    problems: tuple[str, ...]
    """What contradicts `exactly once`; empty for a sound output, a finished one or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Everything the report shows, times in seconds."""

    ok: int
    no_speech: int
    failed: int
    parts: int
    audio_s: float
    speech_s: float | None
    """None where no part was searched for speech."""
    segments: int
    extract_s: float
    """Summed over processes: decoding, speech detection and features."""
    transcribe_s: float
    """Summed over parts from submission to result; parts overlap, so it exceeds the wall time."""
    skipped_packets: int
    recordings_with_skipped_packets: int
    devices: tuple[tuple[str, int], ...]
    """Parts transcribed by each device."""
    languages: tuple[LanguageShare, ...]
    confidence: tuple[int, ...]
    """Segments per bin of confidence, from 0 to 1."""
    failures: tuple[FailureGroup, ...]
    balance: Balance


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run's counts together with what the run itself recorded."""

    uri: str
    finished: bool
    """False while it runs and after it was stopped."""
    run_id: str | None
    model: str | None
    model_revision: str | None
    wall_s: float | None
    """Of the run that finished last; None before."""
    speed: float | None
    """Hours of audio per hour in that run."""
    statistics: Statistics


def summarise(
    outcomes: Iterable[pa.RecordBatch],
    segments: Iterable[pa.RecordBatch],
    listing: Iterable[pa.RecordBatch] | None,
) -> Statistics:
    """Count a run.

    Args:
        outcomes: batches with at least `OUTCOME_COLUMNS`.
        segments: batches with at least `SEGMENT_COLUMNS`.
        listing: batches with `recording_id` of the files the run was to do; files decided in
            earlier runs may be left out. None where it is not known.
    """
    parts, failures = _collect_outcomes(outcomes)
    committed = parts.num_rows
    parts = _once_per_part(parts)
    recordings = _by_recording(parts)
    confidence, written = _collect_segments(segments)
    balance = _balance(recordings, listing, written=written, doubled=committed - parts.num_rows)
    ended = recordings.filter(pc.field("ended"))
    packets = recordings["decode_errors_max"]
    return Statistics(
        ok=_count(ended, "status", "ok"),
        no_speech=_count(ended, "status", "no_speech"),
        failed=_count(ended, "status", "failed"),
        parts=parts.num_rows,
        audio_s=_sum(parts["duration_s"]),
        speech_s=None if _all_null(parts["speech_s"]) else _sum(parts["speech_s"]),
        segments=int(_sum(parts["segments_written"])),
        extract_s=_sum(parts["decode_s"]),
        transcribe_s=_sum(parts["transcribe_s"]),
        skipped_packets=int(_sum(packets)),
        recordings_with_skipped_packets=int(_sum(pc.cast(pc.greater(packets, 0), pa.int64()))),
        devices=_devices(parts),
        languages=_languages(parts),
        confidence=confidence,
        failures=failures,
        balance=balance,
    )


def _collect_outcomes(
    outcomes: Iterable[pa.RecordBatch],
) -> tuple[pa.Table, tuple[FailureGroup, ...]]:
    """Keep the narrow columns of every part, and of the failures the first examples by address."""
    narrow = [name for name in OUTCOME_COLUMNS if name not in _EXAMPLE_COLUMNS]
    schema = pa.schema([OUTCOMES.field(name) for name in narrow])
    kept: list[pa.RecordBatch] = []
    examples: dict[tuple[str, str], list[FailureExample]] = {}
    for batch in outcomes:
        kept.append(batch.select(narrow))
        failed = batch.filter(pc.equal(batch["status"], "failed"))
        for row in failed.select(["error_stage", "error_kind", *_EXAMPLE_COLUMNS]).to_pylist():
            group = examples.setdefault(_failure_key(row), [])
            group.append(FailureExample(uri=row["uri"], message=row["error_message"] or ""))
            if len(group) > 100 * EXAMPLES:  # sorted once in a while: failures can be many
                group[:] = _first_examples(group)
    parts = pa.Table.from_batches([batch.cast(schema) for batch in kept], schema)
    return parts, _failure_groups(parts, examples)


def _failure_key(row: dict[str, Any]) -> tuple[str, str]:
    return (row["error_stage"] or "unknown", row["error_kind"] or "unknown")


def _first_examples(examples: Iterable[FailureExample]) -> list[FailureExample]:
    unique = {example.uri: example for example in examples}
    return [unique[uri] for uri in sorted(unique)[:EXAMPLES]]


def _failure_groups(
    parts: pa.Table, examples: dict[tuple[str, str], list[FailureExample]]
) -> tuple[FailureGroup, ...]:
    failed = parts.filter(pc.field("status") == "failed")
    grouped = failed.group_by(["error_stage", "error_kind"]).aggregate(
        [("recording_id", "count_distinct"), ("retryable", "max")]
    )
    groups = [
        FailureGroup(
            stage=_failure_key(row)[0],
            kind=_failure_key(row)[1],
            recordings=row["recording_id_count_distinct"],
            retryable=bool(row["retryable_max"]),
            examples=tuple(_first_examples(examples[_failure_key(row)])),
        )
        for row in grouped.to_pylist()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.recordings, group.stage, group.kind)))


def _once_per_part(parts: pa.Table) -> pa.Table:
    """Drop later commits of a part that is already there: the first wins, as in the tables."""
    keys = parts.select(["recording_id", "part"]).append_column(
        "row", pa.array(np.arange(parts.num_rows, dtype=np.int64))
    )
    first = keys.group_by(["recording_id", "part"]).aggregate([("row", "min")])["row_min"]
    return parts if len(first) == parts.num_rows else parts.take(pc.sort_indices(first))


def _by_recording(parts: pa.Table) -> pa.Table:
    """Fold parts into recordings: ended when its last part and all parts before it are there."""
    flags = parts.select(["recording_id", "part", "last_part", "segments_written", "decode_errors"])
    for status in ("ok", "failed"):
        flag = pc.cast(pc.equal(parts["status"], status), pa.int8())
        flags = flags.append_column(f"is_{status}", flag)
    folded = flags.group_by("recording_id").aggregate(
        [
            ("part", "count"),
            ("part", "max"),
            ("last_part", "max"),
            ("is_ok", "max"),
            ("is_failed", "max"),
            ("segments_written", "sum"),
            ("decode_errors", "max"),
        ]
    )
    whole = pc.equal(pc.add(folded["part_max"], 1), folded["part_count"])
    ended = pc.and_(pc.fill_null(folded["last_part_max"], False), whole)
    status = pc.if_else(
        pc.equal(folded["is_failed_max"], 1),
        "failed",
        pc.if_else(pc.equal(folded["is_ok_max"], 1), "ok", "no_speech"),
    )
    return folded.append_column("ended", ended).append_column("status", status)


def _collect_segments(
    segments: Iterable[pa.RecordBatch],
) -> tuple[tuple[int, ...], pa.Table]:
    """Count segments by confidence, and by recording."""
    bins = np.zeros(CONFIDENCE_BINS, dtype=np.int64)
    schema = pa.schema([("recording_id", pa.string()), ("rows", pa.int64())])
    counts = [schema.empty_table()]
    for batch in segments:
        confidence = batch["confidence"].drop_null().to_numpy(zero_copy_only=False)
        index = np.clip((confidence * CONFIDENCE_BINS).astype(np.int64), 0, CONFIDENCE_BINS - 1)
        bins += np.bincount(index, minlength=CONFIDENCE_BINS)
        ids = pa.table({"recording_id": batch["recording_id"]})
        grouped = ids.group_by("recording_id").aggregate([([], "count_all")])
        counts.append(grouped.rename_columns(schema.names).cast(schema))
    table = pa.concat_tables(counts).group_by("recording_id").aggregate([("rows", "sum")])
    return tuple(int(count) for count in bins), table


def _balance(
    recordings: pa.Table,
    listing: Iterable[pa.RecordBatch] | None,
    *,
    written: pa.Table,
    doubled: int,
) -> Balance:
    ended = int(_sum(pc.cast(recordings["ended"], pa.int64())))
    problems = []
    if doubled:
        problems.append(f"committed more than once: {_counted(doubled, 'part')}")
    problems += _segment_problems(recordings, written)
    listed, waiting = None, 0
    if listing is not None:
        waiting, repeated = _waiting(recordings, listing)
        listed = recordings.num_rows + waiting
        if repeated:
            problems.append(f"listed more than once: {_counted(repeated, 'file')}")
    return Balance(
        listed=listed,
        ended=ended,
        unfinished=recordings.num_rows - ended,
        waiting=waiting,
        problems=tuple(problems),
    )


def _waiting(recordings: pa.Table, listing: Iterable[pa.RecordBatch]) -> tuple[int, int]:
    """Count the listed files without any outcome, and the listing's repetitions."""
    listed = pa.chunked_array([batch["recording_id"] for batch in listing], pa.string())
    unique = pc.unique(listed)
    known = recordings["recording_id"].combine_chunks()
    begun = pc.is_in(unique, value_set=known)
    waiting = len(unique) - int(_sum(pc.cast(begun, pa.int64())))
    return waiting, len(listed) - len(unique)


def _segment_problems(recordings: pa.Table, written: pa.Table) -> list[str]:
    """Compare the segments each recording's outcomes claim with those in the segments table."""
    claimed = recordings.select(["recording_id", "segments_written_sum"])
    both = claimed.join(written, keys="recording_id", join_type="full outer")
    claim = pc.fill_null(both["segments_written_sum"], 0)
    found = pc.fill_null(both["rows_sum"], 0)
    off = both.filter(pc.not_equal(claim, found))
    if not off.num_rows:
        return []
    names = ", ".join(sorted(off["recording_id"].to_pylist())[:EXAMPLES])
    return [
        f"other segments than their outcomes claim: {_counted(off.num_rows, 'recording')}, such as "
        f"{names} ({int(_sum(found)):,} rows in all, {int(_sum(claim)):,} claimed)"
    ]


def _languages(parts: pa.Table) -> tuple[LanguageShare, ...]:
    spoken = parts.filter(pc.is_valid(parts["language"]))
    grouped = spoken.group_by("language").aggregate(
        [("recording_id", "count_distinct"), ("duration_s", "sum"), ("segments_written", "sum")]
    )
    shares = [
        LanguageShare(
            language=row["language"],
            recordings=row["recording_id_count_distinct"],
            audio_s=row["duration_s_sum"] or 0.0,
            segments=row["segments_written_sum"] or 0,
        )
        for row in grouped.to_pylist()
    ]
    return tuple(sorted(shares, key=lambda share: (-share.audio_s, share.language)))


def _devices(parts: pa.Table) -> tuple[tuple[str, int], ...]:
    counted = pc.value_counts(parts["device"].drop_null()).to_pylist()
    return tuple(sorted((row["values"], row["counts"]) for row in counted))


def _count(table: pa.Table, column: str, value: str) -> int:
    return int(_sum(pc.cast(pc.equal(table[column], value), pa.int64())))


def _sum(column: pa.ChunkedArray | pa.Array) -> float:
    return float(pc.sum(column).as_py() or 0)


def _all_null(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count == len(column))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
