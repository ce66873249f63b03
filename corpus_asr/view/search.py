"""Searching: which recordings, and which passages of them, a page of hits at a time.

In: a view of an output folder and what is asked for. Out: one page, and how many there are in all.
Memory is bounded by the pages up to the one asked for, whatever is found. Knows nothing of JSON.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.view.catalogue import Catalogue
from corpus_asr.view.query import Query
from corpus_asr.view.texts import NOBODY, Chunk, Texts

PAGE_ROWS = 50
MAX_PAGE = 200


class State(StrEnum):
    """What became of a recording."""

    done = "done"
    no_speech = "no_speech"
    failed = "failed"
    """All of it or a part."""
    unfinished = "unfinished"
    """Not all of its parts are there yet."""


class Order(StrEnum):
    """Which passages come first."""

    recording = "recording"
    """By address, then by time."""
    least_sure = "least_sure"
    most_sure = "most_sure"


class RecordingOrder(StrEnum):
    """Which recordings come first."""

    name = "name"
    longest = "longest"
    shortest = "shortest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is left out.

    Raises:
        ConfigError: a bound is none.
    """

    recording_id: str = ""
    """Only this one."""
    name: str = ""
    """Part of the address, whatever its case; a star stands for anything."""
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

    def recordings(self, catalogue: Catalogue) -> np.ndarray:
        """Tell which recordings are not left out, by what holds for a whole recording."""
        table = catalogue.recordings
        keep = np.ones(table.num_rows, dtype=bool)
        if self.recording_id:
            keep &= pc.equal(table["recording_id"], self.recording_id).to_numpy()
        if self.name:
            pattern = ".*".join(map(re.escape, self.name.split("*")))
            found = pc.match_substring_regex(table["uri"], pattern, ignore_case=True)
            keep &= found.to_numpy()
        if self.state is not None:
            keep &= pc.equal(states(table), self.state.value).to_numpy()
        if self.label is not None:
            keep &= pc.fill_null(pc.equal(table["label"], self.label), False).to_numpy()
        return keep

    def rows(self, chunk: Chunk) -> np.ndarray:
        """Tell which passages of a chunk are not left out, by what holds for each of them."""
        keep = np.ones(chunk.rows.num_rows, dtype=bool)
        confidence = chunk.rows["confidence"].to_numpy()
        if self.min_confidence is not None:
            keep &= confidence >= np.float32(self.min_confidence)
        if self.max_confidence is not None:
            keep &= confidence <= np.float32(self.max_confidence)
        if self.language is not None:
            spoken = pc.equal(chunk.rows["language"], self.language)
            keep &= pc.fill_null(spoken, False).to_numpy()
        return keep


def states(table: pa.Table) -> pa.ChunkedArray:
    """Return the state of each recording of a table of the catalogue."""
    ended = pc.if_else(pc.equal(table["status"], "ok"), State.done.value, table["status"])
    failed = pc.equal(table["status"], State.failed.value)
    return pc.if_else(pc.or_(table["complete"], failed), ended, State.unfinished.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A passage that was found."""

    position: int
    """Of its recording in the catalogue."""
    start_s: float
    end_s: float
    text: str
    before: str
    """The passage before it, by the same speaker channel; "" where none is near."""
    after: str
    confidence: float | None
    language: str | None
    channel: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One page of what was found."""

    total: int
    recordings: int
    """In how many recordings."""
    hits: list[Hit]


def check_page(page: int) -> None:
    """Refuse pages that nobody turns to.

    Raises:
        ConfigError: there is no such page.
    """
    if not 0 <= page < MAX_PAGE:
        raise ConfigError(
            f"looking for page {page + 1}: expected one of the first {MAX_PAGE}; search for more "
            "words, or filter"
        )


def find(
    catalogue: Catalogue,
    texts: Texts,
    query: Query,
    filters: Filters,
    *,
    order: Order = Order.recording,
    page: int = 0,
) -> Found:
    """Search all passages of a run.

    Args:
        catalogue, texts: of the same view.
        query: what a passage says.
        filters: what is left out.
        order: what comes first.
        page: from 0.

    Raises:
        ConfigError: there is no such page.
    """
    check_page(page)
    wanted = filters.recordings(catalogue)
    best = _Best(order, limit=(page + 1) * PAGE_ROWS)
    seen = np.zeros(len(wanted), dtype=bool)
    total = 0
    for number, (chunk, owners) in enumerate(zip(texts.chunks, texts.owners, strict=True)):
        keep = owners != NOBODY
        keep &= wanted[owners] & filters.rows(chunk)
        if keep.any() and (query.wanted or query.excluded):
            keep &= query.matches(chunk.rows["folded"])
        rows = np.flatnonzero(keep)
        total += len(rows)
        seen[owners[rows]] = True
        best.add(number, rows, owners[rows], chunk)
    places = best.sorted()[page * PAGE_ROWS :]
    return Found(
        total=total,
        recordings=int(seen.sum()),
        hits=[_hit(texts, chunk, row) for chunk, row in places],
    )


@dataclass(slots=True)
class _Best:
    """The first so many of all hits in an order."""

    order: Order
    limit: int
    _columns: list[np.ndarray] = field(default_factory=lambda: [np.empty(0)] * 5)

    def add(self, number: int, rows: np.ndarray, owners: np.ndarray, chunk: Chunk) -> None:
        taken = pa.array(rows)
        sure = np.nan_to_num(chunk.rows["confidence"].take(taken).to_numpy(), nan=np.inf)
        key = {
            Order.recording: np.zeros(len(rows)),
            Order.least_sure: sure,
            Order.most_sure: np.where(np.isinf(sure), sure, -sure),
        }[self.order]
        starts = chunk.rows["start_s"].take(taken).to_numpy()
        new = [key, owners, starts, np.full(len(rows), number), rows]
        columns = [np.concatenate(pair) for pair in zip(self._columns, new, strict=True)]
        first = np.lexsort((columns[4], columns[3], columns[2], columns[1], columns[0]))
        self._columns = [column[first[: self.limit]] for column in columns]

    def sorted(self) -> list[tuple[int, int]]:
        chunks, rows = self._columns[3:]
        return list(zip(chunks.astype(int).tolist(), rows.astype(int).tolist(), strict=True))


def _hit(texts: Texts, number: int, row: int) -> Hit:
    rows, owners = texts.chunks[number].rows, texts.owners[number]
    found = {name: rows[name][row].as_py() for name in rows.column_names if name != "folded"}

    def near(other: int) -> str:
        beside = 0 <= other < len(owners) and owners[other] == owners[row]
        if not beside or rows["channel"][other].as_py() != found["channel"]:
            return ""
        return str(rows["text"][other].as_py())

    return Hit(
        position=int(owners[row]),
        start_s=found["start_s"],
        end_s=found["end_s"],
        text=found["text"],
        before=near(row - 1),
        after=near(row + 1),
        confidence=found["confidence"],
        language=found["language"],
        channel=found["channel"],
    )


def recordings_page(
    catalogue: Catalogue,
    filters: Filters,
    *,
    order: RecordingOrder = RecordingOrder.name,
    page: int = 0,
) -> tuple[int, list[int]]:
    """Return how many recordings are not left out, and the positions of one page of them.

    Raises:
        ConfigError: there is no such page.
    """
    check_page(page)
    keep = filters.recordings(catalogue)
    if filters.language is not None:
        spoken = pc.equal(catalogue.recordings["language"], filters.language)
        keep &= pc.fill_null(spoken, False).to_numpy()
    positions = np.flatnonzero(keep)
    if order is not RecordingOrder.name:
        lengths = catalogue.recordings["duration_s"].to_numpy()[positions]
        sign = -1 if order is RecordingOrder.longest else 1
        positions = positions[np.argsort(sign * lengths, kind="stable")]
    return len(positions), positions[page * PAGE_ROWS : (page + 1) * PAGE_ROWS].tolist()
