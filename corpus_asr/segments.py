"""Result values: frozen, plain, independent of torch, Arrow and Ray.

All times are seconds from the start of the recording.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


def timestamp(seconds: float) -> str:
    """Format a time as in WebVTT: MM:SS.mmm, with hours from the first hour on."""
    minutes, rest_ms = divmod(max(0, round(seconds * 1000.0)), 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{minutes:02d}:{rest_ms // 1000:02d}.{rest_ms % 1000:03d}"
    return f"{hours:02d}:{shown}" if hours else shown


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechSpan:
    """A time span with detected speech, padding included."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word with its spaces and punctuation; concatenated, a segment's words are its text."""

    word: str
    start_s: float
    end_s: float
    probability: float
    """Mean probability of its tokens among text tokens, in 0-1."""
    speaker: str | None = None
    """Speaker; None without diarization, or without a turn nearby."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingWord:
    """A word of a given text that is absent from the audio."""

    word: str
    """With its spaces and punctuation."""
    index: int
    """Index in the text, from 0."""
    after_s: float
    """End of the last preceding word that is in the audio; 0.0 if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A time span with its text and scores."""

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...] = field(repr=False)
    """Token IDs of the text, excluding timestamps and special tokens."""
    language: str | None
    language_probability: float | None
    """Probability of `language` among the candidates; None if it was given."""
    task: str
    confidence: float
    """Estimated fraction of correct words, 0 to 1; see `confidence.py`."""
    avg_logprob: float
    """Mean log-probability over the whole window, end token included (Whisper's definition)."""
    no_speech_prob: float | None
    """Probability that its window has no speech; None if the model has no token for that."""
    compression_ratio: float
    temperature: float
    speech_fraction: float | None
    """Fraction of the segment that overlaps detected speech; None without speech detection."""
    known_hallucination: bool = False
    """Whether the text is a sentence that Whisper is known to hallucinate in silence, or that of an
    English-only model on what is probably another language."""
    words: tuple[Word, ...] | None = None
    """Words of the segment; None without word timestamps."""
    text_logprob: float | None = None
    """Mean log-probability of the segment's own text tokens; None if unknown."""
    corrected: bool = False
    """Whether a person corrected or checked the text."""
    speaker: str | None = None
    """Speaker; None without diarization, or without a turn nearby."""
    level_dbfs: float | None = None
    """Audio quality, with the next three; None if not measured."""
    snr_db: float | None = None
    bandwidth_hz: float | None = None
    clipped_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerTurn:
    """A time span of one speaker."""

    start_s: float
    end_s: float
    speaker: str
    """`S1`, `S2` ... in order of appearance in the recording, or a name given by people."""
    confidence: float
    """Estimated probability, 0 to 1, that it is this speaker of the recording."""
    channel: int | None = None
    """Channel number, if channels were transcribed separately; None if mixed."""
    label: str | None = None
    """The run's label, if `speaker` is a name; None: the same."""


Label = tuple[str, float]
"""A language code or class name, and its probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledWindow:
    """Most probable labels of one window."""

    start_s: float
    end_s: float
    weight_s: float
    """Detected speech in it, in seconds; its length without speech detection."""
    labels: tuple[Label, ...]
    """Most probable first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLabels:
    """Labels of a part's windows, and their average."""

    windows: tuple[LabelledWindow, ...]
    means: tuple[Label, ...]
    """Weighted average over windows; most probable first, truncated if there are many."""
    weight_s: float
    """Sum of the windows' weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedText:
    """Words of a known text that are in a part."""

    words: tuple[str, ...]
    """All words; joined with single spaces they are the text."""
    indices: tuple[tuple[int, ...], ...]
    """Per segment, the index of each of its words in the text, ascending."""
    extra_words: int = 0
    """Number of recognized words that are not in the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTranscript:
    """Result of one part."""

    segments: tuple[Segment, ...] = ()
    language: str | None = None
    language_probability: float | None = None
    languages: tuple[tuple[str, float], ...] = ()
    """Candidate languages, if only the language was requested."""
    transcribe_s: float = 0.0
    """Wall time from submission to result, set by the engine."""
    speech_without_text_s: float | None = None
    """Detected speech in gaps between texts, set by the engine; None if unknown."""
    labels: PartLabels | None = None
    """Labels instead of segments, for a classification."""
    placed: PlacedText | None = None
    """Aligned words of a known text; its words are those of the segments."""
    other_language: bool = False
    """Whether an English-only model was probably given another language."""
    cuts_s: tuple[float, ...] = ()
    """Times at which windows were cut within speech."""
    elsewhere: bool = False
    """Whether the part must be transcribed by the model for its language."""


def place_of(
    channel: int | None, audio_track: int | None, audio_tracks: Sequence[str] | None
) -> tuple[int | None, int | None]:
    """Return the channel, from 0, and the audio track, from 1, of a segment.

    The channel is None if all are mixed, the track if there is only one. `audio_track` and
    `audio_tracks` are of the recording: if each track was transcribed, `channel` is the track's
    index.
    """
    if audio_track is None and audio_tracks:
        return None, channel
    return channel, audio_track


def channel_name(
    channel: int | None, audio_track: int | None, audio_tracks: Sequence[str] | None
) -> str:
    """Return the name of a separately transcribed channel or track, such as `channel 0`."""
    if audio_track is not None or not audio_tracks:
        return f"channel {channel}"
    named = audio_tracks[channel - 1] if channel and channel <= len(audio_tracks) else ""
    return f"track {channel} {named}".rstrip()
