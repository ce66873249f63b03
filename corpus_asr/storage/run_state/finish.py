"""The end of a run: exact tables, one row per recording, `run.json` and `_SUCCESS`."""

import datetime
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import RunConfig
from corpus_asr.schemas import OUTCOMES, RECORDINGS, SCHEMA_VERSION
from corpus_asr.storage.run_state.compaction import compact, keep_only, remove_leftovers
from corpus_asr.storage.run_state.ledger import CommitResolution, Ledger
from corpus_asr.storage.run_state.plan import retire_plans
from corpus_asr.storage.run_state.run_files import code_versions, safe_config
from corpus_asr.storage.run_state.start import RUN_NAME, SUCCESS_NAME, Run
from corpus_asr.storage.run_state.tables import RECORDINGS_FOLDER, SUFFIX, OutputStore, unique_stem
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)

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
    """Sums over the recordings table; `listed` over those of the present listing."""

    recordings: int = 0
    segments: int = 0
    audio_s: float = 0.0
    speech_s: float = 0.0
    listed: Counter[str] = field(default_factory=Counter)
    """Recordings of the present listing, by status."""

    def add(self, table: pa.Table, listed_ids: pa.Array) -> None:
        """Add rows of the table."""
        self.recordings += table.num_rows
        self.segments += pc.sum(table["segments"]).as_py() or 0
        self.audio_s += pc.sum(table["duration_s"]).as_py() or 0.0
        self.speech_s += pc.sum(table["speech_s"]).as_py() or 0.0
        listed = table.filter(pc.is_in(table["recording_id"], value_set=listed_ids))
        for count in pc.value_counts(listed["status"]).to_pylist():
            self.listed[count["values"]] += count["counts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """What a finished run leaves: `listed == ok + no_speech + failed + left`."""

    listed: int
    ok: int
    no_speech: int
    failed: int
    left: int
    """Listed recordings of which not all parts are committed: the run was cut short. Rows that
    the listing should have and has not are among them."""
    recordings: int
    """Rows of the recordings table; those of earlier listings are among them."""
    segments: int
    audio_s: float
    speech_s: float


def finish(
    store: OutputStore,
    run: Run,
    config: RunConfig,
    *,
    model_revision: str,
    listing: Iterable[pa.RecordBatch],
    num_listed: int,
    plan_name: str | None = None,
    extra: dict[str, Any] | None = None,
) -> RunCounts:
    """Make the output folder exact and complete; may be repeated after being killed anywhere.

    Removes what lost (second commits of a part, rows of replaced recordings, outcomes whose
    segments object is gone, orphans), writes the recordings table and `run.json`. If nothing is
    left, small objects are merged before that, and after it older plans and what this one held of
    raw addresses are removed, and `_SUCCESS` is written last. No writer of this run may be at work
    meanwhile.

    Args:
        listing: FILES batches of what the run was to cover (`plan.read_listing`).
        num_listed: how many rows the listing had when it was made; those missing count as left.
        plan_name: the plan that was worked off; None if there was none.
        extra: whatever else belongs in `run.json` (numbers of the plan, hardware).
    """
    store.remove(SUCCESS_NAME)
    resolution = Ledger.load(store).resolve(listing)
    keep_only(store, resolution.keep)
    # While something is left, more commits are to come, and their names tell when work was done.
    target_mb = config.output.target_file_mb
    if target_mb is not None and _left(resolution, num_listed) == 0:
        compact(store, target_mb * MEBIBYTE)
    totals = write_recordings(
        store, complete_ids=resolution.complete_ids, listed_ids=resolution.listed_ids
    )
    remove_leftovers(store)
    counts = _counts(resolution, totals, num_listed)
    store.write_json(
        RUN_NAME,
        {
            **asdict(run),
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "schema_version": SCHEMA_VERSION,
            "model": safe_config(config)["model"]["checkpoint"],
            "model_revision": model_revision,
            "counts": asdict(counts),
            "versions": code_versions(),
            "config": safe_config(config),
            **(extra or {}),
        },
    )
    if counts.left == 0:
        if plan_name is not None:
            retire_plans(store, plan_name)
        store.write_bytes(SUCCESS_NAME, b"")
    logger.info("finished run_id=%s listed=%d left=%d", run.run_id, counts.listed, counts.left)
    return counts


def _left(resolution: CommitResolution, num_listed: int) -> int:
    return max(num_listed, resolution.num_listed) - len(resolution.listed_ids)


def _counts(resolution: CommitResolution, totals: Totals, num_listed: int) -> RunCounts:
    if resolution.num_listed != num_listed:
        logger.warning("listing rows=%d, expected %d", resolution.num_listed, num_listed)
    listed = max(num_listed, resolution.num_listed)
    return RunCounts(
        listed=listed,
        ok=totals.listed["ok"],
        no_speech=totals.listed["no_speech"],
        failed=totals.listed["failed"],
        left=listed - totals.listed.total(),
        recordings=totals.recordings,
        segments=totals.segments,
        audio_s=totals.audio_s,
        speech_s=totals.speech_s,
    )


def write_recordings(store: OutputStore, *, complete_ids: pa.Array, listed_ids: pa.Array) -> Totals:
    """Replace the recordings table by one row for each complete recording.

    The new objects are written before the old ones are removed.
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
    """Return each recording's likeliest label and its mean over the parts, by their weights."""
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
