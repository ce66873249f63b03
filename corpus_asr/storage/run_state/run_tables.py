"""What an output folder holds, as one database: which rows count, and what recordings came to.

A recording may have been begun several times: by each run that found another sound or version, or
that was asked to do it again. Rows of one attempt have the run that began it in `begun_by`; the
plan decides what it goes on with (`fold`).

Relations, for queries:

- `outcomes`: rows of parts that were read, with `id` (their order), `object` and `row` (their
  place); `uri` is that of the recording's present address;
- `objects`: commits (`is_commit`) and objects of outcomes, by `name`; in what is `settled` each
  part stands once, of whole recordings;
- `attempts`: of recordings whose parts were read, with the newest version known of each, whether
  it is `whole`, and its `rank`; `winners`: the rows of each that count if it does;
- `unopened`: rows of the recordings table whose parts were not read; `noted`: the others;
- `committed`: the versions of both;
- `listed`: the listing at the opening, and `listing`: of it, what parts were read of;
  `seen`: what a listing has that arrives later (`note_listed`);
- `redo`: attempts that are to be done again, REDO rows;
- `closed`: failures that stood for unreadable folders which are read again;
- `row_states`: whether the row of a part `counts`, is `failing`, and whether it `enters` the tables
  or `waits` at a finish;
- `parts`: the outcomes that count, one for each part of a recording;
- `failing`: failures of an attempt in whose place an earlier one counts;
- `recordings`: one row for each recording of which parts were read, see `RECORDED`; its `separate`
  channels cover the same span of time, by which the time of a part is to be divided;
- `counted`: these and the unopened ones, as far as a finish counts them.
"""

import datetime
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import Retry
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.failure_kinds import Origin, failure_kind
from corpus_asr.schemas import FILES, OUTCOMES, RECORDINGS
from corpus_asr.scratch import scratch_folder
from corpus_asr.storage.parquet import BATCH_ROWS, conform
from corpus_asr.storage.run_state.fold import (
    AGAIN,
    ATTEMPTS,
    CHANGED,
    CLOSED,
    COUNTED,
    COUNTING,
    FIRST,
    FITS,
    GONE,
    LEFT,
    LISTED,
    OUTDATED,
    RECORDED,
    RECORDED_COLUMNS,
    SMALL_TABLES,
    SUM,
    UNOPENED,
)
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.table_names import RECORDINGS_FOLDER, is_commit, table_name
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores.uri import REST, redact_uri

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

_DONE_PARTS = pa.field("done_parts", pa.list_(pa.int32()))
_REASON = pa.field("reason", pa.int8())
REMAINING = FILES.append(OUTCOMES.field("begun_by")).append(_DONE_PARTS).append(_REASON)
# What tells which rows count; what else there is of a part, but what is large and seldom asked for.
VERSION_COLUMNS = (
    "run_id", "begun_by", "recording_id", "size_bytes", "etag", "part", "last_part", "status",
    "error_kind", "retryable", "segments_written", "content_digest",
)  # fmt: skip
_LARGE = ("fingerprint", "voice_spans", "voices", "overlap_spans", "text_lengths")
PART_COLUMNS = tuple(name for name in OUTCOMES.names if name not in _LARGE)
_INSERTED_ROWS = 122_880  # at once, a row group of the database; commits have some hundreds
_PARTS_AT_ONCE = 100_000  # some hundred MB while they are folded
REDO_NAME = table_name("_run", "redo")
REDO = pa.schema([("recording_id", pa.string()), ("begun_by", pa.string())])
"""Attempts at recordings with which no run goes on, since they are to be done again."""
_IDS = projected(OUTCOMES, ("recording_id",))
_ID, _ROW = pa.field("id", pa.int64()), pa.field("row", pa.int32())
_OBJECT = pa.field("object", pa.int32())
_ROWS = RECORDINGS.set(
    RECORDINGS.get_field_index("gone_since"), pa.field("gone_since", pa.timestamp("ms"))
)
_RECORDED = projected(_ROWS, RECORDED_COLUMNS).remove_metadata().append(_OBJECT)
_PRESENT = ("recording_id", "uri", "etag", "size_bytes", "content_digest")
FAILED = "status = 'failed'"
"""Condition of recordings that a run may do again."""
MEMORY_VARIABLE = "CORPUS_ASR_TABLES_MB"
_MEMORY_MB = 512  # beside one worker's, on the smallest machines that transcribe
_SORTING_MB = 128
_MOST_THREADS = 4  # each takes memory of its own for what it sorts


class RowPlace(IntEnum):
    """Place of a committed row after a finish."""

    nowhere = 0
    tables = 1
    waiting = 2  # of an attempt that is not whole, or failed while an earlier one has text


class RunTables:
    """The committed rows of an output folder as a database: in memory, beyond it on local disk."""

    def __init__(
        self,
        store: OutputStore,
        *,
        columns: Sequence[str] = PART_COLUMNS,
        names: Iterable[str] | None = None,
        listing: Iterable[pa.RecordBatch] = (),
        elsewhere: Iterable[pa.Table] = (),
        opened: str | None = None,
    ) -> None:
        """Read the committed outcomes of a folder.

        Args:
            columns: of OUTCOMES, including `VERSION_COLUMNS`.
            names: outcomes objects to read; default: all.
            listing: FILES batches of the present listing.
            elsewhere: listings of other sources (`source_listings.other_listings`).
            opened: condition in SQL on rows of the recordings table whose parts are read; of
                commits all are. By default all are, and that table is not.
        """
        self._store = store
        self._uri = redact_uri(store.uri)
        self._schema = projected(OUTCOMES, columns)
        self._scratch = ExitStack()
        try:
            scratch = self._scratch.enter_context(scratch_folder())
        except OSError:  # tables that fit into memory need none
            scratch = Path(tempfile.gettempdir())
        self._db = _connect(scratch)
        self._opened = opened
        try:
            self._list(listing)
            for rows in elsewhere:
                self._insert("elsewhere", rows)
            if names is None:
                names = store.commit_names()
            self._read(store, list(names))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the tables, which close at exit."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the database."""
        self.close()

    def close(self) -> None:
        """Free memory and disk."""
        self._db.close()
        self._scratch.close()

    def reread(self, store: OutputStore) -> None:
        """Reread the committed outcomes; the listing stays."""
        self._read(store, store.commit_names())

    @property
    def _has_parts(self) -> bool:
        return {*PART_COLUMNS} <= {*self._schema.names}

    def _read(self, store: OutputStore, names: list[str]) -> None:
        is_settled = store.is_settled
        objects = [
            {"object": index, "name": name, "is_commit": is_commit(name),
             "settled": is_settled and not is_commit(name)}
            for index, name in enumerate(names)
        ]  # fmt: skip
        self.execute(SMALL_TABLES)
        self._insert("objects", pa.Table.from_pylist(objects))
        self._number = {name: index for index, name in enumerate(names)}
        self._num_rows = dict.fromkeys(names, 0)
        placed = self._schema.append(_ID).append(_OBJECT).append(_ROW)
        self.add("outcomes", placed.empty_table())
        self.identities = Identities.read(store)
        self.add("present", self.identities.present().select(_PRESENT))
        self._insert("redo", read_redo(store))
        self._read_recorded(store)
        if self._opened is None or not is_settled:
            self._load(names)
            self.execute("insert into opened select recording_id from recorded")
        else:
            self._load(filter(is_commit, names))
            self._open(f"recording_id in (select recording_id from outcomes) or {self._opened}")
        if self._has_parts:
            self.execute(CLOSED)
        self.place(self.identities)

    def _read_recorded(self, store: OutputStore) -> None:
        """Read the recordings table, without addresses if they tell nothing."""
        self.recorded_names = [] if self._opened is None else store.names(RECORDINGS_FOLDER)
        names = [*RECORDED_COLUMNS]
        if not self.identities.rows.num_rows and not self.rows("from unread limit 1"):
            names.remove("uri")
        number = {name: index for index, name in enumerate(self.recorded_names)}
        recorded = [_RECORDED.empty_table()]
        for name, rows in store.read_tables(self.recorded_names, projected(_ROWS, names)):
            numbers = pa.repeat(pa.scalar(number[name], pa.int32()), len(rows))
            recorded.append(conform(rows.append_column(_OBJECT, numbers), _RECORDED))
        self.add("recorded", pa.concat_tables(recorded))

    def _open(self, which: str) -> bool:
        """Read parts in tables of recordings that a condition on `recorded` names, if any."""
        ids = self.table(
            f"select recording_id from recorded where ({which}) "
            "and recording_id not in (from opened)"
        )
        if not len(ids):
            return False
        self._insert("opened", ids)
        finished = [name for name in self._number if not is_commit(name)]
        starts, values = dict.fromkeys(finished, 0), ids["recording_id"].combine_chunks()
        places: dict[str, list[np.ndarray]] = {}
        for name, table in self._store.read_tables(finished, _IDS):
            of_these = pc.is_in(table["recording_id"], value_set=values).to_numpy()
            if of_these.any():
                places.setdefault(name, []).append(np.flatnonzero(of_these) + starts[name])
            starts[name] += len(table)
        self._num_rows |= starts
        for name, numbers in places.items():
            rows = np.concatenate(numbers)
            cuts = np.flatnonzero(np.diff(rows) > 1)
            firsts, lasts = rows[[0, *(cuts + 1)]], rows[[*cuts, len(rows) - 1]]
            ranges = list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))
            table = self._store.rows(name, self._schema, ranges)
            self._insert("outcomes", self._placed(name, table, rows))
        return True

    def _placed(self, name: str, table: pa.Table, rows: np.ndarray) -> pa.Table:
        """Return rows of an object with their place."""
        number = self._number[name]
        places = (
            pa.array(rows.astype(np.int64) + (number << 32)),
            pa.repeat(pa.scalar(number, pa.int32()), len(table)),
            pa.array(rows.astype(np.int32)),
        )
        fields = self._schema.append(_ID).append(_OBJECT).append(_ROW)
        return pa.table([*table.columns, *places], schema=fields)

    def _record(self) -> None:
        """Make the rows of recordings from those of their parts."""
        # In slices: what groups have of text and lists stays in memory until all are made.
        [(num_parts,)] = self.rows("select count(*) from outcomes")
        slices = 1 + num_parts // _PARTS_AT_ONCE
        for index in range(slices):
            query = RECORDED.format(first=FIRST, slices=slices, index=index)
            begin = "insert into" if index else "create or replace table"
            self.execute(f"{begin} recordings {'' if index else 'as'} {query}")
        self.execute(COUNTED)

    def _load(self, names: Iterable[str]) -> None:
        """Read all outcomes of objects."""
        starts: dict[str, int] = {}
        waiting: list[pa.Table] = []
        num_waiting = 0
        for name, table in self._store.committed(self._schema.names, names):
            start = starts.get(name, 0)
            starts[name] = start + len(table)
            waiting.append(self._placed(name, table, np.arange(start, starts[name])))
            num_waiting += len(table)
            if num_waiting >= _INSERTED_ROWS:
                self._insert("outcomes", pa.concat_tables(waiting))
                waiting, num_waiting = [], 0
        if waiting:
            self._insert("outcomes", pa.concat_tables(waiting))
        self._num_rows |= starts

    def open(self, recording_ids: pa.Array | pa.ChunkedArray) -> None:
        """Read the parts of more recordings."""
        self.add("touched", pa.table({"recording_id": recording_ids}))
        if self._open("recording_id in (from touched)"):
            self._count()

    def _count(self) -> None:
        if "uri" in self._schema.names:
            self.execute(
                "update outcomes set uri = present.uri from present "
                "where outcomes.recording_id = present.recording_id"
            )
        # By kind: what `retryable` says is of the version of this program that wrote it.
        kinds = self.rows(
            "select distinct error_kind, retryable from outcomes where status = 'failed' "
            "except select error_kind, retryable from origins"
        )
        origins = [
            {"error_kind": kind, "retryable": retryable,
             "origin": str(failure_kind(kind or "", retryable=bool(retryable)).origin)}
            for kind, retryable in kinds
        ]  # fmt: skip
        self._insert("origins", pa.Table.from_pylist(origins))
        has_unread = bool(self.rows("from unread limit 1"))
        unread = "exists (from unread where starts_with(uri, prefix))" if has_unread else "false"
        for statements in (UNOPENED.format(unread=unread), ATTEMPTS, COUNTING):
            self.execute(statements)
        if self._has_parts:
            self._record()

    def redo(self) -> pa.Table:
        """Return the present REDO rows."""
        return self.table("from redo").cast(REDO)

    def do_again(self, ids: pa.Array) -> pa.Table:
        """Request reprocessing of recordings; return all REDO rows, which are not saved yet."""
        self.open(ids)
        self.execute(AGAIN, pa.table({"recording_id": ids}))
        self._count()
        return self.redo()

    def place(self, identities: Identities) -> None:
        """Set the present URIs and versions of rows of moved recordings."""
        self.identities = identities
        self.add("present", identities.present().select(_PRESENT))
        self._count()

    def note_listed(self, files: pa.Table) -> None:
        """Add FILES rows to `seen`, as a listing arrives; which rows are current stays."""
        self._insert("seen", files.select(["recording_id"]))
        self._note_unread(files)

    def note_left(self, recording_ids: Iterable[str]) -> None:
        """Remove recordings from `seen` at whose address there is another sound."""
        ids = pa.table({"recording_id": pa.array(recording_ids, pa.string())})
        self.execute("delete from seen where recording_id in (from arriving)", ids)

    def _list(self, listing: Iterable[pa.RecordBatch]) -> None:
        self.execute(LISTED)
        schema = projected(FILES, ("recording_id", "etag", "size_bytes", "metadata"))
        for batch in listing:
            names = [name for name in schema.names if name in batch.schema.names]
            self._insert("listed", conform(batch.select(names), schema))
            self._note_unread(batch)

    def _note_unread(self, files: pa.RecordBatch | pa.Table) -> None:
        if "uri" in files.schema.names:
            # Recordings in the unreadable rest of an archive or of a folder are unknown.
            rest = files["uri"].filter(pc.match_substring_regex(files["uri"], rf"[#/]\{REST}$"))
            prefixes = pc.utf8_slice_codeunits(rest, 0, -len(REST))
            self._insert("unread", pa.table({"prefix": prefixes}))

    def sort_on_disk(self) -> None:
        """Limit memory to little more than the tables so far, since sorting takes all it may."""
        [(held_mb,)] = self.rows("select sum(memory_usage_bytes) // 1000000 from duckdb_memory()")
        self.execute(f"set memory_limit = '{min(_memory_mb(), int(held_mb) + _SORTING_MB)}MB'")

    def add(self, table: str, rows: pa.Table) -> None:
        """Create a table for use in queries."""
        self.execute(f"create or replace table {table} as from arriving", rows)

    def _insert(self, table: str, rows: pa.Table) -> None:
        if rows.num_rows:
            self.execute(f"insert into {table} from arriving", rows)

    def execute(self, statement: str, rows: pa.Table | None = None, **parameters: Any) -> None:
        """Run a statement that creates or changes tables; `rows` is its table `arriving`."""
        if rows is not None:
            self._db.register("arriving", rows)
        try:
            with self._asking():
                self._db.execute(statement, parameters or None)
        finally:
            if rows is not None:
                self._db.unregister("arriving")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        import duckdb

        try:
            yield
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            reason = str(error).partition("\n")[0]  # its own advice follows
            raise CorpusAsrError(
                f"querying the tables of {self._uri}: {reason}; raise {MEMORY_VARIABLE} (MB), or "
                f"free space in {tempfile.gettempdir()} (TMPDIR)"
            ) from error

    def rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query as tuples; `$name` stands for a parameter."""
        with self._asking():
            return self._db.cursor().execute(query, parameters or None).fetchall()

    def batches(
        self, query: str, *, rows: int = BATCH_ROWS, **parameters: Any
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query in batches of at most `rows`."""
        with self._asking():
            relation = self._db.cursor().sql(query, params=parameters or None)
            yield from relation.to_arrow_reader(rows)

    def table(self, query: str, **parameters: Any) -> pa.Table:
        """Return the rows of a query as a table."""
        with self._asking():
            relation = self._db.cursor().sql(query, params=parameters or None)
            return relation.to_arrow_table()

    def relation(self, name: str) -> "duckdb.DuckDBPyRelation":
        """Return a table as a relation for queries with untrusted expressions."""
        return self._db.cursor().table(name)

    def ids(self, condition: str) -> pa.Array:
        """Return sorted IDs of recordings that match a condition on `recordings`."""
        query = f"select recording_id from recordings where {condition} order by all"
        return self.table(query)["recording_id"].combine_chunks()

    def changed(self, started_at: datetime.datetime, *, rows: int) -> Iterator[pa.Table]:
        """Yield RECORDINGS rows of complete recordings that the table has not, sorted.

        Rows of the table in whose place they come are in `outdated`.

        Args:
            started_at: of the run that listed what is not gone.
            rows: the most at a time.
        """
        self.execute(CHANGED, now=in_utc(started_at))
        self.execute(OUTDATED)
        query = f"select {', '.join(RECORDINGS.names)} from changed order by recording_id"
        for batch in self.batches(query, rows=rows):
            yield conform(batch, RECORDINGS)

    def gone(self, now: datetime.datetime) -> list[dict[str, Any]]:
        """Return recordings with results that no source lists, complete or not, by URI.

        What the recordings table, once noted, lists is gone since `now`.
        """
        rows: list[dict[str, Any]] = self.table(GONE, now=in_utc(now)).to_pylist()
        for row in rows:
            if row["gone_since"] is not None:
                row["gone_since"] = row["gone_since"].replace(tzinfo=datetime.UTC)
        return rows

    @property
    def plans_elsewhere(self) -> set[str]:
        """Plans of other sources with results that nothing else lists."""
        query = (
            "select distinct plan from elsewhere semi join (select recording_id from counted "
            "where elsewhere) using (recording_id)"
        )
        return {plan for (plan,) in self.rows(query)}

    @property
    def num_versions(self) -> int:
        """Number of versions of recordings with commits."""
        [(number,)] = self.rows("select count(*) from committed")
        return int(number)

    @property
    def num_listed(self) -> int:
        """Number of rows of the listing."""
        [(number,)] = self.rows("select count(*) from listed")
        return int(number)

    def places(self) -> dict[str, np.ndarray]:
        """Return the `RowPlace` of each row of the objects in which some lie elsewhere, by name."""
        places_of_objects = self.rows(
            f"""with states as (
                  select object, row, is_commit, case when enters then {RowPlace.tables:d}
                    when waits then {RowPlace.waiting:d} else {RowPlace.nowhere:d} end as place
                  from outcomes join objects using (object) left join row_states using (id))
                select name, list(row order by row), list(place order by row)
                from states join objects using (object) group by name, objects.is_commit
                having bool_or(place != if(objects.is_commit, {RowPlace.waiting:d},
                                           {RowPlace.tables:d})) order by name"""
        )
        places_by_name = {}
        for name, rows, places in places_of_objects:
            places_by_name[name] = np.full(self._num_rows[name], RowPlace.tables, dtype=np.int8)
            places_by_name[name][rows] = places  # what was not read stays
        return places_by_name

    def remaining(
        self, files: pa.RecordBatch, retry: Retry | None = Retry.environment,
        *, leave_alone: Collection[str] = (),
    ) -> pa.Table:  # fmt: skip
        """Return the FILES rows that are not fully committed, with the parts that are, and why.

        Failed parts count as committed unless `retry` is for them; what `leave_alone` names is
        tried again only for what the environment did to it.
        """
        positions = pa.array(np.arange(files.num_rows))
        db = self._db.cursor()
        db.register("files", files.append_column("position", positions))
        tried = [str(origin) for origin in Origin if retry is not None and retry.includes(origin)]
        parameters = {"tried": tried, "spared": list(leave_alone)}
        with self._asking():
            return conform(db.sql(LEFT, params=parameters).to_arrow_table(), REMAINING)


def in_utc(moment: datetime.datetime) -> datetime.datetime:
    """Return a moment in UTC, without its zone."""
    return moment.astimezone(datetime.UTC).replace(tzinfo=None)


def read_redo(store: OutputStore) -> pa.Table:
    """Return the REDO rows of a folder."""
    return store.read_table(REDO_NAME, REDO) if store.exists(REDO_NAME) else REDO.empty_table()


def _memory_mb() -> int:
    memory_mb = os.environ.get(MEMORY_VARIABLE) or str(_MEMORY_MB)
    if not memory_mb.isdecimal() or not int(memory_mb):
        raise ConfigError(
            f"reading {MEMORY_VARIABLE}: found {memory_mb!r}, expected a memory limit in "
            "megabytes; correct or unset it"
        )
    return int(memory_mb)


def _connect(scratch: Path) -> "duckdb.DuckDBPyConnection":
    import duckdb  # most commands need no tables, and importing takes 0.1 s

    db = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": f"{_memory_mb()}MB",
            "threads": min(_MOST_THREADS, os.cpu_count() or 1),
            "temp_directory": str(scratch / "tables"),  # created on demand
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,  # table names are not variables
            "preserve_insertion_order": False,  # queries that need an order specify it
        },
    )
    db.execute("set enable_external_access = false")
    db.execute(SUM)
    db.execute(FITS)
    return db
