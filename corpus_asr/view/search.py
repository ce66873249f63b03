"""Search over all segments of a run: their texts in mapped files, filters, and pages of hits.

Texts lie beside their folded forms in unnamed files on this machine, so that they can be searched
at the speed of memory without being in it: what is kept there are four bytes per segment. Objects
of segments never change, so of a run in progress only new ones are read. A search takes memory for
the pages up to the one it returns, however many hits there are.
"""

import re
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import Claims, Index, claimed_rows
from corpus_asr.storage.run_state.tables import LABEL_ROWS, OutputStore, PartRows
from corpus_asr.view.search_text import Query, folded_lines

PAGE_ROWS = 50
MAX_PAGE = 200
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
    """Rows of some objects: text, folded, start_s, end_s, confidence, language, channel, shown."""

    rows: pa.Table
    spans: tuple[tuple[str, int, int], ...]
    """Where its rows come from: an object, the first row there, and how many."""

    def owners(self, claims: Mapping[str, Claims]) -> np.ndarray:
        """Return the position of each row's recording; `NOBODY` for rows that are no hits."""
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
    """What can be searched at one moment."""

    chunks: tuple[Chunk, ...] = ()
    owners: tuple[np.ndarray, ...] = ()
    """Of each chunk's rows: the position among the recordings, or `NOBODY`."""


class TextFiles:
    """Keeps the files, in a temporary folder of its own."""

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
        """Read new objects of an output folder, drop deleted ones, and return what there is now.

        `on_rows` is called with the number of rows whenever some have been read.
        """
        claims = dict(index.objects())
        kept = [chunk for chunk in self._chunks if any(name in claims for name, *_ in chunk.spans)]
        known = {name for chunk in kept for name, *_ in chunk.spans}
        fresh = {name: theirs for name, theirs in claims.items() if name not in known}
        columns = _LABEL_COLUMNS if rows is LABEL_ROWS else _SEGMENT_COLUMNS
        schema = pa.schema([rows.schema.field(name) for name in columns])
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
            **{name: rows[name] for name in ("start_s", "end_s", "confidence", "channel")},
            "language": language,
            "shown": shown,
        }
    )


class State(StrEnum):
    """The state of a recording."""

    done = "done"
    no_speech = "no_speech"
    failed = "failed"
    """At least a part of it."""
    unfinished = "unfinished"
    """Some of its parts are missing."""


class Order(StrEnum):
    """How hits are sorted."""

    recording = "recording"
    """By URI, then by time."""
    least_sure = "least_sure"
    most_sure = "most_sure"


class RecordingOrder(StrEnum):
    """How recordings are sorted."""

    name = "name"
    longest = "longest"
    shortest = "shortest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What recordings and segments have to match."""

    id: str = ""
    """Of the only recording."""
    name: str = ""
    """Part of the URI, in any case; a star stands for anything."""
    state: State | None = None
    language: str | None = None
    label: str | None = None
    """The likeliest label of the recording."""
    min_confidence: float | None = None
    max_confidence: float | None = None

    def __post_init__(self) -> None:
        for bound in (self.min_confidence, self.max_confidence):
            if bound is not None and not 0.0 <= bound <= 1.0:
                raise ConfigError(
                    f"filtering by confidence: found {bound:g}, expected a share between 0 and 1"
                )

    def recordings(self, table: pa.Table) -> np.ndarray:
        """Return a mask of the recordings that match, by what holds for a whole recording."""
        keep = np.ones(table.num_rows, dtype=bool)
        if self.id:
            keep &= pc.equal(table["recording_id"], self.id).to_numpy()
        if self.name:
            pattern = ".*".join(map(re.escape, self.name.split("*")))
            keep &= pc.match_substring_regex(table["uri"], pattern, ignore_case=True).to_numpy()
        if self.state is not None:
            keep &= pc.equal(states(table), self.state.value).to_numpy()
        if self.label is not None:
            keep &= pc.fill_null(pc.equal(table["label"], self.label), False).to_numpy()
        return keep

    def in_language(self, rows: pa.Table) -> np.ndarray:
        """Return a mask of the rows in the language."""
        if self.language is None:
            return np.ones(rows.num_rows, dtype=bool)
        mask: np.ndarray = pc.fill_null(pc.equal(rows["language"], self.language), False).to_numpy()
        return mask

    def segments(self, rows: pa.Table) -> np.ndarray:
        """Return a mask of the segments that match, by what holds for each of them."""
        keep = self.in_language(rows)
        confidence = rows["confidence"].to_numpy()
        if self.min_confidence is not None:
            keep &= confidence >= np.float32(self.min_confidence)
        if self.max_confidence is not None:
            keep &= confidence <= np.float32(self.max_confidence)
        return keep


def states(recordings: pa.Table) -> pa.ChunkedArray:
    """Return the state of each recording of the catalogue."""
    status = recordings["status"]
    ended = pc.if_else(pc.equal(status, "ok"), State.done.value, status)
    failed = pc.equal(status, State.failed.value)
    return pc.if_else(pc.or_(recordings["complete"], failed), ended, State.unfinished.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A segment that matches."""

    position: int
    """Of its recording in the catalogue."""
    start_s: float
    end_s: float
    text: str
    before: str
    """The segment before it in the same channel; "" where there is none."""
    after: str
    confidence: float | None
    language: str | None
    channel: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """One page of hits."""

    total: int
    recordings: int
    """In how many recordings they are."""
    hits: list[Hit]


def find(
    recordings: pa.Table,
    texts: Texts,
    query: Query,
    filters: Filters,
    *,
    order: Order = Order.recording,
    page: int = 0,
) -> Hits:
    """Search all segments of a run; recordings and texts are those of one view."""
    _check_page(page)
    wanted = filters.recordings(recordings)
    seen = np.zeros(len(wanted), dtype=bool)
    total = 0
    first = [np.empty(0)] * 5  # sort key, owner, start, chunk and row of the first hits
    for number, (chunk, owners) in enumerate(zip(texts.chunks, texts.owners, strict=True)):
        keep = owners != NOBODY
        keep &= wanted[owners] & filters.segments(chunk.rows)
        if keep.any() and (query.wanted or query.excluded):
            keep &= query.matches(chunk.rows["folded"])
        rows = np.flatnonzero(keep)
        total += len(rows)
        seen[owners[rows]] = True
        taken = chunk.rows.select(["confidence", "start_s"]).take(pa.array(rows))
        columns = (
            _sort_key(taken["confidence"].to_numpy(), order),
            owners[rows],
            taken["start_s"].to_numpy(),
            np.full(len(rows), number),
            rows,
        )
        merged = [np.concatenate(pair) for pair in zip(first, columns, strict=True)]
        best = np.lexsort(merged[::-1])[: (page + 1) * PAGE_ROWS]
        first = [column[best] for column in merged]
    chunks, rows = (column[page * PAGE_ROWS :].astype(int).tolist() for column in first[3:])
    hits = [_hit(texts, number, row) for number, row in zip(chunks, rows, strict=True)]
    return Hits(total=total, recordings=int(seen.sum()), hits=hits)


def _sort_key(confidence: np.ndarray, order: Order) -> np.ndarray:
    if order is Order.recording:
        return np.zeros(len(confidence))
    key = confidence if order is Order.least_sure else -confidence
    # Unknown confidence comes last, either way.
    return np.where(np.isnan(key), np.inf, key)


def _check_page(page: int) -> None:
    if not 0 <= page < MAX_PAGE:
        raise ConfigError(
            f"looking for page {page + 1}: expected one of the first {MAX_PAGE}; search for more "
            "words, or filter"
        )


def _hit(texts: Texts, number: int, row: int) -> Hit:
    rows, owners = texts.chunks[number].rows, texts.owners[number]
    values = rows.select(["start_s", "end_s", "text", "confidence", "language", "channel"])
    hit = values.slice(row, 1).to_pylist()[0]

    def neighbour(other: int) -> str:
        same = 0 <= other < len(owners) and owners[other] == owners[row]
        if not same or rows["channel"][other].as_py() != hit["channel"]:
            return ""
        return str(rows["text"][other].as_py())

    return Hit(
        position=int(owners[row]), before=neighbour(row - 1), after=neighbour(row + 1), **hit
    )


def recordings_page(
    recordings: pa.Table,
    filters: Filters,
    *,
    order: RecordingOrder = RecordingOrder.name,
    page: int = 0,
) -> tuple[int, list[int]]:
    """Return how many recordings match, and the positions of one page of them."""
    _check_page(page)
    positions = np.flatnonzero(filters.recordings(recordings) & filters.in_language(recordings))
    if order is not RecordingOrder.name:
        lengths = recordings["duration_s"].to_numpy()[positions]
        sign = -1 if order is RecordingOrder.longest else 1
        positions = positions[np.argsort(sign * lengths, kind="stable")]
    return len(positions), positions[page * PAGE_ROWS : (page + 1) * PAGE_ROWS].tolist()
