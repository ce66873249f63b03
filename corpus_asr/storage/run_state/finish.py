"""The end of a run: commits merged into tables, one row per recording, `run.json`, `_SUCCESS`.

Safe to be killed anywhere: what was written counts once `OutputStore.replace` says so, in one step
with which what it was made of does not count any more. A merged object's name sorts before those
that it was made of, so it is read in their place.
"""

import datetime
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig
from corpus_asr.schemas import OUTCOMES, RECORDINGS, SCHEMA_VERSION
from corpus_asr.storage.parquet import with_column
from corpus_asr.storage.run_state.fold import RENEWED
from corpus_asr.storage.run_state.lock import SUCCESS_NAME
from corpus_asr.storage.run_state.manifest_columns import join_noted
from corpus_asr.storage.run_state.part_rows import nested, part_rows
from corpus_asr.storage.run_state.plan import retire_plans
from corpus_asr.storage.run_state.redo import forget_done
from corpus_asr.storage.run_state.run_files import RunRecord, code_versions, safe_config
from corpus_asr.storage.run_state.run_tables import FAILED, RowPlace, RunTables, in_utc
from corpus_asr.storage.run_state.source_listings import other_listings
from corpus_asr.storage.run_state.table_names import (
    COMMITS_FOLDER,
    LABEL_ROWS,
    OUTCOMES_FOLDER,
    PART_ROWS_FOLDERS,
    RECORDINGS_FOLDER,
    RUN_NAME,
    SEGMENT_ROWS,
    SUFFIX,
    PartRows,
    beside,
    time_ns_of,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)

RECORDINGS_PER_OBJECT = 250_000  # with their parts, some hundred MiB of memory
OUTCOMES_WEIGHT = 16  # sorted in memory, where they take so many times their bytes and more
OUTCOME_BYTES = 2_400  # of a row in memory, as far as its bytes in a commit are not more
# In a simulated year of nights, rows are written under five times and at most six files are small.
GROWTH = 2
SORTED_ROWS = 32_768  # of segments, sorted at once; a row group of what is written
# Memory is bounded by one object as it is written, its outcomes, and this.
CHUNK_BYTES = 32 * MEBIBYTE  # of segments, in memory, before they go to the scratch file


_Places = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCounts:
    """Counts of a finished run: `listed == ok + no_speech + failed + remaining`."""

    listed: int
    ok: int = 0
    no_speech: int = 0
    failed: int = 0
    remaining: int = 0
    """Listed recordings of which not all parts are committed: the run was cut short. Rows that
    the listing should have and has not are among them."""
    earlier: int = 0
    """Failed or remaining recordings whose text is kept: that of an earlier version."""
    processed: int = 0  # of the listed, those that this run made done or failed
    processed_failed: int = 0
    recordings: int = 0  # rows of the recordings table
    gone: int = 0
    """Number of these that are no longer listed."""
    segments: int = 0
    audio_s: float = 0.0
    speech_s: float = 0.0

    @classmethod
    def of(cls, tables: RunTables, num_listed: int, *, run_id: str) -> "OutcomeCounts":
        """Count the recordings of a folder, and separately those of a run."""
        (ok, no_speech, failed, earlier, processed, processed_failed, recordings, gone, segments,
         audio_s, speech_s), *_ = tables.rows(_COUNTS, run_id=run_id)  # fmt: skip
        return cls(
            listed=num_listed, ok=ok, no_speech=no_speech, failed=failed, earlier=earlier,
            remaining=num_listed - ok - no_speech - failed, processed=processed,
            processed_failed=processed_failed, recordings=recordings, gone=gone,
            segments=int(segments or 0), audio_s=audio_s or 0.0, speech_s=speech_s or 0.0,
        )  # fmt: skip


# A recording whose listed version failed counts as failed, also where an earlier one has text.
_COUNTS = """
with tried as (
  select *, listed and current as here, failed_since and recording_id in (
      select recording_id from failing where run_id = $run_id) as failed_now
  from counted)
select count(*) filter (here and status = 'ok'), count(*) filter (here and status = 'no_speech'),
  count(*) filter (here and status = 'failed' or failed_since), count(*) filter (earlier),
  count(*) filter (here and run_id = $run_id or failed_now),
  count(*) filter (here and run_id = $run_id and status = 'failed' or failed_now),
  count(*) filter (complete), count(*) filter (complete and gone),
  sum(segments) filter (complete),
  exact_sum(if(complete, duration_s, null)), exact_sum(if(complete, speech_s, null))
from tried
"""


def finish(
    store: OutputStore,
    run: RunRecord,
    config: RunConfig,
    *,
    model_revision: str,
    listing: Iterable[pa.RecordBatch],
    num_listed: int,
    plan_name: str | None = None,
    idle: bool = False,
    extra: dict[str, Any] | None = None,
    before_merging: Callable[[RunTables], int] = lambda _: 0,
    before_success: Callable[[], Mapping[str, Any]] = dict,
) -> OutcomeCounts:
    """Make the output folder exact and complete; may be repeated after being killed anywhere.

    Args:
        listing: FILES batches of what the run was to cover (`plan.read_listing`).
        num_listed: how many rows the listing had when it was made; those missing count as left.
        plan_name: the plan that was worked off; None if there was none.
        idle: whether there was nothing to do; `run.json` then keeps what the last run did.
        before_merging: puts parts in place of others; returns how many.
        before_success: called once the tables of outcomes, segments and recordings are exact;
            returns what else belongs in `run.json`.
        extra: whatever else belongs in `run.json` (numbers of the plan, hardware).
    """
    store.remove(SUCCESS_NAME)
    listings_elsewhere = other_listings(store, plan_name)
    # Words of known texts are placed by all parts of a recording, and what stood for a folder that
    # could not be read is closed.
    opened = "true" if config.decoding.align else f"{FAILED} and size_bytes is null"
    with RunTables(store, listing=listing, elsewhere=listings_elsewhere, opened=opened) as tables:
        if tables.num_listed != num_listed:
            logger.warning("listing rows=%d, expected %d", tables.num_listed, num_listed)
        num_listed = max(num_listed, tables.num_listed)
        kind = LABEL_ROWS if config.pipeline == CLASSIFY_AUDIO else SEGMENT_ROWS
        if before_merging(tables):
            tables.reread(store)
        # Also while something is left: each later run reads what this one leaves.
        target_mb = config.output.target_file_mb
        target_bytes = None if target_mb is None else target_mb * MEBIBYTE
        old, new = merge_parts(store, tables, target_bytes, kind)
        forget_done(store, tables)
        join_noted(tables, listed=config.source.has_columns)
        counts = OutcomeCounts.of(tables, num_listed, run_id=run.run_id)
        if not new and not store.names(OUTCOMES_FOLDER):  # so that readers find the columns
            new += store.write_tables(OUTCOMES.empty_table(), (), rows=kind)
        started_at = datetime.datetime.fromisoformat(run.started_at)
        old_rows, new_rows = merge_recordings(
            store, tables, started_at, has_columns=config.source.has_columns
        )
        store.replace(old + old_rows, new + new_rows, settled=True)
        compact(store, target_bytes, kind)
        plans_elsewhere = tables.plans_elsewhere
    store.remove_leftovers()
    made = before_success()
    store.note_tables()
    store.write_json(
        RUN_NAME,
        {
            **asdict(run),
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "schema_version": SCHEMA_VERSION,
            "model": safe_config(config)["model"]["checkpoint"],
            "model_revision": model_revision,
            "counts": asdict(counts),
            "versions": code_versions(),
            "config": safe_config(config),
            **(extra or {}),
            **made,
            **({"last_work": _last_work(store, run)} if idle else {}),
        },
    )
    if plan_name is not None:
        retire_plans(store, plan_name, plans_elsewhere)
    if counts.remaining == 0:
        store.write_bytes(SUCCESS_NAME, b"")
    logger.info(
        "finished run_id=%s listed=%d remaining=%d", run.run_id, counts.listed, counts.remaining
    )
    return counts


def _last_work(store: OutputStore, run: RunRecord) -> dict[str, Any] | None:
    """Return the `run.json` entry of the last run that had work."""
    last_run = store.read_json(RUN_NAME)
    if last_run is None or last_run.get("fingerprint") != run.fingerprint:
        return None
    if "last_work" in last_run:
        earlier: dict[str, Any] | None = last_run["last_work"]
        return earlier
    names = ("run_id", "started_at", "finished_at", "plan", "committed", "activity")
    return {name: last_run[name] for name in names if name in last_run}


def merge_recordings(
    store: OutputStore, tables: RunTables, started_at: datetime.datetime, *, has_columns: bool
) -> tuple[list[str], list[str]]:
    """Write the rows that the recordings table lacks; return old objects, and new in their place.

    Of the others those are written anew in which a row changed.

    Args:
        store: the output folder.
        tables: its tables.
        started_at: of the run.
        has_columns: whether the listing has the columns of a manifest.
    """
    written, most = _Recordings(store), RECORDINGS_PER_OBJECT
    waiting = [RECORDINGS.empty_table()]
    for rows in tables.changed(started_at, rows=most):
        if 2 * len(rows) < most:  # to be merged, as small objects are
            waiting.append(rows)
        else:
            written.put(rows)
    new, latest = pa.concat_tables(waiting), f"{RECORDINGS_FOLDER}/{store.stem()}{SUFFIX}"
    renewed = tables.table(RENEWED, has_columns=has_columns, now=in_utc(started_at))
    gone = tables.table("select recording_id, object from outdated")
    numbers = {*renewed["object"].to_pylist(), *gone["object"].to_pylist()}
    stale = {tables.recorded_names[number] for number in numbers}
    counts = tables.rows("select object, count(*) from recorded group by object")
    weights = {tables.recorded_names[number]: float(count) for number, count in counts}
    if len(new):
        weights[latest] = len(new)
        stale.add(latest)
    groups = groups_to_merge(weights, most, stale)
    for names in groups:
        rows = pa.concat_tables([
            new if name == latest else _renewed(store.read_table(name, RECORDINGS), renewed, gone)
            for name in names
        ])  # fmt: skip
        written.put(rows.sort_by("recording_id"))
    old = [name for names in groups for name in names if name != latest]
    empty = {*tables.recorded_names} - {*weights}
    if not written.names and not {*weights}.difference(old):
        if empty:
            empty.pop()
        else:
            written.put(RECORDINGS.empty_table(), is_empty=True)
    return [*old, *empty], written.names


class _Recordings:
    """Objects of recordings, as they are written."""

    def __init__(self, store: OutputStore) -> None:
        self._store, self._stem = store, store.stem()
        self.names: list[str] = []

    def put(self, rows: pa.Table, *, is_empty: bool = False) -> None:
        """Write rows as an object; none if there are none, unless `is_empty`."""
        if len(rows) or is_empty:
            self.names.append(f"{RECORDINGS_FOLDER}/{self._stem}-{len(self.names):05d}{SUFFIX}")
            self._store.write_table(self.names[-1], rows)


def _renewed(rows: pa.Table, renewed: pa.Table, gone: pa.Table) -> pa.Table:
    """Return the rows of an object that stay, with new values of some columns."""
    is_gone = pc.is_in(rows["recording_id"], value_set=gone["recording_id"].combine_chunks())
    rows = rows.filter(pc.invert(is_gone))
    places = pc.index_in(rows["recording_id"], value_set=renewed["recording_id"].combine_chunks())
    for column in {*renewed.schema.names} - {"recording_id", "object"}:
        values = renewed[column].cast(rows.schema.field(column).type).take(places)
        if column == "uri":  # which is read only where some may have changed
            values = pc.coalesce(values, rows[column])
        rows = with_column(rows, column, pc.if_else(pc.is_valid(places), values, rows[column]))
    return rows


def merge_parts(
    store: OutputStore, tables: RunTables, target_bytes: float | None, kind: PartRows = SEGMENT_ROWS
) -> tuple[list[str], list[str]]:
    """Write tables of the rows that count; return old objects and commits, and new in their place.

    Parts that wait are in a commit again; objects below half of `target_bytes` are merged with one
    another, unless it is None.
    """
    places = tables.places()
    groups = [[name] for name in sorted(places, key=_by_time)]
    if target_bytes is not None:
        groups = groups_to_merge(_weights(store, places), target_bytes, places)
    old = [name for names in groups for name in names]
    return old, [new for names in groups for new in merge(store, names, places, kind)]


def compact(store: OutputStore, target_bytes: float | None, kind: PartRows = SEGMENT_ROWS) -> None:
    """Merge small objects with one another, until another finish would do nothing."""
    # Rows that were spread over many objects take fewer bytes together: what came out small is
    # looked at again.
    while target_bytes is not None and (
        groups := groups_to_merge(_weights(store, {}), target_bytes)
    ):
        for names in groups:
            store.replace(names, merge(store, names, {}, kind))


def _by_time(name: str) -> str:
    return name.rpartition("/")[2]


def groups_to_merge(
    weights: Mapping[str, float], target_bytes: float, stale: Collection[str] = ()
) -> list[list[str]]:
    """Return groups to merge, neighbors in time, of at most the target.

    Of two and more names, but for those that are `stale`, which are in a group in any case. Others
    only below half the target: all up to the largest that is at most `GROWTH` times as large as all
    smaller ones together. `weights` are bytes by name.
    """
    # A night's commits are merged among themselves, and an older file joins in once what has
    # gathered since is of its own order of size: every row is rewritten about as often as the
    # files double on their way to half the target, not every night.
    small = sorted((weight, name) for name, weight in weights.items() if 2 * weight < target_bytes)
    chosen, total = 0, 0.0
    for index, (weight, _) in enumerate(small):
        if weight <= GROWTH * total:
            chosen = index + 1
        total += weight
    groups: list[list[str]] = [[]]
    filled = 0.0
    for name in sorted({*stale, *(name for _, name in small[:chosen])}, key=_by_time):
        if filled + weights[name] > target_bytes:
            groups.append([])
            filled = 0.0
        groups[-1].append(name)
        filled += weights[name]
    return [names for names in groups if len(names) > 1 or {*names} & {*stale}]


def _weights(store: OutputStore, places: _Places) -> dict[str, float]:
    """Return the bytes of objects of outcomes, and of those commits that are to be merged."""
    rows_bytes = {
        beside(name, OUTCOMES_FOLDER): size.bytes or 0
        for folder in PART_ROWS_FOLDERS for name, size in store.sizes(folder).items()
    }  # fmt: skip
    weights: dict[str, float] = {
        name: max(OUTCOMES_WEIGHT * (size.bytes or 0), rows_bytes.get(name, 0))
        for name, size in store.sizes(OUTCOMES_FOLDER).items()
    }
    commits = store.sizes(COMMITS_FOLDER) if places else {}
    return weights | {
        name: max(OUTCOME_BYTES * len(place), commits[name].bytes or 0)
        for name, place in places.items()
        if name in commits
    }


def merge(
    store: OutputStore, names: Sequence[str], places: _Places, kind: PartRows = SEGMENT_ROWS
) -> list[str]:
    """Write the rows of commits and objects of outcomes that count; return the new names.

    Those of several are sorted by address, part and time. `places` has the `RowPlace` of each row,
    where not all of an object belong into the tables; what waits is a commit again.
    """
    tables = [store.read_table(name, OUTCOMES) for name in names]
    outcomes = pa.concat_tables(tables).combine_chunks()
    place = np.concatenate([
        places.get(name, np.full(len(table), RowPlace.tables))
        for name, table in zip(names, tables, strict=True)
    ])  # fmt: skip
    starts = dict(zip(names, np.cumsum([0, *map(len, tables)]).tolist(), strict=False))
    kept, waiting = place == RowPlace.tables, place == RowPlace.waiting

    def rows_of(mask: np.ndarray) -> Iterator[pa.Table]:
        for name, rows, owners in part_rows(store, names, kind):
            chosen = mask[starts[name] + owners]
            yield rows if chosen.all() else rows.filter(pa.array(chosen))

    written = list[str]()
    if kept.any():
        chosen, segments = outcomes.filter(pa.array(kept)), rows_of(kept)
        if len(names) > 1:
            keys = [("uri", "ascending"), ("part", "ascending")]
            order = pc.sort_indices(chosen, keys).to_numpy()
            chosen, counts = chosen.take(order), chosen["segments_written"].to_numpy()
            segments = sorted_rows(segments, _places(counts, order), kind.schema)
        stem = store.stem(max(0, time_ns_of(names[0]) - 1))  # sorts before them
        written += store.write_tables(chosen, segments, rows=kind, stem=stem)
    if waiting.any():
        rows = pa.concat_tables([kind.schema.empty_table(), *rows_of(waiting)])
        written.append(store.put_commit(nested(outcomes.filter(pa.array(waiting)), rows, kind)))
    logger.info("merged objects=%d rows=%d into=%s", len(names), int(kept.sum()), written)
    return written


def _places(written: np.ndarray, order: np.ndarray) -> np.ndarray:
    in_order = written[order]
    starts = np.empty(len(order), np.int64)
    starts[order] = np.cumsum(in_order) - in_order
    within = np.arange(written.sum()) - np.repeat(np.cumsum(written) - written, written)
    places: np.ndarray = np.repeat(starts, written) + within
    return places


def sorted_rows(
    segments: Iterable[pa.Table], places: np.ndarray, schema: pa.Schema
) -> Iterator[pa.Table]:
    """Sort rows larger than memory by `places`; yield `SORTED_ROWS` at a time."""
    # Input is sorted in chunks into a scratch file, cut at the boundaries of the output tables;
    # each output table then gathers its slices.
    edges = np.arange(0, len(places), SORTED_ROWS)
    pieces: list[list[tuple[int, np.ndarray]]] = [[] for _ in edges]
    with tempfile.TemporaryFile(prefix="corpus-asr-sort-") as scratch:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(scratch, schema, options=options) as writer:
            number = start = 0
            for chunk in _chunks(segments):
                chunk_places = places[start : start + chunk.num_rows]
                start += chunk.num_rows
                order = np.argsort(chunk_places)
                chunk, chunk_places = chunk.take(order).combine_chunks(), chunk_places[order]
                cuts = np.searchsorted(chunk_places, [*edges, len(places)])
                for index in np.flatnonzero(np.diff(cuts)).tolist():
                    length = int(cuts[index + 1] - cuts[index])
                    writer.write_table(chunk.slice(int(cuts[index]), length))
                    pieces[index].append((number, chunk_places[cuts[index] : cuts[index + 1]]))
                    number += 1
        scratch.seek(0)
        reader = pa.ipc.open_file(scratch)
        for table_pieces in pieces:
            table = pa.Table.from_batches([reader.get_batch(index) for index, _ in table_pieces])
            order = np.argsort(np.concatenate([row_places for _, row_places in table_pieces]))
            yield table.combine_chunks().take(order)


def _chunks(segments: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in segments:
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes >= CHUNK_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, num_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
