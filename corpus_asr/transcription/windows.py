"""What is decoded of a part: its windows, the spans asked for, and where cuts lie.

Positions are frames of 10 ms from the start of the part; times in results are recording times.

What fills a window after its content follows the references, since texts hang on it. A recording
that fits one window is encoded as a clip with digital silence after it. The last window of a longer
one is cut at its last whole frame and filled with 0.0, which no silence looks like.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from corpus_asr.array_types import Float, Float16
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.hotwords import Hotword
from corpus_asr.families.registry import PartFeatures
from corpus_asr.segments import Segment, SpeechSpan, seconds_of, speech_without_text
from corpus_asr.units import (
    FRAMES_PER_SECOND,
    HOP_SAMPLES,
    LONG_SILENCE_S,
    SAMPLE_RATE_HZ,
    TAIL_FRAMES,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
)

# Times of Whisper reach into silence by this and more before that is a fault to be mended.
_HELD_S = 0.5
_TOUCHED_S = 1.0  # detected speech begins and ends up to half a second outside of its sound


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language and how sure the model is; no probability where it was given."""

    code: str | None
    probability: float | None
    candidates: tuple[tuple[str, float], ...] = ()
    """Each language it was chosen among, with its probability, the likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """One window to decode."""

    number: int = 0
    """How many came before it."""
    seek: int
    """Its first frame."""
    end: int
    """Where the span it belongs to ends."""
    content_frames: int
    """Frames of audio in it, padding left out."""
    features: Float[np.ndarray, "mel frame"]
    num_frames: int | None
    """Those that are encoded; None for all."""
    language: Language
    prompt: tuple[int, ...]
    start_position: int = 0
    """Of the start token in the prompt."""
    num_prefix: int = 0
    """Last tokens of the prompt with which the text begins."""
    resumes: bool = False
    """Whether these are a text of this window that has more to say."""
    max_new_tokens: int

    @property
    def name(self) -> tuple[int, int]:
        """What it is called among its task's jobs: what is called the same is encoded once."""
        return self.seek, self.end


Listener = Callable[[float, Sequence[Segment]], None]
"""Takes how many seconds of the part are transcribed, and the segments that became final."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownText:
    """What is said in a recording, to be placed in its parts in place of what is recognized."""

    text: str
    """Of the whole recording."""
    name: str
    """What messages call the recording."""
    is_first: bool = True
    """Whether nothing of the text can lie before this part."""
    is_last: bool = True
    """Whether nothing of the text can lie after this part."""
    place: tuple[float, float] | None = None
    """Where the part lies in the recording, as fractions of it; None: not known."""
    clip: tuple[float, float] = (0.0, math.inf)
    """Seconds of the recording that the text is of."""

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
        """Return the text for a part of a recording that lasts as long as its header says."""
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
        """Return settings for no more of the recording than the text is of."""
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
    """What the features hold where there is digital silence."""
    start_s: float
    speech: tuple[SpeechSpan, ...] | None
    """Detected speech in recording time, in order; None without speech detection."""
    language_features: Float16[np.ndarray, "_ mel"] | None = None
    """Whole windows to detect the language in, one after the other, if they lie in another part."""
    listener: "Listener | None" = None
    """Told of each window, from the engine's thread."""
    hotwords: tuple[Hotword, ...] = ()
    """Of this recording, besides those of the settings."""
    known_text: KnownText | None = None
    """In place of recognition; None for recordings of which the text is not known."""
    detect_only: bool = False
    """Whether its language is all that is wanted."""
    further: Mapping[str, PartFeatures] = field(default_factory=dict)
    """Features of further kinds, by kind, for models that take others."""
    decoding: DecodingSettings | None = None
    """How it is decoded; None: by the engine's settings."""

    def with_kind(self, kind: str | None) -> "PartRequest":
        """Return the part for a model that takes features of a further kind; None: the first."""
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
        """Return the features of a kind: the first ones are of the kind that no further one is."""
        features = self.further.get(kind)
        return self.features if features is None else features.values

    @property
    def num_frames(self) -> int:
        """Whole frames of content."""
        return self.num_samples // HOP_SAMPLES

    @property
    def end_s(self) -> float:
        """Recording time of the last sample's end."""
        return self.start_s + self.num_samples / SAMPLE_RATE_HZ

    def seconds(self, frame: int) -> float:
        """Recording time of a frame."""
        return self.start_s + frame / FRAMES_PER_SECOND

    def frame(self, time_s: float) -> int:
        """The frame at a recording time, kept inside the part."""
        frame = round((time_s - self.start_s) * FRAMES_PER_SECOND)
        return min(max(frame, 0), self.num_frames)

    def silent(self) -> "PartRequest":
        """Return it with a listener that is told how far it is, and nothing of what it says."""
        listener = self.listener
        if listener is None:
            return self
        return replace(self, listener=lambda transcribed_s, _: listener(transcribed_s, ()))

    @property
    def fits_one_window(self) -> bool:
        """Whether this is all of a recording of at most one window.

        A part that starts later belongs to a longer one. (Where parts are cut as short as windows,
        a first part counts as all there is.)
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
        """Cut one whole window from frame `start`; from `end` on it holds digital silence.

        The first frames of that silence still touch the content, so those are kept.

        Source: openai-whisper `detect_language`; `transformers`' chunked pipeline.
        """
        stop = min(start + WINDOW_FRAMES, end + TAIL_FRAMES, len(self.features))
        return pad_window(self.features[start:stop], self.pad_value)

    def next_speech(self, frame: int, end: int) -> int | None:
        """Where decoding goes on from `frame`: past long silence; None if no speech follows."""
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
        """Cut off the long silence in which a span begins or ends.

        A span of no speech is not cut: where its text was said is not known. Of speech behind a
        silence that is another's for the most part, the span only touches the beginning or end.
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

    def speech_fraction(self, start_s: float, end_s: float) -> float | None:
        """Share of a span that lies in detected speech; None without detection."""
        if self.speech is None:
            return None
        overlaps = (min(end_s, span.end_s) - max(start_s, span.start_s) for span in self.speech)
        return min(1.0, sum(max(0.0, overlap) for overlap in overlaps) / (end_s - start_s))


def frames_to_encode(content_frames: int, padding_s: float | None) -> int | None:
    """Frames of a window that are encoded: content and padding; None for all.

    They are whole seconds, so that windows come in few lengths.
    """
    if padding_s is None:
        return None  # as in training: every window of the references is 30 s
    seconds = math.ceil(content_frames / FRAMES_PER_SECOND + padding_s)
    frames = max(1, seconds) * FRAMES_PER_SECOND
    return frames if frames < WINDOW_FRAMES else None


def pad_window(
    features: Float16[np.ndarray, "content mel"], pad_value: float
) -> Float16[np.ndarray, "mel frame"]:
    """Fill up to one window with `pad_value` and put the mel axis first."""
    window = np.full((WINDOW_FRAMES, features.shape[1]), pad_value, dtype=np.float16)
    window[: len(features)] = features
    return window.T


def clip_ranges(part: PartRequest, clip_timestamps: Sequence[float]) -> list[tuple[int, int]]:
    """Cut the clips at the part's edges; without clips the part is all one range.

    Clips are start, end, start, end ... in seconds of the recording, ascending; without a last end
    the last one goes on to the end.

    Source: openai-whisper `transcribe`, `clip_timestamps`.
    """
    frames = [part.frame(edge_s) for edge_s in clip_timestamps or [0.0]]
    if len(frames) % 2:
        frames.append(part.num_frames)
    return [(start, end) for start, end in list(pairwise(frames))[::2] if end > start]


def speech_without_text_s(
    part: PartRequest, segments: Sequence[Segment], clip_timestamps: Sequence[float]
) -> float | None:
    """Seconds of detected speech without text in a part; None without detection."""
    if part.speech is None:
        return None
    known_text = part.known_text
    if known_text is not None and known_text.clip != (0.0, math.inf):
        clip_timestamps = [edge_s for edge_s in known_text.clip if edge_s < math.inf]
    texts = [(segment.start_s, segment.end_s) for segment in segments]
    gaps = (
        speech_without_text(part.speech, texts, part.seconds(start), part.seconds(end))
        for start, end in clip_ranges(part, clip_timestamps)
    )
    return sum(seconds_of(gap) for part_gaps in gaps for gap in part_gaps)


def holds_the_beginning(part: PartRequest, clip_timestamps: Sequence[float]) -> bool:
    """Whether the first moment that is asked for lies in this part."""
    first_s = clip_timestamps[0] if clip_timestamps else 0.0
    return part.start_s <= first_s < part.end_s


# How far before a window's end a cut may lie, if that is no third of it. With 5 s whisper-base had
# 0.2 points more of WER on 12 and 39 min of English than with 10 s.
_SEARCH_FRAMES = 10 * FRAMES_PER_SECOND
# Loudness is averaged over so many: a stop consonant is quiet too, but shorter than a pause.
_PAUSE_FRAMES = 30


Loudness = Callable[[Float16[np.ndarray, "frame mel"]], Float[np.ndarray, " frame"]]


def mean_loudness(
    features: Float16[np.ndarray, "frame mel"],
) -> Float[np.ndarray, " frame"]:
    """Return the mean log-mel of each frame, which follows its loudness."""
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
    """Cut frame ranges of a part into ranges of at most a window, without long pauses.

    What does not fit into a window is cut near the window's end: between spans of speech, or else
    where it is least loud. Without speech detection all that was given is one span. The first and
    the last range of a clip keep up to `silence_frames` of silence, if the window has room.

    Source: WhisperX's "cut and merge" (Bain et al. 2023, section 3), which however leaves a window
    half empty rather than cut a span that would fit into the next one.
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
    search_frames = min(_SEARCH_FRAMES, window_frames // 3)
    chunks: list[tuple[int, int]] = []
    for start, end in spans:
        if end <= start:
            continue
        if chunks and start - chunks[-1][1] <= pause_frames:
            first = chunks[-1][0]
            fits = end - first <= window_frames
            # A pause that lies near the window's end is where to cut.
            if fits or start - first < window_frames - search_frames:
                start, _ = chunks.pop()
        while end - start > window_frames:
            latest = start + window_frames
            cut = _least_loud(part, latest - search_frames, latest, loudness)
            chunks.append((start, cut))
            start = cut
        chunks.append((start, end))
    return chunks


def _with_silence(
    chunks: Sequence[tuple[int, int]],
    clip: tuple[int, int],
    window_frames: int,
    silence_frames: int,
) -> list[tuple[int, int]]:
    """Let the first chunk of a clip begin, and the last one end, in its silence."""
    widened = list(chunks)
    if widened:
        start, end = widened[0]
        widened[0] = max(clip[0], start - silence_frames, end - window_frames), end
        start, end = widened[-1]
        widened[-1] = start, min(clip[1], end + silence_frames, start + window_frames)
    return widened


def _least_loud(part: PartRequest, first: int, last: int, loudness: Loudness) -> int:
    around = np.pad(loudness(part.features[first:last]), _PAUSE_FRAMES // 2, mode="edge")
    weights = np.full(_PAUSE_FRAMES, 1 / _PAUSE_FRAMES, dtype=np.float32)
    return first + int(np.convolve(around, weights, mode="valid")[:-1].argmin())


class SpansInOrder:
    """Passes on what is said in spans of a part as it becomes final, in order of time.

    The spans, given in that order, may be decoded side by side: what a later one says waits for the
    end of those before.
    """

    def __init__(self, listener: Listener, spans: Sequence[tuple[int, int]]) -> None:
        self._listener = listener
        self._spans = list(spans)
        self._waiting: list[list[Segment]] = [[] for _ in spans]
        self._num_frames = [0] * len(spans)
        self._ended = [False] * len(spans)
        self._first = 0  # of the spans that have not ended

    def add(self, index: int, segments: Sequence[Segment], *, frame: int) -> None:
        """Take what a span said since the last call; it is transcribed up to `frame`."""
        start, end = self._spans[index]
        # A window's last timestamp may lie in the padding behind the span.
        self._num_frames[index] = min(frame, end) - start
        self._waiting[index].extend(segments)
        self._pass_on()

    def end(self, index: int) -> None:
        """Take the end of a span."""
        self._ended[index] = True
        self._pass_on()

    def _pass_on(self) -> None:
        segments: list[Segment] = []
        while self._first < len(self._ended):
            segments += self._waiting[self._first]
            self._waiting[self._first] = []
            if not self._ended[self._first]:
                break
            self._first += 1
        self._listener(sum(self._num_frames) / FRAMES_PER_SECOND, segments)
