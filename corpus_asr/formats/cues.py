"""Subtitle cues: a recording's segments as timed lines that fit a screen.

A segment too long for one cue is broken at the ends of sentences, then of clauses, then between
words, into spans of similar length; between characters only in scripts without spaces.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import add
from typing import NamedTuple, Protocol

from corpus_asr.errors import ConfigError
from corpus_asr.segments import MissingWord, Segment, SpeakerTurn

_SENTENCE_END = re.compile(r"[.!?…。！？؟।။]+[\"'”’»)\]」』]*$")  # noqa: RUF001
_CLAUSE_END = re.compile(r"[,;:，、；：،؛–—]+[\"'”’»)\]」』]*$")  # noqa: RUF001
# Initials and a few titles end with a full stop, but end no sentence.
_ABBREVIATION = re.compile(r"^\W*(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e)\.$")
_LINE_BREAKS = re.compile(r"[\s]*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+[\s]*")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]")
_WORD = re.compile(r"\s*\S+")
# Marks, joiners and closing punctuation: a line must not begin with one.
_NOT_FIRST = frozenset({"Mn", "Mc", "Me", "Cf", "Pe", "Pf", "Po", "Sk"})


class Transcribed(Protocol):
    """A recording's segments, and what files say of it."""

    @property
    def uri(self) -> str | None:
        """Its address, or what it is called."""

    @property
    def language(self) -> str | None:
        """Of most of it."""

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""

    @property
    def model(self) -> str | None:
        """Checkpoint that transcribed it."""

    @property
    def text(self) -> str:
        """All of it."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Sorted by time."""

    @property
    def turns(self) -> Sequence[SpeakerTurn] | None:
        """Who speaks when; None where speakers were not looked for."""

    @property
    def missing(self) -> Sequence[MissingWord] | None:
        """Words of a given text that are not in the audio; None without such a text."""

    def by_channel(self) -> Mapping[int | None, Sequence[Segment]]:
        """Return the segments of each channel, sorted by time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CueRules:
    """Limits of a cue; None is no limit."""

    max_line_width: int | None = None
    max_line_count: int | None = None
    max_duration_s: float | None = None
    min_duration_s: float = 0.0
    """A shorter cue is prolonged, at most until the next one."""
    min_gap_s: float = 0.0
    """From the end of a cue to the next one."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {value:g}"
            for name, value, least in (
                ("max_line_width", self.max_line_width, 1),
                ("max_line_count", self.max_line_count, 1),
                ("max_duration_s", self.max_duration_s, 0.1),
                ("min_duration_s", self.min_duration_s, 0.0),
                ("min_gap_s", self.min_gap_s, 0.0),
            )
            if value is not None and not value >= least
        ]
        if self.max_line_count is not None and self.max_line_width is None:
            wrong.append("max_line_count without max_line_width")
        if self.max_duration_s is not None and self.min_duration_s > self.max_duration_s:
            wrong.append(f"min_duration_s {self.min_duration_s:g} above max_duration_s")
        if wrong:
            raise ConfigError(
                f"reading the rules for subtitles: found {', '.join(wrong)}, expected bounds that "
                "leave room for text; correct them"
            )


@dataclass(frozen=True, slots=True)
class Piece:
    """Unbreakable text, with the spaces before it."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines of text with their times."""

    start_s: float
    end_s: float
    lines: tuple[tuple[Piece, ...], ...]
    words_timed: bool
    """Whether its words have times of the model; else time is divided by characters."""
    speaker: str | None = None
    """Who speaks; None where it is not known."""

    @property
    def texts(self) -> list[str]:
        """The lines as they are shown."""
        return ["".join(piece.text for piece in line).strip() for line in self.lines]


def cues_of(recording: Transcribed, rules: CueRules) -> list[Cue]:
    """Return a recording's cues, sorted by start."""
    cues = [
        cue
        for channel in recording.by_channel().values()
        for cue in _spaced([c for s in channel for c in _cues_of_segment(s, rules)], rules)
    ]
    return sorted(cues, key=lambda cue: cue.start_s)


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    if text.isprintable():  # most are
        return text
    return _CONTROLS.sub("", _LINE_BREAKS.sub(" ", text))


def _pieces_of(segment: Segment, max_chars: int | None) -> list[Piece]:
    if segment.words:
        timed = [Piece(one_line(word.word), word.start_s, word.end_s) for word in segment.words]
    else:
        words = _WORD.findall(one_line(segment.text))
        timed = _timed_by_length(words, segment.start_s, segment.end_s)
    pieces: list[Piece] = []
    for piece in timed:
        if max_chars is None or len(piece.text.strip()) <= max_chars:
            pieces += [piece] if piece.text.strip() else []
        else:  # too long for a line, such as a sentence of a script without spaces
            pieces += _timed_by_length([*_characters(piece.text)], piece.start_s, piece.end_s)
    return pieces


def _timed_by_length(texts: Sequence[str], start_s: float, end_s: float) -> list[Piece]:
    total = sum(len(text) for text in texts)
    pieces, before = [], 0
    for text in texts:
        after = before + len(text)
        times = (start_s + (end_s - start_s) * at / total for at in (before, after))
        pieces.append(Piece(text, *times))
        before = after
    return pieces


def _characters(text: str) -> Iterator[str]:
    held = ""
    for character in text:
        # A zero-width joiner makes one sign, such as a family of emoji, of what stands around it.
        joins = unicodedata.category(character) in _NOT_FIRST or held.endswith("\u200d")
        if held.strip() and not joins:
            yield held
            held = ""
        held += character
    if held:
        yield held


class _Cost(NamedTuple):
    # The worst first: as tuples are compared, one of it outweighs any number of the next.
    in_clauses: int = 0
    after_clauses: int = 0
    breaks: int = 0
    unevenness: int = 0

    def plus(self, other: "_Cost") -> "_Cost":
        return _Cost(*map(add, self, other))


def _best_breaks(
    count: int, fits: Callable[[int, int], bool], cost: Callable[[int, int], _Cost]
) -> list[tuple[int, int]]:
    # Dynamic programming over the places of breaks, as TeX breaks paragraphs into lines.
    # A single item always fits. Where a span does not, no longer one from the same start does.
    best: list[_Cost | None] = [_Cost(), *[None] * count]
    came_from = [0] * (count + 1)
    for start in range(count):
        reached = best[start]
        assert reached is not None, "a single item always fits"
        for stop in range(start + 1, count + 1):
            if stop > start + 1 and not fits(start, stop):
                break
            total = reached.plus(cost(start, stop))
            known = best[stop]
            if known is None or total < known:
                best[stop], came_from[stop] = total, start
    spans, stop = [], count
    while stop:
        spans.append((came_from[stop], stop))
        stop = came_from[stop]
    return spans[::-1]


def _break_cost(pieces: Sequence[Piece], stop: int) -> _Cost:
    text = pieces[stop - 1].text
    if stop == len(pieces):
        return _Cost()
    if _SENTENCE_END.search(text) and not _ABBREVIATION.match(text):
        return _Cost(breaks=1)
    if _CLAUSE_END.search(text):
        return _Cost(after_clauses=1, breaks=1)
    return _Cost(in_clauses=1, breaks=1)


def _cues_of_segment(segment: Segment, rules: CueRules) -> Iterator[Cue]:
    pieces = _pieces_of(segment, rules.max_line_width)
    if not pieces:
        return

    def fits(start: int, stop: int) -> bool:
        return _fits(pieces[start:stop], rules)

    def cost(start: int, stop: int) -> _Cost:
        length = sum(len(piece.text) for piece in pieces[start:stop])
        return _break_cost(pieces, stop).plus(_Cost(unevenness=length**2))

    whole = fits(0, len(pieces))
    for start, stop in [(0, len(pieces))] if whole else _best_breaks(len(pieces), fits, cost):
        span = pieces[start:stop]
        # An unbroken segment without word times keeps its own; its pieces' are estimates.
        timed = bool(segment.words) or not whole
        begin, end = (
            (span[0].start_s, span[-1].end_s) if timed else (segment.start_s, segment.end_s)
        )
        if rules.max_duration_s is not None:
            end = min(end, begin + rules.max_duration_s)
        yield Cue(begin, max(begin, end), _lines(span, rules), bool(segment.words), segment.speaker)


def _fits(pieces: Sequence[Piece], rules: CueRules) -> bool:
    lasts_s = pieces[-1].end_s - pieces[0].start_s
    # Subtitle files resolve milliseconds: half of one is rounding.
    if rules.max_duration_s is not None and lasts_s > rules.max_duration_s + 0.0005:
        return False
    if rules.max_line_width is None or rules.max_line_count is None:
        return True
    return _num_lines(pieces, rules.max_line_width) <= rules.max_line_count


def _num_lines(pieces: Sequence[Piece], max_chars: int) -> int:
    # Filling each line before the next begins gives the least number of lines.
    lines, used = 1, 0
    for piece in pieces:
        length = len(piece.text) if used else len(piece.text.lstrip())
        if used and used + len(piece.text.rstrip()) > max_chars:
            lines, used, length = lines + 1, 0, len(piece.text.lstrip())
        used += length
    return lines


def _lines(pieces: Sequence[Piece], rules: CueRules) -> tuple[tuple[Piece, ...], ...]:
    # As few lines as possible, of similar length.
    limit = rules.max_line_width
    if limit is None or _width(pieces) <= limit:
        return (tuple(pieces),)

    def cost(start: int, stop: int) -> _Cost:
        # The number of lines comes first here, and ends of sentences do not matter.
        return _Cost(in_clauses=1, unevenness=_width(pieces[start:stop]) ** 2)

    def fits(start: int, stop: int) -> bool:
        return _width(pieces[start:stop]) <= limit

    return tuple(tuple(pieces[a:b]) for a, b in _best_breaks(len(pieces), fits, cost))


def _width(pieces: Sequence[Piece]) -> int:
    return len("".join(piece.text for piece in pieces).strip())


def _spaced(cues: Sequence[Cue], rules: CueRules) -> Iterator[Cue]:
    if not rules.min_duration_s and not rules.min_gap_s:
        yield from cues
        return
    in_order = sorted(cues, key=lambda cue: cue.start_s)
    for cue, following in pairwise([*in_order, None]):
        assert cue is not None, "only the last is followed by none"
        end_s = max(cue.end_s, cue.start_s + rules.min_duration_s)
        if following is not None:
            # Where there is no room for a gap, one follows the other at once.
            latest_s = following.start_s - rules.min_gap_s
            end_s = min(end_s, latest_s if latest_s > cue.start_s else following.start_s)
        yield replace(cue, end_s=max(cue.start_s, end_s))
