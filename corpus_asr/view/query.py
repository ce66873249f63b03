"""What is searched for: words and phrases, in folded texts.

In: a line as people type it. Out: which folded texts match, and where the words lie in one text.
Words may stand anywhere in a text, all of them have to; "words in quotes" belong together; a minus
in front excludes. Knows nothing of tables and recordings.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.view.folding import folded, follows, places

MAX_QUERY_CHARS = 500
_TERM = re.compile(r'(?<!\S)(-?)(?:"([^"]*)"?|(\S+))')


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Folded words and phrases."""

    wanted: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    whole_words: bool = False
    """Whether a match begins and ends where words do."""

    def matches(self, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Tell which folded texts match; each has a blank at both ends."""
        found = np.ones(len(texts), dtype=bool)
        for term in self.wanted:
            found &= self._holds(texts, term)
        for term in self.excluded:
            found &= ~self._holds(texts, term)
        return found

    def _holds(self, texts: pa.Array | pa.ChunkedArray, term: str) -> np.ndarray:
        pattern = f" {term} " if self.whole_words else term
        held: np.ndarray = pc.match_substring(texts, pattern).to_numpy(zero_copy_only=False)
        return held

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Cut a text into what was searched for, marked True, and the rest."""
        plain, sources = places(text)
        marked = np.zeros(len(text), dtype=bool)
        for start, stop in self._spans(plain):
            end = sources[stop - 1] + 1
            while end < len(text) and follows(text[end]):
                end += 1
            marked[sources[start] : end] = True
        edges = [0, *(np.flatnonzero(np.diff(marked)) + 1).tolist(), len(text)]
        return [
            (text[start:stop], bool(marked[start]))
            for start, stop in pairwise(edges)
            if start < stop
        ]

    def _spans(self, plain: str) -> Iterator[tuple[int, int]]:
        for term in self.wanted:
            pattern = re.escape(term)
            if self.whole_words:
                pattern = rf"(?<![^ ]){pattern}(?![^ ])"
            for match in re.finditer(pattern, plain):
                yield match.span()


def parse_query(text: str, *, whole_words: bool = False) -> Query:
    """Read what was typed.

    Raises:
        ConfigError: it is too long, or only excludes, or has no letters and figures.
    """
    if len(text) > MAX_QUERY_CHARS:
        raise ConfigError(
            f"searching: found {len(text)} characters, expected {MAX_QUERY_CHARS} at most; search "
            "for fewer words"
        )
    wanted: list[str] = []
    excluded: list[str] = []
    for minus, phrase, word in _TERM.findall(text):
        term = folded(phrase or word)
        if term:
            (excluded if minus else wanted).append(term)
    if text.strip() and not (wanted or excluded):
        raise ConfigError(
            f"searching for {text.strip()!r}: found no letter or figure, expected some; "
            "punctuation is not searched for"
        )
    return Query(wanted=tuple(wanted), excluded=tuple(excluded), whole_words=whole_words)
