"""The searchable texts of a run, in mapped files.

Texts and their folded forms lie in unnamed files: searched at the speed of memory, they keep four
bytes per segment in it. What people corrected lies over them: the files never change.
"""

import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.storage.run_state.corrections import Correction
from corpus_asr.storage.run_state.tables import LABEL_ROWS, OutputStore, PartRows, projected
from corpus_asr.view.index import Claims, Corrector, Index, claimed_rows
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
    """text, folded, start_s, end_s, confidence, language (a place in `languages`, or -1), channel,
    shown."""
    languages: tuple[str, ...]
    spans: tuple[tuple[str, int, int], ...]
    """Objects, their first rows here, and numbers of rows."""

    def language_number(self, name: str) -> int:
        """Return what stands for a language in the rows; -2 if none is in it."""
        return self.languages.index(name) if name in self.languages else -2

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """Rows of a chunk that people corrected or checked."""

    rows: np.ndarray
    """Their numbers, ascending."""
    folded: pa.Array
    corrections: tuple[Correction, ...]

    def of(self, row: int) -> Correction | None:
        """Return a row's correction; None for a row without one."""
        at = int(np.searchsorted(self.rows, row))
        found = at < len(self.rows) and self.rows[at] == row
        return self.corrections[at] if found else None


NO_EDITS = Edits(rows=np.empty(0, np.int64), folded=pa.array([], pa.large_string()), corrections=())


@dataclass(frozen=True, slots=True)
class Texts:
    """The searchable texts at one moment."""

    chunks: tuple[Chunk, ...] = ()
    owners: tuple[np.ndarray, ...] = ()
    """`Chunk.owners` of each."""
    edits: tuple[Edits, ...] = ()
    """Of each chunk."""

    def corrected(self, corrector: Corrector) -> "Texts":
        """Return the same texts with the corrections of their catalogue's recordings."""
        pairs = zip(self.chunks, self.owners, strict=True)
        edits = tuple(_edits(chunk.rows, owners, corrector) for chunk, owners in pairs)
        return replace(self, edits=edits)


def _edits(rows: pa.Table, owners: np.ndarray, corrector: Corrector) -> Edits:
    if not corrector:
        return NO_EDITS
    named = rows.select(["start_s", "end_s", "channel", "text"])
    found = [(at, correction) for at, _, _, correction in corrector.matches(named, owners)]
    lines = [f" {line} " for line in folded_lines([each.text for _, each in found])]
    return Edits(
        rows=np.array([at for at, _ in found], dtype=np.int64),
        folded=pa.array(lines, pa.large_string()),
        corrections=tuple(correction for _, correction in found),
    )


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
                kept.append(self._chunk(waiting, spans))
                waiting, spans = [], []
        if spans:
            kept.append(self._chunk(waiting, spans))
        self._chunks = tuple(kept)
        return Texts(
            self._chunks,
            tuple(chunk.owners(claims) for chunk in kept),
            (NO_EDITS,) * len(kept),
        )

    def _chunk(self, tables: list[pa.Table], spans: list[tuple[str, int, int]]) -> Chunk:
        rows = pa.concat_tables(tables).combine_chunks()
        # As numbers: names of languages would be compared once per row and search.
        named = rows["language"].combine_chunks().dictionary_encode()
        place = rows.schema.get_field_index("language")
        rows = rows.set_column(place, "language", pc.fill_null(named.indices, -1))
        return Chunk(self._mapped(rows), tuple(named.dictionary.to_pylist()), tuple(spans))

    def _mapped(self, rows: pa.Table) -> pa.Table:
        path = Path(self._folder.name) / f"{uuid.uuid4().hex}.arrow"
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
