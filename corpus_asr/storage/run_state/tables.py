"""The tables of a run and their commit protocol.

Each commit puts a segments object under a unique name, then an outcomes object that names it: the
second put is the commit. A segments object that no outcomes object names is an orphan, unseen by
these readers. Labels are written in the same way in place of segments; the same words mean them.

A run writes through the folder that its lock gives it: the lock is looked at before each put, for
commits once in `LOOK_EVERY_S`. What arrives all the same after another run took over is named in
`TAKEN_OVER_NAME` by what it is not.
"""

import contextlib
import copy
import io
import json
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.confidence import DEFAULT_MODEL, EVIDENCE_COLUMNS, ConfidenceModel, evidence_of
from corpus_asr.config.run import DatasetSettings, OutputSettings
from corpus_asr.errors import CorpusAsrError, EngineError
from corpus_asr.schemas import LABELS, OUTCOMES, RECORDINGS, RESULTS, SEGMENTS
from corpus_asr.storage.parquet import (
    BATCH_ROWS,
    conform,
    encode_parquet,
    parquet_batches,
    parquet_rows,
)
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.local import TEMPORARY_PREFIX
from corpus_asr.storage.stores.uri import (
    LOCAL,
    normalize,
    public,
    public_text,
    redact_uri,
    scheme_of,
    within,
    without_named_secrets,
)

OUTCOMES_FOLDER, RECORDINGS_FOLDER = "outcomes", "recordings"
SPEAKERS_FOLDER, VOICES_FOLDER, DUPLICATES_FOLDER = "speakers", "voices", "duplicates"
HOOKS_FOLDER = "hooks"  # with a folder for the table of each
PENDING: Final = "_run/pending/"
"""Where a finish keeps the done parts of a new version of a recording while an earlier one counts:
commits of their own, in folders named like the tables."""
COMMIT_FOLDERS = (OUTCOMES_FOLDER, f"{PENDING}{OUTCOMES_FOLDER}")
SUFFIX = ".parquet"
# Of each object that is read ahead: a small commit as a whole, a merged one only at its beginning.
READ_AHEAD_ROWS = 16_384
# A commit that is late does not count, so what a look at the lock saves is only requests.
LOOK_EVERY_S = 5.0
READERS = 8  # commits are many small objects: reading them is waiting for the store


class Commit(NamedTuple):
    """What a commit wrote: names of objects, relative to the output folder."""

    outcomes_name: str
    segments_name: str | None
    rows: int


class CommittedBatch(NamedTuple):
    """Rows of one outcomes object."""

    name: str
    rows: pa.RecordBatch


def without_credentials(rows: pa.Table) -> pa.Table:
    """Return rows without credentials in URIs and texts; the same table if it has none."""
    texts = {"uri": public, "error_message": _public_message, "metadata": public_text}
    for name in texts.keys() & set(rows.schema.names):
        # Few texts hold a URI with a password or a query; a message holds what a library said.
        suspect = "." if name == "error_message" else r"(?s)://.*[?@]"
        if not pc.any(pc.match_substring_regex(rows[name], suspect)).as_py():
            continue
        position, remove = rows.schema.get_field_index(name), texts[name]
        safe = pa.array([text and remove(text) for text in rows[name].to_pylist()], pa.string())
        rows = rows.set_column(position, rows.schema.field(position), safe)
    return rows


def _public_message(text: str) -> str:
    return without_named_secrets(public_text(text))


ModelName = tuple[str, str]
"""A checkpoint as configured, and the revision of its weights."""
NO_OTHERS: Final[Mapping[str, ModelName]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PartRows:
    """A table whose rows belong to parts, written together with their outcomes."""

    folder: str  # below the output folder; also the column of RESULTS that holds a part's rows
    schema: pa.Schema


SEGMENT_ROWS = PartRows("segments", SEGMENTS)
LABEL_ROWS = PartRows("labels", LABELS)
PART_ROWS = (SEGMENT_ROWS, LABEL_ROWS)
PART_ROWS_FOLDERS = tuple(rows.folder for rows in PART_ROWS)
ALL_PART_ROWS_FOLDERS = (*PART_ROWS_FOLDERS, *(PENDING + folder for folder in PART_ROWS_FOLDERS))


def table_of(name: str) -> str:
    """Return the table that an object belongs to, wherever it lies."""
    return name.removeprefix(PENDING).partition("/")[0]


def part_rows_named(names: Iterable[str | None]) -> PartRows:
    """Tell by the names of their objects which rows some outcomes have."""
    folders = {table_of(name) for name in names if name is not None}
    return _only("rewriting commits", [rows for rows in PART_ROWS if rows.folder in folders])


def _only(doing: str, kinds: list[PartRows]) -> PartRows:
    if len(kinds) > 1:
        raise ValueError(f"{doing}: found segments and labels, expected one of them")
    return kinds[0] if kinds else SEGMENT_ROWS


def _check_accountable(results: pa.Table) -> None:
    # Each of these would break the balance of recordings.
    for name in ("recording_id", "uri", "part", "last_part", "status"):
        if results[name].null_count:
            raise ValueError(f"committing results: {results[name].null_count} rows without {name}")
    unknown = set(results["status"].unique().to_pylist()) - {"ok", "no_speech", "failed"}
    if unknown:
        raise ValueError(f"committing results: unknown status {sorted(unknown)}")


def outcomes_of(results: pa.Table, *, run_id: str) -> pa.Table:
    """Return the outcomes rows of results, not yet naming an object of theirs."""
    columns = {name: results[name] for name in results.schema.names if name in OUTCOMES.names}
    columns["run_id"] = pa.repeat(pa.scalar(run_id, pa.string()), results.num_rows)
    # Counted, not believed: part rows are found by these counts when commits are rewritten.
    segments, labels = (_counts(results, rows) for rows in PART_ROWS)
    columns["segments_written"] = pc.add(segments, labels)
    columns["segments_object"] = pa.nulls(results.num_rows, pa.string())
    return pa.table([columns[name] for name in OUTCOMES.names], schema=OUTCOMES)


def rows_of(
    results: pa.Table,
    rows: PartRows,
    *,
    run_id: str,
    model: ModelName,
    by_language: Mapping[str, ModelName] = NO_OTHERS,
    calibration: ConfidenceModel | None = None,
) -> pa.Table:
    """Return the segments or labels rows of results, in the order of the results."""
    lists = results[rows.folder].combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # no chunk at all
        return rows.schema.empty_table()
    parents = pc.list_parent_indices(lists)
    columns = {
        name: results[name].take(parents)
        for name in results.schema.names
        if name in rows.schema.names
    }
    models = _models(results["language"], model, by_language)
    # Parts in a language with a model of its own name that one.
    columns |= {name: column.take(parents) for name, column in models.items()}
    flat = pc.list_flatten(lists)
    columns |= {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    columns["run_id"] = pa.repeat(pa.scalar(run_id, pa.string()), len(parents))
    columns["calibration"] = pa.repeat(DEFAULT_MODEL.name, len(parents))
    found = pa.table([columns[name] for name in rows.schema.names], schema=rows.schema)
    if calibration is None or rows is not SEGMENT_ROWS:
        return found
    return calibrated(found, calibration, model_revision=model[1])


def calibrated(
    segments: pa.Table, calibration: ConfidenceModel, *, model_revision: str
) -> pa.Table:
    """Return SEGMENTS rows with the confidences of a calibration, and its name."""
    # It was fitted for these weights alone: rows of other models keep what they have.
    confidences, names = (segments[name].to_pylist() for name in ("confidence", "calibration"))
    for at, row in enumerate(segments.select(["model_revision", *EVIDENCE_COLUMNS]).to_pylist()):
        evidence = evidence_of(row)
        if evidence is not None and row["model_revision"] == model_revision:
            confidences[at], names[at] = calibration.confidence(evidence), calibration.name
    for name, values in (("confidence", confidences), ("calibration", names)):
        place = segments.schema.get_field_index(name)
        field = segments.schema.field(place)
        segments = segments.set_column(place, field, pa.array(values, field.type))
    return segments


def _models(
    language: pa.ChunkedArray, model: ModelName, by_language: Mapping[str, ModelName]
) -> dict[str, pa.Array]:
    which = pc.index_in(language, value_set=pa.array(list(by_language), pa.string()))
    which = pc.fill_null(which, len(by_language)).combine_chunks()
    names = [*by_language.values(), model]
    return {
        column: pa.array([name[at] for name in names], pa.string()).take(which)
        for at, column in enumerate(("model", "model_revision"))
    }


def _counts(results: pa.Table, rows: PartRows) -> pa.ChunkedArray:
    return pc.fill_null(pc.list_value_length(results[rows.folder]), 0).cast(pa.int32())


class WriteGuard(Protocol):
    """What lets a run write into its output folder; picklable."""

    @property
    def run_id(self) -> str:
        """The run that may write."""

    def check(self) -> None:
        """Return while the run may write; else raise an `EngineError`."""


TAKEN_OVER_NAME: Final = "_run/taken_over.json"
"""Runs whose lock was taken over, each with the tables it had put until then; later ones, which
were under way, do not count."""
TABLES_NAME: Final = "_run/tables.json"
"""Tables that the last finish left: listings that lag behind do not show them to the next run."""
IDENTITIES_NAME: Final = "_run/identities.parquet"
"""Addresses of recordings that moved (`identities`)."""
PLANS_FOLDER: Final = "_run/plan"
TABLES_OF_RUNS = (
    *COMMIT_FOLDERS, RECORDINGS_FOLDER, SPEAKERS_FOLDER, VOICES_FOLDER, DUPLICATES_FOLDER,
    HOOKS_FOLDER,
)  # fmt: skip
_TIME_DIGITS = 20
_BY_RUN = re.compile(
    r"(_run/pending/|hooks/)?[a-z0-9_]+/\d+-(?P<run_id>.+)-[0-9a-f]{12}(-\d{5})?\.parquet"
)


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
        self._unconfirmed: list[Commit] = []  # since the lock was looked at

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is of this process, which grows with the tables: others only write."""
        return self.__dict__ | {"_changed": {}, "_looked_s": float("-inf"), "_unconfirmed": []}

    def held(self, guard: WriteGuard) -> Self:
        """Return the folder as a run writes it that holds its lock."""
        held = copy.copy(self)
        held._looked_s, held._unconfirmed = float("-inf"), []
        held._guard, held._changed = guard, dict.fromkeys(self.read_json(TABLES_NAME) or (), True)
        # A clock that was ahead before, or is behind now, must not turn around what came first.
        known = (*self.commit_names(), *held._changed)
        held._newest_ns = max(map(time_ns_of, known), default=0)
        return held

    def below(self, name: str) -> Self:
        """Return a folder within this one, written by whoever holds the lock of this one."""
        found = type(self)(self.address(name), options=self.options)
        return found if self._guard is None else found.held(self._guard)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine, where files have owners and modes."""
        return scheme_of(self.uri) == LOCAL

    def private(self) -> Self:
        """Return the folder as it is written with what other users of this machine must not read.

        That is addresses as they were given, which may be signed. Of a store, its rules decide.
        """
        private = copy.copy(self)
        if self.is_local:
            private.options = replace(self.options, private=True)
        return private

    def check(self) -> None:
        """Raise an `EngineError` if the folder belongs to another run by now."""
        if self._guard is not None:
            self._guard.check()

    def stem(self, time_ns: int | None = None, *, mark: str = "") -> str:
        """Return a unique stem, of this run, that sorts after all there were when it began."""
        newest_ns = max(time.time_ns(), self._newest_ns + 1)
        run_id = None if self._guard is None else self._guard.run_id
        return unique_stem(newest_ns if time_ns is None else time_ns, run_id=run_id, mark=mark)

    def note_tables(self) -> None:
        """Tell later runs which tables there are."""
        names = self._tables()
        self.write_json(TABLES_NAME, [*names, *filter(self.exists, [IDENTITIES_NAME])])

    def _tables(self) -> list[str]:
        return [name for folder in TABLES_OF_RUNS for name in self.names(folder)]

    def close_run(self, run_id: str) -> None:
        """Let nothing count that this run has not put yet: its lock was taken over."""
        put = [name for name in self._tables() if _run_of(name) == run_id]
        known = {each: sorted(names) for each, names in self._taken_over().items()}
        self.write_json(TAKEN_OVER_NAME, {**known, run_id: put})

    def _taken_over(self) -> dict[str, frozenset[str]]:
        return {
            each: frozenset(put) for each, put in (self.read_json(TAKEN_OVER_NAME) or {}).items()
        }

    def late_tables(self) -> list[str]:
        """Return the tables that runs put after their lock was taken over."""
        taken_over = self._taken_over()
        return [
            name
            for folder in TABLES_OF_RUNS
            for name, _ in (self._listed(folder) if taken_over else ())
            if _is_late(name, taken_over)
        ]

    @classmethod
    def of(cls, output: OutputSettings | DatasetSettings) -> Self:
        """Return the folder that a job, or a data set, is written to."""
        return cls(output.uri, options=StoreOptions.of_output(output))

    def commit(
        self,
        results: pa.Table,
        *,
        run_id: str,
        model: str,
        model_revision: str,
        by_language: Mapping[str, ModelName] = NO_OTHERS,
        calibration: ConfidenceModel | None = None,
        stem: str | None = None,
    ) -> Commit:
        """Write results so that either all of them count or none."""
        results = conform(results, RESULTS).combine_chunks()
        _check_accountable(results)
        results = without_credentials(results)
        held = [rows for rows in PART_ROWS if pc.sum(_counts(results, rows)).as_py()]
        kind = _only("committing results", held)
        part_rows = rows_of(
            results,
            kind,
            run_id=run_id,
            model=(public(model), model_revision),
            by_language={code: (public(name), made) for code, (name, made) in by_language.items()},
            calibration=calibration,
        )
        outcomes = outcomes_of(results, run_id=run_id)
        try:
            done = self.write_commit(outcomes, [part_rows], rows=kind, stem=stem, check=self._look)
            self._unconfirmed.append(done)
            self._look()
        except EngineError:
            for late in self._unconfirmed:
                self._withdraw(late)
            raise
        return done

    def _look(self) -> None:
        """Check the lock unless that was done of late."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self.check()
            self._looked_s = now_s
            self._unconfirmed.clear()

    def _withdraw(self, commit: Commit) -> None:
        # Readers other than this program would count it; what was there in time counts.
        if _is_late(commit.outcomes_name, self._taken_over()):
            for name in (commit.outcomes_name, commit.segments_name):
                if name is not None:
                    self._remove(name)

    def write_commit(
        self,
        outcomes: pa.Table,
        segments: Iterable[pa.Table],
        *,
        rows: PartRows = SEGMENT_ROWS,
        stem: str | None = None,
        under: str = "",
        check: Callable[[], object] | None = None,
    ) -> Commit:
        """Write outcomes rows and their segments or labels, which stand in the same order.

        `under` is "", or `PENDING` to keep them out of the tables; `check` is as of `write_bytes`.
        """
        stem = stem or self.stem()
        segments_name = None
        if pc.sum(outcomes["segments_written"]).as_py():
            segments_name = f"{under}{rows.folder}/{stem}{SUFFIX}"
            self.write_bytes(segments_name, encode_parquet(rows.schema, segments), check=check)
        named = pa.repeat(pa.scalar(segments_name, pa.string()), outcomes.num_rows)
        position = OUTCOMES.get_field_index("segments_object")
        outcomes = outcomes.set_column(position, OUTCOMES.field(position), named)
        outcomes_name = f"{under}{OUTCOMES_FOLDER}/{stem}{SUFFIX}"
        # This put is the commit: killed before it, the rows above are an orphan that nobody reads.
        data = encode_parquet(OUTCOMES, [outcomes.cast(OUTCOMES)])
        self.write_bytes(outcomes_name, data, check=check)
        return Commit(outcomes_name, segments_name, outcomes.num_rows)

    def outcomes(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield committed outcomes rows in commit order."""
        return (batch.rows for batch in self.committed(columns))

    def committed(
        self, columns: Sequence[str] | None = None, names: Iterable[str] | None = None
    ) -> Iterator[CommittedBatch]:
        """Yield committed outcomes rows with the names of their objects, in commit order."""
        names = self.names(OUTCOMES_FOLDER) if names is None else names
        schema = projected(OUTCOMES, columns)
        for name, table in self.read_tables(names, schema):
            self._check_segments_names(name, table)
            for rows in table.to_batches():
                yield CommittedBatch(name, rows)

    def _check_segments_names(self, name: str, table: pa.Table) -> None:
        # What they name may be removed later, so it has to be segments or labels.
        if "segments_object" not in table.schema.names:
            return
        for named in table["segments_object"].unique().drop_null().to_pylist():
            self.address(named)
            if not (table_of(named) in PART_ROWS_FOLDERS and _is_table(named)):
                folders = " or ".join(f"{folder}/" for folder in PART_ROWS_FOLDERS)
                raise CorpusAsrError(
                    f"reading {redact_uri(self.address(name))}: found the segments object "
                    f"{named!r}, expected a name in {folders}; restore the object, or remove it to "
                    "have its recordings transcribed again"
                )

    def segments(
        self, columns: Sequence[str] | None = None, *, rows: PartRows = SEGMENT_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the segments rows, or labels, that outcomes objects name; orphans never."""
        schema = projected(rows.schema, columns)
        ours = [name for name in self.named_segments() if table_of(name) == rows.folder]
        for _, table in self.read_tables(ours, schema):
            yield from table.to_batches()

    def recordings(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the recordings table; none before the first finish."""
        schema = projected(RECORDINGS, columns)
        for _, table in self.read_tables(self.names(RECORDINGS_FOLDER), schema):
            yield from table.to_batches()

    def named_segments(self, outcomes_names: Iterable[str] | None = None) -> list[str]:
        """Return the names of the segments or labels objects of outcomes, in commit order."""
        named: dict[str, None] = {}
        for batch in self.committed(["segments_object"], outcomes_names):
            named.update(dict.fromkeys(batch.rows.column(0).unique().drop_null().to_pylist()))
        return list(named)

    def read_tables(
        self, names: Iterable[str], schema: pa.Schema
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of many objects, in the order given, a bounded number at a time."""
        # Of the next few objects the beginning is read ahead: all of a small one.
        waiting = iter(names)
        with ThreadPoolExecutor(READERS, thread_name_prefix="read-tables") as pool:
            started = deque((name, pool.submit(self._begin, name, schema))
                          for name in islice(waiting, READERS))  # fmt: skip
            try:
                while started:
                    name, beginning = started.popleft()
                    following = next(waiting, None)
                    if following is not None:
                        started.append((following, pool.submit(self._begin, following, schema)))
                    first, others = beginning.result()
                    for rows in chain(first, others):
                        yield name, conform(rows, schema)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _begin(
        self, name: str, schema: pa.Schema
    ) -> tuple[list[pa.RecordBatch], Iterator[pa.RecordBatch]]:
        batches = self.batches(name, columns=schema.names, batch_rows=READ_AHEAD_ROWS)
        return list(islice(batches, 1)), batches

    def address(self, name: str) -> str:
        """Return the address of an object of this folder."""
        return within(self.uri, name)

    def commit_names(self) -> list[str]:
        """Return the names of all outcomes objects by time, those of pending parts among them."""
        names = [name for folder in COMMIT_FOLDERS for name in self.names(folder)]
        return sorted(names, key=lambda name: name.rpartition("/")[2])

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's Parquet objects, sorted."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of a folder's Parquet objects, by name; 0 where not known."""
        return {name: size or 0 for name, size in self._objects(folder) if _is_table(name)}

    def all_names(self, folder: str) -> Iterator[str]:
        """Yield the names of everything below a folder of the output but late tables."""
        return (name for name, _ in self._objects(folder))

    def _objects(self, folder: str) -> Iterator[tuple[str, int | None]]:
        of_runs = folder in TABLES_OF_RUNS or folder.startswith(f"{HOOKS_FOLDER}/")
        taken_over = self._taken_over() if of_runs else {}
        listed = self._listed(folder)
        return (each for each in listed if not _is_late(each[0], taken_over))

    def _listed(self, folder: str) -> Iterator[tuple[str, int | None]]:
        # A run knows what it put or removed itself, and what the one before left, also where
        # listings lag behind by minutes.
        changed = list(self._changed.items()) if self._guard is not None else []
        gone = {name for name, there in changed if not there}
        hidden = {name for name, there in changed if there and name.startswith(f"{folder}/")}
        base = self.address("")
        for uri, size, _ in filesystem.list_objects(self.address(folder), self.options):
            name = uri.removeprefix(base)
            hidden.discard(name)
            if name not in gone:
                yield name, size
        yield from ((name, None) for name in sorted(hidden - self.missing(hidden)))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Put a table as one object."""
        self.write_bytes(name, encode_parquet(table.schema, [table]))

    def read_table(self, name: str, schema: pa.Schema) -> pa.Table:
        """Return an object's columns of `schema`, in exactly that schema."""
        batches = [conform(rows, schema) for rows in self.batches(name, columns=schema.names)]
        return pa.concat_tables(batches) if batches else schema.empty_table()

    def batches(
        self, name: str, *, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield an object's rows, a bounded number at a time."""
        with self._parquet(name) as file:
            yield from parquet_batches(file, columns=columns, batch_rows=batch_rows)

    def rows(self, name: str, schema: pa.Schema, ranges: Sequence[tuple[int, int]]) -> pa.Table:
        """Return some rows of an object, in its order and in exactly the columns of `schema`."""
        with self._parquet(name) as file:
            rows = [conform(some, schema) for some in parquet_rows(file, schema.names, ranges)]
        return pa.concat_tables([schema.empty_table(), *rows])

    @contextlib.contextmanager
    def _parquet(self, name: str) -> Iterator[io.BufferedReader]:
        with filesystem.open_binary(self.address(name), self.options) as file:
            try:
                yield file
            except pa.ArrowException as error:
                raise CorpusAsrError(
                    f"reading {redact_uri(self.address(name))}: no readable Parquet ({error}), "
                    "expected a table this program wrote; restore it, or remove it to have its "
                    "recordings transcribed again"
                ) from error

    def write_bytes(
        self, name: str, data: bytes, *, check: Callable[[], object] | None = None
    ) -> None:
        """Put an object; before each attempt the lock is looked at, unless `check` is to do so."""
        before = check or self.check
        filesystem.write_atomic(self.address(name), data, self.options, before=before)
        self._changed[name] = True

    def write_json(self, name: str, value: Any) -> None:
        """Put a value as a JSON object, readable by people."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Return what a JSON object holds; None if there is no such object."""
        if not self.exists(name):
            return None
        data = filesystem.read_bytes(self.address(name), self.options)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorpusAsrError(
                f"reading {redact_uri(self.address(name))}: no valid JSON ({error}); restore the "
                "file or choose another output.uri"
            ) from error

    def exists(self, name: str) -> bool:
        """Tell whether there is such an object."""
        return filesystem.exists(self.address(name), self.options)

    def missing(self, names: Iterable[str]) -> set[str]:
        """Return those of some names that stand for no object, by asking for each."""
        names = list(names)
        with ThreadPoolExecutor(READERS, thread_name_prefix="look-up") as pool:
            there = list(pool.map(self.exists, names))
        return {name for name, exists in zip(names, there, strict=True) if not exists}

    def remove(self, name: str) -> None:
        """Remove an object; one that is gone already is as good."""
        self.check()
        self._remove(name)

    def _remove(self, name: str) -> None:
        filesystem.remove(self.address(name), self.options)
        self._changed[name] = False

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove objects, several at a time: each is a request that waits for the store."""
        self.check()
        with ThreadPoolExecutor(READERS, thread_name_prefix="remove-tables") as pool:
            for _ in pool.map(self._remove, names):
                pass

    def move_all(self, names: Iterable[str], folder: str) -> None:
        """Move objects below a folder, several at a time; one that is there already is as good."""

        def move(name: str) -> None:
            target = f"{folder}/{name}"
            filesystem.move(self.address(name), self.address(target), self.options)
            self._changed |= {name: False, target: True}

        self.check()
        with ThreadPoolExecutor(READERS, thread_name_prefix="archive") as pool:
            for _ in pool.map(move, names):
                pass


def _is_table(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.endswith(SUFFIX) and not base.startswith(TEMPORARY_PREFIX)


def projected(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Return the schema of some columns, in their order; None stands for all."""
    if columns is None:
        return schema
    return pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)


def unique_stem(time_ns: int | None = None, *, run_id: str | None = None, mark: str = "") -> str:
    """Return a name no other commit has; names sort by the time they were made, or by this one."""
    by = "" if run_id is None else f"{run_id}-"
    time_ns = time.time_ns() if time_ns is None else time_ns
    return f"{time_ns:0{_TIME_DIGITS}d}-{by}{mark or uuid.uuid4().hex[:12]}"


def time_ns_of(name: str) -> int:
    """Return the time that an object's name stands for; 0 for a name that is none of ours."""
    time_ns = name.rpartition("/")[2].partition("-")[0]
    return int(time_ns) if time_ns.isdecimal() and len(time_ns) == _TIME_DIGITS else 0


def _run_of(name: str) -> str | None:
    match = _BY_RUN.fullmatch(name)
    return match and match["run_id"]


def _is_late(name: str, taken_over: Mapping[str, frozenset[str]]) -> bool:
    if not taken_over:
        return False
    put = taken_over.get(_run_of(name) or "")
    return put is not None and name not in put
