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
- `redo`: REDO rows, and `generations`: the newest generation of the recordings that have any;
- `winners`: of each version the rows that count if it does;
- `standing`: whether the row `counts`, is `failing`, and its `place` after a finish;
- `parts`: the outcomes that count, one for each part of a recording;
- `failing`: failures of a version in whose place an earlier one counts;
- `recordings`: one row for each recording with any part, see `_RECORDINGS`; its `separate` channels
  cover the same span of time, by which the time of a part is to be divided.
"""

import datetime
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
from corpus_asr.errors import ConfigError, CorpusAsrError, FetchError
from corpus_asr.failure_kinds import NOT_FOUND, Origin, failure_kind
from corpus_asr.schemas import FILES, OUTCOMES, RECORDINGS
from corpus_asr.scratch import scratch_folder
from corpus_asr.storage.parquet import BATCH_ROWS, conform
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.result_rows import PART_ROWS_FOLDERS, without_credentials
from corpus_asr.storage.run_state.tables import (
    OUTCOMES_FOLDER,
    OutputStore,
    beside,
    is_commit,
    projected,
)
from corpus_asr.storage.stores.members import REST
from corpus_asr.storage.stores.store import KINDS
from corpus_asr.storage.stores.uri import redact_uri

if TYPE_CHECKING:
    import duckdb

_DONE_PARTS = pa.field("done_parts", pa.list_(pa.int32()))
_REASON = pa.field("reason", pa.int8())
REMAINING = FILES.append(_DONE_PARTS).append(_REASON)
# What tells which rows count; what else there is of a part, but what is large and seldom asked for.
VERSION_COLUMNS = (
    "run_id", "recording_id", "size_bytes", "etag", "part", "last_part", "status", "error_kind",
    "retryable", "segments_written", "content_digest",
)  # fmt: skip
_LARGE = (
    "fingerprint", "voice_spans", "voices", "overlap_spans", "text_lengths", "text_spans",
)  # fmt: skip
PART_COLUMNS = tuple(name for name in OUTCOMES.names if name not in _LARGE)
# What is kept of a recordings table that is written again; moments are in UTC.
NOTED = pa.schema([("recording_id", pa.string()), ("gone_since", pa.timestamp("ms"))])
_INSERTED_ROWS = 65_536  # at once; commits have some hundreds
_PARTS_AT_ONCE = 100_000  # some hundred MB while they are folded
REDO_NAME = "_run/redo.parquet"
REDO = pa.schema([("recording_id", pa.string()), ("earlier_runs", pa.list_(pa.string()))])
"""Each row asks for a recording to be done again; what these runs committed came before."""
_ID, _ROW = pa.field("id", pa.int64()), pa.field("row", pa.int32())
_OBJECT = pa.field("object", pa.int32())
# The same in every part; what only some parts know (a failed one has no codec) comes from those.
_FIRST_COLUMNS = (
    "uri", "size_bytes", "etag", "metadata", "codec", "sample_rate_hz", "channels",
    "header_duration_s", "audio_track", "audio_tracks",
)  # fmt: skip
MEMORY_VARIABLE = "CORPUS_ASR_TABLES_MB"
_MEMORY_MB = 512  # beside one worker's, on the smallest machines that transcribe
_SORTING_MB = 128
_MOST_THREADS = 4  # each takes memory of its own for what it sorts


class RemainingReason(IntEnum):
    """Why a listed recording is left to be done."""

    new = 0
    changed = 1  # only other versions of it are committed
    retried = 2  # it failed, and is to be done again
    continued = 3  # some of its parts are committed, not all
    redone = 4  # it is done, and is to be done again


class RowPlace(IntEnum):
    """Where a committed row belongs once a run has finished."""

    nowhere = 0
    tables = 1
    waiting = 2  # a part of a new version that is not complete, while an earlier one counts


# What is unknown fits any version, and so does what is of another kind: it cannot be compared.
_FITS = f"""
create macro kind_of(version) as coalesce(regexp_extract(version, '^({"|".join(KINDS)}):', 1), '');
create macro plain(version) as if(kind_of(version) = '', version, split_part(version, '@', 1));
create macro fits(one, other) as
  coalesce(plain(one) = plain(other) or kind_of(one) != kind_of(other), true)
"""
# The same sum in whatever order, so that tables do not depend on threads: to the nanosecond.
_SUM = "create macro exact_sum(x) as sum(try_cast(x as decimal(38, 9)))::double"

# Runs are named by the time that they began, also where rows were put into another object.
_LISTED = """
create table listed (recording_id varchar, etag varchar, size_bytes bigint, metadata varchar);
create table unread (prefix varchar);
create table elsewhere (recording_id varchar, plan varchar);
"""
_SMALL_TABLES = """
create or replace table objects (object integer, name varchar, is_commit boolean);
create or replace table origins (error_kind varchar, retryable boolean, origin varchar);
"""
_VERSIONS = """
create or replace table generations as
select recording_id, count(*) as generation from redo group by all;

create or replace table live as
with later as (
  select id, count(*) as generation from outcomes join redo using (recording_id)
  where not list_contains(earlier_runs, run_id) group by id)
select id, recording_id, plain(etag) as etag, size_bytes, coalesce(generation, 0) as generation,
       part, last_part,
       status = 'failed' as failed, coalesce(segments_written, 0) > 0 as written, origin,
       row_number() over (order by coalesce(generation, 0), run_id, id) as age
from outcomes left join later using (id)
left join origins on outcomes.error_kind is not distinct from origins.error_kind
  and outcomes.retryable is not distinct from origins.retryable;

create or replace table known as
select min(age) as version, recording_id, etag, size_bytes, generation, max(age) as newest
from live group by all;

create or replace table winners as
select version, id, part, last_part, failed, written, origin
from known join live using (recording_id, generation)
where (live.etag is null or live.etag = known.etag)
  and (live.size_bytes is null or live.size_bytes = known.size_bytes)
qualify row_number() over (partition by version, part
                           order by failed, if(failed, -id, id)) = 1;
"""

# Complete: all parts up to the first that was a last one; parts may lie beyond it, where that one
# failed. A version is included in another one that has its rows as well: where it is less complete,
# it has since been gone on with in the place of a failure of theirs.
_RANKS = """
create or replace table ranks as
with reach as (
  select *, min(part) filter (last_part) over (partition by version) as until from winners),
held as (
  select version, coalesce(count(*) filter (part <= until) = any_value(until) + 1, false) as whole,
         bool_or(failed) as failed, bool_or(written) as written
  from reach group by version),
included as (
  select distinct one.version
  from (select * from known where etag is null or size_bytes is null) one
  join known other on one.recording_id = other.recording_id and one.version != other.version
   and one.generation = other.generation
   and (one.etag is null or one.etag = other.etag)
   and (one.size_bytes is null or one.size_bytes = other.size_bytes))
select known.*, held.whole, held.failed, included.version is not null as included,
       case when whole and not held.failed then 2
            when whole and written and included.version is null then 1 else 0 end as rank
from known join held using (version) left join included using (version);
"""

# For recordings that are not listed, the newest version stands for the listing. Of equals a
# listed version is better, then one that is not included, then a newer.
_COUNTING = """
create or replace table versions as
with newest as (select recording_id, max_by({etag: etag, size: size_bytes}, newest) as v
                from ranks group by all)
select ranks.*, listing.recording_id is not null as listed,
       fits(ranks.etag, if(listing.recording_id is null, v.etag, listing.etag))
   and coalesce(ranks.size_bytes = if(listing.recording_id is null, v.size, listing.size_bytes),
                true)
   and ranks.generation = coalesce(generations.generation, 0) as fresh
from ranks join newest using (recording_id) left join listing using (recording_id)
left join generations using (recording_id);

create or replace table chosen as
select recording_id, any_value(listed) as listed,
       arg_max(version, (rank, fresh, not included, newest)) as counting,
       arg_max(version, (rank, not included, newest)) filter (fresh) as present,
       max(rank) > 0 as has_text
from versions group by recording_id;

create or replace table standing as
with mine as (select id from winners join chosen on version = counting),
theirs as (select id, failed from winners join chosen on version = present)
select live.id, mine.id is not null as counts,
       mine.id is null and coalesce(theirs.failed, false) as failing,
       case when mine.id is not null or theirs.failed then 1
            when theirs.id is not null then 2 else 0 end as place
from live left join mine using (id) left join theirs using (id);

create or replace view parts as
select * from outcomes semi join (select id from standing where counts) using (id);

create or replace view failing as
select * from outcomes semi join (select id from standing where failing) using (id);
"""

# Channels transcribed separately cover the same span of time; mixed ones, and a recording that
# failed before its channels were known, have no number. What only some parts know (a failed one has
# no codec) comes from the first of those. What a part that failed says is not known to be missing.
_RECORDINGS = """
with mine as (select * from parts where hash(recording_id) % {slices} = {index}),
spoken as (
  select recording_id, list(language order by speech_s desc, language) as languages
  from (select recording_id, language, exact_sum(coalesce(speech_s, duration_s, 0)) as speech_s
        from mine where language is not null and segments_written > 0 group by all)
  group by all),
likely as (
  select recording_id, label, exact_sum(probability * coalesce(label_weight_s, 0)) as weighted
  from (select recording_id, label_weight_s, unnest(label_means, recursive := true) from mine)
  group by all),
labelled as (
  select recording_id,
         arg_min({{label: label, weighted: weighted}}, (-weighted, label)) as likeliest
  from likely group by all),
folded as (
  select recording_id, max(run_id) as run_id,
    {first},
    arg_min({{stage: error_stage, kind: error_kind, message: error_message,
             retryable: retryable}}, part) filter (status = 'failed') as error,
    bool_or(status = 'failed') as failed, bool_or(status != 'failed') as succeeded,
    max(decode_errors) as decode_errors, max(time_corrections) as time_corrections,
    max(clock_restarts) as clock_restarts,
    greatest(count(distinct channel), 1) as separate,
    exact_sum(duration_s) / separate as duration_s,
    exact_sum(speech_s) / separate as speech_s,
    exact_sum(speech_without_text_s) / separate as speech_without_text_s,
    max(part_end_s) as end_s, exact_sum(decode_s) as decode_s,
    exact_sum(transcribe_s) as transcribe_s,
    count(*) as parts, sum(segments_written) as segments, max(text_words) as text_words,
    if(failed, null, max(text_words) - sum(text_found)) as missing_words,
    exact_sum(label_weight_s) as label_weight_s
  from mine group by recording_id)
select folded.* exclude (error, label_weight_s), coalesce(languages, []) as languages,
  case when failed then 'failed' when segments > 0 then 'ok' else 'no_speech' end as status,
  error.stage as error_stage, error.kind as error_kind, error.message as error_message,
  error.retryable as retryable, likeliest.label as label,
  likeliest.weighted / nullif(label_weight_s, 0) as label_probability,
  own.whole as complete, listed,
  not listed and theirs is not null as elsewhere,
  not listed and theirs is null
    and not exists (from unread where starts_with(uri, prefix)) as gone,
  own.whole and counting is not distinct from present as current,
  coalesce(listed and latest.whole and counting != present, false) as failed_since,
  listed and has_text and counting is distinct from present as earlier
from folded join chosen using (recording_id)
join (select version, whole from versions) own on own.version = counting
left join (select version, whole from versions) latest on latest.version = present
left join spoken using (recording_id) left join labelled using (recording_id)
left join (select distinct recording_id as theirs from elsewhere) on theirs = folded.recording_id
"""
_FIRST = ",\n    ".join(f"arg_min({name}, part) as {name}" for name in _FIRST_COLUMNS)

_COMPLETE = """
select {columns},
  if(gone, coalesce(noted.gone_since, $now::timestamp), null)::timestamp_ms as gone_since
from recordings left join noted using (recording_id)
where complete order by recording_id
"""
# What another source lists was listed when that source was; what no finish knew, when it was
# committed.
_GONE = """
select recordings.recording_id, uri, coalesce(segments, 0)::bigint as segments,
  coalesce(duration_s, 0.0) as audio_s, elsewhere,
  case when elsewhere then listed_at
       when noted.recording_id is not null then coalesce(noted.gone_since, $now::timestamp)
       else try_strptime(run_id[:16], '%Y%m%dT%H%M%SZ') end as gone_since
from recordings left join noted using (recording_id)
left join (
  select recording_id,
         make_timestamp_ns(try_cast(split_part(split_part(max(plan), '/', 3), '-', 1) as bigint))
           as listed_at
  from elsewhere group by recording_id) using (recording_id)
where gone or elsewhere order by uri, recording_id
"""

# What a run is to do of some files: the best of the versions that fit each, without what is tried
# again. A failure that ended an incomplete recording may come again: its place has to be free.
_REMAINING = """
with asked as (
  select position, recording_id, version
  from files join versions using (recording_id) left join generations using (recording_id)
  where versions.generation = coalesce(generations.generation, 0)
    and fits(versions.etag, files.etag)
    and coalesce(versions.size_bytes = files.size_bytes, true)
  qualify row_number() over (partition by position
                             order by rank desc, included, newest desc) = 1),
held as (
  select position, part, last_part, failed,
         failed and origin in (select unnest($tried))
           and (origin = 'environment' or recording_id not in (select unnest($spared))) as again
  from asked join winners using (version)),
reach as (
  select *, min(part) filter (last_part) over (partition by position) as until from held),
state as (
  select position, bool_or(again) as due,
         list(part order by part) filter (not again and not (failed and last_part)) as kept,
         coalesce(count(*) filter (part <= until) = any_value(until) + 1, false) as whole
  from reach group by position)
select files.* exclude (position), coalesce(kept, []) as done_parts,
       case when due then {retried} when state.position is not null then {continued}
            when recording_id in (
              select recording_id from generations
              anti join versions using (recording_id, generation)) then {redone}
            when recording_id in (select recording_id from versions) then {changed}
            else {new} end as reason
from files left join state using (position)
where state.position is null or due or not whole
order by position
""".format(**{reason.name: int(reason) for reason in RemainingReason})


_AGAIN = """
insert into redo
select recording_id, list(distinct run_id order by run_id)
from outcomes semi join arriving using (recording_id) group by all
"""


class RunTables:
    """The committed rows of an output folder as a database: in memory, beyond it on local disk."""

    def __init__(
        self,
        store: OutputStore | None,
        *,
        columns: Sequence[str] = PART_COLUMNS,
        names: Iterable[str] | None = None,
        listing: Iterable[pa.RecordBatch] = (),
        elsewhere: Iterable[pa.Table] = (),
    ) -> None:
        """Read the committed outcomes of a folder; empty without one.

        Args:
            columns: of OUTCOMES, including `VERSION_COLUMNS`.
            names: outcomes objects to read; default: all.
            listing: FILES batches of the present listing.
            elsewhere: listings of other sources (`source_listings.other_listings`).
        """
        self._uri = "nothing" if store is None else redact_uri(store.uri)
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
                names = () if store is None else store.commit_names()
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

    def _read(self, store: OutputStore | None, names: list[str]) -> None:
        schema = self._schema
        number = {name: index for index, name in enumerate(names)}
        counts = dict.fromkeys(names, 0)
        placed = schema.append(_ID).append(_OBJECT).append(_ROW)
        put = self.add  # the first ones make the table
        waiting: list[pa.Table] = []
        num_waiting = first = 0
        for name, rows in () if store is None else store.committed(schema.names, names):
            places = (
                pa.array(np.arange(first, first + len(rows))),
                pa.repeat(pa.scalar(number[name], pa.int32()), len(rows)),
                pa.array(np.arange(counts[name], counts[name] + len(rows), dtype=np.int32)),
            )
            waiting.append(pa.table([*rows.columns, *places], schema=placed))
            counts[name] += len(rows)
            first += len(rows)
            num_waiting += len(rows)
            if num_waiting >= _INSERTED_ROWS:
                put("outcomes", pa.concat_tables(waiting))
                put, waiting, num_waiting = self._insert, [], 0
        put("outcomes", pa.concat_tables([placed.empty_table(), *waiting]))
        if store is not None:
            _check_whole(store, {name for name in names if not is_commit(name)})
        objects = [
            {"object": index, "name": name, "is_commit": is_commit(name)}
            for name, index in number.items()
        ]
        self.execute(_SMALL_TABLES)
        self._insert("objects", pa.Table.from_pylist(objects))
        # By kind: what `retryable` says is of the version of this program that wrote it.
        kinds = self.rows(
            "select distinct error_kind, retryable from outcomes where status = 'failed'"
        )
        origins = [
            {"error_kind": kind, "retryable": retryable,
             "origin": str(failure_kind(kind or "", retryable=bool(retryable)).origin)}
            for kind, retryable in kinds
        ]  # fmt: skip
        self._insert("origins", pa.Table.from_pylist(origins))
        self.add("redo", REDO.empty_table() if store is None else read_redo(store))
        self.place(Identities() if store is None else Identities.read(store))
        if set(PART_COLUMNS) <= set(schema.names):
            # In slices: what groups have of text and lists stays in memory until all are made.
            slices = 1 + sum(counts.values()) // _PARTS_AT_ONCE
            for index in range(slices):
                query = _RECORDINGS.format(first=_FIRST, slices=slices, index=index)
                begin = "insert into" if index else "create or replace table"
                self.execute(f"{begin} recordings {'' if index else 'as'} {query}")

    def _count(self) -> None:
        for statements in (_VERSIONS, _RANKS, _COUNTING):
            self.execute(statements)

    def redo(self) -> pa.Table:
        """Return the present REDO rows."""
        return self.table("from redo").cast(REDO)

    def do_again(self, ids: pa.Array) -> pa.Table:
        """Request reprocessing of recordings; return all REDO rows, which are not saved yet."""
        self.execute(_AGAIN, pa.table({"recording_id": ids}))
        self._count()
        return self.redo()

    def place(self, identities: Identities) -> None:
        """Set the present URIs and versions of rows of moved recordings."""
        self.identities = identities
        present = identities.present()
        if present.num_rows:
            same = "outcomes.content_digest = arriving.content_digest"
            uri = "uri = arriving.uri, " if "uri" in self._schema.names else ""
            self.execute(
                f"update outcomes set {uri}"
                f"etag = if({same}, coalesce(arriving.etag, outcomes.etag), outcomes.etag) "
                "from arriving where outcomes.recording_id = arriving.recording_id", present,
            )  # fmt: skip
        self._count()

    def list_also(self, files: pa.RecordBatch | pa.Table) -> None:
        """Add FILES rows to `listed` without changing which rows are current."""
        schema = projected(FILES, ("recording_id", "etag", "size_bytes", "metadata"))
        names = [name for name in schema.names if name in files.schema.names]
        self._insert("listed", without_credentials(conform(files.select(names), schema)))
        if "uri" in files.schema.names:
            # Recordings in the unreadable rest of an archive are unknown.
            rest = files["uri"].filter(pc.ends_with(files["uri"], f"#{REST}"))
            prefixes = pc.utf8_slice_codeunits(rest, 0, -len(REST))
            self._insert("unread", pa.table({"prefix": prefixes}))

    def _list(self, listing: Iterable[pa.RecordBatch]) -> None:
        self.execute(_LISTED)
        for batch in listing:
            self.list_also(batch)
        self.execute(
            "create table listing as select recording_id, max(etag) as etag, "
            "max(size_bytes) as size_bytes, any_value(metadata) as metadata from listed "
            "group by recording_id"
        )

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
                f"asking the tables of {self._uri}: {reason}; give them more memory "
                f"({MEMORY_VARIABLE}, in MB) or more room in {tempfile.gettempdir()} (TMPDIR)"
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

    def complete(
        self, listed_at: datetime.datetime, noted: Iterable[pa.Table], *, rows: int
    ) -> Iterator[pa.Table]:
        """Yield the RECORDINGS rows of complete recordings, sorted, at most `rows` at a time.

        Args:
            listed_at: time of the listing.
            noted: `NOTED` rows of the existing recordings table.
        """
        self._note(noted)
        columns = ", ".join(name for name in RECORDINGS.names if name != "gone_since")
        listed_utc = listed_at.astimezone(datetime.UTC).replace(tzinfo=None)
        for batch in self.batches(_COMPLETE.format(columns=columns), rows=rows, now=listed_utc):
            yield conform(batch, RECORDINGS)

    def gone(self, noted: Iterable[pa.Table], now: datetime.datetime) -> list[dict[str, Any]]:
        """Return recordings with results that no source lists, complete or not, by URI.

        `noted` are `NOTED` rows of the recordings table; what it does not say is gone since `now`.
        """
        self._note(noted)
        now_utc = now.astimezone(datetime.UTC).replace(tzinfo=None)
        rows: list[dict[str, Any]] = self.table(_GONE, now=now_utc).to_pylist()
        for row in rows:
            if row["gone_since"] is not None:
                row["gone_since"] = row["gone_since"].replace(tzinfo=datetime.UTC)
        return rows

    def _note(self, noted: Iterable[pa.Table]) -> None:
        self.add("noted", NOTED.empty_table())
        for table in noted:
            self.execute(
                "insert into noted from arriving semi join (select recording_id from recordings "
                "where not listed) using (recording_id)", table,
            )  # fmt: skip

    @property
    def plans_elsewhere(self) -> set[str]:
        """Plans of other sources with results that nothing else lists."""
        query = (
            "select distinct plan from elsewhere semi join (select recording_id from recordings "
            "where elsewhere) using (recording_id)"
        )
        return {plan for (plan,) in self.rows(query)}

    @property
    def num_versions(self) -> int:
        """Number of versions of recordings with commits."""
        [(number,)] = self.rows("select count(*) from versions")
        return int(number)

    @property
    def num_listed(self) -> int:
        """Number of rows of the listing."""
        [(number,)] = self.rows("select count(*) from listed")
        return int(number)

    def places(self) -> dict[str, np.ndarray]:
        """Return the `RowPlace` of each row of the objects in which some lie elsewhere, by name."""
        places_of_objects = self.rows(
            """select name, list(coalesce(place, 0) order by row)
               from outcomes join objects using (object) left join standing using (id)
               group by name, is_commit
               having bool_or(coalesce(place, 0) != if(is_commit, 2, 1)) order by name"""
        )
        return {name: np.array(places, dtype=np.int8) for name, places in places_of_objects}

    def remaining(
        self, files: pa.RecordBatch, retry: Retry | None = Retry.environment,
        *, leave_alone: Collection[str] = (),
    ) -> pa.Table:  # fmt: skip
        """Return the FILES rows that are not fully committed, with the parts that are, and why.

        Failed parts count as committed unless `retry` is for them; what `leave_alone` names is
        tried again only for what the environment did to it.
        """
        positions = pa.array(range(files.num_rows), pa.int64())
        db = self._db.cursor()
        db.register("files", files.append_column("position", positions))
        tried = [str(origin) for origin in Origin if retry is not None and retry.includes(origin)]
        parameters = {"tried": tried, "spared": list(leave_alone)}
        with self._asking():
            return conform(db.sql(_REMAINING, params=parameters).to_arrow_table(), REMAINING)


def read_redo(store: OutputStore) -> pa.Table:
    """Return the REDO rows of a folder."""
    return store.read_table(REDO_NAME, REDO) if store.exists(REDO_NAME) else REDO.empty_table()


def _memory_mb() -> int:
    memory_mb = os.environ.get(MEMORY_VARIABLE) or str(_MEMORY_MB)
    if not memory_mb.isdecimal() or not int(memory_mb):
        raise ConfigError(
            f"reading {MEMORY_VARIABLE}: found {memory_mb!r}, expected the megabytes that tables "
            "may take in memory; correct or unset it"
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
    db.execute(_SUM)
    db.execute(_FITS)
    return db


def _check_whole(store: OutputStore, names: set[str]) -> None:
    """See that objects of outcomes have those of segments or labels that were written with them."""
    folders = PART_ROWS_FOLDERS if names else ()
    present = {beside(name, OUTCOMES_FOLDER) for folder in folders for name in store.names(folder)}
    for name in sorted(names - present):
        lost = beside(name, PART_ROWS_FOLDERS[0])
        raise FetchError(
            f"reading {redact_uri(store.uri)}: {lost} is gone, expected it with the segments of "
            f"{name}; copy it back, or remove {name} and run the job again, which transcribes its "
            "recordings again",
            uri=store.address(lost),
            kind=NOT_FOUND,
        )
