"""The tables of a run and their commit protocol; the only place that touches Parquet.

In: RESULTS rows. Out: segments (or labels) and outcomes objects, and readers of them. Each commit
puts a segments object under a unique name, then an outcomes object that names it: the second put is
the commit. A segments object that no outcomes object names is an orphan, unseen by these readers.
Labels are written in the same way in place of segments, and the same words mean them. Knows nothing
of runs, plans or which commit of two counts (`ledger.py`).
"""

import contextlib
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpus_asr.confidence import ConfidenceModel
from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import OUTCOMES, RECORDINGS, RESULTS
from corpus_asr.storage.fitting import conform, without_credentials
from corpus_asr.storage.results import (
    LABEL_ROWS,
    NO_OTHERS,
    PART_ROWS_FOLDERS,
    SEGMENT_ROWS,
    ModelName,
    PartRows,
    check_accountable,
    outcomes_of,
    part_rows_in,
    rows_of,
)
from corpus_asr.storage.stems import unique_stem
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.local import TEMPORARY_PREFIX
from corpus_asr.storage.stores.uri import normalise, public, shown, within

SEGMENTS_FOLDER, OUTCOMES_FOLDER, RECORDINGS_FOLDER = "segments", "outcomes", "recordings"
SUFFIX = ".parquet"
CALIBRATION_KEY = "corpus_asr.calibration"
ROW_GROUP_ROWS = 50_000
BATCH_ROWS = 65_536
READ_AHEAD_ROWS = 16_384
READERS = 8  # commits are many small objects: reading them is waiting for the store


class Commit(NamedTuple):
    """What a commit wrote: names of objects, relative to the output folder."""

    outcomes_name: str
    segments_name: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """Rows of one outcomes object."""

    name: str
    rows: pa.RecordBatch


def encode_parquet(schema: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
    """Return rows as one zstd Parquet object; only what is encoded is held as a whole.

    The file's metadata names the calibrations that its confidences come from.
    """
    sink = io.BytesIO()
    calibrations: set[str] = set()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            if "calibration" in table.schema.names:
                calibrations.update(table["calibration"].unique().drop_null().to_pylist())
        if calibrations:
            writer.add_key_value_metadata({CALIBRATION_KEY: ", ".join(sorted(calibrations))})
    return sink.getvalue()


class ParquetFile:
    """A local Parquet file written table by table, for what is too large for memory."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self._path = path
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def append(self, table: pa.Table) -> None:
        """Add rows as a row group."""
        self._writer.write_table(table)

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


def parquet_columns(file: io.BufferedReader | str) -> list[str]:
    """Return the column names of a Parquet file.

    Raises:
        pyarrow.ArrowInvalid: it is no Parquet file.
    """
    return list(pq.read_schema(file).names)


def parquet_batches(
    file: io.BufferedReader | str,
    *,
    columns: Sequence[str] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file's rows, a bounded number at a time.

    Raises:
        pyarrow.ArrowInvalid: it is no Parquet file.
    """
    with pq.ParquetFile(file, pre_buffer=False) as parquet:
        wanted = (
            None if columns is None else [c for c in columns if c in parquet.schema_arrow.names]
        )
        yield from parquet.iter_batches(batch_size=batch_rows, columns=wanted)


def parquet_rows(
    file: io.BufferedReader, columns: Sequence[str], ranges: Sequence[tuple[int, int]]
) -> Iterator[pa.Table]:
    """Yield some rows of a Parquet file, each range from its first row up to the next after it.

    Only row groups that hold some of them are read, one at a time and once each.

    Raises:
        pyarrow.ArrowInvalid: it is no Parquet file.
    """
    with pq.ParquetFile(file, pre_buffer=False) as parquet:
        wanted = [name for name in columns if name in parquet.schema_arrow.names]
        first = 0
        for group in range(parquet.metadata.num_row_groups):
            after = first + parquet.metadata.row_group(group).num_rows
            inside = [(max(start, first), min(stop, after)) for start, stop in ranges]
            inside = [(start, stop) for start, stop in inside if start < stop]
            if inside:
                rows = parquet.read_row_group(group, columns=wanted, use_threads=False)
                for start, stop in inside:
                    # Taken, not sliced: a slice would keep the whole group in memory.
                    yield rows.take(pa.array(range(start - first, stop - first)))
            first = after


class OutputStore:
    """The output folder of a run. Cheap to make; safe to use from any process."""

    def __init__(self, uri: str, *, endpoint_url: str | None = None) -> None:
        self.uri = normalise(uri).rstrip("/")
        self.endpoint_url = endpoint_url

    def commit(
        self,
        results: pa.Table,
        *,
        run_id: str,
        model: str,
        model_revision: str,
        by_language: Mapping[str, ModelName] = NO_OTHERS,
        calibration: ConfidenceModel | None = None,
    ) -> Commit:
        """Write results so that either all of them count or none.

        Args:
            results: RESULTS rows, with segments or with labels.
            run_id, model, model_revision: what made them, ...
            by_language: ... but for parts in these languages.
            calibration: what segments of `model` get their confidence from; None for the default.

        Raises:
            ValueError: the rows do not fit RESULTS, or say too little to be accounted for.
            FetchError: the store failed beyond its retries; nothing counts.
        """
        results = conform(results, RESULTS).combine_chunks()
        check_accountable(results)
        results = without_credentials(results)
        rows = part_rows_in(results)
        found = rows_of(
            results,
            rows,
            run_id=run_id,
            model=(public(model), model_revision),
            by_language={code: (public(name), made) for code, (name, made) in by_language.items()},
            calibration=calibration,
        )
        return self.write_commit(outcomes_of(results, run_id=run_id), [found], rows=rows)

    def write_commit(
        self,
        outcomes: pa.Table,
        segments: Iterable[pa.Table],
        *,
        rows: PartRows = SEGMENT_ROWS,
        stem: str | None = None,
    ) -> Commit:
        """Write outcomes rows and their segments or labels, which stand in the same order."""
        stem = stem or unique_stem()
        segments_name = None
        if pc.sum(outcomes["segments_written"]).as_py():
            segments_name = f"{rows.folder}/{stem}{SUFFIX}"
            self.write_bytes(segments_name, encode_parquet(rows.schema, segments))
        named = pa.repeat(pa.scalar(segments_name, pa.string()), outcomes.num_rows)
        position = OUTCOMES.get_field_index("segments_object")
        outcomes = outcomes.set_column(position, OUTCOMES.field(position), named)
        outcomes_name = f"{OUTCOMES_FOLDER}/{stem}{SUFFIX}"
        self.write_table(outcomes_name, outcomes.cast(OUTCOMES))
        return Commit(outcomes_name, segments_name, outcomes.num_rows)

    def outcomes(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield committed outcomes rows in commit order."""
        for batch in self.committed(columns):
            yield batch.rows

    def committed(
        self, columns: Sequence[str] | None = None, names: Iterable[str] | None = None
    ) -> Iterator[CommittedBatch]:
        """Yield committed outcomes rows with the names of their objects, in commit order.

        Raises:
            FetchError: an object cannot be read.
            CorpusAsrError: an object is no Parquet file, or names what are no segments.
        """
        names = self.names(OUTCOMES_FOLDER) if names is None else names
        schema = _projected(OUTCOMES, columns)
        for name, table in self.read_tables(names, schema):
            self._check_segments_names(name, table)
            for rows in table.to_batches():
                yield CommittedBatch(name, rows)

    def _check_segments_names(self, name: str, table: pa.Table) -> None:
        """Refuse outcomes that name anything but segments: what is named may be removed later."""
        if "segments_object" not in table.schema.names:
            return
        for named in table["segments_object"].unique().drop_null().to_pylist():
            self.address(named)
            if not (named.partition("/")[0] in PART_ROWS_FOLDERS and _is_table(named)):
                folders = " or ".join(f"{folder}/" for folder in PART_ROWS_FOLDERS)
                raise CorpusAsrError(
                    f"reading {shown(self.address(name))}: found the segments object {named!r}, "
                    f"expected a name in {folders}; restore the object, or remove it to "
                    "have its recordings transcribed again"
                )

    def segments(
        self, columns: Sequence[str] | None = None, outcomes_names: Iterable[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the segments rows that outcomes objects name, all or these; orphans never."""
        return self._part_rows(SEGMENT_ROWS, columns, outcomes_names)

    def labels(
        self, columns: Sequence[str] | None = None, outcomes_names: Iterable[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the labels rows that outcomes objects name, all or these; orphans never."""
        return self._part_rows(LABEL_ROWS, columns, outcomes_names)

    def _part_rows(
        self, rows: PartRows, columns: Sequence[str] | None, outcomes_names: Iterable[str] | None
    ) -> Iterator[pa.RecordBatch]:
        schema = _projected(rows.schema, columns)
        named = self.named_segments(outcomes_names)
        ours = [name for name in named if name.startswith(f"{rows.folder}/")]
        for _, table in self.read_tables(ours, schema):
            yield from table.to_batches()

    def recordings(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the recordings table; none before the first finish."""
        schema = _projected(RECORDINGS, columns)
        for name in self.names(RECORDINGS_FOLDER):
            for rows in self.batches(name, columns=schema.names):
                yield from conform(rows, schema).to_batches()

    def named_segments(self, outcomes_names: Iterable[str] | None = None) -> list[str]:
        """Return the names of the segments or labels objects of outcomes, in commit order."""
        named: dict[str, None] = {}
        for batch in self.committed(["segments_object"], outcomes_names):
            named.update(dict.fromkeys(batch.rows.column(0).unique().drop_null().to_pylist()))
        return list(named)

    def read_tables(
        self, names: Iterable[str], schema: pa.Schema
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the rows of many objects, in the order given, a bounded number at a time.

        Of a few objects that are still to come the beginning is read ahead: all of a small one.

        Raises:
            FetchError: an object cannot be read.
            CorpusAsrError: an object is no Parquet file.
        """
        waiting = iter(names)
        with ThreadPoolExecutor(READERS, thread_name_prefix="read-tables") as pool:
            begun = deque((name, pool.submit(self._begin, name, schema))
                          for name in islice(waiting, READERS))  # fmt: skip
            try:
                while begun:
                    name, beginning = begun.popleft()
                    following = next(waiting, None)
                    if following is not None:
                        begun.append((following, pool.submit(self._begin, following, schema)))
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

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's Parquet objects, sorted."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of a folder's Parquet objects, by name; 0 where not known."""
        return {name: size or 0 for name, size in self._objects(folder) if _is_table(name)}

    def all_names(self, folder: str) -> Iterator[str]:
        """Yield the names of everything below a folder of the output."""
        for name, _ in self._objects(folder):
            yield name

    def _objects(self, folder: str) -> Iterator[tuple[str, int | None]]:
        base = self.address("")
        prefix = self.address(folder).rstrip("/") + "/"
        pages = filesystem.list_pages(prefix, endpoint_url=self.endpoint_url)
        for page in pages:
            for uri, size in zip(page.uris, page.sizes, strict=True):
                yield uri.removeprefix(base), size

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
        """Yield an object's rows, a bounded number at a time.

        Raises:
            FetchError: it cannot be read.
            CorpusAsrError: it is no Parquet file.
        """
        with self._parquet(name) as file:
            yield from parquet_batches(file, columns=columns, batch_rows=batch_rows)

    def rows(self, name: str, schema: pa.Schema, ranges: Sequence[tuple[int, int]]) -> pa.Table:
        """Return some rows of an object, in its order and in exactly the columns of `schema`.

        Args:
            name: the object.
            schema: the columns.
            ranges: the first row of each, and the next after it.

        Raises:
            FetchError: it cannot be read.
            CorpusAsrError: it is no Parquet file.
        """
        with self._parquet(name) as file:
            found = [conform(rows, schema) for rows in parquet_rows(file, schema.names, ranges)]
        return pa.concat_tables([schema.empty_table(), *found])

    @contextlib.contextmanager
    def _parquet(self, name: str) -> Iterator[io.BufferedReader]:
        with filesystem.open_binary(self.address(name), endpoint_url=self.endpoint_url) as file:
            try:
                yield file
            except pa.ArrowException as error:
                raise CorpusAsrError(
                    f"reading {shown(self.address(name))}: no readable Parquet ({error}), expected "
                    "a table this program wrote; restore it, or remove it to have its recordings "
                    "transcribed again"
                ) from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Put an object."""
        filesystem.write_atomic(self.address(name), data, endpoint_url=self.endpoint_url)

    def write_json(self, name: str, value: Any) -> None:
        """Put a value as a JSON object, readable by people."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Return what a JSON object holds; None if there is no such object.

        Raises:
            CorpusAsrError: it holds no JSON.
        """
        if not self.exists(name):
            return None
        data = filesystem.read_bytes(self.address(name), endpoint_url=self.endpoint_url)
        try:
            return json.loads(data)
        except ValueError as error:
            raise CorpusAsrError(
                f"reading {shown(self.address(name))}: no valid JSON ({error}); restore the file "
                "or choose another output.uri"
            ) from error

    def exists(self, name: str) -> bool:
        """Tell whether there is such an object."""
        return filesystem.exists(self.address(name), endpoint_url=self.endpoint_url)

    def remove(self, name: str) -> None:
        """Remove an object; one that is gone already is as good."""
        filesystem.remove(self.address(name), endpoint_url=self.endpoint_url)

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove objects, several at a time: each is a request that waits for the store."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="remove-tables") as pool:
            for _ in pool.map(self.remove, names):
                pass


def _is_table(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.endswith(SUFFIX) and not base.startswith(TEMPORARY_PREFIX)


def _projected(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    if columns is None:
        return schema
    return pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)
