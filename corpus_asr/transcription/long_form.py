"""The one loop over a long recording: each window starts where the text of the last one ended.

openai-whisper and transformers disagree about such windows. What they disagree about are the
methods of `LongFormRules`; the table in models/whisper/README.md names one for each question.
All of it is written as generators that yield jobs, so that many loops advance side by side.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from corpus_asr.array_types import Float
from corpus_asr.decoding.tasks import Steps
from corpus_asr.transcription.fallback import Attempt, DecodingRules
from corpus_asr.transcription.windows import Language, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """How tokens and frames are turned into seconds."""

    timestamp_begin: int
    """The token of 0.00 s."""
    input_stride: int
    """Feature frames of a timestamp step."""
    time_precision: float
    """Seconds of a timestamp step."""
    time_precision_features: float
    """Seconds of a feature frame."""

    def is_timestamp(self, token: int) -> bool:
        """Tell timestamps from text."""
        return token >= self.timestamp_begin

    def seconds(self, token: int) -> float:
        """Seconds from the window's start that a timestamp stands for."""
        return (token - self.timestamp_begin) * self.time_precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """A span of a window's tokens, by position, with times from the window's start."""

    first: int
    stop: int
    start_s: float
    end_s: float


def split_at_timestamps(
    tokens: Sequence[int],
    clock: Clock,
    *,
    content_frames: int,
    content_s: float,
    cut_short: bool = False,
) -> tuple[list[TokenSpan], int]:
    """Cut a window's tokens, end token left out, where one timestamp follows another.

    A text that does not say where it ends lasts until `content_s`; so does one that was `cut_short`
    before the model closed it, whose last timestamp tells nothing of its end. Returns the spans,
    and the frames to advance: to the last timestamp if text follows it unfinished, else past the
    `content_frames` of audio in the window.

    Source: openai-whisper `transcribe.py`, the part after `decode_with_fallback`; transformers
    `_retrieve_segment`.
    """
    timed = [clock.is_timestamp(token) for token in tokens]
    cuts = [at for at in range(1, len(tokens)) if timed[at - 1] and timed[at]]
    if not cuts:
        stamps = [] if cut_short else [token for token in tokens if clock.is_timestamp(token)]
        says_end = stamps and stamps[-1] != clock.timestamp_begin
        end_s = clock.seconds(stamps[-1]) if says_end else content_s
        return [TokenSpan(first=0, stop=len(tokens), start_s=0.0, end_s=end_s)], content_frames

    closed = ends_closed(tokens, clock)
    if closed:
        cuts.append(len(tokens))
    spans = [
        TokenSpan(
            first=first,
            stop=stop,
            start_s=clock.seconds(tokens[first]),
            end_s=clock.seconds(tokens[stop - 1]),
        )
        for first, stop in zip([0, *cuts], cuts, strict=False)
    ]
    if closed:
        return spans, content_frames
    return spans, (tokens[cuts[-1] - 1] - clock.timestamp_begin) * clock.input_stride


def ends_closed(tokens: Sequence[int], clock: Clock) -> bool:
    """Whether text and then one timestamp end the window: nothing is said after it."""
    return [clock.is_timestamp(token) for token in tokens[-2:]] == [False, True]


S = TypeVar("S")


class LongFormRules(DecodingRules, Generic[S]):
    """Where windows lie, what each is prompted with and what is kept of it: S, in `segments`."""

    clock: Clock
    window_frames: int
    segments: list[S]
    num_prefix: int = 0
    """Last tokens of the newest prompt with which its window's text begins."""

    @abstractmethod
    def next_speech(self, frame: int, end: int) -> int | None:
        """Where decoding goes on from a frame; None where nothing follows up to `end`."""

    @abstractmethod
    def features(self, seek: int, end: int) -> Float[np.ndarray, "mel frame"]:
        """Cut a whole window, filled up after its content."""

    def frames_encoded(self, content_frames: int) -> int | None:
        """Frames of a window that are encoded; None for all."""
        return None

    @abstractmethod
    def language(
        self,
        name: tuple[int, int],
        features: Float[np.ndarray, "mel frame"],
        num_frames: int | None,
    ) -> Steps[Language]:
        """The language of the next window, asked for in it or before."""

    @abstractmethod
    def prompt(self, language: Language) -> tuple[tuple[int, ...], int]:
        """The next window's prompt, and the position of its start token."""

    @abstractmethod
    def max_new_tokens(self, prompt: Sequence[int]) -> int:
        """The longest text of a window after this prompt."""

    @abstractmethod
    def content_s(self, frames: int) -> float:
        """Where the text of a window with so many frames of audio ends that does not say so."""

    @abstractmethod
    def is_silence(self, attempt: Attempt) -> bool:
        """Whether nothing is kept of a window since nobody speaks in it."""

    @abstractmethod
    def keep(self, attempt: Attempt, spans: Sequence[TokenSpan], seek: int) -> Steps[int]:
        """Add what a window said to `segments`; returns the frame to go on at, `seek` or other."""

    def passed_over(self, window: Window, after: int) -> Steps[int]:
        """Look at what a window's text leaves out; returns the frame to go on at, `after` or other.

        Called after each window, whether anything is kept of it or not.
        """
        yield from ()
        return after

    def advanced(self, frame: int) -> None:
        """Called after each window, with the frame up to which `segments` are final."""

    def run(self, ranges: Sequence[tuple[int, int]]) -> Steps[list[S]]:
        """Transcribe ranges of frames, in this order."""
        number = 0
        for start, end in ranges:
            seek = self.next_speech(start, end)
            while seek is not None:
                window = yield from self._window(number, seek, end)
                attempt = yield from self.decode(window)
                next_seek = seek + window.content_frames
                if not self.is_silence(attempt):
                    spans, advance = split_at_timestamps(
                        attempt.result.tokens,
                        self.clock,
                        content_frames=window.content_frames,
                        content_s=self.content_s(window.content_frames),
                        cut_short=attempt.result.looped,
                    )
                    kept_seek = yield from self.keep(attempt, spans, seek + advance)
                    # Text that ends where its window starts would be decoded for ever.
                    next_seek = kept_seek if kept_seek > seek else next_seek
                next_seek = yield from self.passed_over(window, next_seek)
                self.advanced(next_seek)
                seek = self.next_speech(next_seek, end)
                number += 1
        return self.segments

    def _window(self, number: int, seek: int, end: int) -> Steps[Window]:
        content_frames = min(self.window_frames, end - seek)
        features = self.features(seek, end)
        num_frames = self.frames_encoded(content_frames)
        language = yield from self.language((seek, end), features, num_frames)
        prompt, start_position = self.prompt(language)
        return Window(
            number=number,
            seek=seek,
            end=end,
            content_frames=content_frames,
            features=features,
            num_frames=num_frames,
            language=language,
            prompt=prompt,
            start_position=start_position,
            num_prefix=self.num_prefix,
            max_new_tokens=self.max_new_tokens(prompt),
        )
