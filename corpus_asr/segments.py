"""Result values: frozen, plain, free of torch, Arrow and Ray.

All times are seconds from the start of the recording.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def timestamp(seconds: float) -> str:
    """Write a time as WebVTT has it: MM:SS.mmm, with hours in front from the first hour on."""
    minutes, rest_ms = divmod(max(0, round(seconds * 1000.0)), 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{minutes:02d}:{rest_ms // 1000:02d}.{rest_ms % 1000:03d}"
    return f"{hours:02d}:{shown}" if hours else shown


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechSpan:
    """A span in which speech was detected, padding included."""

    start_s: float
    end_s: float


SHORTEST_GAP_S = 2.0
"""Less detected speech without text is not searched and not counted: spans are padded."""


def speech_without_text(
    speech: Sequence[SpeechSpan], texts: Iterable[tuple[float, float]], start_s: float, end_s: float
) -> list[list[SpeechSpan]]:
    """Return the detected speech of each gap between texts that holds `SHORTEST_GAP_S` of it.

    Gaps lie between `start_s` and `end_s`; `speech` is sorted, and its spans do not overlap.
    """
    edges = [start_s]
    for text in sorted(texts):
        edges += [min(max(edges[-1], edge_s), end_s) for edge_s in text]
    edges.append(end_s)
    gaps = [
        [
            SpeechSpan(start_s=max(first_s, span.start_s), end_s=min(last_s, span.end_s))
            for span in speech
            if span.end_s > first_s and span.start_s < last_s
        ]
        for first_s, last_s in zip(edges[::2], edges[1::2], strict=True)
    ]
    return [gap for gap in gaps if seconds_of(gap) >= SHORTEST_GAP_S]


def seconds_of(spans: Iterable[SpeechSpan]) -> float:
    """Return how long spans are together."""
    return sum(span.end_s - span.start_s for span in spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word with its blanks and punctuation; a segment's words joined are its text."""

    word: str
    start_s: float
    end_s: float
    probability: float
    """Mean probability of its tokens among text tokens, in 0-1."""
    speaker: str | None = None
    """Who says it; None where speakers were not asked for, or no turn is near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingWord:
    """A word of a given text that is not in the audio."""

    word: str
    """With its blanks and punctuation."""
    index: int
    """Its number in the text, from 0."""
    after_s: float
    """Where the last word before it that is in the audio ends; 0.0 if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A span of text with its times and scores."""

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...] = field(repr=False)
    """Token ids of the segment's text, timestamps and special tokens left out."""
    language: str | None
    language_probability: float | None
    """Probability of `language` among the languages considered; None where it was given."""
    task: str
    confidence: float
    """Estimated share of right words, in 0-1; see `confidence.py`."""
    avg_logprob: float
    """Mean log-probability over the whole window, end token included (Whisper's definition)."""
    no_speech_prob: float | None
    """Probability that its window holds no speech; None where the model has no token for that."""
    compression_ratio: float
    temperature: float
    speech_fraction: float | None
    """Share of the segment that overlaps detected speech; None without speech detection."""
    known_hallucination: bool = False
    """Whether the whole text is a sentence that Whisper is known to write where nobody speaks."""
    words: tuple[Word, ...] | None = None
    """The segment word by word; None where word times were not asked for."""
    text_logprob: float | None = None
    """Mean log-probability of the segment's own text tokens; None where it was not kept."""
    corrected: bool = False
    """Whether a person corrected or checked the text."""
    speaker: str | None = None
    """Who says it; None where speakers were not asked for, or no turn is near."""
    level_dbfs: float | None = None
    """How the sound is, with the next three; None where it was not measured."""
    snr_db: float | None = None
    bandwidth_hz: float | None = None
    clipped_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerTurn:
    """A span in which one person speaks."""

    start_s: float
    end_s: float
    speaker: str
    """`S1`, `S2` ... in order of appearance in the recording, or a name that people gave."""
    confidence: float
    """Estimated probability that it is this one of the recording's speakers, in 0-1."""
    channel: int | None = None
    """Number of the channel transcribed separately; None where channels are mixed."""
    label: str | None = None
    """The speaker as the run names them, where `speaker` is a name; None: the same."""


Label = tuple[str, float]
"""A language code or the name of a class, and its probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledWindow:
    """The likeliest labels of one window."""

    start_s: float
    end_s: float
    weight_s: float
    """Detected speech in it; all of it without speech detection."""
    labels: tuple[Label, ...]
    """Likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLabels:
    """What a part's windows are, and what it is on average."""

    windows: tuple[LabelledWindow, ...]
    means: tuple[Label, ...]
    """Over windows, by their weights; likeliest first, and not all where there are many."""
    weight_s: float
    """Sum of the windows' weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedText:
    """Which words of a known text a part says."""

    words: tuple[str, ...]
    """All of the text, joined the text itself with single blanks."""
    indices: tuple[tuple[int, ...], ...]
    """Of each segment the number of each of its words in the text, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTranscript:
    """What one part says."""

    segments: tuple[Segment, ...] = ()
    language: str | None = None
    language_probability: float | None = None
    languages: tuple[tuple[str, float], ...] = ()
    """The candidates, where the language is all that was wanted."""
    transcribe_s: float = 0.0
    """Wall time from submission to result, which the engine sets."""
    speech_without_text_s: float | None = None
    """Detected speech in gaps of text, which the engine sets; None where that is not known."""
    labels: PartLabels | None = None
    """In place of segments, where the part was classified."""
    placed: PlacedText | None = None
    """Where the text was known; its words are those of the segments."""
    elsewhere: bool = False
    """Whether another model transcribes the part, as it does all in this language."""


def place_of(
    channel: int | None, audio_track: int | None, audio_tracks: Sequence[str] | None
) -> tuple[int | None, int | None]:
    """Return the channel, from 0, and the audio track, from 1, in which a segment is said.

    The channel is None where all are mixed, the track where there is one. `audio_track` and
    `audio_tracks` are those of the recording: where each track was transcribed, `channel` is its
    number.
    """
    if audio_track is None and audio_tracks:
        return None, channel
    return channel, audio_track


def channel_name(
    channel: int | None, audio_track: int | None, audio_tracks: Sequence[str] | None
) -> str:
    """Name a channel or track that was transcribed separately, such as `channel 0`."""
    if audio_track is not None or not audio_tracks:
        return f"channel {channel}"
    named = audio_tracks[channel - 1] if channel and channel <= len(audio_tracks) else ""
    return f"track {channel} {named}".rstrip()
