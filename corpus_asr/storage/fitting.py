"""Rows made fit for a table: in exactly its schema, and without what gives access to anything.

Rows in, rows out. Knows no object and no store.
"""

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.storage.stores.uri import public, public_text


def conform(rows: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows in exactly this schema; columns that are missing (older writers) become null.

    Raises:
        ValueError: a column is unknown or does not fit its type.
    """
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


def without_credentials(rows: pa.Table) -> pa.Table:
    """Return rows whose addresses, and texts that may hold some, have nothing that gives access.

    The very same table if they have nothing of it already.
    """
    for name, remove in (
        ("uri", public),
        ("error_message", public_text),
        ("metadata", public_text),
    ):
        position = rows.schema.get_field_index(name)
        # Few texts hold an address with a password or a query.
        if (
            position < 0
            or not pc.any(pc.match_substring_regex(rows[name], r"(?s)://.*[?@]")).as_py()
        ):
            continue
        safe = pa.array([text and remove(text) for text in rows[name].to_pylist()], pa.string())
        rows = rows.set_column(position, rows.schema.field(position), safe)
    return rows
