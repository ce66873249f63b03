"""Subtitle cues: a recording's segments as timed lines that fit a screen.

A segment too long for one cue is split at sentence ends, then at clause ends, then between words,
into spans of similar length; within a word only if it exceeds a line.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import ceil, inf, isfinite
from operator import add
from typing import NamedTuple, Protocol

from corpus_asr.errors import ConfigError
from corpus_asr.formats.options import FRAME_S, CueRules
from corpus_asr.formats.pieces import Piece, TimedText, one_line
from corpus_asr.segments import MissingWord, Segment, SpeakerTurn, channel_name
from corpus_asr.text.line_breaks import columns
from corpus_asr.text.words import ends_sentence

_CLAUSE_END = re.compile(r"[,;:，、；：،؛–—]+[\"'”’»)\]」』]*$")  # noqa: RUF001


class Transcribed(Protocol):
    """Interface of a transcribed recording for file formats."""

    @property
    def uri(self) -> str | None:
        """URI or name."""

    @property
    def language(self) -> str | None:
        """Language of most of the recording."""

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""

    @property
    def model(self) -> str | None:
        """Checkpoint that transcribed it."""

    @property
    def text(self) -> str:
        """Complete text."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Segments sorted by time."""

    @property
    def turns(self) -> Sequence[SpeakerTurn] | None:
        """Speaker turns; None without speaker identification."""

    @property
    def missing(self) -> Sequence[MissingWord] | None:
        """Words of a known text missing in the audio; None without such a text."""

    @property
    def audio_track(self) -> int | None:
        """Number of the transcribed audio track, from 1; None for a single one, or for all."""

    @property
    def audio_tracks(self) -> Sequence[str] | None:
        """Languages and titles of its audio tracks, if there are several."""

    def by_channel(self) -> Mapping[int | None, Sequence[Segment]]:
        """Return the segments of each channel, sorted by time."""


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines of text with their times."""

    start_s: float
    end_s: float
    lines: tuple[tuple[Piece, ...], ...]
    said: TimedText
    """Text that the lines are part of."""
    words_timed: bool
    """Whether its words have times from the model; otherwise time is divided by characters."""
    speaker: str | None = None
    """Speaker; None if unknown."""

    @property
    def texts(self) -> list[str]:
        """Return the lines as displayed."""
        return ["".join(piece.text for piece in line).strip() for line in self.lines]

    def timed_lines(self) -> list[tuple[Piece, ...]]:
        """Return the lines as words, for words with times."""
        return [self.said.timed_words(line) for line in self.lines]


def cues_of(recording: Transcribed, rules: CueRules) -> list[Cue]:
    """Return a recording's cues, sorted by start."""
    cues, end_s = [], recording.duration_s
    for segments in labelled(recording):
        starts_s = [segment.start_s for segment in segments[1:]]
        pairs = [
            (cue, language_rules)
            for segment, free_until_s in zip(segments, [*starts_s, end_s], strict=False)
            for language_rules in (rules.of(segment.language or recording.language),)
            for cue in _cues_of_segment(segment, language_rules, free_until_s)
        ]
        pairs.sort(key=lambda pair: pair[0].start_s)
        shown = _of_a_frame([cue for cue, _ in pairs], recording.duration_s)
        spaced = _spaced(
            shown, [language_rules for _, language_rules in pairs], recording.duration_s
        )
        cues += _of_a_frame(spaced, recording.duration_s)
    return sorted(cues, key=lambda cue: cue.start_s)


def labelled(recording: Transcribed, *, least: int = 2) -> list[list[Segment]]:
    """Return the segments of each channel, with the speakers to be named.

    Separate channels count as speakers; with fewer than `least` speakers none is named.
    """
    channels = recording.by_channel()
    names: dict[int | None, str] = {
        channel: channel_name(channel, recording.audio_track, recording.audio_tracks)
        for channel in channels
        if channel is not None and len(channels) > 1
    }
    segments = [
        [
            replace(segment, speaker=segment.speaker or names.get(channel))
            for segment in channel_segments
        ]
        for channel, channel_segments in channels.items()
    ]
    speakers = {
        segment.speaker
        for channel_segments in segments
        for segment in channel_segments
        if segment.text.strip()
    } - {None}
    if len(speakers) >= least:
        return segments
    return [
        [replace(segment, speaker=None) for segment in channel_segments]
        for channel_segments in segments
    ]


class _Cost(NamedTuple):
    # In order of severity: by tuple comparison, one outweighs any number of the next.
    lines: int = 0
    in_words: int = 0
    too_short: int = 0
    in_clauses: int = 0
    after_clauses: int = 0
    breaks: int = 0
    unevenness: int = 0

    def plus(self, other: "_Cost") -> "_Cost":
        return _Cost(*map(add, self, other))


def _best_breaks(
    count: int, fits: Callable[[int, int], bool], cost: Callable[[int, int], _Cost]
) -> list[tuple[int, int]]:
    # Dynamic programming over break positions, as TeX breaks paragraphs into lines.
    # A single item always fits. If a span does not fit, no longer span from its start does.
    best: list[_Cost | None] = [_Cost(), *[None] * count]
    came_from = [0] * (count + 1)
    for start in range(count):
        reached = best[start]
        assert reached is not None, "a single item always fits"
        for stop in range(start + 1, count + 1):
            if stop > start + 1 and not fits(start, stop):
                break
            total = reached.plus(cost(start, stop))
            stop_cost = best[stop]
            if stop_cost is None or total < stop_cost:
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
    if in_word := pieces[stop].in_word:
        return _Cost(in_words=in_word, breaks=1)
    if ends_sentence(text, pieces[stop].text):
        return _Cost(breaks=1)
    if _CLAUSE_END.search(text):
        return _Cost(after_clauses=1, breaks=1)
    if text.rstrip().endswith("."):  # an abbreviation, which belongs to the next word
        return _Cost(in_clauses=2, breaks=1)
    return _Cost(in_clauses=1, breaks=1)


def _cues_of_segment(segment: Segment, rules: CueRules, free_until_s: float) -> list[Cue]:
    if not isfinite(segment.start_s + segment.end_s):
        raise ConfigError(
            f"writing subtitles: found the times {segment.start_s} to {segment.end_s} of "
            f"{segment.text.strip()[:40]!r}, expected seconds; correct the segment"
        )
    text = TimedText(segment)
    label = 0 if segment.speaker is None else columns(f"[{segment.speaker}] ")
    pieces = text.whole()
    if not pieces:
        return []
    is_one_line = _width(pieces, label) <= (rules.max_line_width or inf)
    is_dialogue = bool(text.voices and rules.max_line_width)
    if is_dialogue or not (is_one_line and _fits(pieces, rules, label)):
        text = TimedText(_stretched(segment, rules, label, free_until_s))
        pieces = text.pieces(rules.max_line_width)

    def fits(start: int, stop: int) -> bool:
        return _fits(pieces[start:stop], rules, label)

    def cost(start: int, stop: int) -> _Cost:
        length = sum(len(piece.text) for piece in pieces[start:stop])
        end_s = pieces[stop - 1].end_s
        if stop == len(pieces):
            end_s = max(end_s, free_until_s - (rules.min_gap_s or 0.0))
        missing_s = max(0.0, (rules.min_duration_s or 0.0) - (end_s - pieces[start].start_s))
        # Two somewhat short ones are better than one that flashes.
        halves = ceil(2.0 * missing_s / rules.min_duration_s) if rules.min_duration_s else 0
        too_short = _Cost(too_short=halves**2)
        return _break_cost(pieces, stop).plus(_Cost(unevenness=length**2)).plus(too_short)

    whole = fits(0, len(pieces))
    spans = [(0, len(pieces))] if whole else _best_breaks(len(pieces), fits, cost)
    times = [(pieces[start].start_s, pieces[stop - 1].end_s) for start, stop in spans]
    if whole and not segment.words:
        # An unsplit segment keeps its own times; those of pieces are estimates.
        times = [(segment.start_s, segment.end_s)]
    lengths = [sum(len(piece.text) for piece in pieces[start:stop]) for start, stop in spans]
    cues = []
    for (start, stop), (begin, end) in zip(spans, _shared(times, lengths), strict=True):
        if rules.max_duration_s is not None:
            end = min(end, begin + rules.max_duration_s)
        lines = _lines(pieces[start:stop], rules, label)
        timed = bool(segment.words)
        cues.append(Cue(begin, max(begin, end), lines, text, timed, segment.speaker))
    return cues


def _stretched(segment: Segment, rules: CueRules, label: int, free_until_s: float) -> Segment:
    # Without word times, the times of parts are estimates: text that is too fast takes the time
    # until the next segment, and not its last part alone.
    if segment.words:
        return segment
    text = one_line(segment.text).strip()
    area = (rules.max_line_width or inf) * (rules.max_line_count or inf)
    num_cues = ceil((columns(text) + label) / area)
    shortest_s = num_cues * ((rules.min_duration_s or 0.0) + (rules.min_gap_s or 0.0))
    end_s = segment.start_s + max(shortest_s, _reading_s(text, rules))
    free_until_s -= rules.min_gap_s or 0.0
    return replace(segment, end_s=max(segment.end_s, min(end_s, free_until_s)))


def _shared(
    times: Sequence[tuple[float, float]], lengths: Sequence[int]
) -> list[tuple[float, float]]:
    # Pieces shorter than a frame share the time of the previous or first one, by length.
    shared = list(times)
    for at, (start_s, end_s) in enumerate(times):
        if len(shared) == 1 or end_s - start_s >= FRAME_S:
            continue
        first = max(0, at - 1)
        begin_s, stop_s = shared[first][0], max(shared[first][1], shared[first + 1][1])
        part = lengths[first] / (lengths[first] + lengths[first + 1])
        middle_s = begin_s + (stop_s - begin_s) * part
        shared[first : first + 2] = [(begin_s, middle_s), (middle_s, stop_s)]
    return shared


def _fits(pieces: Sequence[Piece], rules: CueRules, label: int) -> bool:
    lasts_s = pieces[-1].end_s - pieces[0].start_s
    # Subtitle files have a resolution of milliseconds: half of one is rounding.
    if rules.max_duration_s is not None and lasts_s > rules.max_duration_s + 0.0005:
        return False
    if rules.max_line_width is None or rules.max_line_count is None:
        return True
    return _num_lines(pieces, rules.max_line_width, label) <= rules.max_line_count


def _num_lines(pieces: Sequence[Piece], max_columns: int, label: int) -> int:
    # Greedy filling gives the minimum number of lines.
    lines, used, is_empty = 1, label, True
    for piece in pieces:
        if not is_empty and (
            piece.changes_voice or used + columns(piece.text.rstrip()) > max_columns
        ):
            lines, used, is_empty = lines + 1, 0, True
        used += columns(piece.text.lstrip() if is_empty else piece.text)
        is_empty = False
    return lines


def _lines(pieces: Sequence[Piece], rules: CueRules, label: int) -> tuple[tuple[Piece, ...], ...]:
    # The minimum number of lines, of similar length. The speaker's name is in the first.
    limit = rules.max_line_width
    voices = {at for at, piece in enumerate(pieces) if piece.changes_voice}
    if limit is None or (_width(pieces, label) <= limit and voices <= {0}):
        return (tuple(pieces),)

    def width(start: int, stop: int) -> int:
        return _width(pieces[start:stop], 0 if start else label)

    def cost(start: int, stop: int) -> _Cost:
        # Sentence ends are irrelevant here.
        in_word = pieces[stop].in_word if stop < len(pieces) else 0
        return _Cost(lines=1, in_words=in_word, unevenness=width(start, stop) ** 2)

    def fits(start: int, stop: int) -> bool:
        return width(start, stop) <= limit and voices.isdisjoint(range(start + 1, stop))

    return tuple(tuple(pieces[a:b]) for a, b in _best_breaks(len(pieces), fits, cost))


def _width(pieces: Sequence[Piece], label: int) -> int:
    return columns("".join(piece.text for piece in pieces).strip()) + label


def _spaced(cues: Sequence[Cue], cue_rules: Sequence[CueRules], duration_s: float) -> list[Cue]:
    # Sorted by start, each with its rules. Cues are not extended beyond the recording.
    spaced = []
    for cue, rules, following in zip_longest(cues, cue_rules, cues[1:]):
        end_s = max(cue.end_s, min(cue.start_s + _needed_s(cue, rules), duration_s))
        gap_s, close_s = rules.min_gap_s or 0.0, rules.close_gaps_s or 0.0
        if following is not None and (end_s > cue.end_s or gap_s or close_s):
            # Without room for a gap, cues are adjacent.
            latest_s = following.start_s - gap_s
            if latest_s - cue.start_s < FRAME_S:
                latest_s = following.start_s
            if 0.0 < following.start_s - end_s < close_s:
                longest_s = rules.max_duration_s or inf
                end_s = max(end_s, min(latest_s, cue.start_s + longest_s))
            end_s = min(end_s, latest_s)
        spaced.append(replace(cue, end_s=max(cue.start_s, end_s)))
    return spaced


def _needed_s(cue: Cue, rules: CueRules) -> float:
    """Return the seconds that a cue needs to be read."""
    text = " ".join([*([] if cue.speaker is None else [f"[{cue.speaker}]"]), *cue.texts])
    least_s = max(_reading_s(text, rules), rules.min_duration_s or 0.0)
    return min(least_s, rules.max_duration_s or inf)


def _reading_s(text: str, rules: CueRules) -> float:
    by_speed_s = max(
        columns(text) / rules.max_cps if rules.max_cps else 0.0,
        60.0 * len(text.split()) / rules.max_wpm if rules.max_wpm else 0.0,
    )
    # Rounded up to whole milliseconds, as in files, so that rounding never shortens it.
    return ceil(1000.0 * by_speed_s + 1.0) / 1000.0 if by_speed_s else 0.0


def _of_a_frame(cues: Sequence[Cue], duration_s: float) -> list[Cue]:
    # A cue shorter than a frame is invisible: it takes the missing time from the pause after it, or
    # else from the next cue; finally, from those before it.
    if all(cue.end_s - cue.start_s >= FRAME_S for cue in cues):
        return [*cues]
    shown, before_s = [], 0.0
    for cue in cues:
        start_s, end_s = cue.start_s, cue.end_s
        if start_s < before_s:  # overlaps an extended cue
            start_s = before_s
        if end_s - start_s < FRAME_S:
            end_s = before_s = start_s + FRAME_S
        shown.append(replace(cue, start_s=start_s, end_s=end_s))
    latest_s = max([duration_s, FRAME_S * len(cues), *(cue.end_s for cue in cues)])
    for at in range(len(shown) - 1, -1, -1):
        if shown[at].end_s <= latest_s:
            break
        start_s = min(shown[at].start_s, latest_s - FRAME_S)
        shown[at] = replace(shown[at], start_s=max(0.0, start_s), end_s=latest_s)
        latest_s = start_s
    return shown
