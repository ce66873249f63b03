"""Where a text may be broken, and which breaks are best.

In: a segment, or anything in a row. Out: its pieces with their times, and the positions to break
at. A piece is a word with the blanks before it; where a language writes none, a letter may be one.
Knows nothing of subtitles and their files.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from corpus_asr.segments import Segment

SENTENCE_END = re.compile(r"[.!?…。！？؟।။]+[\"'”’»)\]」』]*$")  # noqa: RUF001
CLAUSE_END = re.compile(r"[,;:，、；：،؛–—]+[\"'”’»)\]」』]*$")  # noqa: RUF001
# What ends a sentence by its looks only: initials and a few titles.
_ABBREVIATION = re.compile(r"^\W*(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e)\.$")
_LINE_BREAKS = re.compile(r"[\s]*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+[\s]*")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]")
_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class Piece:
    """What is never broken, with the blanks before it."""

    text: str
    start_s: float
    end_s: float


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    if text.isprintable():  # most are
        return text
    return _CONTROLS.sub("", _LINE_BREAKS.sub(" ", text))


def pieces_of(segment: Segment, *, max_chars: int | None = None) -> list[Piece]:
    """Return a segment's words with their times; without word times in proportion to letters.

    Args:
        segment: what was said.
        max_chars: a piece that is longer is cut into several.
    """
    if segment.words:
        timed = [Piece(one_line(word.word), word.start_s, word.end_s) for word in segment.words]
    else:
        text = one_line(segment.text)
        timed = _in_proportion(_WORD.findall(text), segment.start_s, segment.end_s)
    whole = [piece for piece in timed if piece.text.strip()]
    return [short for piece in whole for short in _shortened(piece, max_chars)]


def _in_proportion(texts: Sequence[str], start_s: float, end_s: float) -> list[Piece]:
    total = sum(len(text) for text in texts)
    found, before = [], 0
    for text in texts:
        after = before + len(text)
        times = (start_s + (end_s - start_s) * at / total for at in (before, after))
        found.append(Piece(text, *times))
        before = after
    return found


def _shortened(piece: Piece, max_chars: int | None) -> list[Piece]:
    """Cut what is too long for a line, such as a sentence of a language without blanks."""
    if max_chars is None or len(piece.text.strip()) <= max_chars:
        return [piece]
    return _in_proportion(list(_letters(piece.text)), piece.start_s, piece.end_s)


def _letters(text: str) -> Iterator[str]:
    """Yield letters with all that must not begin a line: marks, joiners, closing punctuation."""
    held = ""
    for character in text:
        closes = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf", "Pe", "Pf", "Po", "Sk")
        if held.strip() and not closes and not held.endswith("\u200d"):
            yield held
            held = ""
        held += character
    if held:
        yield held


@dataclass(frozen=True, slots=True, order=True)
class Cost:
    """What breaks cost, the worst first: fewer of those outweigh any number of the others."""

    in_clauses: int = 0
    after_clauses: int = 0
    breaks: int = 0
    unevenness: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Return both costs together."""
        return Cost(
            self.in_clauses + other.in_clauses,
            self.after_clauses + other.after_clauses,
            self.breaks + other.breaks,
            self.unevenness + other.unevenness,
        )


def best_breaks(
    count: int, fits: Callable[[int, int], bool], cost: Callable[[int, int], Cost]
) -> list[tuple[int, int]]:
    """Part a row of things into stretches that fit, at the least cost.

    Args:
        count: how many things there are.
        fits: whether from one (included) to another (not) fit in one stretch; if they do, so does
            every shorter stretch with the same beginning. A single thing always does.
        cost: of such a stretch, with the break at its end.
    """
    best: list[Cost | None] = [Cost(), *[None] * count]
    came_from = [0] * (count + 1)
    for start in range(count):
        reached = best[start]
        assert reached is not None, "a single thing always fits"
        for stop in range(start + 1, count + 1):
            if stop > start + 1 and not fits(start, stop):
                break
            total = reached.plus(cost(start, stop))
            known = best[stop]
            if known is None or total < known:
                best[stop], came_from[stop] = total, start
    stretches, stop = [], count
    while stop:
        stretches.append((came_from[stop], stop))
        stop = came_from[stop]
    return stretches[::-1]


def break_cost(pieces: Sequence[Piece], stop: int) -> Cost:
    """Return what it costs to break before a piece: nothing at the end of a sentence."""
    text = pieces[stop - 1].text
    if stop == len(pieces):
        return Cost()
    if SENTENCE_END.search(text) and not _ABBREVIATION.match(text):
        return Cost(breaks=1)
    if CLAUSE_END.search(text):
        return Cost(after_clauses=1, breaks=1)
    return Cost(in_clauses=1, breaks=1)
