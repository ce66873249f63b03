"""Search over all segments of a run: queries, filters, and pages of hits.

A query has words and phrases, folded: without case, accents and punctuation.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.text.normalize import PLAIN_LETTERS

# Each term is a pass over all texts.
MAX_QUERY_CHARS = 500
_TERM = re.compile(r'(?<!\S)(-?)(?:"([^"]*)"?|(\S+))')
_DOTLESS_I = "\u0131"
# Ignored marks: accents, and points of Hebrew and Arabic. Marks of other scripts, such as vowels of
# Devanagari, distinguish words.
_ACCENTS = (
    (0x0300, 0x036F), (0x0591, 0x05BD), (0x05BF, 0x05C7), (0x0610, 0x061A), (0x0640, 0x0640),
    (0x064B, 0x065F), (0x0670, 0x0670), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF),
    (0xFE00, 0xFE0F), (0xFE20, 0xFE2F),
)  # fmt: skip
_SPACES = re.compile(" {2,}")
# Parts of Korean syllables, which belong to the previous letter.
_FOLLOWING_JAMO = range(0x1160, 0x1200)


class _FoldTable(dict[int, str | int | None]):
    # Filled on demand: Unicode has a million characters.
    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        self[code] = PLAIN_LETTERS.get(character, code)
        if unicodedata.category(character)[0] in "PZC":
            self[code] = " "
        if any(first <= code <= last for first, last in _ACCENTS):
            self[code] = None
        return self[code]


_TABLE = _FoldTable({ord("\n"): "\n", ord(_DOTLESS_I): "i"})


def folded(text: str) -> str:
    """Return a text without case, accents and punctuation, with single spaces between words."""
    return folded_lines([text])[0]


def folded_lines(texts: Sequence[str]) -> list[str]:
    """Return the folded forms of many texts, in microseconds each."""
    # Separately: one non-ASCII letter would send the whole batch through Unicode normalization.
    plain = iter(_folded([text for text in texts if text.isascii()]))
    non_ascii = iter(_folded([text for text in texts if not text.isascii()]))
    return [next(plain) if text.isascii() else next(non_ascii) for text in texts]


def _folded(texts: Sequence[str]) -> list[str]:
    # In one call: a call per text would take longer than the work.
    whole = _translated("\n".join(text.replace("\n", " ") for text in texts))
    return [line.strip(" ") for line in _SPACES.sub(" ", whole).split("\n")]


def _translated(text: str) -> str:
    if text.isascii():
        return text.lower().translate(_TABLE)
    # Letters are separated from marks, and the remaining marks composed again.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", decomposed.translate(_TABLE))


def places(text: str) -> tuple[str, list[int]]:
    """Return the folded form, and the index in the text of each character and of the end."""
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
    # Whether a character belongs to the previous letter.
    return ord(character) in _FOLLOWING_JAMO or unicodedata.category(character)[0] == "M"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Folded words and phrases."""

    wanted: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    whole_words: bool = False
    """Whether a match must start and end at word boundaries."""

    def condition(self) -> tuple[str, dict[str, Any]]:
        """Return the SQL condition on `folded` texts, padded with spaces, and its parameters.

        The parameters are the terms.
        """
        contains = ["contains"] * len(self.wanted) + ["not contains"] * len(self.excluded)
        terms = {f"term_{at}": term for at, term in enumerate((*self.wanted, *self.excluded))}
        pairs = zip(contains, terms, strict=True)
        condition = " and ".join(f"{contains}(folded, ${name})" for contains, name in pairs)
        if self.whole_words:
            terms = {name: f" {term} " for name, term in terms.items()}
        return condition or "true", terms

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Split a text into pieces, with True for matches."""
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
    """Parse a query: words, "phrases", and exclusions after a minus."""
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
            f"searching for {text.strip()!r}: found no letter or digit, expected one; punctuation "
            "is not searched"
        )
    return Query(wanted=tuple(wanted), excluded=tuple(excluded), whole_words=whole_words)


PAGE_ROWS = 50
# To show a page, all before it are sorted: at most 10,000 hits.
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
    """Sort order of hits."""

    recording = "recording"
    """By URI, then by time."""
    least_sure = "least_sure"
    most_sure = "most_sure"


class RecordingOrder(StrEnum):
    """Sort order of recordings."""

    name = "name"
    longest = "longest"
    shortest = "shortest"


_TIME = "number, start_s, place"
# Unknown confidence comes last, either way.
_ORDERS = {
    Order.recording: _TIME,
    Order.least_sure: f"confidence nulls last, {_TIME}",
    Order.most_sure: f"confidence desc nulls last, {_TIME}",
    RecordingOrder.name: "number",
    RecordingOrder.longest: "duration_s desc, number",
    RecordingOrder.shortest: "duration_s, number",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Conditions on recordings and segments."""

    id: str = ""
    """ID of the only recording."""
    name: str = ""
    """Part of the URI, case ignored; a star matches anything."""
    state: State | None = None
    language: str | None = None
    min_confidence: float | None = None
    max_confidence: float | None = None
    unchecked: bool = False
    """Only what nobody has compared with the audio."""

    def __post_init__(self) -> None:
        for bound in (self.min_confidence, self.max_confidence):
            if bound is not None and not 0.0 <= bound <= 1.0:
                raise ConfigError(
                    f"filtering by confidence: found {bound:g}, expected a fraction between 0 and 1"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A segment that matches."""

    recording_id: str
    uri: str
    start_s: float
    end_s: float
    text: str
    confidence: float | None
    language: str | None
    channel: int | None
    correction: dict[str, Any] | None
    """A person's correction of it, as in `said_of`; already applied to `text`."""
    before: str = ""
    """Text of the segment before it in the same channel, or empty."""
    after: str = ""


R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[R]):
    """One page of hits, or of recordings as `described` has them."""

    total: int
    recordings: int
    """With at least one hit."""
    rows: list[R]


# Filters that are not set are null, or empty.
_MEANT = """
($id = '' or recording_id = $id) and ($name = '' or regexp_matches(uri, $name, 'i'))
and ($state is null or state = $state)
"""
_IN_LANGUAGE = "($language is null or language = $language)"
_SEGMENTS = f"""
select * from said where {{terms}} and {_IN_LANGUAGE}
  and ($min_confidence is null or confidence >= $min_confidence::float)
  and ($max_confidence is null or confidence <= $max_confidence::float)
  and not ($unchecked and coalesce(contains(correction, '"checked": true'), false))
  and number in (select number from shown where {_MEANT})
"""


def _values(filters: Filters) -> dict[str, Any]:
    values = {field.name: getattr(filters, field.name) for field in fields(Filters)}
    return values | {"name": ".*".join(map(re.escape, filters.name.split("*")))}


def find(
    tables: RunTables,
    query: Query,
    filters: Filters,
    *,
    order: Order = Order.recording,
    page: int = 0,
) -> Page[Hit]:
    """Search all segments of a run."""
    _check_page(page)
    terms, values = query.condition()
    values |= _values(filters)
    segments_query = _SEGMENTS.format(terms=terms)
    [(total, recordings)] = tables.rows(_COUNT.format(found=segments_query), **values)
    query_of_page = _PAGE.format(found=segments_query, order=_ORDERS[order])
    rows = tables.table(query_of_page, most=PAGE_ROWS, skipped=page * PAGE_ROWS, **values)
    hits = [_hit(row) for row in rows.to_pylist()]
    return Page(total=total, recordings=recordings, rows=hits)


def recordings_page(
    tables: RunTables,
    filters: Filters,
    *,
    order: RecordingOrder = RecordingOrder.name,
    page: int = 0,
) -> Page[dict[str, Any]]:
    """Return a page of the recordings that match."""
    _check_page(page)
    values = _values(filters)
    for of_segments in ("min_confidence", "max_confidence", "unchecked"):
        del values[of_segments]
    [(total, recordings)] = tables.rows(_COUNT.format(found=_LISTED), **values)
    listing = _RECORDINGS.format(order=_ORDERS[order])
    rows = tables.table(listing, most=PAGE_ROWS, skipped=page * PAGE_ROWS, **values)
    return Page(total=total, recordings=recordings, rows=rows.to_pylist())


def _check_page(page: int) -> None:
    if not 0 <= page < MAX_PAGE:
        raise ConfigError(
            f"looking for page {page + 1}: expected one of the first {MAX_PAGE}; search for more "
            "words, or filter"
        )


_HIT = "recording_id, uri, start_s, end_s, text, confidence, hits.language, channel, correction"
# Texts are fetched of one page alone, with those around them: the next places of their objects.
_PAGE = f"""
with page as (
  select place from ({{found}}) order by {{order}} limit $most offset $skipped),
near as (
  select * from said
  semi join (select unnest([place - 1, place, place + 1]) as place from page) using (place)),
hits as (
  select *, coalesce(any_value(text) over (own range between 1 preceding and 1 preceding), '')
              as before,
            coalesce(any_value(text) over (own range between 1 following and 1 following), '')
              as after
  from near window own as (partition by number, channel order by place))
select {_HIT}, before, after
from hits semi join page using (place) join shown using (number) order by {{order}}
"""
_LISTED = f"select number from shown where {_MEANT} and {_IN_LANGUAGE}"
_COUNT = "select count(*), count(distinct number) from ({found})"
_RECORDINGS = f"""
select * from described
where number in ({_LISTED}
                 order by {{order}} limit $most offset $skipped)
order by {{order}}
"""


def _hit(row: dict[str, Any]) -> Hit:
    correction = row.pop("correction")
    return Hit(**row, correction=None if correction is None else json.loads(correction))
