"""Parquet files: written from tables, and read a bounded number of rows at a time.

The only place that touches Parquet. In come Arrow tables and open files; what the rows mean and
where the files are, it does not know.
"""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpus_asr.units import MEBIBYTE

CALIBRATION_KEY = "corpus_asr.calibration"
ROW_GROUP_ROWS = 50_000
BATCH_ROWS = 65_536
_BOUNDED_ROWS = 1_000
# A column chunk that decodes to this many bytes and this many times its size is a bomb.
_UNFOLDED_BYTES, _UNFOLDED_TIMES = 64 * MEBIBYTE, 200
# Delta-encoded texts may each repeat the previous one: few rows at a time.
_PREFIXED, _PREFIXED_ROWS = "DELTA_BYTE_ARRAY", 16
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
"""Errors raised on reading a damaged file; stores raise other errors."""


def encode_parquet(schema: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
    """Return rows as one zstd Parquet object, with the names of its confidence calibrations."""
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


def parquet_writer(path: str, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a local Parquet file for writing table by table, for data larger than memory."""
    return pq.ParquetWriter(path, schema, compression="zstd")


def parquet_metadata(file: io.BufferedReader) -> pq.FileMetaData:
    """Return a file's metadata (columns and row groups) without reading rows."""
    with pq.ParquetFile(file, pre_buffer=False) as parquet:
        return parquet.metadata


def parquet_batches(
    file: io.BufferedReader | str,
    *,
    columns: Sequence[str] | None = None,
    batch_rows: int = BATCH_ROWS,
    as_dictionaries: Sequence[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file's rows, a bounded number at a time.

    Some columns within a list are named by their paths, such as `segments.list.element.text`.
    Columns of texts named in `as_dictionaries`, by their paths, hold each text once.
    """
    with pq.ParquetFile(file, pre_buffer=False, read_dictionary=as_dictionaries) as parquet:
        yield from parquet.iter_batches(batch_size=batch_rows, columns=_held(parquet, columns))


def parquet_rows(
    file: io.BufferedReader, columns: Sequence[str], ranges: Sequence[tuple[int, int]]
) -> Iterator[pa.Table]:
    """Yield row ranges (first row, row after the last) of a Parquet file, reading groups once."""
    with pq.ParquetFile(file, pre_buffer=False) as parquet:
        wanted = _held(parquet, columns)
        first = 0
        for group in range(parquet.metadata.num_row_groups):
            group_stop = first + parquet.metadata.row_group(group).num_rows
            inside = [(max(start, first), min(stop, group_stop)) for start, stop in ranges]
            inside = [(start, stop) for start, stop in inside if start < stop]
            if inside:
                rows = parquet.read_row_group(group, columns=wanted, use_threads=False)
                for start, stop in inside:
                    # Copied, not sliced: a slice would keep the whole group in memory.
                    yield rows.take(pa.array(range(start - first, stop - first), pa.int64()))
            first = group_stop


class UnfoldedError(ValueError):
    """A small file stands for rows that would fill the memory."""

    def __init__(self, place: str, problem: str, expected: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place, self.problem, self.expected = place, problem, expected


def bounded_rows(file: io.BufferedReader, *, row_bytes: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of an untrusted file as dictionaries, in bounded memory.

    Raises:
        UnfoldedError: a row is larger than `row_bytes`, or a column far larger than the file.
    """
    repeated, batch_rows = _way_to_read(file, row_bytes)
    count = 0
    for batch in parquet_batches(file, batch_rows=batch_rows, as_dictionaries=repeated):
        # Rows are converted one by one only where necessary: it is slow.
        is_small = _unfolded_bytes(batch) <= row_bytes
        step = batch.num_rows if is_small else 1
        for start in range(0, batch.num_rows, step):
            rows = batch.slice(start, step)
            if not is_small and _unfolded_bytes(rows) > row_bytes:
                expected = f"at most {row_bytes} bytes"
                raise UnfoldedError(f"row {count + start + 1}", "a larger row", expected)
            yield from _unfolded(rows).to_pylist()
        count += batch.num_rows


def _way_to_read(file: io.BufferedReader, row_bytes: int) -> tuple[list[str], int]:
    """Return the dictionary-encoded text columns, and the number of rows to read at a time."""
    metadata, repeated, batch_rows = parquet_metadata(file), set[str](), _BOUNDED_ROWS
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column, kind = metadata.row_group(group).column(number), metadata.schema.column(number)
            stored = column.total_compressed_size
            is_list, most = kind.max_repetition_level > 0, _UNFOLDED_BYTES
            if _PREFIXED in column.encodings:
                batch_rows, most = _PREFIXED_ROWS, row_bytes
            elif column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
                repeated.add(column.path_in_schema)
            unfolded = max(column.total_uncompressed_size, 8 * column.num_values * is_list)
            if unfolded > max(most, _UNFOLDED_TIMES * stored):
                sizes = f"{stored:,} bytes that stand for {unfolded:,}"
                raise UnfoldedError(f"column {column.path_in_schema}", sizes, "those of a manifest")
    return sorted(repeated), batch_rows


def _unfolded(rows: pa.RecordBatch) -> pa.RecordBatch:
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in rows.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)


def _unfolded_bytes(values: pa.RecordBatch | pa.Array) -> int:
    """Return the decoded size of values in bytes."""
    if isinstance(values, pa.RecordBatch):
        return sum(map(_unfolded_bytes, values.columns))
    if pa.types.is_dictionary(values.type):
        lengths = pc.binary_length(values.dictionary).take(values.indices)
        return 8 * len(values) + (pc.sum(lengths).as_py() or 0)
    if pa.types.is_nested(values.type):
        inner = values.flatten()
        inner = inner if isinstance(inner, list) else [inner]
        return 8 * len(values) + sum(map(_unfolded_bytes, inner))
    return int(values.nbytes)


def _held(parquet: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    # Once: each look at a file's schema translates it again, which takes longer than its rows do.
    held = set(parquet.schema_arrow.names)
    return None if columns is None else [name for name in columns if name.partition(".")[0] in held]


def conform(rows: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows cast to this schema; columns missing in older files become null."""
    names, expected = set(rows.schema.names), set(schema.names)
    unknown = [name for name in rows.schema.names if name not in expected]
    if unknown:
        raise ValueError(f"conforming rows to {_title(schema)}: unknown columns {unknown}")
    columns = []
    for field in schema:
        if field.name not in names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        column = rows.column(field.name)
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException as error:
            raise ValueError(
                f"conforming rows to {_title(schema)}: column {field.name} is {column.type}, "
                f"expected {field.type} ({error})"
            ) from error
    return pa.table(columns, schema=schema)


def with_column(
    rows: pa.Table, name: str, values: pa.Array | pa.ChunkedArray | Sequence[Any]
) -> pa.Table:
    """Return rows with other values of the same type in a column."""
    place = rows.schema.get_field_index(name)
    field = rows.schema.field(place)
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        values = pa.array(values, field.type)
    return rows.set_column(place, field, values)


def _title(schema: pa.Schema) -> str:
    metadata: dict[bytes, bytes] = schema.metadata or {}
    return metadata.get(b"corpus_asr.table", b"a table").decode()


class AudioTable:
    """A Parquet file by its column of audio and its groups of rows.

    Reads raise `DAMAGED` where the file is.
    """

    def __init__(self, file: io.BufferedReader, column: str | None) -> None:
        """Open a file; a `KeyError` says which columns it has where none is of audio."""
        self._parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        schema = self._parquet.schema_arrow
        self.num_groups = self._parquet.metadata.num_row_groups
        self.column = _audio_column(schema, column)
        kind = schema.field(self.column).type
        self._is_struct = pa.types.is_struct(kind)
        self._others = [name for name in schema.names if name != self.column]
        if self._is_struct and kind.get_field_index("path") >= 0:
            self._others.append(f"{self.column}.path")

    def close(self) -> None:
        """Forget the file, which stays open."""
        self._parquet.close()

    def num_rows(self, group: int) -> int:
        """Return how many rows a group has."""
        return int(self._parquet.metadata.row_group(group).num_rows)

    def group_bytes(self, group: int) -> int:
        """Return how many bytes of audio a group has, about."""
        meta = self._parquet.metadata.row_group(group)
        columns = map(meta.column, range(meta.num_columns))
        return sum(
            int(column.total_uncompressed_size)
            for column in columns
            if column.path_in_schema == self._leaf
        )

    def expected_bytes(self, group: int) -> int:
        """Return the approximate audio bytes of each row of a group."""
        return self.group_bytes(group) // max(1, self.num_rows(group))

    def cells(self, group: int) -> pa.Array:
        """Return the audio of a group, null where a row has none."""
        table = self._parquet.read_row_group(group, columns=[self._leaf], use_threads=False)
        column = table.column(0).combine_chunks()
        return self._bytes_of(column.chunk(0) if isinstance(column, pa.ChunkedArray) else column)

    def cell(self, group: int, index: int) -> bytes | None:
        """Return the audio of one row of a group that is too large for memory."""
        batches = self._parquet.iter_batches(
            batch_size=1, row_groups=[group], columns=[self._leaf], use_threads=False
        )
        batch = next(itertools.islice(batches, index, None))
        data = self._bytes_of(batch.column(0))[0].as_py()
        return None if data is None else bytes(data)

    def others(self, group: int) -> Iterator[list[dict[str, Any]]]:
        """Yield the other columns of a group's rows, with the path of their audio, some at once."""
        for batch in self._parquet.iter_batches(
            batch_size=1_000, row_groups=[group], columns=self._others, use_threads=False
        ):
            if not batch.num_columns:
                yield [{} for _ in range(batch.num_rows)]
                continue
            rows = batch.to_pylist()
            for row in rows:
                path = (row.pop(self.column, None) or {}).get("path")
                if path is not None:
                    row.setdefault("path", path)
            yield rows

    @property
    def _leaf(self) -> str:
        return f"{self.column}.bytes" if self._is_struct else self.column

    def _bytes_of(self, column: pa.Array) -> pa.Array:
        # Flattened: a null struct is a null cell, whatever its fields hold.
        return column.flatten()[column.type.get_field_index("bytes")] if self._is_struct else column


def _audio_column(schema: pa.Schema, wanted: str | None) -> str:
    def holds(name: str) -> bool:
        kind = schema.field(name).type
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    columns = [name for name in schema.names if schema.names.count(name) == 1 and holds(name)]
    if wanted in columns:
        return str(wanted)
    if wanted is None and len(columns) == 1:
        return str(columns[0])
    if wanted is None and "audio" in columns:
        return "audio"
    column_names = ", ".join(schema.names) or "none"
    raise KeyError(
        f"found columns {column_names}, expected audio in {wanted or 'exactly one of them'}"
    )
