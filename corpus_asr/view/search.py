"""Search over all segments of a run: their texts in mapped files, filters, and pages of hits.

Texts and their folded forms lie in unnamed files: searched at the speed of memory, they keep four
bytes per segment in it. A search takes memory for the pages up to the one it returns.
"""

import re
import tempfile
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import Claims, Index, claimed_rows
from corpus_asr.storage.run_state.tables import LABEL_ROWS, OutputStore, PartRows, projected
from corpus_asr.text.normalize import PLAIN_LETTERS

# Each term is a pass over all texts.
MAX_QUERY_CHARS = 500
_TERM = re.compile(r'(?<!\S)(-?)(?:"([^"]*)"?|(\S+))')
_DOTLESS_I = "\u0131"
# Marks that are left out: accents, and points of Hebrew and Arabic. Those of other scripts, such as
# the vowels of Devanagari, make another word.
_ACCENTS = (
    (0x0300, 0x036F), (0x0591, 0x05BD), (0x05BF, 0x05C7), (0x0610, 0x061A), (0x0640, 0x0640),
    (0x064B, 0x065F), (0x0670, 0x0670), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF),
    (0xFE00, 0xFE0F), (0xFE20, 0xFE2F),
)  # fmt: skip
_SPACES = re.compile(" {2,}")
# Parts of Korean syllables, which belong to the letter before them.
_FOLLOWING_JAMO = range(0x1160, 0x1200)


class _Table(dict[int, str | int | None]):
    # Filled as characters occur: Unicode has a million.
    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        self[code] = PLAIN_LETTERS.get(character, code)
        if unicodedata.category(character)[0] in "PZC":
            self[code] = " "
        if any(first <= code <= last for first, last in _ACCENTS):
            self[code] = None
        return self[code]


_TABLE = _Table({ord("\n"): "\n", ord(_DOTLESS_I): "i"})


def folded(text: str) -> str:
    """Return a text without case, accents and punctuation, its words between single spaces."""
    return folded_lines([text])[0]


def folded_lines(texts: Sequence[str]) -> list[str]:
    """Return the folded forms of many texts, at a cost of microseconds each."""
    # Apart: one letter beyond ASCII would send all of a batch through Unicode's normal forms.
    plain = iter(_folded([text for text in texts if text.isascii()]))
    others = iter(_folded([text for text in texts if not text.isascii()]))
    return [next(plain) if text.isascii() else next(others) for text in texts]


def _folded(texts: Sequence[str]) -> list[str]:
    # All at once: a call for each would take longer than the work.
    whole = _translated("\n".join(text.replace("\n", " ") for text in texts))
    return [line.strip(" ") for line in _SPACES.sub(" ", whole).split("\n")]


def _translated(text: str) -> str:
    if text.isascii():
        return text.lower().translate(_TABLE)
    # Letters are separated from their marks, and what is left is composed again.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", decomposed.translate(_TABLE))


def places(text: str) -> tuple[str, list[int]]:
    """Return the folded form, and where in the text its characters, and its end, come from."""
    characters: list[str] = []
    sources: list[int] = []
    starts = [at for at in range(len(text)) if at == 0 or not _follows(text[at])]
    for start, stop in pairwise([*starts, len(text)]):
        for character in _translated(text[start:stop].replace("\n", " ")):
            if character != " " or (characters and characters[-1] != " "):
                characters.append(character)
                sources.append(start)
    if characters and characters[-1] == " ":
        del characters[-1], sources[-1]
    return "".join(characters), [*sources, len(text)]


def _follows(character: str) -> bool:
    # Whether a character belongs to the letter before it.
    return ord(character) in _FOLLOWING_JAMO or unicodedata.category(character)[0] == "M"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Folded words and phrases."""

    wanted: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    whole_words: bool = False
    """Whether a match begins and ends where words do."""

    def matches(self, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Return a mask of the matching ones of folded texts, which have a space at both ends."""
        matching = np.ones(len(texts), dtype=bool)
        for terms, expected in ((self.wanted, True), (self.excluded, False)):
            for term in terms:
                pattern = f" {term} " if self.whole_words else term
                holds = pc.match_substring(texts, pattern).to_numpy(zero_copy_only=False)
                matching &= holds == expected
        return matching

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Split a text into pieces, with True for those that match."""
        plain, sources = places(text)
        marked = np.zeros(len(text), dtype=bool)
        for start, stop in self._spans(plain):
            end = sources[stop - 1] + 1
            while end < len(text) and _follows(text[end]):
                end += 1
            marked[sources[start] : end] = True
        edges = [0, *(np.flatnonzero(np.diff(marked)) + 1).tolist(), len(text)]
        spans = ((start, stop) for start, stop in pairwise(edges) if start < stop)
        return [(text[start:stop], bool(marked[start])) for start, stop in spans]

    def _spans(self, plain: str) -> Iterator[tuple[int, int]]:
        for term in self.wanted:
            pattern = re.escape(term)
            if self.whole_words:
                pattern = rf"(?<![^ ]){pattern}(?![^ ])"
            yield from (match.span() for match in re.finditer(pattern, plain))


def parse_query(text: str, *, whole_words: bool = False) -> Query:
    """Parse a query: words, "phrases", and what to exclude after a minus."""
    if len(text) > MAX_QUERY_CHARS:
        raise ConfigError(
            f"searching: found {len(text)} characters, expected {MAX_QUERY_CHARS} at most; search "
            "for fewer words"
        )
    wanted: list[str] = []
    excluded: list[str] = []
    for minus, phrase, word in _TERM.findall(text):
        if term := folded(phrase or word):
            (excluded if minus else wanted).append(term)
    if text.strip() and not (wanted or excluded):
        raise ConfigError(
            f"searching for {text.strip()!r}: found no letter or figure, expected some; "
            "punctuation is not searched for"
        )
    return Query(wanted=tuple(wanted), excluded=tuple(excluded), whole_words=whole_words)


PAGE_ROWS = 50
# A search keeps the hits of all pages up to its own: at most 10,000.
MAX_PAGE = 200
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
