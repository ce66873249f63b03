"""What an output folder holds, as one database: which rows count, and what recordings came to.

A version of a recording is an ETag, a size and a generation; an ETag or size that is not known fits
any. The generation is how often the recording was asked to be done again before the row was made
(`REDO`); the listed version is of the newest one. One version of each recording counts: the listed
one once it is complete without a failure, until then an earlier one that has more. Of several
commits of one part the oldest that did not fail counts, else the newest failure, which knows most.

Relations, for `RunTables.sql`:

- `outcomes`: all committed rows, with `id` (their order), `object` and `row` (their place); `uri`
  and `etag` are those of the recording's present address;
- `objects`: commits (`is_commit`) and objects of outcomes, by `name`;
- `versions`: of recordings, with `rank` and whether they are `listed` and `fresh` (the listed one);
- `settled`: recordings whose outcomes are left out, since their row in the recordings table stands
  for them (`what_counts`); `committed`: the versions of all;
- `listed`: the listing at the opening, and `listing`: of it, what outcomes may not be settled of;
  `seen`: what a listing has that arrives later (`note_listed`);
- `redo`: REDO rows, and `generations`: the newest generation of the recordings that have any;
- `closed`: failures that stood for unreadable folders which are read again;
- `winners`: of each version the rows that count if it does;
- `standing`: whether the row `counts`, is `failing`, and its `place` after a finish;
- `parts`: the outcomes that count, one for each part of a recording;
- `failing`: failures of a version in whose place an earlier one counts;
- `recordings`: one row for each recording with any part, see `RECORDED`; its `separate` channels
  cover the same span of time, by which the time of a part is to be divided;
- `counted`: these and the settled ones, as far as a finish counts them.
"""

import datetime
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.table_names import is_commit, table_name
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.run_state.what_counts import (
    AGAIN,
    CLOSED,
    COMPLETE,
    COUNTED,
    COUNTED_COLUMNS,
    COUNTING,
    FIRST,
    FITS,
    GONE,
    LEFT,
    LISTED,
    RANKS,
    RECORDED,
    SETTLED,
    SETTLED_COLUMNS,
    SMALL_TABLES,
    SUM,
    UNSETTLED,
    VERSIONS,
    read_settled,
)
from corpus_asr.storage.stores.uri import REST, redact_uri

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

_DONE_PARTS = pa.field("done_parts", pa.list_(pa.int32()))
_REASON = pa.field("reason", pa.int8())
REMAINING = FILES.append(_DONE_PARTS).append(_REASON)
# What tells which rows count; what else there is of a part, but what is large and seldom asked for.
VERSION_COLUMNS = (
    "run_id", "recording_id", "size_bytes", "etag", "part", "last_part", "status", "error_kind",
    "retryable", "segments_written", "content_digest",
)  # fmt: skip
_LARGE = ("fingerprint", "voice_spans", "voices", "overlap_spans", "text_lengths")
PART_COLUMNS = tuple(name for name in OUTCOMES.names if name not in _LARGE)
# What is kept of a recordings table that is written again; moments are in UTC.
NOTED = pa.schema([
    ("recording_id", pa.string()), ("gone_since", pa.timestamp("ms")), ("metadata", pa.string()),
])  # fmt: skip
_INSERTED_ROWS = 122_880  # at once, a row group of the database; commits have some hundreds
_PARTS_AT_ONCE = 100_000  # some hundred MB while they are folded
REDO_NAME = table_name("_run", "redo")
REDO = pa.schema([("recording_id", pa.string()), ("earlier_runs", pa.list_(pa.string()))])
"""Each row asks for a recording to be done again; what these runs committed came before."""
_ID, _ROW = pa.field("id", pa.int64()), pa.field("row", pa.int32())
_OBJECT = pa.field("object", pa.int32())
_HELD = pa.schema([_OBJECT, _ROW, ("recording_id", pa.string())])
MEMORY_VARIABLE = "CORPUS_ASR_TABLES_MB"
_MEMORY_MB = 512  # beside one worker's, on the smallest machines that transcribe
_SORTING_MB = 128
_MOST_THREADS = 4  # each takes memory of its own for what it sorts


class RowPlace(IntEnum):
    """Place of a committed row after a finish."""

    nowhere = 0
    tables = 1
    waiting = 2  # a part of a new version that is not complete, while an earlier one counts


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
        from_base: bool = False,
    ) -> None:
        """Read the committed outcomes of a folder.

        Args:
            columns: of OUTCOMES, including `VERSION_COLUMNS`.
            names: outcomes objects to read; default: all.
            listing: FILES batches of the present listing.
            elsewhere: listings of other sources (`source_listings.other_listings`).
            from_base: leave out the outcomes of `settled` recordings.
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
        try:
            self._list(listing)
            for rows in elsewhere:
                self._insert("elsewhere", rows)
            if names is None:
                names = store.commit_names()
            self._read_base(store if from_base else None)
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

    def _read_base(self, store: OutputStore | None) -> None:
        columns = SETTLED_COLUMNS
        if self._has_parts:
            columns += COUNTED_COLUMNS
            # Addresses tell only what may be in archives that could not be read.
            columns += ("uri",) if self.rows("from unread limit 1") else ()
        self.base, rows = read_settled(store, columns)  # how many rows each object had
        self.execute(SETTLED, rows)

    @property
    def _has_parts(self) -> bool:
        return {*PART_COLUMNS} <= {*self._schema.names}

    def _read(self, store: OutputStore, names: list[str]) -> None:
        objects = [
            {"object": index, "name": name, "is_commit": is_commit(name)}
            for index, name in enumerate(names)
        ]
        self.execute(SMALL_TABLES)
        self._insert("objects", pa.Table.from_pylist(objects))
        self._number = {name: index for index, name in enumerate(names)}
        self._num_rows = dict.fromkeys(names, 0)
        placed = self._schema.append(_ID).append(_OBJECT).append(_ROW)
        self.add("outcomes", placed.empty_table())
        self._insert("redo", read_redo(store))
        identities = Identities.read(store)
        if self.base:
            self._load(filter(is_commit, names))
            # Also what moved: its rows have another version now.
            self.execute(UNSETTLED, identities.present().select(["recording_id"]))
            self._load_unsettled()
        else:
            self._load(names)
        if self._has_parts:
            self.execute(CLOSED)
        self.place(identities)
        if self._has_parts:
            self._record()

    def _record(self) -> None:
        """Make the rows of recordings from those of their parts."""
        # In slices: what groups have of text and lists stays in memory until all are made.
        [(num_parts,)] = self.rows("select count(*) from outcomes")
        slices = 1 + num_parts // _PARTS_AT_ONCE
        for index in range(slices):
            query = RECORDED.format(first=FIRST, slices=slices, index=index)
            begin = "insert into" if index else "create or replace table"
            self.execute(f"{begin} recordings {'' if index else 'as'} {query}")
        unread = "exists (from unread where starts_with(uri, prefix))"
        has_unread = self.base and self.rows("from unread limit 1")
        self.execute(COUNTED.format(unread=unread if has_unread else "false"))

    def _load(self, names: Iterable[str], rows: Mapping[str, np.ndarray] | None = None) -> None:
        """Read outcomes of objects; with `rows` those of these numbers, by name, in order."""
        placed = self._schema.append(_ID).append(_OBJECT).append(_ROW)
        starts: dict[str, int] = {}
        waiting: list[pa.Table] = []
        num_waiting = 0
        for name, table in self._store.committed(self._schema.names, names):
            start = starts.get(name, 0)
            starts[name] = start + len(table)
            numbers = np.arange(start, start + len(table), dtype=np.int64)
            if rows is not None:
                numbers = numbers[np.isin(numbers, rows[name])]
                table = table.take(pa.array(numbers - start))
            number = self._number[name]
            places = (
                pa.array(numbers + (number << 32)),
                pa.repeat(pa.scalar(number, pa.int32()), len(table)),
                pa.array(numbers.astype(np.int32)),
            )
            waiting.append(pa.table([*table.columns, *places], schema=placed))
            num_waiting += len(table)
            if num_waiting >= _INSERTED_ROWS:
                self._insert("outcomes", pa.concat_tables(waiting))
                waiting, num_waiting = [], 0
        if waiting:
            self._insert("outcomes", pa.concat_tables(waiting))
        self._num_rows |= starts

    def _load_unsettled(self) -> None:
        """Read the outcomes in tables of recordings that are not settled, or not any more."""
        starts: dict[str, int] = {}
        held = [_HELD.empty_table()]
        ids = projected(OUTCOMES, ("recording_id",))
        finished = [name for name in self._number if not is_commit(name)]
        for name, table in self._store.read_tables(finished, ids):
            start = starts.get(name, 0)
            starts[name] = start + len(table)
            numbers = np.arange(start, starts[name], dtype=np.int32)
            number = pa.repeat(pa.scalar(self._number[name], pa.int32()), len(table))
            columns = [number, pa.array(numbers), table["recording_id"]]
            held.append(pa.table(columns, schema=_HELD))
        self._num_rows |= starts
        rows = pa.concat_tables(held)
        # From Arrow: once a table of the database, a million rows take three times as long.
        self.execute(
            "create or replace table held as from arriving anti join settled using (recording_id)",
            rows,
        )
        [(num_open,)] = self.rows("select count(*) from held")
        [(num_settled,)] = self.rows("select coalesce(sum(parts), 0) from settled")
        if len(rows) - num_open != num_settled:
            logger.warning(
                "recordings folded again: found=%d parts of them, expected=%d",
                len(rows) - num_open, num_settled,
            )  # fmt: skip
            self.base = {}
            self.execute("delete from settled")
            self.add("held", rows)
        open_rows = self.rows(
            """select name, list(row order by row) from held anti join outcomes using (object, row)
               join objects using (object) group by name order by name"""
        )
        self._load(
            [name for name, _ in open_rows],
            {name: np.array(numbers) for name, numbers in open_rows},
        )
        self.execute("drop table held")

    def num_settled(self) -> dict[str, int]:
        """Return how many rows of each object of the base are of settled recordings still."""
        numbers = dict(self.rows("select number, count(*) from settled group by number"))
        return {name: numbers.get(number, 0) for number, name in enumerate(self.base)}

    def unsettle(self, recording_ids: pa.Array | pa.ChunkedArray) -> None:
        """Fold settled recordings from their outcomes, since something changes of them."""
        table = pa.table({"recording_id": recording_ids})
        self.add("touched", table)
        if self.rows("from settled semi join touched using (recording_id) limit 1"):
            self.execute(UNSETTLED, table)
            self._load_unsettled()
            self._count()
            if self._has_parts:
                self._record()

    def _count(self) -> None:
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
        for statements in (VERSIONS, RANKS, COUNTING):
            self.execute(statements)

    def redo(self) -> pa.Table:
        """Return the present REDO rows."""
        return self.table("from redo").cast(REDO)

    def do_again(self, ids: pa.Array) -> pa.Table:
        """Request reprocessing of recordings; return all REDO rows, which are not saved yet."""
        self.unsettle(ids)
        self.execute(AGAIN, pa.table({"recording_id": ids}))
        self._count()
        return self.redo()

    def place(self, identities: Identities) -> None:
        """Set the present URIs and versions of rows of moved recordings."""
        self.identities = identities
        present = identities.present()
        if present.num_rows:
            self.unsettle(present["recording_id"])
            # The last part of a version has its digest.
            same = (
                "(outcomes.recording_id, coalesce(outcomes.etag, '')) in (select recording_id, "
                "coalesce(outcomes.etag, '') from outcomes semi join arriving "
                "using (recording_id, content_digest))"
            )
            uri = "uri = arriving.uri, " if "uri" in self._schema.names else ""
            self.execute(
                f"update outcomes set {uri}"
                f"etag = if({same}, coalesce(arriving.etag, outcomes.etag), outcomes.etag), "
                f"size_bytes = if({same}, coalesce(arriving.size_bytes, outcomes.size_bytes), "
                "outcomes.size_bytes) "
                "from arriving where outcomes.recording_id = arriving.recording_id", present,
            )  # fmt: skip
        self._count()

    def note_listed(self, files: pa.Table) -> None:
        """Add FILES rows to `seen`, as a listing arrives; which rows are current stays."""
        self._insert("seen", files.select(["recording_id"]))
        self._note_unread(files)

    def note_left(self, recording_ids: Iterable[str]) -> None:
        """Remove recordings from `seen` at whose address there is another sound."""
        left = pa.table({"recording_id": pa.array(recording_ids, pa.string())})
        self.execute("delete from seen where recording_id in (from arriving)", left)

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

    def note(self, noted: Iterable[pa.Table]) -> None:
        """Add NOTED rows of the existing recordings table, of what is no longer settled."""
        self.execute("delete from noted")
        for table in noted:
            self.execute(
                "insert into noted from arriving semi join recordings using (recording_id)", table
            )

    def complete(
        self, started_at: datetime.datetime, *, rows: int, which: str = "true"
    ) -> Iterator[pa.Table]:
        """Yield RECORDINGS rows of complete recordings, sorted, once what is known is noted.

        Args:
            started_at: of the run that listed what is not gone.
            rows: the most at a time.
            which: a condition in SQL on `recordings`.
        """
        columns = ", ".join(name for name in RECORDINGS.names if name != "gone_since")
        query = COMPLETE.format(columns=columns, which=which)
        for batch in self.batches(query, rows=rows, now=in_utc(started_at)):
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
            """select name, list(row order by row), list(coalesce(place, 0) order by row)
               from outcomes join objects using (object) left join standing using (id)
               group by name, is_commit
               having bool_or(coalesce(place, 0) != if(is_commit, 2, 1)) order by name"""
        )
        places_by_name = {}
        for name, rows, places in places_of_objects:
            places_by_name[name] = np.full(self._num_rows[name], RowPlace.tables, dtype=np.int8)
            places_by_name[name][rows] = places  # those of settled recordings stay
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
