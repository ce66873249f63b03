"""Transcription of a part by a model that reads each window once: windows cut at silences.

Segments are sentences where the model times words, else windows. Settings of search, prompts and
thresholds of Whisper have no meaning here and are refused.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from corpus_asr.array_types import Float, Float16
from corpus_asr.config.decoding import DecodingSettings, check_refused
from corpus_asr.decoding.one_pass import Recognition, WindowToRead
from corpus_asr.decoding.recognizer import Recognized, Recognizer
from corpus_asr.errors import ConfigError
from corpus_asr.segments import PartTranscript, Segment, Word
from corpus_asr.transcription.chunks import SpansInOrder, check_window_settings, window_ranges
from corpus_asr.transcription.fallback import compression_ratio, finished_segment
from corpus_asr.transcription.windows import (
    Language,
    PartRequest,
)
from corpus_asr.transcription.words import DraftSegment, sentences
from corpus_asr.units import FRAMES_PER_SECOND

# Windows are as many times as long as what they share at either end, or longer.
_LEAST_WINDOW_OF_OVERLAPS = 10
# Below it a probability counts as this, whose logarithm is finite.
_LEAST_PROBABILITY = 1e-9

# Settings of which only the default can be had, and why.
_REFUSED = {
    "task": "it writes the spoken language",
    "target_language": "it writes the spoken language",
    "language_mode": "it does not detect languages",
    "initial_prompt": "it takes no prompt",
    "condition_on_prev_tokens": "it takes no prompt",
    "hotwords": "it has no search to prefer them in",
    "hotwords_mode": "it has no search to prefer them in",
    "prefix": "it takes no prompt",
    "align": "it does not place known texts, which needs align.model",
    "hallucination_silence_threshold": "windows contain detected speech only",
}


class WindowCutter(Protocol):
    """Features of a family, as far as windows need them."""

    def window(self, features: Any, start: int, end: int) -> Float[np.ndarray, "..."]:
        """Return the model input for hops `start` to `end` of 10 ms."""

    def loudness(self, features: Float16[np.ndarray, "frame _"]) -> Float[np.ndarray, " frame"]:
        """Return a loudness measure per feature row; larger is louder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """Frames of a part that are read together, and those whose words count."""

    first: int
    last: int
    start: int
    """Start of its words; after `first` if it overlaps the previous window."""
    end: int


class OnePassTranscriber:
    """Transcribes parts with one `Recognizer`; meets `PartTranscriber`."""

    def __init__(
        self,
        model: type[Recognizer],
        features: WindowCutter,
        *,
        name: str,
        longest_window_s: float,
    ) -> None:
        """`name` is that of the model in errors; windows are those of its checkpoint."""
        self._model = model
        self._features = features
        self._name = name
        self._longest_s = longest_window_s

    @property
    def languages(self) -> tuple[str, ...]:
        """Empty: languages are not detected."""
        return ()

    def check(self, settings: DecodingSettings) -> None:
        """Reject unsupported settings before any audio is read."""
        check_refused(settings, _REFUSED, model=f"{self._name} reads each window once")
        if settings.beam_size not in ("auto", 1):
            raise ConfigError(
                f"decoding.beam_size: found {settings.beam_size}, but {self._name} reads each "
                "window once, without beams; remove it"
            )
        check_window_settings(
            settings,
            model=self._name,
            languages=self._model.languages,
            longest_s=self._longest_s,
        )

    def transcribe(
        self, part: PartRequest, settings: DecodingSettings
    ) -> Generator[Recognition, Sequence[Recognized], PartTranscript]:
        """Transcribe all windows and build segments from the results."""
        if part.detect_only:
            return PartTranscript()
        windows = self._windows(part, settings)
        code = None if settings.language == "auto" else str(settings.language)
        spans = SpansInOrder(part.listener, [(window.start, window.end) for window in windows])

        def said(number: int, found: Recognized) -> list[Segment]:
            return list(_segments(part, settings, windows[number], found, Language(
                code=code, probability=None
            )))  # fmt: skip

        def told(number: int, found: Recognized) -> None:
            spans.add(number, said(number, found), frame=windows[number].end)
            spans.end(number)

        results = yield Recognition(
            windows=[
                WindowToRead(
                    num_frames=window.last - window.first,
                    read=self._reader(part, window.first, window.last),
                )
                for window in windows
            ],
            language=code,
            told=None if part.listener is None else told,
        )
        segments = [
            segment
            for number, recognized in enumerate(results)
            for segment in said(number, recognized)
        ]
        return PartTranscript(segments=tuple(segments), language=code if segments else None)

    def _windows(self, part: PartRequest, settings: DecodingSettings) -> list[_Window]:
        """Cut a part; windows overlap where speech has no pause between them."""
        window_s = self._longest_s if settings.window_s is None else settings.window_s
        overlap_s = min(self._model.overlap_s, window_s / _LEAST_WINDOW_OF_OVERLAPS)
        overlap = round(overlap_s * FRAMES_PER_SECOND)
        ranges = window_ranges(
            part,
            settings,
            default_s=self._longest_s,
            longest_frames=round(window_s * FRAMES_PER_SECOND) - 2 * overlap,
            loudness=self._features.loudness,
        )
        touching = [False, *(earlier[1] == later[0] for earlier, later in pairwise(ranges)), False]
        return [
            _Window(
                first=max(0, start - overlap) if touching[number] else start,
                last=min(part.num_frames, end + overlap) if touching[number + 1] else end,
                start=start,
                end=end,
            )
            for number, (start, end) in enumerate(ranges)
        ]

    def _reader(
        self, part: PartRequest, start: int, end: int
    ) -> Callable[[], Float[np.ndarray, "..."]]:
        return lambda: self._features.window(part.features, start, end)


def _segments(
    part: PartRequest,
    settings: DecodingSettings,
    window: _Window,
    found: Recognized,
    language: Language,
) -> Generator[Segment, None, None]:
    """Yield the segments of a window: its sentences, or the whole window without word times."""
    first_s, begin_s, end_s = map(part.seconds, (window.first, window.start, window.end))
    read_words = [word for word in found.words if _is_of(window, (word.start_s + word.end_s) / 2)]
    words = [
        Word(
            word=word.word,
            start_s=min(max(first_s + word.start_s, begin_s), end_s),
            end_s=min(first_s + word.end_s, end_s),
            probability=word.probability,
        )
        for word in read_words
    ]
    if found.words and not words:
        return
    groups = list(sentences(words)) if words else [slice(0, 0)]
    for group in groups:
        sentence = words[group]
        text = "".join(word.word for word in sentence) if sentence else found.text
        if not text.strip():
            continue
        logs = [math.log(max(word.probability, _LEAST_PROBABILITY)) for word in sentence]
        draft = DraftSegment(
            tokens=tuple(token for word in read_words[group] for token in word.tokens),
            start_s=sentence[0].start_s if sentence else begin_s,
            end_s=sentence[-1].end_s if sentence else end_s,
            words=_after_a_blank(sentence),
        )
        segment = finished_segment(
            part,
            settings,
            draft,
            text=text if text[0].isspace() else f" {text}",
            language=language,
            task=settings.task,
            mean_logprob=found.logprob,
            text_logprob=math.fsum(logs) / len(logs) if logs else found.logprob,
            compression_ratio=compression_ratio(text),
        )
        if segment is not None:
            yield segment


def _is_of(window: _Window, middle_s: float) -> bool:
    """Whether the window keeps a word, by its middle in seconds from the window's first frame."""
    middle = window.first + middle_s * FRAMES_PER_SECOND
    after_cut = window.first == window.start or middle >= window.start
    return after_cut and (window.last == window.end or middle < window.end)


def _after_a_blank(words: Sequence[Word]) -> tuple[Word, ...]:
    # Segments are concatenated, so each sentence starts with a space.
    if not words or words[0].word[:1].isspace():
        return tuple(words)
    return (replace(words[0], word=f" {words[0].word}"), *words[1:])
