"""All hits of a query as a file: CSV for spreadsheets, JSON for programs, in pieces."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from corpus_asr.storage.stores.uri import without_secrets
from corpus_asr.view.search import Hit

# Names that programs read: only added to.
FIELDS = (
    "recording_id", "uri", "start_s", "end_s", "channel", "language", "confidence", "text",
    "corrected", "original",
)  # fmt: skip
MEDIA_TYPES = {"csv": "text/csv", "json": "application/json"}
# Spreadsheets take a cell for a formula that begins so; an apostrophe makes it text.
# Source: OWASP, CSV Injection.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_BYTE_ORDER_MARK = "\ufeff"  # without it Excel takes UTF-8 for the code page of the machine


Rows = Iterator[list[dict[str, Any]]]


def hit_rows(hits: Iterable[list[Hit]]) -> Rows:
    """Yield some rows at a time, with a value for each of `FIELDS`."""
    return ([_row(hit) for hit in some] for some in hits)


def _row(hit: Hit) -> dict[str, Any]:
    said = hit.correction
    return {
        "recording_id": hit.recording_id,
        "uri": without_secrets(hit.uri),
        "start_s": round(hit.start_s, 3),
        "end_s": round(hit.end_s, 3),
        "channel": hit.channel,
        "language": hit.language,
        "confidence": None if hit.confidence is None else round(hit.confidence, 4),
        "text": hit.text.strip(),
        "corrected": said is not None,
        "original": None if said is None else said.original.strip(),
    }


def pieces_of(rows: Rows, kind: str) -> Iterator[bytes]:
    """Yield a file of rows; `kind` is one of `MEDIA_TYPES`."""
    texts = _csv(rows) if kind == "csv" else _json(rows)
    return (text.encode("utf-8", "replace") for text in texts)


def _csv(rows: Rows) -> Iterator[str]:
    yield _BYTE_ORDER_MARK + ",".join(FIELDS) + "\r\n"
    for some in rows:
        file = io.StringIO()
        csv.writer(file).writerows([_cell(row[name]) for name in FIELDS] for row in some)
        yield file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _json(rows: Rows) -> Iterator[str]:
    before = "["
    for some in rows:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in some]
        yield before + "\n" + ",\n".join(lines)
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"
