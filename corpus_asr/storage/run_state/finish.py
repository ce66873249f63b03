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
from corpus_asr.errors import CorpusAsrError, FetchError
from corpus_asr.schemas import OUTCOMES, RECORDINGS, SCHEMA_VERSION
from corpus_asr.storage.parquet import conform, with_column
from corpus_asr.storage.run_state.lock import SUCCESS_NAME
from corpus_asr.storage.run_state.manifest_columns import join_noted
from corpus_asr.storage.run_state.part_rows import nested, part_rows
from corpus_asr.storage.run_state.plan import retire_plans
from corpus_asr.storage.run_state.redo import forget_done
from corpus_asr.storage.run_state.run_files import RunRecord, code_versions, safe_config
from corpus_asr.storage.run_state.run_tables import NOTED, RowPlace, RunTables, in_utc
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
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.run_state.what_counts import RENEWED, SETTLING
from corpus_asr.storage.stores.store import may_be_same
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
    # Words of known texts are placed by all parts of a recording.
    from_base = not config.decoding.align
    with RunTables(
        store, listing=listing, elsewhere=listings_elsewhere, from_base=from_base
    ) as tables:
        if tables.num_listed != num_listed:
            logger.warning("listing rows=%d, expected %d", tables.num_listed, num_listed)
        num_listed = max(num_listed, tables.num_listed)
        kind = LABEL_ROWS if config.pipeline == CLASSIFY_AUDIO else SEGMENT_ROWS
        if before_merging(tables):
            tables.reread(store)
        # Also while something is left: each later run reads what this one leaves.
        target_mb = config.output.target_file_mb
        merged = settle(store, tables, None if target_mb is None else target_mb * MEBIBYTE, kind)
        if tables.rows(f"{_ADOPTED} limit 1"):
            if merged:  # rows are in other objects than the tables say
                tables.reread(store)
            adopt_versions(store, tables)
            tables.reread(store)
        forget_done(store, tables)
        tables.note(noted_rows(store, tables))
        join_noted(tables, listed=config.source.has_columns)
        counts = OutcomeCounts.of(tables, num_listed, run_id=run.run_id)
        write_empty_tables(store, kind)
        started_at = datetime.datetime.fromisoformat(run.started_at)
        write_recordings(store, tables, started_at, has_columns=config.source.has_columns)
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


_RENEWED_COLUMNS = ("recording_id", "metadata", "gone_since")


def write_recordings(
    store: OutputStore, tables: RunTables, started_at: datetime.datetime, *, has_columns: bool
) -> None:
    """Let the recordings table have one row per complete recording, sorted by ID in each object.

    New rows that are settled go to the objects of such rows, of which those are written anew in
    which a row changed; rows that are not settled have an object that every finish writes anew.

    Args:
        store: the output folder.
        tables: its tables, with what is noted of recordings.
        started_at: of the run.
        has_columns: whether the listing has the columns of a manifest.
    """
    tables.execute(SETTLING, tables.identities.present().select(["recording_id"]))
    among_settling = "recording_id in (select recording_id from settling)"
    written, most = _Recordings(store), RECORDINGS_PER_OBJECT
    waiting = [RECORDINGS.empty_table()]
    for rows in tables.complete(started_at, rows=most, which=among_settling):
        if 2 * len(rows) < most:  # to be merged, as small objects are
            waiting.append(rows)
        else:
            written.put(rows)
    new, latest = pa.concat_tables(waiting), f"{RECORDINGS_FOLDER}/{store.stem()}{SUFFIX}"
    renewed = tables.table(RENEWED, has_columns=has_columns, now=in_utc(started_at))
    changed = {*renewed["number"].to_pylist()}
    values = conform(renewed.drop_columns("number"), projected(RECORDINGS, _RENEWED_COLUMNS))
    kept = tables.num_settled()
    stale = {name for number, (name, count) in enumerate(tables.base.items())
             if kept[name] < count or number in changed}  # fmt: skip
    if len(new):
        kept[latest] = len(new)
        stale.add(latest)
    groups = groups_to_merge(kept, most, stale)
    for names in groups:
        rows = pa.concat_tables([
            new if name == latest else _settled_rows(store, tables, name, values) for name in names
        ])  # fmt: skip
        written.put(rows.sort_by("recording_id"))
    settled = {*kept, *written.names}.difference(*groups)
    for rows in tables.complete(started_at, rows=most, which=f"not {among_settling}"):
        written.put(rows)
    if not settled and not written.names:
        written.put(RECORDINGS.empty_table(), is_empty=True)
    old = {*store.names(RECORDINGS_FOLDER)} - settled - {*written.names}
    store.replace(old, written.names, settled=settled)


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


def _settled_rows(store: OutputStore, tables: RunTables, name: str, values: pa.Table) -> pa.Table:
    """Return the rows of an object that are settled still, with new values of some columns."""
    rows, number = store.read_table(name, RECORDINGS), [*tables.base].index(name)
    ids = tables.table("select recording_id from settled where number = $number", number=number)
    rows = rows.filter(pc.is_in(rows["recording_id"], value_set=ids["recording_id"]))
    at = pc.index_in(rows["recording_id"], value_set=values["recording_id"])
    for column in _RENEWED_COLUMNS[1:]:
        chosen = pc.if_else(pc.is_valid(at), values[column].take(at), rows[column])
        rows = with_column(rows, column, chosen)
    return rows


def noted_rows(store: OutputStore, tables: RunTables) -> Iterator[pa.Table]:
    """Yield NOTED rows of those objects of recordings in which some are not settled any more.

    An object that cannot be read is left out, with a warning.
    """
    for name in store.names(RECORDINGS_FOLDER):
        if name not in tables.base or tables.num_settled()[name] < tables.base[name]:
            try:
                yield store.read_table(name, NOTED)
            except FetchError:
                raise
            except (CorpusAsrError, ValueError) as error:
                logger.warning("recordings not known: name=%s found=%s", name, error)


def write_empty_tables(store: OutputStore, kind: PartRows) -> None:
    """Give each table without an object one without rows, so that every reader finds its columns.

    The recordings table has one anyway.
    """
    if not store.names(OUTCOMES_FOLDER):
        store.replace((), store.write_tables(OUTCOMES.empty_table(), (), rows=kind))


def settle(
    store: OutputStore, tables: RunTables, target_bytes: float | None, kind: PartRows = SEGMENT_ROWS
) -> bool:
    """Let the tables have the rows that count, each once; tell whether any object changed.

    Commits are merged into tables, but for parts that wait; objects below half of `target_bytes`
    are merged with one another, unless it is None.
    """
    places, merged = tables.places(), False
    # Rows that were spread over many objects take fewer bytes together: what came out small is
    # looked at again, until nothing is left to do and another finish would do nothing.
    while True:
        groups = [[name] for name in sorted(places, key=_by_time)]
        if target_bytes is not None:
            groups = groups_to_merge(_weights(store, places), target_bytes, places)
        for names in groups:
            store.replace(names, merge(store, names, places, kind))
        if not groups:
            return merged
        places, merged = {}, True


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


# Rows without a version, or with one of another kind than the listing's, of recordings whose
# listed version they are.
_ADOPTED = """
select name, list(distinct {id: recording_id, etag: listing.etag})
from parts join objects using (object) join listing using (recording_id)
where parts.etag is distinct from listing.etag and listing.etag is not null
  and recording_id in (select recording_id from recordings where current)
group by name order by name
"""


def adopt_versions(store: OutputStore, tables: RunTables) -> None:
    """Give rows the listed version of their recordings where theirs is unknown or another kind.

    Otherwise no later change of these recordings would be seen.
    """
    for name, adopted_rows in tables.rows(_ADOPTED):
        listed = {adopted_row["id"]: adopted_row["etag"] for adopted_row in adopted_rows}
        outcomes = store.read_table(name, OUTCOMES)
        ids, etags = (outcomes[column].to_pylist() for column in ("recording_id", "etag"))
        adopted_etags = [
            listed[row_id] if row_id in listed and may_be_same(etag, listed[row_id]) else etag
            for row_id, etag in zip(ids, etags, strict=True)
        ]
        # In its place: no rows come or go, and those of segments have no version.
        store.write_table(name, with_column(outcomes, "etag", adopted_etags))
