"""Search over all segments of a run: filters, and pages of hits.

A search takes memory for the pages up to the one it returns.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.view.query import Query
from corpus_asr.view.texts import NOBODY, Texts

PAGE_ROWS = 50
# A search keeps the hits of all pages up to its own: at most 10,000.
MAX_PAGE = 200


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
    """Part of the URI, case ignored; a star matches anything."""
    state: State | None = None
    language: str | None = None
    label: str | None = None
    """Likeliest label of the recording."""
    min_confidence: float | None = None
    max_confidence: float | None = None

    def __post_init__(self) -> None:
        for bound in (self.min_confidence, self.max_confidence):
            if bound is not None and not 0.0 <= bound <= 1.0:
                raise ConfigError(
                    f"filtering by confidence: found {bound:g}, expected a fraction between 0 and 1"
                )

    def recordings(self, table: pa.Table) -> np.ndarray:
        """Return a mask of the recordings that match all but language and confidence."""
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
        """Return a mask of the segments that match language and confidence."""
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
    """Text of the segment before it in the same channel, or empty."""
    after: str
    confidence: float | None
    language: str | None
    channel: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """One page of hits."""

    total: int
    recordings: int
    """With at least one hit."""
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
    """Search all segments of a run; recordings and texts are of one view."""
    _check_page(page)
    wanted = filters.recordings(recordings)
    seen = np.zeros(len(wanted), dtype=bool)
    total = 0
    first = [np.empty(0)] * 5  # sort key, owner, start, chunk and row of the first hits
    for number, (chunk, owners) in enumerate(zip(texts.chunks, texts.owners, strict=True)):
        # Cheap filters first: texts are matched only where some row is left.
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

    def neighbor(other: int) -> str:
        same = 0 <= other < len(owners) and owners[other] == owners[row]
        if not same or rows["channel"][other].as_py() != hit["channel"]:
            return ""
        return str(rows["text"][other].as_py())

    return Hit(position=int(owners[row]), before=neighbor(row - 1), after=neighbor(row + 1), **hit)


def recordings_page(
    recordings: pa.Table,
    filters: Filters,
    *,
    order: RecordingOrder = RecordingOrder.name,
    page: int = 0,
) -> tuple[int, list[int]]:
    """Return the number of recordings that match, and the positions of one page of them."""
    _check_page(page)
    positions = np.flatnonzero(filters.recordings(recordings) & filters.in_language(recordings))
    if order is not RecordingOrder.name:
        lengths = recordings["duration_s"].to_numpy()[positions]
        sign = -1 if order is RecordingOrder.longest else 1
        positions = positions[np.argsort(sign * lengths, kind="stable")]
    return len(positions), positions[page * PAGE_ROWS : (page + 1) * PAGE_ROWS].tolist()
