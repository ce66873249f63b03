"""Parquet files: written from tables, and read a bounded number of rows at a time.

The only place that touches Parquet. In come Arrow tables and open files; what the rows mean and
where the files are, it does not know.
"""

import io
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

CALIBRATION_KEY = "corpus_asr.calibration"
ROW_GROUP_ROWS = 50_000
BATCH_ROWS = 65_536


def encode_parquet(schema: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
    """Return rows as one zstd Parquet object, which names the calibrations of its confidences."""
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
    """Open a local Parquet file to write table by table, for what is too large for memory."""
    return pq.ParquetWriter(path, schema, compression="zstd")


def parquet_columns(file: io.BufferedReader | str) -> list[str]:
    """Return the column names of a Parquet file."""
    return list(pq.read_schema(file).names)


def parquet_batches(
    file: io.BufferedReader | str,
    *,
    columns: Sequence[str] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file's rows, a bounded number at a time."""
    with pq.ParquetFile(file, pre_buffer=False) as parquet:
        yield from parquet.iter_batches(batch_size=batch_rows, columns=_held(parquet, columns))


def parquet_rows(
    file: io.BufferedReader, columns: Sequence[str], ranges: Sequence[tuple[int, int]]
) -> Iterator[pa.Table]:
    """Yield ranges (first row, row after the last) of a Parquet file; each row group read once."""
    with pq.ParquetFile(file, pre_buffer=False) as parquet:
        wanted = _held(parquet, columns)
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


def _held(parquet: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    # Once: each look at a file's schema translates it again, which takes longer than its rows do.
    held = set(parquet.schema_arrow.names)
    return None if columns is None else [name for name in columns if name in held]


def conform(rows: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows in exactly this schema; columns that are missing (older writers) become null."""
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


def _title(schema: pa.Schema) -> str:
    metadata: dict[bytes, bytes] = schema.metadata or {}
    return metadata.get(b"corpus_asr.table", b"a table").decode()
