"""Speaker diarization: windows of speech to turns, and turns to segments and words."""

import logging
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from corpus_asr.array_types import Float16, Float64, Int64
from corpus_asr.segments import Segment, SpeakerTurn, Word
from corpus_asr.speakers.clustering import SpeakerBounds, find_speakers
from corpus_asr.text.words import ends_sentence, has_words

if TYPE_CHECKING:  # imports pydantic
    from corpus_asr.config.extraction import SpeakerSettings

_LOG = logging.getLogger(__name__)
# Windows of a span touch; spans are separated by at least the silence that ends speech.
_APART_S = 1e-3
# Turns before and after in which the second speaker of an overlap is searched.
_LOOK = 4
# Text further than this from any turn has no speaker, as no speech was detected there.
NEAR_S = 2.0
# Accuracy of word times and speaker changes; within it, pauses and sentence ends decide.
CHANGE_S = 0.5
# A sentence end counts as a pause of this length.
SENTENCE_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechWindows:
    """Windows of speech with embeddings; those of one span touch."""

    start_s: Float64[np.ndarray, " window"]
    """Seconds from the start of the recording."""
    end_s: Float64[np.ndarray, " window"]
    embeddings: Float16[np.ndarray, "window width"]
    """Normalized to length 1."""
    overlaps: Sequence[tuple[float, float]] = ()
    """Start and end in seconds of overlapping speech, if detected."""

    def __len__(self) -> int:
        return len(self.start_s)

    @property
    def lasts_s(self) -> Float64[np.ndarray, " window"]:
        """Lengths in seconds."""
        lasts_s: Float64[np.ndarray, " window"] = self.end_s - self.start_s
        return lasts_s

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "SpeechWindows":
        """Return the windows of a part from its voice columns in a table.

        Raises:
            ValueError: the numbers of embeddings and windows differ.
        """
        spans, overlaps = (
            [(span["start_s"], span["end_s"]) for span in columns[name] or ()]
            for name in ("voice_spans", "overlap_spans")
        )
        borders = np.array(spans, dtype=np.float64).reshape(-1, 2)
        values = np.frombuffer(columns["voices"] or b"", dtype="<f2").astype(np.float16)
        return cls(
            start_s=borders[:, 0],
            end_s=borders[:, 1],
            embeddings=values.reshape(len(spans), -1 if spans else 1),
            overlaps=overlaps,
        )

    @classmethod
    def joined(cls, parts: Sequence["SpeechWindows"]) -> "SpeechWindows":
        """Return the windows of several parts, in order of time."""
        filled = [part for part in parts if len(part)]
        if not filled:
            empty = np.zeros(0)
            return cls(start_s=empty, end_s=empty, embeddings=np.zeros((0, 1), np.float16))
        start_s = np.concatenate([part.start_s for part in filled])
        order = np.argsort(start_s, kind="stable")
        return cls(
            start_s=start_s[order],
            end_s=np.concatenate([part.end_s for part in filled])[order],
            embeddings=np.concatenate([part.embeddings for part in filled])[order],
            overlaps=[span for part in filled for span in part.overlaps],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Diarization:
    """Speakers of one recording with times."""

    turns: tuple[SpeakerTurn, ...]
    """Sorted by channel, then by time; within a channel, turns overlap for overlapping speech."""
    voices: Mapping[str, tuple[float, ...]]
    """Mean embedding of each speaker."""

    def named_as(self, earlier: Sequence[SpeakerTurn], *, number: int = 0) -> "Diarization":
        """Return the diarization with labels of earlier turns, matched by shared time.

        Unmatched speakers get new numbers, so that assigned names do not move to them: above
        those of earlier turns and above `number`, the highest with an assigned name.
        """
        shared_s = _shared_s(self.turns, earlier)
        if not shared_s and not number:  # no earlier speaker, and no assigned name
            return self
        labels: dict[str, str] = {}
        olds: set[str] = set()
        news: set[str] = set()
        for new, old in sorted(shared_s, key=lambda pair: (-shared_s[pair], pair)):
            # If both share more with others, their shared time is due to moved boundaries.
            likely = new not in news or old not in olds
            if likely and new not in labels and old not in labels.values():
                labels[new] = old
            news.add(new)
            olds.add(old)
        number = max([number, *(int(turn.speaker[1:]) for turn in earlier)])
        for place, new in enumerate((name for name in self.voices if name not in labels), 1):
            labels[new] = f"S{number + place}"
        return Diarization(
            turns=tuple(replace(turn, speaker=labels[turn.speaker]) for turn in self.turns),
            voices={labels[name]: voice for name, voice in self.voices.items()},
        )


def diarize(
    channels: Mapping[int | None, SpeechWindows], bounds: SpeakerBounds | None = None
) -> Diarization:
    """Return a recording's speakers, `S1` and so on in order of appearance.

    Separately transcribed channels have separate speakers, and `bounds` apply to each channel.
    """
    clusterings = []
    for channel, windows in sorted(channels.items(), key=lambda pair: pair[0] or 0):
        if len(windows):
            vectors = windows.embeddings.astype(np.float32)
            clustering = find_speakers(vectors, bounds, lasts_s=windows.lasts_s)
            turns = turns_of(windows, clustering.labels, clustering.confidences, channel=channel)
            turns = with_overlaps(turns, windows.overlaps)
            clusterings.append((clustering.voices, turns))
    order = sorted(
        (min(turn.start_s for turn in turns if turn.speaker == str(number)), at, str(number))
        for at, (voices, turns) in enumerate(clusterings)
        for number in range(len(voices))
    )
    names = {(at, number): f"S{place}" for place, (_, at, number) in enumerate(order, 1)}
    return Diarization(
        turns=tuple(
            replace(turn, speaker=names[at, turn.speaker])
            for at, (_, turns) in enumerate(clusterings)
            for turn in turns
        ),
        voices={
            name: tuple(clusterings[at][0][int(number)].tolist())
            for (at, number), name in names.items()
        },
    )


def diarize_parts(
    parts: Iterable[tuple[int | None, SpeechWindows]], settings: "SpeakerSettings", *, name: str
) -> Diarization:
    """Return a recording's speakers from the channel and windows of each part, in order.

    A channel with fewer speakers than `settings` demand is logged, with the recording's name.
    """
    channels: dict[int | None, list[SpeechWindows]] = {}
    for channel, windows in parts:
        channels.setdefault(channel, []).append(windows)
    bounds = SpeakerBounds.of(settings.num_speakers, settings.min_speakers, settings.max_speakers)
    found = diarize(
        {
            channel: SpeechWindows.joined(channel_windows)
            for channel, channel_windows in channels.items()
        },
        bounds,
    )
    speakers = {(turn.channel, turn.speaker) for turn in found.turns}
    fewest = min(Counter(channel for channel, _ in speakers).values(), default=bounds.least)
    if fewest < bounds.least:
        _LOG.warning(
            "finding speakers of %s: found %d, expected %d: its speech is too short for more; "
            "check the number, or leave it out",
            name, fewest, bounds.least,
        )  # fmt: skip
    return found


def _shared_s(
    turns: Sequence[SpeakerTurn], others: Sequence[SpeakerTurn]
) -> Mapping[tuple[str, str], float]:
    """Return the seconds that each pair of an earlier and a new speaker speak simultaneously."""
    borders = sorted(
        (time_s, begins, which, turn.channel or 0, turn.speaker)
        for which, side_turns in enumerate((turns, others))
        for turn in side_turns
        if turn.start_s < turn.end_s
        for time_s, begins in ((turn.start_s, True), (turn.end_s, False))
    )
    speaking: tuple[set[tuple[int, str]], set[tuple[int, str]]] = (set(), set())
    shared_s: dict[tuple[str, str], float] = {}
    last_s = 0.0
    for time_s, begins, which, channel, speaker in borders:
        for at, new in speaking[0]:
            for of, old in speaking[1]:
                if at == of:
                    shared_s[new, old] = shared_s.get((new, old), 0.0) + time_s - last_s
        (speaking[which].add if begins else speaking[which].discard)((channel, speaker))
        last_s = time_s
    return shared_s


def turns_of(
    windows: SpeechWindows,
    labels: Int64[np.ndarray, " window"],
    confidences: Float64[np.ndarray, " window"],
    *,
    channel: int | None = None,
) -> list[SpeakerTurn]:
    """Return the turns of labeled windows; speakers are numbered by label."""
    if not len(windows):
        return []
    apart = windows.start_s[1:] - windows.end_s[:-1] > _APART_S
    new = np.append(True, apart | (labels[1:] != labels[:-1]))
    borders = [*np.flatnonzero(new).tolist(), len(labels)]
    return [
        SpeakerTurn(
            start_s=float(windows.start_s[first]),
            end_s=float(windows.end_s[stop - 1]),
            speaker=str(labels[first]),
            confidence=float(
                np.average(confidences[first:stop], weights=windows.lasts_s[first:stop])
            ),
            channel=channel,
        )
        for first, stop in pairwise(borders)
    ]


def with_overlaps(
    turns: Sequence[SpeakerTurn], overlaps: Sequence[tuple[float, float]]
) -> list[SpeakerTurn]:
    """Return the turns of one channel with those of overlaps: of the two nearest speakers.

    The given turns must be consecutive, and apart from overlaps.
    """
    added: list[SpeakerTurn] = []
    ends_s = [turn.end_s for turn in turns]
    for start_s, end_s in overlaps:
        at = bisect_right(ends_s, (start_s + end_s) / 2)
        near = [
            (max(start_s - turn.end_s, turn.start_s - end_s), turn)
            for turn in turns[max(0, at - _LOOK) : at + _LOOK]
        ]
        nearest: dict[str, SpeakerTurn] = {}
        for distance_s, turn in sorted(near, key=lambda pair: pair[0]):
            if distance_s < NEAR_S and len(nearest) < 2:
                nearest.setdefault(turn.speaker, turn)
        added += [replace(turn, start_s=start_s, end_s=end_s) for turn in nearest.values()]
    return _joined([*turns, *added]) if added else [*turns]


def _joined(turns: Sequence[SpeakerTurn]) -> list[SpeakerTurn]:
    """Merge touching or overlapping turns of a speaker; return them by start."""
    latest: dict[str, int] = {}
    joined: list[SpeakerTurn] = []
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        at = latest.get(turn.speaker)
        if at is not None and turn.start_s - joined[at].end_s <= _APART_S:
            joined[at] = replace(joined[at], end_s=max(joined[at].end_s, turn.end_s))
        else:
            latest[turn.speaker] = len(joined)
            joined.append(turn)
    return joined


def with_speakers(segments: Sequence[Segment], turns: Sequence[SpeakerTurn]) -> tuple[Segment, ...]:
    """Return segments and words with speakers, given the turns of their channel.

    A segment with words is split where the speaker changes; its pieces have no token IDs, which
    cannot be divided. A segment without words gets the speaker of most of its time.
    """
    timeline = Timeline(turns)
    return tuple(piece for segment in segments for piece in _pieces(segment, timeline))


class Timeline:
    """Turns of one channel, searchable by time."""

    def __init__(self, turns: Sequence[SpeakerTurn]) -> None:
        self._turns = sorted(turns, key=lambda turn: turn.start_s)
        # A short turn within a long one ends before it: search by the running maximum of ends.
        self._ends = [*accumulate((turn.end_s for turn in self._turns), max)]

    def speaker(
        self, start_s: float, end_s: float, *, sentence: tuple[float, float] | None = None
    ) -> str | None:
        """Return the speaker of most of a time span; else the nearest speaker.

        Of several who speak all the time, the one of most of its sentence, then the one whose turn
        begins or ends with that. `sentence` is its start and end; None for those of the span.
        """
        first = bisect_left(self._ends, start_s)
        sentence_start_s, sentence_end_s = sentence or (start_s, end_s)
        shares: dict[str, tuple[float, float, float]] = {}
        for turn in self._turns[bisect_left(self._ends, sentence_start_s) :]:
            if turn.start_s >= sentence_end_s:
                break
            word_s, sentence_s, nearness_s = shares.get(turn.speaker, (0.0, 0.0, -math.inf))
            edges_s = abs(turn.start_s - sentence_start_s), abs(turn.end_s - sentence_end_s)
            shares[turn.speaker] = (
                word_s + _overlap_s(turn, start_s, end_s),
                sentence_s + _overlap_s(turn, sentence_start_s, sentence_end_s),
                max(nearness_s, -min(edges_s)),
            )
        if any(word_s > 0.0 for word_s, *_ in shares.values()):
            return max(shares, key=lambda name: shares[name])
        near = [
            (max(turn.start_s - end_s, start_s - turn.end_s, 0.0), turn.speaker)
            for turn in self._turns[max(0, first - 1) : first + 2]
        ]
        distance_s, nearest = min(near, default=(NEAR_S, ""))
        return nearest if distance_s < NEAR_S else None


def _overlap_s(turn: SpeakerTurn, start_s: float, end_s: float) -> float:
    return max(0.0, min(turn.end_s, end_s) - max(turn.start_s, start_s))


def _pieces(segment: Segment, timeline: Timeline) -> Iterator[Segment]:
    if segment.speaker is not None:  # assigned manually
        words = [replace(word, speaker=segment.speaker) for word in segment.words or ()]
        yield replace(segment, words=None if segment.words is None else tuple(words))
        return
    if not segment.words:
        yield replace(segment, speaker=timeline.speaker(segment.start_s, segment.end_s))
        return
    speakers = [
        # Punctuation is said by nobody.
        timeline.speaker(word.start_s, word.end_s, sentence=sentence)
        if has_words(word.word)
        else None
        for word, sentence in zip(segment.words, _sentences(segment.words), strict=True)
    ]
    speakers = _at_pauses(segment.words, _filled(speakers))
    words = [
        replace(word, speaker=speaker)
        for word, speaker in zip(segment.words, speakers, strict=True)
    ]
    runs = [tuple(run) for _, run in groupby(words, key=lambda word: word.speaker)]
    if len(runs) == 1:
        yield replace(segment, speaker=words[0].speaker, words=runs[0])
        return
    for run in runs:
        first, last = run is runs[0], run is runs[-1]
        yield replace(
            segment,
            start_s=segment.start_s if first else run[0].start_s,
            end_s=segment.end_s if last else run[-1].end_s,
            text="".join(word.word for word in run),
            tokens=(),
            words=run,
            speaker=run[0].speaker,
        )


def _sentences(words: Sequence[Word]) -> Iterator[tuple[float, float]]:
    """Yield the start and end of each word's sentence."""
    first = 0
    for stop in range(1, len(words) + 1):
        if stop == len(words) or ends_sentence(words[stop - 1].word, words[stop].word):
            yield from [(words[first].start_s, words[stop - 1].end_s)] * (stop - first)
            first = stop


def _filled(speakers: Sequence[str | None]) -> list[str | None]:
    """Assign words in silence to the previous speaker, or else to the next one."""
    filled: list[str | None] = []
    for speaker in speakers:
        filled.append(speaker or (filled[-1] if filled else None))
    first = next((speaker for speaker in filled if speaker), None)
    return [speaker or first for speaker in filled]


def _at_pauses(words: Sequence[Word], speakers: Sequence[str | None]) -> list[str | None]:
    """Move speaker changes to the longest pause nearby, without removing any turn."""
    moved = list(speakers)
    for at in [at for at in range(1, len(words)) if speakers[at] != speakers[at - 1]]:
        previous, following = moved[at - 1], moved[at]
        if previous == following:
            continue
        first, last = at, at
        while first > 1 and moved[first - 2] == previous and _is_near(words, first - 1, at):
            first -= 1
        while (
            last + 1 < len(words) and moved[last + 1] == following and _is_near(words, last + 1, at)
        ):
            last += 1
        best = max(
            range(first, last + 1), key=lambda place: (_pause_s(words, place), -abs(place - at))
        )
        moved[best:at] = [following] * (at - best)
        moved[at:best] = [previous] * (best - at)
    return moved


def _is_near(words: Sequence[Word], place: int, other: int) -> bool:
    return abs(words[place].start_s - words[other].start_s) <= CHANGE_S


def _pause_s(words: Sequence[Word], place: int) -> float:
    previous = words[place - 1]
    ends = ends_sentence(previous.word, words[place].word)
    # Rounded to 10 ms, so that nearly equal pauses tie.
    return round(words[place].start_s - previous.end_s, 2) + (SENTENCE_PAUSE_S if ends else 0.0)
