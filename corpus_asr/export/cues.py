"""Subtitles before they are written: stretches of a recording's text with times, in lines.

In: segments, and rules for what fits on a screen. Out: cues in the order of their times. Without
rules each segment is one cue. With them, a segment that is too long for one is broken at the ends
of sentences, then at those of clauses, then between words, into stretches of like length. Cues
never join segments. Knows nothing of the files they go to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from corpus_asr.errors import ConfigError
from corpus_asr.export.breaks import Cost, Piece, best_breaks, break_cost, pieces_of
from corpus_asr.export.recording import Recording
from corpus_asr.segments import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class CueRules:
    """What fits on a screen; None is no bound.

    Raises:
        ConfigError: a bound makes no sense.
    """

    max_line_chars: int | None = None
    max_lines: int | None = None
    max_duration_s: float | None = None
    min_duration_s: float = 0.0
    """A cue that is shorter stays until then, or until the next one comes."""
    min_gap_s: float = 0.0
    """A cue ends at least so long before the next."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {value:g}"
            for name, value, least in (
                ("max_line_chars", self.max_line_chars, 1),
                ("max_lines", self.max_lines, 1),
                ("max_duration_s", self.max_duration_s, 0.1),
                ("min_duration_s", self.min_duration_s, 0.0),
                ("min_gap_s", self.min_gap_s, 0.0),
            )
            if value is not None and not value >= least
        ]
        if self.max_lines is not None and self.max_line_chars is None:
            wrong.append("max_lines without max_line_chars")
        if self.max_duration_s is not None and self.min_duration_s > self.max_duration_s:
            wrong.append(f"min_duration_s {self.min_duration_s:g} above max_duration_s")
        if wrong:
            raise ConfigError(
                f"reading the rules for subtitles: found {', '.join(wrong)}, expected bounds that "
                "leave room for text; correct them"
            )


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines of text, and when they are shown."""

    start_s: float
    end_s: float
    lines: tuple[tuple[Piece, ...], ...]
    words_timed: bool
    """Whether the times of its pieces were heard, not reckoned."""

    @property
    def texts(self) -> list[str]:
        """The lines as they are shown."""
        return ["".join(piece.text for piece in line).strip() for line in self.lines]


def cues_of(recording: Recording, rules: CueRules) -> list[Cue]:
    """Return a recording's cues by their beginning; segments without text have none."""
    cues = [
        cue
        for channel in recording.by_channel().values()
        for cue in _spaced([c for s in channel for c in _cues_of_segment(s, rules)], rules)
    ]
    return sorted(cues, key=lambda cue: cue.start_s)


def _cues_of_segment(segment: Segment, rules: CueRules) -> Iterator[Cue]:
    pieces = pieces_of(segment, max_chars=rules.max_line_chars)
    if not pieces:
        return

    def fits(start: int, stop: int) -> bool:
        return _fits(pieces[start:stop], rules)

    def cost(start: int, stop: int) -> Cost:
        length = sum(len(piece.text) for piece in pieces[start:stop])
        return break_cost(pieces, stop).plus(Cost(unevenness=length**2))

    whole = fits(0, len(pieces))
    stretches = [(0, len(pieces))] if whole else best_breaks(len(pieces), fits, cost)
    for start, stop in stretches:
        chosen = pieces[start:stop]
        # Segments last as long as their text is heard; parts of them as long as their words.
        timed = bool(segment.words) or not whole
        begin, end = (
            (chosen[0].start_s, chosen[-1].end_s) if timed else (segment.start_s, segment.end_s)
        )
        if rules.max_duration_s is not None:
            end = min(end, begin + rules.max_duration_s)
        yield Cue(begin, max(begin, end), _lines(chosen, rules), bool(segment.words))


def _fits(pieces: Sequence[Piece], rules: CueRules) -> bool:
    lasts_s = pieces[-1].end_s - pieces[0].start_s
    # Files tell thousandths of a second apart.
    if rules.max_duration_s is not None and lasts_s > rules.max_duration_s + 0.0005:
        return False
    if rules.max_line_chars is None or rules.max_lines is None:
        return True
    return _num_lines(pieces, rules.max_line_chars) <= rules.max_lines


def _num_lines(pieces: Sequence[Piece], max_chars: int) -> int:
    """Return how many lines the pieces need at least: each filled before the next begins."""
    lines, used = 1, 0
    for piece in pieces:
        length = len(piece.text) if used else len(piece.text.lstrip())
        if used and used + len(piece.text.rstrip()) > max_chars:
            lines, used, length = lines + 1, 0, len(piece.text.lstrip())
        used += length
    return lines


def _lines(pieces: Sequence[Piece], rules: CueRules) -> tuple[tuple[Piece, ...], ...]:
    """Break a cue into as few lines as can be, of like length."""
    most = rules.max_line_chars
    if most is None or _width(pieces) <= most:
        return (tuple(pieces),)

    def cost(start: int, stop: int) -> Cost:
        # The number of lines comes first here, and ends of sentences do not matter.
        return Cost(in_clauses=1, unevenness=_width(pieces[start:stop]) ** 2)

    def fits(start: int, stop: int) -> bool:
        return _width(pieces[start:stop]) <= most

    return tuple(tuple(pieces[a:b]) for a, b in best_breaks(len(pieces), fits, cost))


def _width(pieces: Sequence[Piece]) -> int:
    return len("".join(piece.text for piece in pieces).strip())


def _spaced(cues: Sequence[Cue], rules: CueRules) -> Iterator[Cue]:
    """Let cues stay long enough, and end before the next one begins."""
    if not rules.min_duration_s and not rules.min_gap_s:
        yield from cues
        return
    in_order = sorted(cues, key=lambda cue: cue.start_s)
    for cue, following in pairwise([*in_order, None]):
        if cue is None:
            continue
        end_s = max(cue.end_s, cue.start_s + rules.min_duration_s)
        if following is not None:
            # Where there is no room for a gap, one follows the other at once.
            latest_s = following.start_s - rules.min_gap_s
            end_s = min(end_s, latest_s if latest_s > cue.start_s else following.start_s)
        yield replace(cue, end_s=max(cue.start_s, end_s))
