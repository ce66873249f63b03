"""What a run achieved, counted from its tables.

In: batches of the outcomes and segments tables and, where it is known, of the listing; in any
order, in one pass each. Out: frozen counts and the balance of files. Pure functions over Arrow:
knows no store, no clock and no console.

Only narrow columns are held (about 60 bytes per part), so a report of millions of recordings fits
the memory of a laptop.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.report.balance import EXAMPLES, Balance, balance_of, by_recording, contradictions
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.run_state.run_files import Snapshot

OUTCOME_COLUMNS = (
    "run_id", "recording_id", "uri", "part", "last_part", "channel", "status", "duration_s",
    "speech_s", "segments_written", "decode_errors", "language", "device", "decode_s",
    "transcribe_s", "label", "error_stage", "error_kind", "error_message", "retryable",
)  # fmt: skip
SEGMENT_COLUMNS = ("recording_id", "confidence")
LABEL_COLUMNS = ("recording_id", "rank", "probability")
COUNTS = pa.field("counts", pa.bool_())
"""Added to outcomes by whoever reads them: whether the row is the one that counts for its part."""
CONFIDENCE_BINS = 10  # of equal width over 0-1

_EXAMPLE_COLUMNS = ("uri", "error_message")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageShare:
    """What was decoded in one language."""

    language: str
    recordings: int
    audio_s: float
    segments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelShare:
    """What was found to be of one class."""

    label: str
    recordings: int
    """Those of which some part was."""
    audio_s: float


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
    """Or labels, of a classification."""
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
    """Segments per bin of confidence, from 0 to 1; or windows, by their likeliest label's."""
    failures: tuple[FailureGroup, ...]
    audio_by_run_s: tuple[tuple[str, float], ...]
    """Audio committed by each run that worked on this output."""
    balance: Balance
    labels: tuple[LabelShare, ...] = ()
    """Of a classification: by each part's likeliest label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run's counts together with what the run itself recorded."""

    uri: str
    finished: bool
    """False while it runs and after it was stopped."""
    run_id: str | None
    """The run that worked here last."""
    model: str | None
    model_revision: str | None
    wall_s: float | None
    """Its time from its beginning to its end, or to its last commit so far; None before."""
    speed: float | None
    """Hours of audio it committed per hour."""
    statistics: Statistics
    snapshot: Snapshot | None = None
    """What the workers of that run did; None where it left no word of it."""


def summarise(
    outcomes: Iterable[pa.RecordBatch],
    segments: Iterable[pa.RecordBatch],
    listing: Iterable[pa.RecordBatch] | None,
    recordings: Iterable[pa.RecordBatch] | None = None,
) -> Statistics:
    """Count a run.

    Args:
        outcomes: batches of `OUTCOME_COLUMNS` and `COUNTS`.
        segments: batches with at least `SEGMENT_COLUMNS`, those of all outcomes rows; or what
            `as_segments` made of labels.
        listing: batches with `recording_id` of the files the run is to cover; None where that
            is not known.
        recordings: the recordings table of a finished run, to be compared with what
            the outcomes say; None for any other.
    """
    committed, failures = _collect_outcomes(outcomes)
    parts = _in_recording_time(committed.filter(committed["counts"]))
    folded = by_recording(parts)
    confidence, written = _collect_segments(segments)
    balance = balance_of(folded, listing, superseded=committed.num_rows - parts.num_rows)
    problems = contradictions(committed, parts, folded, written, recordings)
    balance = replace(balance, problems=(*balance.problems, *problems))
    ended = folded.filter(pc.field("ended"))
    packets = folded["decode_errors"]
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
        recordings_with_skipped_packets=_true(pc.greater(packets, 0)),
        devices=_devices(parts),
        languages=_languages(parts),
        confidence=confidence,
        failures=failures,
        audio_by_run_s=_audio_by_run(parts),
        balance=balance,
        labels=_labels(parts),
    )


def _collect_outcomes(
    outcomes: Iterable[pa.RecordBatch],
) -> tuple[pa.Table, tuple[FailureGroup, ...]]:
    """Keep the narrow columns of every row, and of the failures the first examples by address."""
    narrow = [name for name in OUTCOME_COLUMNS if name not in _EXAMPLE_COLUMNS]
    schema = pa.schema([*(OUTCOMES.field(name) for name in narrow), COUNTS])
    kept: list[pa.RecordBatch] = []
    examples: dict[tuple[str, str], list[FailureExample]] = {}
    for batch in outcomes:
        kept.append(batch.select(schema.names).cast(schema))
        failed = batch.filter(pc.and_(pc.equal(batch["status"], "failed"), batch["counts"]))
        for row in failed.select(["error_stage", "error_kind", *_EXAMPLE_COLUMNS]).to_pylist():
            group = examples.setdefault(_failure_key(row), [])
            group.append(FailureExample(uri=row["uri"], message=row["error_message"] or ""))
            if len(group) > 100 * EXAMPLES:  # sorted once in a while: failures can be many
                group[:] = _first_examples(group)
    committed = pa.Table.from_batches(kept, schema)
    failed = committed.filter(pc.and_(pc.equal(committed["status"], "failed"), committed["counts"]))
    return committed, _failure_groups(failed, examples)


def _in_recording_time(parts: pa.Table) -> pa.Table:
    """Share out times among channels transcribed apart: they hold the same stretch of time."""
    counted = parts.group_by("recording_id").aggregate(
        [("channel", "count_distinct", pc.CountOptions(mode="only_valid"))]
    )
    owners = pc.index_in(parts["recording_id"], value_set=counted["recording_id"].combine_chunks())
    channels = pc.max_element_wise(counted["channel_count_distinct"].take(owners), 1)
    for name in ("duration_s", "speech_s"):
        position = parts.schema.get_field_index(name)
        shared = pc.divide(parts[name], channels.cast(pa.float64()))
        parts = parts.set_column(position, parts.schema.field(position), shared)
    return parts


def _failure_key(row: dict[str, Any]) -> tuple[str, str]:
    return (row["error_stage"] or "unknown", row["error_kind"] or "unknown")


def _first_examples(examples: Iterable[FailureExample]) -> list[FailureExample]:
    unique = {example.uri: example for example in examples}
    return [unique[uri] for uri in sorted(unique)[:EXAMPLES]]


def _failure_groups(
    failed: pa.Table, examples: dict[tuple[str, str], list[FailureExample]]
) -> tuple[FailureGroup, ...]:
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


def as_segments(labels: pa.RecordBatch) -> pa.RecordBatch:
    """Turn `LABEL_COLUMNS` into what is counted of segments."""
    first = pc.equal(labels["rank"], 1)
    sure = pc.if_else(first, labels["probability"], pa.scalar(None, pa.float32()))
    return pa.RecordBatch.from_arrays([labels["recording_id"], sure], list(SEGMENT_COLUMNS))


def _labels(parts: pa.Table) -> tuple[LabelShare, ...]:
    labelled = parts.filter(pc.is_valid(parts["label"]))
    grouped = labelled.group_by("label").aggregate(
        [("recording_id", "count_distinct"), ("duration_s", "sum")]
    )
    shares = [
        LabelShare(
            label=row["label"],
            recordings=row["recording_id_count_distinct"],
            audio_s=row["duration_s_sum"] or 0.0,
        )
        for row in grouped.to_pylist()
    ]
    return tuple(sorted(shares, key=lambda share: (-share.audio_s, share.label)))


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


def _audio_by_run(parts: pa.Table) -> tuple[tuple[str, float], ...]:
    rows = parts.group_by("run_id").aggregate([("duration_s", "sum")]).to_pylist()
    return tuple(sorted((row["run_id"] or "", row["duration_s_sum"] or 0.0) for row in rows))


def _devices(parts: pa.Table) -> tuple[tuple[str, int], ...]:
    counted = pc.value_counts(parts["device"].drop_null()).to_pylist()
    return tuple(sorted((row["values"], row["counts"]) for row in counted))


def _count(table: pa.Table, column: str, value: str) -> int:
    return _true(pc.equal(table[column], value))


def _true(flags: pa.ChunkedArray | pa.Array) -> int:
    return int(_sum(flags))


def _sum(column: pa.ChunkedArray | pa.Array) -> float:
    return float(pc.sum(column).as_py() or 0)


def _all_null(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count == len(column))
