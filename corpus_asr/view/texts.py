"""All texts of a run beside their folded forms, in files on this machine that are mapped.

In: an output folder and its index. Out: chunks of rows that can be searched at the speed of memory
without being in it: what is kept there are four bytes per segment. Objects of segments never
change, so of a run that goes on only new ones are read. Knows nothing of queries.
"""

import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.export.recordings import Claims, Index, claimed_rows
from corpus_asr.storage.results import LABEL_ROWS, PartRows
from corpus_asr.storage.tables import OutputStore
from corpus_asr.view.folding import folded_lines

CHUNK_ROWS = 131_072
NOBODY = -1

_SEGMENT_COLUMNS = (
    "recording_id", "text", "start_s", "end_s", "confidence", "language", "channel",
)  # fmt: skip
_LABEL_COLUMNS = (
    "recording_id", "label", "start_s", "end_s", "probability", "channel", "rank",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of an object that stand in a chunk."""

    name: str
    first: int
    """The first of them, within the object."""
    count: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of some objects: text, folded, start_s, end_s, confidence, language, channel, shown."""

    rows: pa.Table
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """What can be searched at one moment."""

    chunks: tuple[Chunk, ...] = ()
    owners: tuple[np.ndarray, ...] = ()
    """Of each chunk's rows: the position among the recordings, or `NOBODY` for what is no hit."""


class TextFiles:
    """Keeps the files, in a folder of its own that ends with it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="corpus-asr-view-")
        self._chunks: tuple[Chunk, ...] = ()

    def close(self) -> None:
        """Remove the files."""
        self._chunks = ()
        self._folder.cleanup()

    def update(
        self,
        store: OutputStore,
        index: Index,
        rows: PartRows,
        *,
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> Texts:
        """Read what is new in an output folder, and forget what is gone.

        Args:
            store: the output folder.
            index: what it holds now.
            rows: segments, or labels in their place.
            on_rows: told how many more rows have been read.

        Raises:
            CorpusAsrError: an object does not hold what its outcomes say.
            FetchError: the store does not answer, or a run is just finishing here; try again.
        """
        claims = dict(index.objects())
        kept = tuple(
            chunk for chunk in self._chunks if any(span.name in claims for span in chunk.spans)
        )
        known = {span.name for chunk in kept for span in chunk.spans}
        fresh = {name: theirs for name, theirs in claims.items() if name not in known}
        writing = _Writing(Path(self._folder.name))
        columns = _LABEL_COLUMNS if rows is LABEL_ROWS else _SEGMENT_COLUMNS
        schema = pa.schema([rows.schema.field(name) for name in columns])
        for name, table, _ in claimed_rows(store, index, fresh, schema):
            writing.add(name, _prepared(table))
            on_rows(table.num_rows)
        self._chunks = (*kept, *writing.chunks())
        return Texts(self._chunks, tuple(_owners(chunk, claims) for chunk in self._chunks))


class _Writing:
    """Gathers rows into chunks of about equal size."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: list[pa.Table] = []
        self._spans: list[Span] = []
        self._waiting = 0
        self._read: dict[str, int] = {}
        self._done: list[Chunk] = []

    def add(self, name: str, rows: pa.Table) -> None:
        first = self._read.get(name, 0)
        self._read[name] = first + rows.num_rows
        self._tables.append(rows)
        self._spans.append(Span(name, first, rows.num_rows))
        self._waiting += rows.num_rows
        if self._waiting >= CHUNK_ROWS:
            self._write()

    def chunks(self) -> list[Chunk]:
        self._write()
        return self._done

    def _write(self) -> None:
        if not self._waiting:
            return
        path = self._folder / f"{uuid.uuid4().hex}.arrow"
        rows = pa.concat_tables(self._tables).combine_chunks()
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as written:
            written.write_table(rows)
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        path.unlink()  # the mapping keeps it as long as somebody searches in it
        self._done.append(Chunk(table, tuple(self._spans)))
        self._tables, self._spans, self._waiting = [], [], 0


def _prepared(rows: pa.Table) -> pa.Table:
    shown = pa.array(np.ones(rows.num_rows, dtype=bool))
    language = pa.nulls(rows.num_rows, pa.string())
    if "label" in rows.schema.names:
        shown = pc.equal(rows["rank"], 1)
        rows = rows.rename_columns({"label": "text", "probability": "confidence"})
    else:
        language = rows["language"]
    text = pc.fill_null(rows["text"], "")
    folded = [f" {line} " for line in folded_lines(text.to_pylist())] if rows.num_rows else []
    return pa.table(
        {
            "text": text.cast(pa.large_string()),
            "folded": pa.array(folded, pa.large_string()),
            "start_s": rows["start_s"],
            "end_s": rows["end_s"],
            "confidence": rows["confidence"],
            "language": language,
            "channel": rows["channel"],
            "shown": shown,
        }
    )


def _owners(chunk: Chunk, claims: Mapping[str, Claims]) -> np.ndarray:
    pieces = []
    for span in chunk.spans:
        theirs = claims.get(span.name)
        owners = np.full(span.count, NOBODY, dtype=np.int32)
        if theirs is not None:
            part = slice(span.first, span.first + span.count)
            counts = theirs.counts[part]
            owners[counts] = theirs.owners[part][counts]
        pieces.append(owners)
    found = np.concatenate(pieces)
    found[~chunk.rows["shown"].to_numpy()] = NOBODY
    return found
