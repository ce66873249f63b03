"""A segment's text with times: units for line breaking, and words with times for files.

Tokens of a model are not linguistic words: it may time `$1,250` and `.75`, or a Thai vowel without
its consonant. Here a word is a unit between line break opportunities, with or without times.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from corpus_asr.segments import Segment, Word
from corpus_asr.text.line_breaks import (
    character_breaks,
    columns,
    line_breaks,
    timed_word_breaks,
    word_breaks,
)
from corpus_asr.text.words import ends_sentence

_LINE_BREAKS = re.compile(r"[\s]*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+[\s]*")
_SPACES = re.compile(r"(?<=\S)\s+(?=\S)")
# A dash before what may begin a sentence, and no sign of a number.
_DASH = re.compile(r"(?:^\s*|\s+)[-\u2013\u2014](?:\s+(?=[\w\"'“«¿¡(])|(?=[^\W\d_]|[¿¡]))")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may start a line, with the spaces before it."""

    text: str
    start_s: float
    end_s: float
    in_word: int = 0
    """1 if it continues a word that exceeds a line, 2 if the break is between two letters."""
    offset: int = 0
    """Number of characters of the segment before it."""
    changes_voice: bool = False
    """Whether it begins with the dash of another voice."""


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    if text.isprintable():  # true for most texts
        return text
    return _CONTROLS.sub("", _LINE_BREAKS.sub(" ", text))


class TimedText:
    """The text of a segment on one line, with the time of each character."""

    def __init__(self, segment: Segment) -> None:
        words = [(one_line(word.word), word) for word in segment.words or ()]
        self._language = segment.language
        self._words: list[Word] = []
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.text = "" if words else one_line(segment.text)
        for text, word in words:
            if self.text[-1:].isspace():  # a word may consist of spaces
                text = text.lstrip()
            if text.strip():
                self._words.append(word)
                self._starts.append(len(self.text) + len(text) - len(text.lstrip()))
                self._stops.append(len(self.text) + len(text.rstrip()))
            self.text += text
        self._times = [(word.start_s, word.end_s) for word in self._words]
        if not self._words:  # time is divided by characters
            self._starts, self._stops = [0], [max(1, len(self.text))]
            self._times = [(segment.start_s, segment.end_s)]

    def pieces(self, max_columns: int | None) -> list[Piece]:
        """Return the words, with those wider than `max_columns` divided."""
        if not self.text.strip():
            return []
        pieces = []
        breaks = {*word_breaks(self.text, self._language), *self.voices}
        breaks -= {at for start, stop in self.voices.items() for at in range(start + 1, stop + 1)}
        for first, stop in _spans(sorted(breaks), len(self.text)):
            if max_columns is None or columns(self.text[first:stop].strip()) <= max_columns:
                pieces.append(self._piece(first, stop))
            else:
                parts = self._divided(first, stop, max_columns)
                pieces += [
                    self._piece(a, b, in_word=self._parts_letters(a) if a > first else 0)
                    for a, b in parts
                ]
        return pieces

    @cached_property
    def voices(self) -> dict[int, int]:
        """Start and end of the dashes of other voices: after a sentence, before no small letter."""
        return {
            start: stop
            for start, stop in (match.span() for match in _DASH.finditer(self.text))
            if not self.text[stop].islower() and ends_sentence(self.text[:start], self.text[stop:])
        }

    def whole(self) -> list[Piece]:
        """Return the text as one piece; none if it is empty."""
        return [self._piece(0, len(self.text))] if self.text.strip() else []

    def timed_words(self, line: Sequence[Piece]) -> tuple[Piece, ...]:
        """Return the pieces of a line as words with known times."""
        if not self._words:
            return tuple(line)
        first, stop = line[0].offset, line[-1].offset + len(line[-1].text)
        within = [at - first for at in self._word_starts if first < at < stop]
        return tuple(self._piece(first + a, first + b) for a, b in _spans(within, stop - first))

    def words(self) -> Iterator[Word]:
        """Yield the words with times, merging parts of one linguistic word."""
        numbers = [bisect_left(self._starts, at) for at in self._word_starts]
        for first, stop in _spans(numbers, len(self._words)):
            joined = self._words[first:stop]
            if len(joined) < 2:
                yield from joined
                continue
            lengths = np.subtract(self._stops, self._starts)[first:stop]
            scores = [word.probability for word in joined]
            yield Word(
                word="".join(word.word for word in joined),
                start_s=joined[0].start_s,
                end_s=max(word.end_s for word in joined),
                probability=float(np.average(scores, weights=lengths)),
                speaker=joined[0].speaker,
            )

    @cached_property
    def _word_starts(self) -> list[int]:
        # Before the spaces of each word with times, except the first.
        starts = {start - self._spaces_before(start) for start in self._starts[1:]}
        return [at for at in timed_word_breaks(self.text, self._language) if at in starts]

    def _spaces_before(self, offset: int) -> int:
        prefix = self.text[:offset]
        return len(prefix) - len(prefix.rstrip())

    def _divided(self, first: int, stop: int, max_columns: int) -> Iterator[tuple[int, int]]:
        # No break is allowed: cut at a mark after a space, as in French, rather than in a word.
        text = self.text[first:stop]
        spaces = [match.start() for match in _SPACES.finditer(text)]
        ways: list[Callable[[str], list[int]]] = [
            lambda _: spaces,
            lambda part: line_breaks(part, self._language),
            character_breaks,
        ]
        parts = [(0, len(text))]
        for way in ways:
            parts = [
                (a + c, a + d)
                for a, b in parts
                for c, d in (
                    [(0, b - a)]
                    if columns(text[a:b].strip()) <= max_columns
                    else _spans(way(text[a:b]), b - a)
                )
            ]
        yield from ((first + a, first + b) for a, b in parts)

    def _parts_letters(self, at: int) -> int:
        return 1 + self.text[at - 1 : at + 1].isalnum()

    def _piece(self, first: int, stop: int, *, in_word: int = 0) -> Piece:
        text = self.text[first:stop]
        begin, end = first, stop
        if self._words:  # spaces take no time
            begin, end = stop - len(text.lstrip()), first + len(text.rstrip())
        start_s = self._time(begin, begin)
        end_s = max(start_s, self._time(end, end - 1))
        return Piece(text, start_s, end_s, in_word, first, changes_voice=first in self.voices)

    def _time(self, offset: int, character: int) -> float:
        # Time of a character boundary.
        at = max(0, bisect_right(self._starts, character) - 1)
        (start_s, end_s), first, stop = self._times[at], self._starts[at], self._stops[at]
        if offset >= stop:
            return end_s
        return start_s + (end_s - start_s) * max(0, offset - first) / (stop - first)


def shown_words(segment: Segment) -> list[Word]:
    """Return a segment's linguistic words, without empty ones."""
    return [*TimedText(segment).words()] if segment.words else []


def _spans(breaks: Iterable[int], length: int) -> Iterator[tuple[int, int]]:
    yield from pairwise([0, *breaks, length])
