"""The tables of a run and their commit protocol.

A commit is one object below `COMMITS_FOLDER`, under a unique name: rows of outcomes, each with its
segments in a list. A finish writes what counts of them as tables: an object of outcomes and, of the
same name, one of segments in the order of these. `TABLES_NAME` says which of them count, and which
commits they hold: replacing it is one step for every reader. Labels are written in the same way in
place of segments; the same words mean them.

A run writes through the folder that its lock gives it: the lock is looked at before each put, for
commits once in `LOOK_EVERY_S`. Whoever takes over replaces `TABLES_NAME`, so that the run before
cannot; there stands also what that run had put until then: what arrives later does not count.
"""

import contextlib
import copy
import io
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

import pyarrow as pa

from corpus_asr.config.run import DatasetSettings, OutputSettings
from corpus_asr.errors import ConfigError, CorpusAsrError, EngineError, FetchError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.json_values import load
from corpus_asr.schemas import LABELS, OUTCOMES, RECORDINGS, SEGMENTS
from corpus_asr.storage.parquet import (
    BATCH_ROWS,
    conform,
    encode_parquet,
    parquet_batches,
    parquet_rows,
)
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import READERS, StoreOptions, read_ahead
from corpus_asr.storage.stores.uri import (
    LOCAL,
    normalize,
    redact_uri,
    scheme_of,
    within,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

OUTCOMES_FOLDER, RECORDINGS_FOLDER = "outcomes", "recordings"
SPEAKERS_FOLDER, VOICES_FOLDER, DUPLICATES_FOLDER = "speakers", "voices", "duplicates"
HOOKS_FOLDER = "hooks"  # with a folder for the table of each
COMMITS_FOLDER: Final = "_run/commits"
"""Commits since the last finish, and parts that wait until all of their version are there."""
SUFFIX = ".parquet"
INTERNAL_SUFFIX = ".rows"  # so that **/*.parquet finds only tables for users
# Of each object that is read ahead: a small commit as a whole, a merged one only at its beginning.
READ_AHEAD_ROWS = 16_384
# A commit that is late does not count, so what a look at the lock saves is only requests.
LOOK_EVERY_S = 5.0


def table_name(folder: str, stem: str) -> str:
    """Return the name of a table's object; below `_run/` it has a suffix of its own."""
    is_internal = folder.partition("/")[0] == "_run"
    return f"{folder}/{stem}{INTERNAL_SUFFIX if is_internal else SUFFIX}"


def is_commit(name: str) -> bool:
    """Tell whether an object is a commit; else it is one of the table of outcomes."""
    return name.startswith(f"{COMMITS_FOLDER}/")


def beside(name: str, folder: str) -> str:
    """Return the name of the object in another folder that belongs to one of outcomes."""
    return f"{folder}/{name.rpartition('/')[2]}"


@dataclass(frozen=True, slots=True)
class PartRows:
    """A table whose rows belong to parts, written together with their outcomes."""

    folder: str  # below the output folder; also the column of RESULTS that holds a part's rows
    schema: pa.Schema


SEGMENT_ROWS = PartRows("segments", SEGMENTS)
LABEL_ROWS = PartRows("labels", LABELS)
PART_ROWS = (SEGMENT_ROWS, LABEL_ROWS)
PART_ROWS_FOLDERS = tuple(rows.folder for rows in PART_ROWS)


class WriteGuard(Protocol):
    """Permission of a run to write into its output folder; picklable."""

    @property
    def run_id(self) -> str:
        """ID of the run that may write."""

    def check(self) -> None:
        """Return if the run may still write; else raise an `EngineError`."""


TABLES_NAME: Final = "_run/tables.json"
IDENTITIES_NAME: Final = table_name("_run", "identities")
"""Addresses of recordings that moved (`identities`)."""
PLANS_FOLDER: Final = "_run/plan"
FINISHED_FOLDERS = (OUTCOMES_FOLDER, *PART_ROWS_FOLDERS)
"""Tables of parts; of these and of recordings those objects count that `TABLES_NAME` names."""
TABLES_OF_RUNS = (
    COMMITS_FOLDER, *FINISHED_FOLDERS, RECORDINGS_FOLDER, SPEAKERS_FOLDER, VOICES_FOLDER,
    DUPLICATES_FOLDER, HOOKS_FOLDER,
)  # fmt: skip
_REMOVE = "restore it, or remove it to count all tables of the folder"
_RUNS_FOLDERS = tuple(f"{folder}/" for folder in TABLES_OF_RUNS)
_NOTED = {"tables", "merged", "taken_over", "settled"}
_TIME_DIGITS = 20
_BY_RUN = re.compile(r"(_run/|hooks/)?[a-z0-9_]+/\d+-(?P<run_id>.+)-[0-9a-f]{12}(-\d{5})?\.[a-z]+")


class _Names(NamedTuple):
    """What `TABLES_NAME` says of the objects of an output folder."""

    content: bytes | None = None
    tables: frozenset[str] = frozenset()
    """Objects of tables; listings that lag behind do not show them to the next run."""
    merged: frozenset[str] = frozenset()
    """Commits whose rows these hold, so that they do not count any more."""
    taken_over: Mapping[str, frozenset[str]] = MappingProxyType({})
    """Runs whose lock was taken over, each with what it had put until then."""
    settled: frozenset[str] | None = None
    """Objects of recordings whose rows stand for their outcomes (`settled`); None: outcomes have
    changed since."""

    def is_late(self, name: str) -> bool:
        """Tell whether a run put an object after its lock was taken over."""
        put = self.taken_over.get(_run_of(name) or "") if self.taken_over else None
        return put is not None and name not in put


class OutputStore:
    """The output folder of a run. Cheap to make; safe to use from any process."""

    def __init__(
        self, uri: str, *, endpoint_url: str | None = None, options: StoreOptions | None = None
    ) -> None:
        self.uri = normalize(uri).rstrip("/")
        self.options = options or StoreOptions(endpoint_url=endpoint_url)
        self._guard: WriteGuard | None = None
        self._newest_ns = 0
        self._changed: dict[str, bool] = {}  # by name: whether it was put last, or removed
        self._looked_s = float("-inf")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is of this process, which grows with the tables: others only write."""
        return self.__dict__ | {"_changed": {}, "_looked_s": float("-inf")}

    def held(self, guard: WriteGuard) -> Self:
        """Return the folder as a run writes it that holds its lock."""
        held, tables = copy.copy(self), self.check_tables()
        held._looked_s, held._guard = float("-inf"), guard
        held._changed = dict.fromkeys(self._names().tables, True)
        # A clock that was ahead before, or is behind now, must not turn around what came first.
        held._newest_ns = max(map(time_ns_of, tables), default=0)
        return held

    def below(self, name: str) -> Self:
        """Return a folder within this one, written under the same lock."""
        folder = type(self)(self.address(name), options=self.options)
        return folder if self._guard is None else folder.held(self._guard)

    @property
    def is_local(self) -> bool:
        """Whether the folder is local, where files have owners and modes."""
        return scheme_of(self.uri) == LOCAL

    def private(self) -> Self:
        """Return the folder for writing files that other local users must not read.

        These contain original URIs, which may be signed. In other stores access rules apply.
        """
        private = copy.copy(self)
        if self.is_local:
            private.options = replace(self.options, private=True)
        return private

    def check(self) -> None:
        """Raise an `EngineError` if another run has taken over the folder."""
        if self._guard is not None:
            self._guard.check()

    def stem(self, time_ns: int | None = None, *, mark: str = "") -> str:
        """Return a unique stem that sorts after all objects that existed when the run started."""
        newest_ns = max(time.time_ns(), self._newest_ns + 1)
        run_id = None if self._guard is None else self._guard.run_id
        return unique_stem(newest_ns if time_ns is None else time_ns, run_id=run_id, mark=mark)

    def note_tables(self) -> None:
        """Tell later runs which tables there are."""
        names = self._names()
        # A listing may lag behind, and show merged commits again.
        listed = self._in_store(COMMITS_FOLDER) if names.merged else ()
        merged = names.merged.intersection(name for name, _ in listed)
        self._note(names._replace(tables=self._tables(names), merged=merged))

    def check_tables(self) -> frozenset[str]:
        """Return the tables and commits that count; raise if one that is named is lost."""
        return self._tables(self._names())

    def _tables(self, names: _Names) -> frozenset[str]:
        tables = {name for folder in TABLES_OF_RUNS for name in self._counting(folder, names)}
        return frozenset((*tables, *filter(self.exists, [IDENTITIES_NAME])))

    def replace(
        self, old: Collection[str], new: Collection[str], *, settled: Collection[str] | None = None
    ) -> None:
        """Let tables and commits count in place of others, in one step; then remove these.

        Args:
            old: commits, objects of outcomes, with which those beside them go, and objects of
                recordings.
            new: what was written in their place.
            settled: objects of recordings whose rows stand for their outcomes from here on.

        Raises:
            EngineError: the folder belongs to another run by now.
        """
        names = self._names()
        tables = self._tables(names) if names.content is None else names.tables
        commits = frozenset(filter(is_commit, old))
        beside_old = {
            beside(name, folder) for name in {*old} - commits for folder in FINISHED_FOLDERS
        }
        gone = tables & {*old, *beside_old}
        merged = names.merged | commits
        settled_names = None if settled is None else frozenset(settled)
        tables = (tables - gone).union(new)
        self._note(names._replace(tables=tables, merged=merged, settled=settled_names))
        self.remove_all([*sorted(commits), *sorted(gone)])

    def _names(self) -> _Names:
        uri, content = self.address(TABLES_NAME), self._read(TABLES_NAME)
        if content is None:
            return _Names()
        try:
            noted = load(content)
            if isinstance(noted, list) or not noted.keys() >= _NOTED:
                raise ConfigError(
                    f"reading {redact_uri(uri)}: found results of another version of corpus-asr, "
                    "which this one does not read; use that version, or transcribe into another "
                    "folder"
                )
            tables, merged = (frozenset(noted[name]) for name in ("tables", "merged"))
            late = {run_id: frozenset(put) for run_id, put in noted["taken_over"].items()}
            settled = None if noted["settled"] is None else frozenset(noted["settled"])
        except (ValueError, TypeError, AttributeError) as error:
            raise CorpusAsrError(
                f"reading {redact_uri(uri)}: found it damaged ({error!r}); {_REMOVE}"
            ) from error
        return _Names(content, tables, merged, late, settled)

    def _note(self, names: _Names) -> None:
        # Rows of parts without their outcomes are of a finish that was killed.
        lost = {name for name in names.tables if name.partition("/")[0] in PART_ROWS_FOLDERS
                and beside(name, OUTCOMES_FOLDER) not in names.tables}  # fmt: skip
        late = {run_id: sorted(put) for run_id, put in names.taken_over.items()}
        settled = None if names.settled is None else sorted(names.settled)
        value = {"tables": sorted(names.tables - lost), "merged": sorted(names.merged),
                 "taken_over": late, "settled": settled}  # fmt: skip
        data = (json.dumps(value, indent=2) + "\n").encode()
        uri = self.address(TABLES_NAME)
        self.check()
        if names.content is None:
            noted = filesystem.create(uri, data, self.options)
        else:
            noted = filesystem.swap(uri, data, names.content, self.options)
        if not noted and self._names().content != data:  # the answer to the first try may be lost
            self.check()
            raise EngineError(
                f"writing {redact_uri(uri)}: found a change of another run, expected only this "
                "run; run the same command again after it"
            )

    def close_run(self, run_id: str) -> None:
        """Let nothing count that this run has not put yet: its lock was taken over."""
        names = self._names()
        tables = self._tables(names)
        # From here on its finish cannot replace what counts.
        put = frozenset(name for name in tables if _run_of(name) == run_id)
        self._note(names._replace(tables=tables, taken_over={**names.taken_over, run_id: put}))

    def remove_leftovers(self) -> None:
        """Remove objects of tables that do not count, and files of killed writes."""
        leftovers = self.leftovers()
        self.remove_all(leftovers)
        for folder in TABLES_OF_RUNS:
            self.remove_temporary(folder)
        for name in leftovers:
            logger.info("removed leftover=%s", name)

    def remove_temporary(self, folder: str = "") -> None:
        """Remove files of killed writes below a folder."""
        filesystem.sweep(self.address(folder), self.options)

    def leftovers(self) -> list[str]:
        """Return the objects of tables that do not count."""
        names, leftovers = self._names(), set[str]()
        for folder in TABLES_OF_RUNS:
            listed = filter(_is_table, [name for name, _ in self._listed(folder)])
            leftovers |= {*listed}.difference(self._counting(folder, names))
        return sorted(leftovers)

    @classmethod
    def of(cls, output: OutputSettings | DatasetSettings) -> Self:
        """Return the output folder of a job or dataset."""
        return cls(output.uri, options=StoreOptions.of_output(output))

    def put_commit(self, rows: pa.Table, *, stem: str | None = None) -> str:
        """Put `commit_rows` as one object, so that all of them count or none; return its name."""
        name = table_name(COMMITS_FOLDER, stem or self.stem())
        self.write_bytes(name, encode_parquet(rows.schema, [rows]), check=self._look)
        return name

    def _look(self) -> None:
        """Check the lock unless that was done of late."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self.check()
            self._looked_s = now_s

    def write_tables(
        self,
        outcomes: pa.Table,
        part_rows: Iterable[pa.Table],
        *,
        rows: PartRows = SEGMENT_ROWS,
        stem: str | None = None,
    ) -> list[str]:
        """Put outcomes, and their segments or labels in the same order, as objects of tables.

        Return their names; they count once these are given to `replace`.
        """
        name = f"{OUTCOMES_FOLDER}/{stem or self.stem()}{SUFFIX}"
        self.write_bytes(beside(name, rows.folder), encode_parquet(rows.schema, part_rows))
        self.write_bytes(name, encode_parquet(OUTCOMES, [outcomes.cast(OUTCOMES)]))
        return [name, beside(name, rows.folder)]

    def outcomes(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield committed outcomes rows in commit order, a bounded number at a time."""
        return (rows for _, rows in self.committed(columns))

    def committed(
        self, columns: Sequence[str] | None = None, names: Iterable[str] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield committed outcomes rows with the names of their objects, in commit order."""
        names = self.commit_names() if names is None else names
        return self.read_tables(names, projected(OUTCOMES, columns))

    def recordings(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the recordings table; none before the first finish."""
        schema = projected(RECORDINGS, columns)
        for _, table in self.read_tables(self.names(RECORDINGS_FOLDER), schema):
            yield from table.to_batches()

    def read_tables(
        self, names: Iterable[str], schema: pa.Schema
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of many objects, in the order given, a bounded number at a time."""
        read = partial(self.batches, columns=schema.names, batch_rows=READ_AHEAD_ROWS)
        for name, rows in read_ahead(names, read):
            yield name, conform(rows, schema)

    def address(self, name: str) -> str:
        """Return the URI of an object in this folder."""
        return within(self.uri, name)

    def settled_names(self) -> list[str] | None:
        """Return the objects of recordings whose rows stand for their outcomes; None: unknown."""
        settled = self._names().settled
        return None if settled is None else sorted(settled)

    def commit_names(self) -> list[str]:
        """Return by time the names of commits and objects of outcomes that count at one moment."""
        names = self._names()
        while True:
            counting = [*self._counting(OUTCOMES_FOLDER, names),
                        *self._counting(COMMITS_FOLDER, names)]  # fmt: skip
            names_before, names = names, self._names()
            if names.content == names_before.content:
                return sorted(counting, key=lambda name: name.rpartition("/")[2])

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's Parquet objects that count, sorted."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of a folder's Parquet objects that count, by name; 0 where unknown."""
        return self._counting(folder, self._names_in(folder))

    def _names_in(self, folder: str) -> _Names:
        of_runs = folder in TABLES_OF_RUNS or folder.startswith(f"{HOOKS_FOLDER}/")
        return self._names() if of_runs else _Names()

    def _counting(self, folder: str, names: _Names) -> dict[str, int]:
        sizes = {name: size or 0 for name, size in self._listed(folder) if _is_table(name)}
        counting = {name for name in names.tables if name.startswith(f"{folder}/")}
        if names.content is None or folder not in (*FINISHED_FOLDERS, RECORDINGS_FOLDER):
            counting |= {name for name in sizes.keys() - names.merged if not names.is_late(name)}
        if lost := self.missing(counting - sizes.keys()):
            newer_names = self._names()
            if newer_names.content != names.content:  # replaced since
                return self._counting(folder, newer_names)
            raise self.loss_of(lost)
        return {name: sizes.get(name, 0) for name in counting}

    def loss_of(self, names: Collection[str]) -> CorpusAsrError:
        """Return what to raise if tables that count are not there."""
        name, more = min(names), f", nor {len(names) - 1} others" if len(names) > 1 else ""
        return CorpusAsrError(
            f"reading {redact_uri(self.uri)}: found no {name}{more}, expected it with the other "
            f"tables; {repair_advice(name, is_lost=True)}"
        )

    def all_names(self, folder: str) -> Iterator[str]:
        """Yield the names of everything below a folder of the output but late tables."""
        names = self._names_in(folder)
        return (name for name, _ in self._listed(folder) if not names.is_late(name))

    def _listed(self, folder: str) -> Iterator[tuple[str, int | None]]:
        # A run knows what it put or removed itself, and what the one before left, also where
        # listings lag behind by minutes.
        changed = list(self._changed.items()) if self._guard is not None else []
        gone = {name for name, is_present in changed if not is_present}
        hidden = {
            name for name, is_present in changed if is_present and name.startswith(f"{folder}/")
        }
        for name, size in self._in_store(folder):
            hidden.discard(name)
            if name not in gone:
                yield name, size
        yield from ((name, None) for name in sorted(hidden - self.missing(hidden)))

    def _in_store(self, folder: str) -> Iterator[tuple[str, int | None]]:
        base = self.address("")
        for uri, size, _ in filesystem.list_objects(self.address(folder), self.options):
            yield uri.removeprefix(base), size

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as one object."""
        self.write_bytes(name, encode_parquet(table.schema, [table]))

    def read_table(self, name: str, schema: pa.Schema) -> pa.Table:
        """Return an object's rows cast to `schema`."""
        batches = [conform(rows, schema) for rows in self.batches(name, columns=schema.names)]
        return pa.concat_tables(batches) if batches else schema.empty_table()

    def batches(
        self, name: str, *, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield an object's rows, a bounded number at a time."""
        with self._parquet(name) as file:
            yield from parquet_batches(file, columns=columns, batch_rows=batch_rows)

    def rows(self, name: str, schema: pa.Schema, ranges: Sequence[tuple[int, int]]) -> pa.Table:
        """Return row ranges of an object, in its order, cast to `schema`."""
        with self._parquet(name) as file:
            rows = [conform(table, schema) for table in parquet_rows(file, schema.names, ranges)]
        return pa.concat_tables([schema.empty_table(), *rows])

    @contextlib.contextmanager
    def _parquet(self, name: str) -> Iterator[io.BufferedReader]:
        with filesystem.open_binary(self.address(name), self.options) as file:
            try:
                yield file
            except pa.ArrowException as error:
                raise CorpusAsrError(
                    f"reading {redact_uri(self.address(name))}: found no readable Parquet "
                    f"({error}), expected a table of this program; {repair_advice(name)}"
                ) from error

    def write_bytes(
        self, name: str, data: bytes, *, check: Callable[[], object] | None = None
    ) -> None:
        """Write an object; the lock, or `check` if given, is checked before each attempt."""
        guard = check or self.check
        filesystem.write_atomic(self.address(name), data, self.options, before=guard)
        self._changed[name] = True

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as indented JSON."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Return the value of a JSON object; None if it does not exist."""
        data = self._read(name)
        try:
            return None if data is None else json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorpusAsrError(
                f"reading {redact_uri(self.address(name))}: found no valid JSON ({error}), "
                "expected JSON; restore the file, or choose another output.uri"
            ) from error

    def _read(self, name: str) -> bytes | None:
        # In one request: most of these objects exist.
        try:
            return filesystem.read_bytes(self.address(name), self.options)
        except FetchError as error:
            if error.kind == NOT_FOUND:
                return None
            raise

    def exists(self, name: str) -> bool:
        """Return whether an object exists."""
        return filesystem.exists(self.address(name), self.options)

    def missing(self, names: Iterable[str]) -> set[str]:
        """Return the names without an object, with one request each."""
        names = list(names)
        with ThreadPoolExecutor(READERS, thread_name_prefix="look-up") as pool:
            existence = list(pool.map(self.exists, names))
        return {name for name, exists in zip(names, existence, strict=True) if not exists}

    def remove(self, name: str) -> None:
        """Remove an object; succeeds if it does not exist."""
        self.remove_all([name])

    def _remove(self, name: str) -> None:
        filesystem.remove(self.address(name), self.options)
        self._changed[name] = False

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove objects in parallel: each request waits for the store."""
        names = list(names)
        noted = self._names() if any(name.startswith(_RUNS_FOLDERS) for name in names) else _Names()
        if noted.tables.intersection(names):  # what is named is there, also for a reader meanwhile
            self._note(noted._replace(tables=noted.tables.difference(names)))
        self.check()
        with ThreadPoolExecutor(READERS, thread_name_prefix="remove-tables") as pool:
            for _ in pool.map(self._remove, names):
                pass


def _is_table(name: str) -> bool:
    return name.endswith((SUFFIX, INTERNAL_SUFFIX))


def repair_advice(name: str, *, is_lost: bool = False) -> str:
    """Return what to do about a table that is lost or damaged."""
    if not name.startswith(_RUNS_FOLDERS):
        return "restore it, or remove it"
    objects = [*([] if is_lost else [name]), TABLES_NAME]
    if name.partition("/")[0] in PART_ROWS_FOLDERS:
        objects.insert(0, beside(name, OUTCOMES_FOLDER))
    return f"restore it, or remove {' and '.join(objects)}, and run the job again"


def projected(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Return the schema of some columns, in their order; None: all."""
    if columns is None:
        return schema
    return pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)


def unique_stem(time_ns: int | None = None, *, run_id: str | None = None, mark: str = "") -> str:
    """Return a unique commit name; names sort by `time_ns`, by default the present time."""
    by = "" if run_id is None else f"{run_id}-"
    time_ns = time.time_ns() if time_ns is None else time_ns
    return f"{time_ns:0{_TIME_DIGITS}d}-{by}{mark or uuid.uuid4().hex[:12]}"


def time_ns_of(name: str) -> int:
    """Return the time in a name, in nanoseconds; 0 for names of another form."""
    time_ns = name.rpartition("/")[2].partition("-")[0]
    return int(time_ns) if time_ns.isdecimal() and len(time_ns) == _TIME_DIGITS else 0


def _run_of(name: str) -> str | None:
    match = _BY_RUN.fullmatch(name)
    return match and match["run_id"]
