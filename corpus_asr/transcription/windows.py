"""Windows of a part: frame ranges to decode, requested spans and cut positions.

Positions are frames of 10 ms from the start of the part; times in results are recording times.

Window padding follows the reference implementations, since transcripts depend on it. A recording
that fits one window is encoded as a clip followed by digital silence. The last window of a longer
one is cut at its last whole frame and padded with 0.0, a value that digital silence does not have.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from corpus_asr.array_types import Float, Float16
from corpus_asr.config.decoding import DecodingSettings, Hotword
from corpus_asr.families.registry import PartFeatures
from corpus_asr.segments import PartTranscript, Segment, SpeechSpan
from corpus_asr.units import (
    FRAMES_PER_SECOND,
    HOP_SAMPLES,
    LONG_SILENCE_S,
    SAMPLE_RATE_HZ,
    TAIL_FRAMES,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
)

# Minimum overlap of Whisper's times with silence that is corrected.
_HELD_S = 0.5
_TOUCHED_S = 1.0  # detected speech is padded by up to half a second at both ends

# Read English has 14 in a second. Slower speech is not lost: its words are timed for nothing.
_LEAST_BYTES_PER_S = 11

# Measured in README.md of this folder; 48 of 157 clips in 39 languages are below it.
_UNCERTAIN_LANGUAGE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language and its detection probability; None where the language was configured."""

    code: str | None
    probability: float | None
    candidates: tuple[tuple[str, float], ...] = ()
    """Candidate languages with their probabilities, most likely first."""

    @property
    def is_uncertain(self) -> bool:
        """Whether it was detected with a probability below one half."""
        return self.probability is not None and self.probability < _UNCERTAIN_LANGUAGE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """One window to decode."""

    number: int = 0
    """Number of windows before it."""
    seek: int
    """First frame."""
    end: int
    """Frame at which its span ends."""
    content_frames: int
    """Audio frames, padding excluded."""
    features: Float[np.ndarray, "mel frame"]
    num_frames: int | None
    """Encoded frames; None for all."""
    language: Language
    prompt: tuple[int, ...]
    start_position: int = 0
    """Position of the start token in the prompt."""
    num_prefix: int = 0
    """Number of last prompt tokens that are the beginning of the text."""
    resumes: bool = False
    """Whether these prompt tokens are an unfinished text of this window."""
    max_new_tokens: int

    @property
    def name(self) -> tuple[int, int]:
        """Key of the window among its task's jobs: windows with equal keys are encoded once."""
        return self.seek, self.end


Listener = Callable[[float, Sequence[Segment]], None]
"""Called with the seconds of the part transcribed so far and the segments that became final."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownText:
    """Transcript of a recording, to be aligned with its parts instead of recognition."""

    text: str
    """Text of the whole recording."""
    name: str
    """Name of the recording in messages."""
    is_first: bool = True
    """Whether no words of the text precede this part."""
    is_last: bool = True
    """Whether no words of the text follow this part."""
    place: tuple[float, float] | None = None
    """Position of the part in the recording, as fractions of its duration; None if unknown."""
    clip: tuple[float, float] = (0.0, math.inf)
    """Start and end of the span that the text covers, in seconds of the recording."""

    @classmethod
    def of_part(
        cls,
        text: str,
        *,
        name: str,
        start_s: float,
        end_s: float,
        duration_s: float | None,
        is_first: bool,
        is_last: bool,
        clip: tuple[float, float] = (0.0, math.inf),
    ) -> "KnownText":
        """Return the text for a part of a recording, given the duration from its header."""
        place = None
        first_s, last_s = clip
        if duration_s or last_s < math.inf:
            last_s = min(last_s, max(duration_s or math.inf, end_s))  # a header may be wrong
            length_s = max(last_s - first_s, end_s - start_s)
            place = (
                max(0.0, start_s - first_s) / length_s,
                min(1.0, max(0.0, end_s - first_s) / length_s),
            )
        return cls(
            text=text,
            name=name,
            is_first=is_first or start_s <= first_s < end_s,
            is_last=is_last or start_s < last_s <= end_s,
            place=place,
            clip=clip,
        )

    def clipped(self, settings: DecodingSettings) -> DecodingSettings:
        """Return settings restricted to the span of the recording that the text covers."""
        if self.clip == (0.0, math.inf):
            return settings
        return replace(
            settings, clip_timestamps=tuple(edge_s for edge_s in self.clip if edge_s < math.inf)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRequest:
    """One part of a recording, ready to be transcribed."""

    recording_id: str
    part: int
    features: Float16[np.ndarray, "frame mel"]
    num_samples: int
    pad_value: float
    """Feature value of digital silence."""
    start_s: float
    speech: tuple[SpeechSpan, ...] | None
    """Detected speech in recording time, in order; None without speech detection."""
    language_features: Float16[np.ndarray, "_ mel"] | None = None
    """Whole windows for language detection, concatenated, if they lie in another part."""
    listener: "Listener | None" = None
    """Called after each window, on the engine's thread."""
    hotwords: tuple[Hotword, ...] = ()
    """Hotwords of this recording, in addition to those of the settings."""
    known_text: KnownText | None = None
    """Transcript to align instead of recognition; None if it is unknown."""
    detect_only: bool = False
    """Whether only the language is detected."""
    further: Mapping[str, PartFeatures] = field(default_factory=dict)
    """Features of additional kinds, by kind, for models with different inputs."""
    decoding: DecodingSettings | None = None
    """Decoding settings of this part; None for those of the engine."""

    def with_kind(self, kind: str | None) -> "PartRequest":
        """Return the part for a model with another kind of features; None is the primary kind."""
        if kind is None:
            return self
        features = self.further[kind]
        return replace(
            self,
            features=features.values,
            pad_value=features.pad_value,
            language_features=None,
        )

    def features_of(self, kind: str) -> Float16[np.ndarray, "frame mel"]:
        """Return the features of a kind; an unknown kind returns the primary ones."""
        features = self.further.get(kind)
        return self.features if features is None else features.values

    @property
    def num_frames(self) -> int:
        """Number of whole content frames."""
        return self.num_samples // HOP_SAMPLES

    @property
    def end_s(self) -> float:
        """End of the last sample, in recording time (seconds)."""
        return self.start_s + self.num_samples / SAMPLE_RATE_HZ

    def seconds(self, frame: int) -> float:
        """Convert a frame to recording time in seconds."""
        return self.start_s + frame / FRAMES_PER_SECOND

    def frame(self, time_s: float) -> int:
        """Convert a recording time to a frame within the part."""
        frame = round((time_s - self.start_s) * FRAMES_PER_SECOND)
        return min(max(frame, 0), self.num_frames)

    def silent(self) -> "PartRequest":
        """Return the part with a listener that receives progress but no segments."""
        listener = self.listener
        if listener is None:
            return self
        return replace(self, listener=lambda transcribed_s, _: listener(transcribed_s, ()))

    @property
    def fits_one_window(self) -> bool:
        """Whether the part is a whole recording of at most one window.

        A part that starts later belongs to a longer recording. A first part that is cut as short as
        a window counts as a whole recording.
        """
        return self.start_s == 0 and self.num_samples <= WINDOW_SAMPLES

    def window(self, start: int, end: int) -> Float16[np.ndarray, "mel frame"]:
        """Cut one whole window from frame `start`, with content up to frame `end` at most.

        Source: `transformers` pads a short clip's samples and, in long form, the last window's
        features; openai-whisper's `transcribe` does the latter whatever the length.
        """
        if self.fits_one_window:
            return self.window_in_silence(start, end)
        return pad_window(self.features[start : min(start + WINDOW_FRAMES, end)], 0.0)

    def window_in_silence(self, start: int, end: int) -> Float16[np.ndarray, "mel frame"]:
        """Cut one whole window from frame `start`, with digital silence from frame `end`.

        The first frames of the silence still overlap the content, so they are kept.

        Source: openai-whisper `detect_language`; `transformers`' chunked pipeline.
        """
        stop = min(start + WINDOW_FRAMES, end + TAIL_FRAMES, len(self.features))
        return pad_window(self.features[start:stop], self.pad_value)

    def next_speech(self, frame: int, end: int) -> int | None:
        """Return the frame to continue at after long silence; None if no speech follows."""
        if frame >= end:  # even if a span reaches into the last, incomplete frame
            return None
        if self.speech is None:
            return frame
        now_s, end_s = self.seconds(frame), self.seconds(end)
        for span in self.speech:
            if span.end_s > now_s and span.start_s < end_s:
                near = span.start_s - now_s <= LONG_SILENCE_S
                start = frame if near else self.frame(span.start_s)
                return start if start < end else None
        return None

    def without_silence(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Remove long silence at the start or end of a span.

        A span without speech is unchanged, since the position of its text is unknown. Speech beyond
        a silence that mostly belongs to another span is only touched at its edge.
        """
        speech = [
            span for span in self.speech or () if span.end_s > start_s and span.start_s < end_s
        ]
        while len(speech) > 1 and self._touches(speech[-1], speech[-2].end_s, start_s, end_s):
            speech.pop()
        while len(speech) > 1 and self._touches(speech[0], speech[1].start_s, start_s, end_s):
            del speech[0]
        if not speech:
            return start_s, end_s
        first_s, last_s = speech[0].start_s, speech[-1].end_s
        return (
            first_s if first_s - start_s >= _HELD_S else start_s,
            last_s if end_s - last_s >= _HELD_S else end_s,
        )

    @staticmethod
    def _touches(span: SpeechSpan, other_s: float, start_s: float, end_s: float) -> bool:
        inside_s = min(end_s, span.end_s) - max(start_s, span.start_s)
        silence_s = max(span.start_s - other_s, other_s - span.end_s)
        is_short = inside_s < min(_TOUCHED_S, (span.end_s - span.start_s) / 2)
        return is_short and silence_s >= _HELD_S

    def is_cut_in_speech(self, frame: int) -> bool:
        """Whether a frame lies within detected speech, before the end of the audio."""
        time_s = self.seconds(frame)
        return frame < self.num_frames and any(
            span.start_s < time_s < span.end_s for span in self.speech or ()
        )

    def is_stretched(self, text: str, start_s: float, end_s: float) -> bool:
        """Whether a text is too short for the speech of its span, so that it omits some.

        Without detection all audio is speech. Languages say similar numbers of bytes each second.
        """
        fraction = self.speech_fraction(start_s, end_s) if end_s > start_s else 0.0
        speech_s = (1.0 if fraction is None else fraction) * (end_s - start_s)
        said_s = len(text.strip().encode()) / _LEAST_BYTES_PER_S
        return speech_s - said_s >= SHORTEST_GAP_S

    def speech_fraction(self, start_s: float, end_s: float) -> float | None:
        """Fraction of a span that is detected speech; None without speech detection."""
        if self.speech is None:
            return None
        overlaps = (min(end_s, span.end_s) - max(start_s, span.start_s) for span in self.speech)
        return min(1.0, sum(max(0.0, overlap) for overlap in overlaps) / (end_s - start_s))


def frames_to_encode(content_frames: int, padding_s: float | None) -> int | None:
    """Number of encoded frames of a window, content and padding; None for all.

    Rounded up to whole seconds to limit the number of distinct lengths.
    """
    if padding_s is None:
        return None  # as in training: every window of the references is 30 s
    seconds = math.ceil(content_frames / FRAMES_PER_SECOND + padding_s)
    frames = max(1, seconds) * FRAMES_PER_SECOND
    return frames if frames < WINDOW_FRAMES else None


def pad_window(
    features: Float16[np.ndarray, "content mel"], pad_value: float
) -> Float16[np.ndarray, "mel frame"]:
    """Pad to one window with `pad_value` and return it with the mel axis first."""
    window = np.full((WINDOW_FRAMES, features.shape[1]), pad_value, dtype=np.float16)
    window[: len(features)] = features
    return window.T


def clip_ranges(part: PartRequest, clip_timestamps: Sequence[float]) -> list[tuple[int, int]]:
    """Restrict the clips to the part; without clips the result is the whole part.

    Clips are start, end, start, end ... in seconds of the recording, ascending; a missing last end
    means the end of the recording.

    Source: openai-whisper `transcribe`, `clip_timestamps`.
    """
    frames = [part.frame(edge_s) for edge_s in clip_timestamps or [0.0]]
    if len(frames) % 2:
        frames.append(part.num_frames)
    return [(start, end) for start, end in list(pairwise(frames))[::2] if end > start]


SHORTEST_GAP_S = 2.0
"""Minimum detected speech without text, in seconds: shorter spans are mostly padding."""


# At a cut within speech there is no pause, so that a word is more than what texts are off by.
_SHORTEST_CUT_GAP_S = 0.8


def speech_without_text(
    speech: Sequence[SpeechSpan],
    texts: Iterable[tuple[float, float]],
    start_s: float,
    end_s: float,
    cuts_s: Sequence[float] = (),
) -> list[list[SpeechSpan]]:
    """Return the detected speech in each gap between texts with at least `SHORTEST_GAP_S` of it.

    Gaps lie between `start_s` and `end_s`; less counts where a span has one of `cuts_s` in it or at
    an end. `speech` is sorted, and its spans do not overlap.
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

    def shortest_s(gap: Iterable[SpeechSpan]) -> float:
        is_cut = any(span.start_s <= cut_s <= span.end_s for span in gap for cut_s in cuts_s)
        return _SHORTEST_CUT_GAP_S if is_cut else SHORTEST_GAP_S

    return [gap for gap in gaps if seconds_of(gap) >= shortest_s(gap)]


def seconds_of(spans: Iterable[SpeechSpan]) -> float:
    """Return the total duration of spans."""
    return sum(span.end_s - span.start_s for span in spans)


def speech_without_text_s(
    part: PartRequest, transcript: PartTranscript, settings: DecodingSettings
) -> float | None:
    """Seconds of detected speech without text in a part; None without detection or for labels."""
    if part.speech is None or transcript.labels is not None:
        return None
    if part.known_text is not None:
        settings = part.known_text.clipped(settings)
    texts = [(segment.start_s, segment.end_s) for segment in transcript.segments]
    clips = (
        (part.seconds(start), part.seconds(end))
        for start, end in clip_ranges(part, settings.clip_timestamps)
    )
    return sum(
        seconds_of(gap)
        for clip in clips
        for gap in speech_without_text(part.speech, texts, *clip, (*clip, *transcript.cuts_s))
    )


def holds_the_beginning(part: PartRequest, clip_timestamps: Sequence[float]) -> bool:
    """Whether the start of the first requested clip lies in this part."""
    first_s = clip_timestamps[0] if clip_timestamps else 0.0
    return part.start_s <= first_s < part.end_s


# What a window costs, in ranks of loudness: one more is worth a cut that is quieter by so much.
_WINDOW_COST = 0.3
# What a cut between spans gains, at most, that lie a second and more apart: the longest are chosen.
_PAUSE_GAIN = 0.1
# Of so many frames the quietest is a candidate for a cut, at least four in a window.
_CUT_FRAMES = 50
# Frames over which loudness is averaged: longer than the closure of a stop consonant.
_PAUSE_FRAMES = 30


Loudness = Callable[[Float16[np.ndarray, "frame mel"]], Float[np.ndarray, " frame"]]


def mean_loudness(
    features: Float16[np.ndarray, "frame mel"],
) -> Float[np.ndarray, " frame"]:
    """Return the mean log-mel value of each frame as a measure of loudness."""
    means: Float[np.ndarray, " frame"] = features.mean(axis=1, dtype="float32")
    return means


def chunk_ranges(
    part: PartRequest,
    clips: Sequence[tuple[int, int]],
    *,
    window_frames: int = WINDOW_FRAMES,
    pause_frames: int = WINDOW_FRAMES,
    silence_frames: int = 0,
    loudness: Loudness = mean_loudness,
) -> list[tuple[int, int]]:
    """Split frame ranges of a part into ranges of at most one window, without long pauses.

    Longer ranges are cut into the fewest windows that do, between speech spans, else where it is
    quiet. Without speech detection each range is one span. The first and the last range of a clip
    keep up to `silence_frames` of silence if they fit the window.

    Source: WhisperX's "cut and merge" (Bain et al. 2023, section 3), which however fills windows
    one after the other, and leaves one half empty rather than cut a span that would fit the next.
    """
    return [
        chunk
        for first, last in clips
        for chunk in _with_silence(
            _full_windows(part, _spans(part, first, last), window_frames, pause_frames, loudness),
            (first, last),
            window_frames,
            silence_frames,
        )
    ]


def _spans(part: PartRequest, first: int, last: int) -> list[tuple[int, int]]:
    if part.speech is None:
        return [(first, last)]
    spans = ((part.frame(span.start_s), part.frame(span.end_s)) for span in part.speech)
    return [(max(first, start), min(last, end)) for start, end in spans]


def _full_windows(
    part: PartRequest,
    spans: Sequence[tuple[int, int]],
    window_frames: int,
    pause_frames: int,
    loudness: Loudness,
) -> list[tuple[int, int]]:
    groups: list[list[tuple[int, int]]] = []
    for start, end in spans:
        if end <= start:
            continue
        if groups and start - groups[-1][-1][1] <= pause_frames:
            groups[-1].append((start, end))
        else:
            groups.append([(start, end)])
    return [chunk for group in groups for chunk in _cut(part, group, window_frames, loudness)]


def _cut(
    part: PartRequest,
    spans: Sequence[tuple[int, int]],
    window_frames: int,
    loudness: Loudness,
) -> list[tuple[int, int]]:
    """Cut speech spans into ranges of at most a window, at the least cost of windows and cuts."""
    first, last = spans[0][0], spans[-1][1]
    if last - first <= window_frames:
        return [(first, last)]
    ends, starts, costs = _cuts(part, spans, window_frames, loudness)
    # Least cost of what is before each candidate, and the candidate before it of which that is.
    least, before = np.zeros(len(ends)), np.zeros(len(ends), np.int64)
    earliest = np.searchsorted(starts, ends - window_frames)
    for cut in range(1, len(ends)):
        chosen = earliest[cut] + int(least[earliest[cut] : cut].argmin())
        before[cut] = chosen
        least[cut] = least[chosen] + costs[cut] + _WINDOW_COST
    chunks: list[tuple[int, int]] = []
    cut = len(ends) - 1
    while cut:
        chunks.append((int(starts[before[cut]]), int(ends[cut])))
        cut = int(before[cut])
    return chunks[::-1]


def _cuts(
    part: PartRequest,
    spans: Sequence[tuple[int, int]],
    window_frames: int,
    loudness: Loudness,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return candidates: where a range ends, where the next one starts, and what a cut costs.

    A cut within speech costs the share of its frames that are quieter; one between spans less
    than nothing. The first candidate is the start of the spans, the last one their end.
    """
    first, last = spans[0][0], spans[-1][1]
    mean = np.full(_PAUSE_FRAMES, 1 / _PAUSE_FRAMES, dtype=np.float32)
    levels = loudness(part.features[first:last])
    after = last - first - len(levels)  # features may end before the last frame
    padded = np.pad(levels, (_PAUSE_FRAMES // 2, _PAUSE_FRAMES // 2 + after), mode="edge")
    around = np.convolve(padded, mean, mode="valid")[:-1]
    frames = np.concatenate([np.arange(start, end) for start, end in spans])
    quiet = np.sort(around[frames - first])
    block_frames = min(_CUT_FRAMES, max(1, window_frames // 4))
    ends, starts = [first], [first]
    for (start, end), (following, _) in zip(spans, [*spans[1:], (last, last)], strict=True):
        for block in range(start, end, block_frames):
            values = around[block - first : min(block + block_frames, end) - first]
            frame = block + int(values.argmin())
            if frame > start:
                ends.append(frame)
                starts.append(frame)
        ends.append(end)
        starts.append(following)
    end_frames, start_frames = np.array(ends), np.array(starts)
    costs = np.searchsorted(quiet, around[np.minimum(end_frames, last - 1) - first]) / len(quiet)
    pauses_s = (start_frames - end_frames) / FRAMES_PER_SECOND
    costs = np.where(pauses_s > 0, -_PAUSE_GAIN * np.minimum(1.0, pauses_s), costs)
    costs[-1] = 0.0
    return end_frames, start_frames, costs


def _with_silence(
    chunks: Sequence[tuple[int, int]],
    clip: tuple[int, int],
    window_frames: int,
    silence_frames: int,
) -> list[tuple[int, int]]:
    """Extend the first chunk of a clip backward and the last one forward into silence."""
    widened = list(chunks)
    if widened:
        start, end = widened[0]
        widened[0] = max(clip[0], start - silence_frames, end - window_frames), end
        start, end = widened[-1]
        widened[-1] = start, min(clip[1], end + silence_frames, start + window_frames)
    return widened
