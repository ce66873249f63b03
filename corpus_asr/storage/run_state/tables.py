"""The tables of a run and their commit protocol.

A commit is one object below `COMMITS_FOLDER`, under a unique name: rows of outcomes, each with its
segments in a list. A finish writes what counts of them as tables: an object of outcomes and, of the
same name, one of segments in the order of these. `TABLES_NAME` says which of them count, and which
commits they hold: replacing it is one step for every reader. Labels are written in the same way in
place of segments; the same words mean them.

A run writes through the folder that its lock gives it: it is read and listed once, and the lock is
looked at before puts, once in `LOOK_EVERY_S`. Whoever takes over replaces `TABLES_NAME`, so that
the run before cannot; there stands also what that run had put until then: what arrives later does
not count.
"""

import contextlib
import copy
import io
import json
import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self, cast

import pyarrow as pa

from corpus_asr.config.run import DatasetSettings, OutputSettings
from corpus_asr.errors import CorpusAsrError, EngineError, FetchError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.schemas import OUTCOMES, RECORDINGS
from corpus_asr.storage.parquet import (
    BATCH_ROWS,
    conform,
    encode_parquet,
    parquet_batches,
    parquet_rows,
)
from corpus_asr.storage.run_state.table_names import (
    COMMITS_FOLDER,
    DERIVED_FOLDERS,
    FINISHED_FOLDERS,
    IDENTITIES_NAME,
    OF_PARTS,
    OUTCOMES_FOLDER,
    OWN_FOLDERS,
    OWN_PREFIXES,
    PART_ROWS_FOLDERS,
    RECORDINGS_FOLDER,
    RUN_NAME,
    RUNS_PREFIXES,
    SEGMENT_ROWS,
    SUFFIX,
    TABLES_NAME,
    TABLES_OF_RUNS,
    Manifest,
    PartRows,
    TableSize,
    beside,
    is_by,
    is_commit,
    is_table,
    repair_advice,
    table_name,
    time_ns_of,
    unique_stem,
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
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)

# Of each object that is read ahead: a small commit as a whole, a merged one only at its beginning.
READ_AHEAD_ROWS = 16_384
# A commit that is late does not count, so what a look at the lock saves is only requests.
LOOK_EVERY_S = 5.0
# Of what the holder of the lock read or wrote: a night reads its own small files again.
KEPT_OBJECT_BYTES, KEPT_BYTES = MEBIBYTE, 32 * MEBIBYTE


class WriteGuard(Protocol):
    """Permission of a run to write into its output folder; picklable."""

    @property
    def run_id(self) -> str:
        """ID of the run that may write."""

    def check(self) -> None:
        """Return if the run may still write; else raise an `EngineError`."""


@dataclass(slots=True)
class _Held:
    """What a command knows of a folder whose lock it holds: nobody else changes its own files."""

    manifest: Manifest
    known: dict[str, TableSize | None]
    """Objects by name; None: removed."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """Small objects that were read or written of late, by name."""
    _kept_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def within(self, folder: str) -> dict[str, TableSize]:
        """Return the known objects of a folder."""
        return {name: size for name, size in [*self.known.items()]
                if size is not None and name.startswith(f"{folder}/")}  # fmt: skip

    def keep(self, name: str, content: bytes) -> None:
        """Keep an object's content, if small; others may write what lies elsewhere."""
        self.drop(name)
        if len(content) <= KEPT_OBJECT_BYTES and name.startswith((*OWN_PREFIXES, RUN_NAME)):
            with self._lock:
                self.contents[name] = content
                self._kept_bytes += len(content)
                while self._kept_bytes > KEPT_BYTES:
                    self._kept_bytes -= len(self.contents.pop(next(iter(self.contents))))

    def drop(self, name: str) -> None:
        """Forget an object's content."""
        with self._lock:
            self._kept_bytes -= len(self.contents.pop(name, b""))


class OutputStore:
    """The output folder of a run. Cheap to make; safe to use from any process.

    A command that holds the lock reads `TABLES_NAME` and lists the folder once (`held`); others do
    each time, as a run may change it meanwhile.
    """

    def __init__(
        self, uri: str, *, endpoint_url: str | None = None, options: StoreOptions | None = None
    ) -> None:
        self.uri = normalize(uri).rstrip("/")
        self.options = options or StoreOptions(endpoint_url=endpoint_url)
        self._guard: WriteGuard | None = None
        self._newest_ns = 0
        self._looked_s = float("-inf")  # when the lock was looked at last
        self._held: _Held | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is of this process, which grows with the tables: others only write."""
        return self.__dict__ | {"_held": None, "_looked_s": float("-inf")}

    def held(self, guard: WriteGuard) -> Self:
        """Return the folder as a run writes it that holds its lock.

        Raises:
            CorpusAsrError: a table that is named is lost.
        """
        held = copy.copy(self)
        held._guard, held._looked_s, held._held = guard, float("-inf"), self._open()
        # A clock that was ahead before, or is behind now, must not turn around what came first.
        held._newest_ns = max(map(time_ns_of, held._held.known), default=0)
        return held

    def _open(self) -> _Held:
        """Read and list the folder; before the first finish all tables that there are count."""
        manifest, folders = self._read_manifest(), {"_run", *FINISHED_FOLDERS, *DERIVED_FOLDERS}
        if manifest.content is not None:
            folders = {"_run", *(name.partition("/")[0] for name in manifest.tables)}
        known = {name: size for folder in sorted(folders) for name, size in self._in_store(folder)}
        if lost := manifest.tables.keys() - known.keys() - {IDENTITIES_NAME}:
            if self._read_manifest().content != manifest.content:  # replaced meanwhile
                return self._open()
            raise self.loss_of(lost)
        known |= {name: size for name, size in manifest.tables.items() if name in known}
        if manifest.content is None:
            tables = {name: size for name, size in known.items()
                      if is_table(name) and not name.startswith("_run/")}  # fmt: skip
            # Rows of parts without their outcomes are of a finish that was killed.
            tables = {name: size for name, size in tables.items()
                      if name.partition("/")[0] not in PART_ROWS_FOLDERS
                      or beside(name, OUTCOMES_FOLDER) in tables}  # fmt: skip
            manifest = manifest._replace(tables=tables)
        manifest = manifest._replace(merged=manifest.merged & known.keys())
        return _Held(manifest, {**known})

    def relist(self, folder: str = COMMITS_FOLDER) -> None:
        """List a folder again, into which workers of the run have put something."""
        if self._held is not None:
            self._held.known |= dict.fromkeys(self._held.within(folder))
            self._held.known |= dict(self._in_store(folder))

    def below(self, name: str) -> Self:
        """Return a folder within this one, written under the same lock."""
        folder = type(self)(self.address(name), options=self.options)
        folder._guard = self._guard
        return folder

    @property
    def is_local(self) -> bool:
        """Whether the folder is local, where files have owners and modes."""
        return scheme_of(self.uri) == LOCAL

    def private(self) -> Self:
        """Return the folder for writing files that other local users must not read.

        These contain original URIs, which may be signed. In other stores access rules apply.
        """
        private = copy.copy(self)
        private._held = self._held
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

    def check_tables(self) -> None:
        """Raise if a table that is named is lost."""
        if self._held is None:
            self._open()

    def note_tables(self) -> None:
        """Note all tables that there are, also those that are made of others."""
        held = self._held or self._open()
        derived = {name: size for folder in DERIVED_FOLDERS
                   for name, size in held.within(folder).items() if is_table(name)}  # fmt: skip
        tables = {name: size for name, size in held.manifest.tables.items()
                  if name.partition("/")[0] not in DERIVED_FOLDERS} | derived  # fmt: skip
        if (size := held.known.get(IDENTITIES_NAME)) is not None:
            tables[IDENTITIES_NAME] = size
        self._note(held.manifest._replace(tables=tables))

    def replace(self, old: Collection[str], new: Collection[str], *, settled: bool = False) -> None:
        """Let tables and commits count in place of others, in one step; then remove these.

        Args:
            old: commits, objects of outcomes, with which those beside them go, and objects of
                recordings.
            new: what was written in their place.
            settled: whether each part is there once then, and recordings have all their rows.

        Raises:
            EngineError: the folder belongs to another run by now.
        """
        held = self._held or self._open()
        tables = held.manifest.tables
        commits = frozenset(filter(is_commit, old))
        beside_old = {beside(name, folder) for name in {*old} - commits for folder in OF_PARTS}
        gone = tables.keys() & {*old, *beside_old}
        sizes = {name: held.known.get(name) or TableSize() for name in new if not is_commit(name)}
        self._note(held.manifest._replace(
            tables={name: size for name, size in tables.items() if name not in gone} | sizes,
            merged=held.manifest.merged | commits,
            settled=held.manifest.settled or settled,
        ))  # fmt: skip
        self.remove_all([*sorted(commits), *sorted(gone)])

    def _manifest(self) -> Manifest:
        return self._read_manifest() if self._held is None else self._held.manifest

    def _read_manifest(self) -> Manifest:
        uri, content = self.address(TABLES_NAME), self._read(TABLES_NAME)
        if content is None:
            return Manifest()
        return Manifest.decoded(content, uri)

    def _note(self, manifest: Manifest) -> None:
        """Write what counts from here on, unless that is noted already."""
        data = manifest.encoded()
        if data == manifest.content:
            return
        uri = self.address(TABLES_NAME)
        self._look()
        if manifest.content is None:
            noted = filesystem.create(uri, data, self.options)
        else:
            noted = filesystem.swap(uri, data, manifest.content, self.options)
        if self._held is not None:
            self._held.drop(TABLES_NAME)
        if not noted and self._read(TABLES_NAME) != data:  # the answer to the first may be lost
            self.check()
            raise EngineError(
                f"writing {redact_uri(uri)}: found a change of another run, expected only this "
                "run; run the same command again after it"
            )
        if self._held is not None:
            self._held.manifest = manifest._replace(content=data)

    def close_run(self, run_id: str) -> None:
        """Let nothing count that this run has not put yet: its lock was taken over."""
        held = self._held or self._open()
        derived = {name for folder in DERIVED_FOLDERS for name, _ in self._listed(folder)}
        put = frozenset(name for name in {*held.within(COMMITS_FOLDER), *derived}
                        if is_by(run_id, name))  # fmt: skip
        # From here on its finish cannot replace what counts.
        closed_runs = {**held.manifest.closed_runs, run_id: put}
        self._note(held.manifest._replace(closed_runs=closed_runs))

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
        manifest = self._manifest()
        derived = DERIVED_FOLDERS if manifest.closed_runs else ()
        folders = (COMMITS_FOLDER, *FINISHED_FOLDERS, *derived)
        return sorted(
            name for folder in folders for name, _ in self._listed(folder)
            if is_table(name) and name not in self._counting(folder, manifest)
        )  # fmt: skip

    @classmethod
    def of(cls, output: OutputSettings | DatasetSettings) -> Self:
        """Return the output folder of a job or dataset."""
        return cls(output.uri, options=StoreOptions.of_output(output))

    def put_commit(self, rows: pa.Table, *, stem: str | None = None) -> str:
        """Put `commit_rows` as one object, so that all of them count or none; return its name."""
        name = table_name(COMMITS_FOLDER, stem or self.stem())
        self.write_bytes(name, encode_parquet(rows.schema, [rows]), rows=len(rows))
        return name

    def _look(self) -> None:
        """Check the lock unless that was done of late."""
        now_s = time.monotonic()
        if self._guard is not None and now_s - self._looked_s >= LOOK_EVERY_S:
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
        self.write_table(name, outcomes.cast(OUTCOMES))
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

    def is_noted(self, name: str) -> bool:
        """Tell whether a table, or one of a folder, was there at the end of the last finish."""
        tables = self._manifest().tables
        return name in tables or any(table.startswith(f"{name}/") for table in tables)

    @property
    def is_settled(self) -> bool:
        """Whether tables have each part once, and recordings a row for all that is whole."""
        return self._manifest().settled

    def commit_names(self) -> list[str]:
        """Return by time the names of commits and objects of outcomes that count at one moment."""
        held = self._held or self._open()
        if self._held is None and self._read_manifest().content != held.manifest.content:
            return self.commit_names()
        commits = held.manifest.counting(held.within(COMMITS_FOLDER))
        finished = held.manifest.within(OUTCOMES_FOLDER)
        return sorted([*finished, *commits], key=lambda name: name.rpartition("/")[2])

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's Parquet objects that count, sorted."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, TableSize]:
        """Return the size of a folder's Parquet objects that count, by name."""
        return self._counting(folder, self._manifest_of(folder))

    def _manifest_of(self, folder: str) -> Manifest:
        return self._manifest() if f"{folder}/".startswith(RUNS_PREFIXES) else Manifest()

    def _counting(self, folder: str, manifest: Manifest) -> dict[str, TableSize]:
        if folder in FINISHED_FOLDERS and manifest.content is not None:
            return manifest.within(folder)
        return manifest.counting(dict(self._listed(folder)))

    def loss_of(self, names: Collection[str]) -> CorpusAsrError:
        """Return what to raise if tables that count are not there."""
        name, more = min(names), f", nor {len(names) - 1} others" if len(names) > 1 else ""
        return CorpusAsrError(
            f"reading {redact_uri(self.uri)}: found no {name}{more}, expected it with the other "
            f"tables; {repair_advice(name, is_lost=True)}"
        )

    def all_names(self, folder: str) -> Iterator[str]:
        """Yield the names of everything below a folder of the output but late tables."""
        manifest = self._manifest_of(folder)
        return (name for name, _ in self._listed(folder) if not manifest.is_late(name))

    def _listed(self, folder: str) -> Iterable[tuple[str, TableSize]]:
        held = self._held
        if held is None or not folder:
            return self._in_store(folder)
        if folder.partition("/")[0] not in OWN_FOLDERS:  # workers may have put some
            self.relist(folder)
        return held.within(folder).items()

    def _in_store(self, folder: str) -> Iterator[tuple[str, TableSize]]:
        base = self.address("")
        for uri, num_bytes, _ in filesystem.list_objects(self.address(folder), self.options):
            yield uri.removeprefix(base), TableSize(bytes=num_bytes)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as one object."""
        self.write_bytes(name, encode_parquet(table.schema, [table]), rows=len(table))

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

    def _opened(self, name: str) -> io.BufferedReader:
        size = None if self._held is None else self._held.known.get(name)
        if size is not None and size.bytes is not None and size.bytes <= KEPT_OBJECT_BYTES:
            content = self._read(name)
            if content is not None:
                return cast(io.BufferedReader, io.BytesIO(content))
        return filesystem.open_binary(self.address(name), self.options)

    @contextlib.contextmanager
    def _parquet(self, name: str) -> Iterator[io.BufferedReader]:
        with self._opened(name) as file:
            try:
                yield file
            except pa.ArrowException as error:
                raise CorpusAsrError(
                    f"reading {redact_uri(self.address(name))}: found no readable Parquet "
                    f"({error}), expected a table of this program; {repair_advice(name)}"
                ) from error

    def write_bytes(self, name: str, data: bytes, *, rows: int | None = None) -> None:
        """Write an object, of a table with `rows`; before each attempt the lock is looked at."""
        if self._held is not None and self._held.contents.get(name) == data:
            return
        filesystem.write_atomic(self.address(name), data, self.options, before=self._look)
        if self._held is not None:
            self._held.known[name] = TableSize(rows, len(data))
            self._held.keep(name, data)

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
        held = self._held
        if held is not None and name in held.contents:
            return held.contents[name]
        if self._is_absent(name):
            return None
        # In one request: most of these objects exist.
        try:
            data = filesystem.read_bytes(self.address(name), self.options)
        except FetchError as error:
            if error.kind == NOT_FOUND:
                return None
            raise
        if held is not None:
            held.keep(name, data)
        return data

    def _is_absent(self, name: str) -> bool:
        """Tell whether the holder of the lock knows that there is no such object."""
        held = self._held
        return held is not None and (
            name not in held.known if name.startswith("_run/")
            else held.known.get(name, TableSize()) is None
        )  # fmt: skip

    def exists(self, name: str) -> bool:
        """Return whether an object exists."""
        if self._held is not None and self._held.known.get(name) is not None:
            return True
        return not self._is_absent(name) and filesystem.exists(self.address(name), self.options)

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
        if not self._is_absent(name):
            filesystem.remove(self.address(name), self.options)
        if self._held is not None:
            self._held.known[name] = None
            self._held.drop(name)

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove objects in parallel: each request waits for the store."""
        names = list(names)
        if any(name.startswith(RUNS_PREFIXES) for name in names):
            manifest = self._manifest()
            if manifest.tables.keys() & {*names}:  # what is named is there, also for a reader
                kept = {name: manifest.tables[name] for name in manifest.tables.keys() - {*names}}
                self._note(manifest._replace(tables=kept))
        self._look()
        with ThreadPoolExecutor(READERS, thread_name_prefix="remove-tables") as pool:
            for _ in pool.map(self._remove, names):
                pass


def projected(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Return the schema of some columns, in their order; None: all."""
    if columns is None:
        return schema
    return pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)
