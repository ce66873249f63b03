"""RESULTS rows and commits for tests of tables, ledgers and reports."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from corpus_asr.schemas import FILES, RESULTS
from corpus_asr.storage.run_state.tables import Commit, OutputStore
from corpus_asr.storage.stores.uri import recording_id


def same_schema(found: pa.Schema, expected: pa.Schema) -> bool:
    """Compare types, names and all metadata; Parquet renames what is inside a list."""
    fields = zip(found, expected, strict=True)
    return bool(
        found.equals(expected)
        and found.metadata == expected.metadata
        and all(field.metadata == other.metadata for field, other in fields)
    )


def part(
    name: str,
    index: int,
    *,
    texts: Sequence[str] | None,
    last: bool = True,
    status: str = "ok",
    uri: str | None = None,
    **values: Any,
) -> dict[str, Any]:
    """Return a RESULTS row of recording `/name`; `texts` are its segments."""
    uri = uri or f"/{name}"
    segments: Any = texts and [
        {"segment": number, "text": text, "start_s": float(number), "end_s": number + 1.0,
         "tokens": [1, 2], "language": "en", "task": "transcribe"}
        for number, text in enumerate(texts)
    ]  # fmt: skip
    return {
        "recording_id": recording_id(uri),
        "uri": uri,
        "size_bytes": 100,
        "etag": "v1",
        "part": index,
        "last_part": last,
        "part_start_s": 10.0 * index,
        "part_end_s": 10.0 * index + 10,
        "duration_s": 10.0,
        "status": status,
        "attempts": 1,
        "segments": segments,
        **values,
    }


def results(*rows: dict[str, Any]) -> pa.Table:
    """Return rows as a RESULTS table."""
    return pa.Table.from_pylist(list(rows), schema=RESULTS)


def commit(store: OutputStore, table: pa.Table, *, run_id: str = "run") -> Commit:
    """Commit rows with fixed stamps."""
    return store.commit(table, run_id=run_id, model="model", model_revision="revision")


def files(*names: str, etag: str | None = "v1", size_bytes: int | None = 100) -> pa.RecordBatch:
    """Return FILES rows of recordings `/name`."""
    rows: list[dict[str, Any]] = [
        {"recording_id": recording_id(f"/{name}"), "uri": f"/{name}", "size_bytes": size_bytes,
         "etag": etag, "metadata": None}
        for name in names
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=FILES)
