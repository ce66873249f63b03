"""Outcomes of parts in, one row per recording out: the recordings table.

Aggregated in Arrow, a bounded number of recordings at a time. Knows nothing of how parts came
about, nor which commits count: every row it reads does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.schemas import OUTCOMES, RECORDINGS
from corpus_asr.storage.run_state.tables import RECORDINGS_FOLDER, SUFFIX, OutputStore
from corpus_asr.storage.stems import unique_stem

RECORDINGS_PER_OBJECT = 250_000  # with their parts, some hundred MiB of memory
_ERROR_COLUMNS = ("error_stage", "error_kind", "error_message", "retryable")
# The same in every part; what only some parts know (a failed one has no codec) comes from those.
_FIRST_COLUMNS = (
    "uri", "size_bytes", "etag", "metadata", "codec", "sample_rate_hz", "channels",
    "header_duration_s",
)  # fmt: skip
PART_COLUMNS = (
    "recording_id", "run_id", "part", "channel", "status", "language", "duration_s", "speech_s",
    "segments_written", "decode_errors", "label_means", "label_weight_s", *_FIRST_COLUMNS,
    *_ERROR_COLUMNS,
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums over the recordings table; `listed_...` over those of the present listing."""

    recordings: int = 0
    segments: int = 0
    audio_s: float = 0.0
    speech_s: float = 0.0
    listed_ok: int = 0
    listed_no_speech: int = 0
    listed_failed: int = 0

    def add(self, table: pa.Table, listed_ids: pa.Array) -> None:
        """Add rows of the table."""
        self.recordings += table.num_rows
        self.segments += pc.sum(table["segments"]).as_py() or 0
        self.audio_s += pc.sum(table["duration_s"]).as_py() or 0.0
        self.speech_s += pc.sum(table["speech_s"]).as_py() or 0.0
        listed = table.filter(pc.is_in(table["recording_id"], value_set=listed_ids))
        for count in pc.value_counts(listed["status"]).to_pylist():
            name = f"listed_{count['values']}"
            setattr(self, name, getattr(self, name) + count["counts"])


def write_recordings(store: OutputStore, *, complete_ids: pa.Array, listed_ids: pa.Array) -> Totals:
    """Replace the recordings table by one row for each complete recording.

    The new objects are written before the old ones are removed.

    Raises:
        FetchError: the store failed beyond its retries.
    """
    old = store.names(RECORDINGS_FOLDER)
    stem, totals = unique_stem(), Totals()
    for index, ids in enumerate(_slices(complete_ids.sort())):
        table = aggregate(_outcomes_of(store, ids))
        totals.add(table, listed_ids)
        store.write_table(f"{RECORDINGS_FOLDER}/{stem}-{index:05d}{SUFFIX}", table)
    for name in old:
        store.remove(name)
    return totals


def _slices(ids: pa.Array) -> Iterator[pa.Array]:
    """Cut the sorted identities; no recordings are one empty slice: an empty table says so."""
    for start in range(0, max(1, len(ids)), RECORDINGS_PER_OBJECT):
        yield ids.slice(start, RECORDINGS_PER_OBJECT)


def _outcomes_of(store: OutputStore, ids: pa.Array) -> pa.Table:
    schema = pa.schema([OUTCOMES.field(name) for name in PART_COLUMNS])
    tables = [schema.empty_table()]
    if not len(ids):
        return tables[0]
    for batch in store.outcomes(PART_COLUMNS):
        # By range first: commits are small, and a hash table of all identities is not.
        within = pc.and_(
            pc.greater_equal(batch.column("recording_id"), ids[0]),
            pc.less_equal(batch.column("recording_id"), ids[-1]),
        )
        tables.append(pa.Table.from_batches([batch]).filter(within).cast(schema))
    table = pa.concat_tables(tables)
    return table.filter(pc.is_in(table["recording_id"], value_set=ids))


def aggregate(outcomes: pa.Table) -> pa.Table:
    """Return the RECORDINGS rows of complete recordings, sorted by identity."""
    parts = outcomes.sort_by([("recording_id", "ascending"), ("part", "ascending")])
    # One thread: "first" is only defined in order.
    grouped = parts.group_by("recording_id", use_threads=False).aggregate(
        [
            *((name, "first") for name in _FIRST_COLUMNS),
            ("run_id", "max"),
            ("decode_errors", "max"),
            ("duration_s", "sum"),
            ("speech_s", "sum"),
            ("segments_written", "sum"),
            ("part", "count"),
            ("channel", "count_distinct", pc.CountOptions(mode="only_valid")),
        ]
    )
    grouped = grouped.sort_by("recording_id")  # groups come in no order
    ids = grouped["recording_id"].combine_chunks()
    columns = {name: grouped[f"{name}_first"] for name in _FIRST_COLUMNS}
    columns |= _first_failures(parts, ids) | _likeliest_labels(parts, ids)
    # Channels transcribed apart hold the same stretch of time; mixed ones, and a recording that
    # failed before its channels were known, have no number.
    num_channels = pc.max_element_wise(grouped["channel_count_distinct"], 1).cast(pa.float64())
    columns |= {
        "run_id": grouped["run_id_max"],
        "recording_id": ids,
        "decode_errors": grouped["decode_errors_max"],
        "duration_s": pc.divide(grouped["duration_s_sum"], num_channels),
        "speech_s": pc.divide(grouped["speech_s_sum"], num_channels),
        "parts": grouped["part_count"],
        "segments": grouped["segments_written_sum"],
        "languages": _languages(parts, ids),
    }
    columns["status"] = pc.if_else(
        pc.equal(columns["status"], "failed"),
        "failed",
        pc.if_else(pc.greater(columns["segments"], 0), "ok", "no_speech"),
    )
    arrays = [columns[field.name].cast(field.type) for field in RECORDINGS]
    return pa.table(arrays, schema=RECORDINGS)


def _first_failures(parts: pa.Table, ids: pa.Array) -> dict[str, pa.ChunkedArray]:
    """Return the status and errors of each recording's first failed part; "" without one."""
    failed = parts.filter(pc.equal(parts["status"], "failed"))
    # The first occurrence is the lowest part: parts are sorted.
    rows = pc.index_in(ids, value_set=failed["recording_id"].combine_chunks())
    columns = {name: failed[name].take(rows) for name in _ERROR_COLUMNS}
    return columns | {"status": pc.fill_null(failed["status"].take(rows), "")}


def _likeliest_labels(parts: pa.Table, ids: pa.Array) -> dict[str, pa.ChunkedArray]:
    """Return each recording's likeliest label and its mean over the parts, by their weights.

    A label that a part does not name counts as 0 there.
    """
    means = parts["label_means"].combine_chunks()
    owners = pc.list_parent_indices(means)
    weights = pc.fill_null(parts["label_weight_s"], 0.0)
    flat = pc.list_flatten(means)
    summed = pa.table(
        {
            "recording_id": parts["recording_id"].take(owners),
            "label": pc.struct_field(flat, "label"),
            "sum": pc.multiply(
                pc.struct_field(flat, "probability").cast(pa.float64()), weights.take(owners)
            ),
        }
    )
    # One thread: sums in another order would differ in their last digits.
    summed = summed.group_by(["recording_id", "label"], use_threads=False)
    best = summed.aggregate([("sum", "sum")]).sort_by(
        [("recording_id", "ascending"), ("sum_sum", "descending"), ("label", "ascending")]
    )
    totals = pa.table({"recording_id": parts["recording_id"], "weight": weights})
    totals = totals.group_by("recording_id", use_threads=False).aggregate([("weight", "sum")])
    # The first occurrence is the likeliest: they are sorted.
    rows = pc.index_in(ids, value_set=best["recording_id"].combine_chunks())
    total = totals["weight_sum"].take(
        pc.index_in(ids, value_set=totals["recording_id"].combine_chunks())
    )
    return {
        "label": best["label"].take(rows),
        "label_probability": pc.divide(best["sum_sum"].take(rows), total),
    }


def _languages(parts: pa.Table, ids: pa.Array) -> pa.Array:
    """Return each recording's languages, by the number of parts, then by name."""
    spoken = parts.filter(pc.is_valid(parts["language"]))
    counts = spoken.group_by(["recording_id", "language"]).aggregate([("part", "count")])
    counts = counts.sort_by(
        [("recording_id", "ascending"), ("part_count", "descending"), ("language", "ascending")]
    )
    owners = pc.index_in(counts["recording_id"].combine_chunks(), value_set=ids).to_numpy()
    lengths = np.bincount(owners.astype(np.int64), minlength=len(ids))
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), counts["language"].combine_chunks())
