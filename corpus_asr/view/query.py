"""Search queries: words and phrases, folded (without case, accents and punctuation)."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from corpus_asr.errors import ConfigError
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
