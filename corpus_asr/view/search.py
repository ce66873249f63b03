"""Search over all segments of a run: filters, pages of hits, and all hits one by one.

A search takes memory for the pages up to the one it returns.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.corrections import CORRECTED_CONFIDENCE, Correction
from corpus_asr.view.catalogue import Catalogue
from corpus_asr.view.facets import Counts, Facet
from corpus_asr.view.query import Query
from corpus_asr.view.texts import NOBODY, Chunk, Texts

PAGE_ROWS = 50
# A search keeps the hits of all pages up to its own: at most 10,000.
MAX_PAGE = 200
_HITS_AT_A_TIME = 1_000


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
    folder: str = ""
    """Below the common folder of all recordings; with those below it."""
    date: str = ""
    """A year or month, as 2026-03."""

    def __post_init__(self) -> None:
        for bound in (self.min_confidence, self.max_confidence):
            if bound is not None and not 0.0 <= bound <= 1.0:
                raise ConfigError(
                    f"filtering by confidence: found {bound:g}, expected a fraction between 0 and 1"
                )

    def recordings(self, table: pa.Table) -> np.ndarray:
        """Return a mask of the recordings that match ID, name, state and label."""
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

    def segments(self, confidence: np.ndarray) -> np.ndarray:
        """Return a mask of the segments with such a confidence."""
        keep = np.ones(len(confidence), dtype=bool)
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
    confidence: float | None
    language: str | None
    channel: int | None
    correction: Correction | None
    """What a person said of it; `text` has it."""
    before: str = ""
    """Text of the segment before it in the same channel, or empty."""
    after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """One page of hits."""

    total: int
    recordings: int
    """With at least one hit."""
    hits: list[Hit]
    facets: dict[str, Facet]


def find(
    catalogue: Catalogue,
    texts: Texts,
    query: Query,
    filters: Filters,
    *,
    order: Order = Order.recording,
    page: int = 0,
) -> Hits:
    """Search all segments of a run; catalogue and texts are of one view."""
    _check_page(page)
    counts = Counts(catalogue.trees, folder=filters.folder, date=filters.date)
    first = [np.empty(0)] * 5  # sort key, owner, start, chunk and row of the first hits
    for found in _matches(catalogue, texts, query, filters):
        counts.add(found.owners[found.matching & found.spoken])
        inside = found.matching & counts.inside[found.owners]
        counts.add_languages(found.languages[inside], found.chunk.languages)
        merged = [
            np.concatenate(pair)
            for pair in zip(first, found.columns(inside & found.spoken, order), strict=True)
        ]
        best = np.lexsort(merged[::-1])[: (page + 1) * PAGE_ROWS]
        first = [column[best] for column in merged]
    numbers, rows = (column[page * PAGE_ROWS :].astype(np.int64) for column in first[3:])
    hits = [
        replace(hit, before=_neighbor(texts, place, -1), after=_neighbor(texts, place, 1))
        for hit, *place in zip(
            _hits(texts, numbers, rows), numbers.tolist(), rows.tolist(), strict=True
        )
    ]
    return Hits(total=counts.total, recordings=counts.recordings, hits=hits, facets=counts.facets())


def find_all(
    catalogue: Catalogue,
    texts: Texts,
    query: Query,
    filters: Filters,
    *,
    order: Order = Order.recording,
) -> Iterator[list[Hit]]:
    """Yield all hits in order, some at a time, without the texts around them.

    Each takes 40 bytes of memory.
    """
    inside = Counts(catalogue.trees, folder=filters.folder, date=filters.date).inside
    columns = [
        found.columns(found.matching & found.spoken & inside[found.owners], order)
        for found in _matches(catalogue, texts, query, filters)
    ]
    merged = [np.concatenate(of_all) for of_all in zip(*columns, strict=True)]
    order_of = np.lexsort(merged[::-1]) if merged else np.empty(0, np.int64)
    for start in range(0, len(order_of), _HITS_AT_A_TIME):
        some = order_of[start : start + _HITS_AT_A_TIME]
        yield _hits(texts, *(column[some].astype(np.int64) for column in merged[3:]))


@dataclass(frozen=True, slots=True)
class _Matches:
    # Of one chunk: which rows match all but language, folder and date, and which are in the
    # language.
    number: int
    chunk: Chunk
    owners: np.ndarray
    confidence: np.ndarray
    languages: np.ndarray
    matching: np.ndarray
    spoken: np.ndarray

    def columns(self, keep: np.ndarray, order: Order) -> tuple[np.ndarray, ...]:
        rows = np.flatnonzero(keep)
        return (
            _sort_key(self.confidence[rows], order),
            self.owners[rows],
            self.chunk.rows["start_s"].to_numpy()[rows],
            np.full(len(rows), self.number),
            rows,
        )


def _matches(
    catalogue: Catalogue, texts: Texts, query: Query, filters: Filters
) -> Iterator[_Matches]:
    wanted = filters.recordings(catalogue.recordings)
    chunks = zip(texts.chunks, texts.owners, texts.edits, strict=True)
    for number, (chunk, owners, edits) in enumerate(chunks):
        # Cheap filters first: texts are matched only where some row is left.
        confidence = chunk.rows["confidence"].to_numpy()
        if len(edits.rows):
            confidence = confidence.copy()
            confidence[edits.rows] = CORRECTED_CONFIDENCE
        matching = owners != NOBODY
        matching &= wanted[owners] & filters.segments(confidence)
        if matching.any() and (query.wanted or query.excluded):
            said = query.matches(chunk.rows["folded"])
            said[edits.rows] = query.matches(edits.folded)
            matching &= said
        languages = chunk.rows["language"].to_numpy()
        spoken = np.ones(len(languages), dtype=bool)
        if filters.language is not None:
            spoken = languages == chunk.language_number(filters.language)
        yield _Matches(number, chunk, owners, confidence, languages, matching, spoken)


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


_HIT_COLUMNS = ["start_s", "end_s", "text", "confidence", "language", "channel"]


def _hits(texts: Texts, numbers: np.ndarray, rows: np.ndarray) -> list[Hit]:
    # Rows of one chunk are taken together: one by one each costs Arrow some 20 µs a column.
    hits: list[Hit] = [None] * len(rows)  # type: ignore[list-item]
    for number in np.unique(numbers).tolist():
        chunk, owners, edits = texts.chunks[number], texts.owners[number], texts.edits[number]
        places = np.flatnonzero(numbers == number)
        table = chunk.rows.select(_HIT_COLUMNS).take(pa.array(rows[places]))
        for at, row, values in zip(
            places.tolist(), rows[places].tolist(), table.to_pylist(), strict=True
        ):
            correction = edits.of(row)
            if correction is not None:
                values["text"] = correction.segment_text
                values["confidence"] = CORRECTED_CONFIDENCE
            language = values.pop("language")
            hits[at] = Hit(
                position=int(owners[row]),
                language=None if language < 0 else chunk.languages[language],
                correction=correction,
                **values,
            )
    return hits


def _neighbor(texts: Texts, place: Sequence[int], by: int) -> str:
    number, row = place
    rows, owners = texts.chunks[number].rows, texts.owners[number]
    at = row + by
    if not 0 <= at < len(owners) or owners[at] != owners[row]:
        return ""
    if rows["channel"][at].as_py() != rows["channel"][row].as_py():
        return ""
    correction = texts.edits[number].of(at)
    return str(rows["text"][at].as_py()) if correction is None else correction.segment_text


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingsPage:
    """One page of recordings."""

    total: int
    positions: list[int]
    facets: dict[str, Facet]


def recordings_page(
    catalogue: Catalogue,
    filters: Filters,
    *,
    order: RecordingOrder = RecordingOrder.name,
    page: int = 0,
) -> RecordingsPage:
    """Return a page of the recordings that match; facets count recordings."""
    _check_page(page)
    recordings = catalogue.recordings
    counts = Counts(catalogue.trees, folder=filters.folder, date=filters.date)
    matching, spoken = filters.recordings(recordings), filters.in_language(recordings)
    counts.add(np.flatnonzero(matching & spoken))
    named = recordings["language"].combine_chunks().dictionary_encode()
    codes = pc.fill_null(named.indices, -1).to_numpy()
    counts.add_languages(codes[matching & counts.inside], named.dictionary.to_pylist())
    positions = np.flatnonzero(matching & spoken & counts.inside)
    if order is not RecordingOrder.name:
        lengths = recordings["duration_s"].to_numpy()[positions]
        sign = -1 if order is RecordingOrder.longest else 1
        positions = positions[np.argsort(sign * lengths, kind="stable")]
    shown = positions[page * PAGE_ROWS : (page + 1) * PAGE_ROWS].tolist()
    return RecordingsPage(total=len(positions), positions=shown, facets=counts.facets())
