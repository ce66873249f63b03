"""The searchable texts of a run, in mapped files.

Texts and their folded forms lie in unnamed files: searched at the speed of memory, they keep four
bytes per segment in it.
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
from corpus_asr.storage.run_state.tables import LABEL_ROWS, OutputStore, PartRows, projected
from corpus_asr.view.query import folded_lines

# Arrow's kernels cost some microseconds a call, which is nothing over so many rows.
CHUNK_ROWS = 131_072
NOBODY = -1
_SEGMENT_COLUMNS = (
    "recording_id", "text", "start_s", "end_s", "confidence", "language", "channel",
)  # fmt: skip
_LABEL_COLUMNS = (
    "recording_id", "label", "start_s", "end_s", "probability", "channel", "rank",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of some objects, in one mapped file."""

    rows: pa.Table
    """text, folded, start_s, end_s, confidence, language, channel, shown."""
    spans: tuple[tuple[str, int, int], ...]
    """Objects, their first rows here, and numbers of rows."""

    def owners(self, claims: Mapping[str, Claims]) -> np.ndarray:
        """Return the position of each row's recording, or `NOBODY` if the row does not count."""
        owners = []
        for name, first, count in self.spans:
            theirs = np.full(count, NOBODY, dtype=np.int32)
            if name in claims:
                counts = claims[name].counts[first : first + count]
                theirs[counts] = claims[name].owners[first : first + count][counts]
            owners.append(theirs)
        whole = np.concatenate(owners)
        whole[~self.rows["shown"].to_numpy()] = NOBODY
        return whole


@dataclass(frozen=True, slots=True)
class Texts:
    """The searchable texts at one moment."""

    chunks: tuple[Chunk, ...] = ()
    owners: tuple[np.ndarray, ...] = ()
    """`Chunk.owners` of each."""


class TextFiles:
    """Keeps the files of texts, in a temporary folder."""

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
        """Read new objects of an output folder, drop deleted ones, and return all texts.

        `on_rows` is called with the number of rows just read.
        """
        claims = dict(index.objects())
        # Objects never change: of a run in progress only new ones are read.
        kept = [chunk for chunk in self._chunks if any(name in claims for name, *_ in chunk.spans)]
        known = {name for chunk in kept for name, *_ in chunk.spans}
        fresh = {name: theirs for name, theirs in claims.items() if name not in known}
        columns = _LABEL_COLUMNS if rows is LABEL_ROWS else _SEGMENT_COLUMNS
        schema = projected(rows.schema, columns)
        read = dict.fromkeys(fresh, 0)
        waiting: list[pa.Table] = []
        spans: list[tuple[str, int, int]] = []
        for name, table, _ in claimed_rows(store, index, fresh, schema):
            waiting.append(_searchable(table))
            spans.append((name, read[name], table.num_rows))
            read[name] += table.num_rows
            on_rows(table.num_rows)
            if sum(count for *_, count in spans) >= CHUNK_ROWS:
                kept.append(Chunk(self._mapped(waiting), tuple(spans)))
                waiting, spans = [], []
        if spans:
            kept.append(Chunk(self._mapped(waiting), tuple(spans)))
        self._chunks = tuple(kept)
        return Texts(self._chunks, tuple(chunk.owners(claims) for chunk in kept))

    def _mapped(self, tables: list[pa.Table]) -> pa.Table:
        path = Path(self._folder.name) / f"{uuid.uuid4().hex}.arrow"
        rows = pa.concat_tables(tables).combine_chunks()
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as written:
            written.write_table(rows)
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        path.unlink()  # the mapping keeps it as long as somebody searches in it
        return table


def _searchable(rows: pa.Table) -> pa.Table:
    shown, language = np.ones(rows.num_rows, dtype=bool), pa.nulls(rows.num_rows, pa.string())
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
            **{name: rows[name] for name in ("start_s", "end_s", "confidence", "channel")},
            "language": language,
            "shown": shown,
        }
    )
