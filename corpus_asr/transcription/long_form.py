"""Sequential long-form decoding: each window starts where the text of the previous one ended.

openai-whisper and transformers differ in details of these windows. Each difference is a method of
`LongFormRules`; the table in models/whisper/README.md lists them. All loops are generators that
yield jobs, so that many of them advance in parallel.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from corpus_asr.array_types import Float
from corpus_asr.decoding.jobs import Steps
from corpus_asr.transcription.fallback import Attempt, DecodingRules
from corpus_asr.transcription.windows import Language, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Converts tokens and frames to seconds."""

    timestamp_begin: int
    """Token ID of 0.00 s."""
    input_stride: int
    """Feature frames per timestamp step."""
    time_precision: float
    """Seconds per timestamp step."""
    time_precision_features: float
    """Seconds per feature frame."""

    def is_timestamp(self, token: int) -> bool:
        """Whether a token is a timestamp."""
        return token >= self.timestamp_begin

    def seconds(self, token: int) -> float:
        """Return a timestamp's seconds from the window's start."""
        return (token - self.timestamp_begin) * self.time_precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """A span of a window's tokens, by position, with times in seconds from the window's start."""

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
    """Split a window's tokens, without the end token, at consecutive timestamps.

    A text without an end time lasts until `content_s`, as does one that was `cut_short` before its
    closing timestamp. Returns the spans and the frames to advance: to the last timestamp if
    unfinished text follows it, else past the `content_frames` of audio in the window.

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
    """Whether the window ends with text and a single timestamp, so that no speech follows."""
    return [clock.is_timestamp(token) for token in tokens[-2:]] == [False, True]


S = TypeVar("S")


class LongFormRules(DecodingRules, Generic[S]):
    """Rules for window positions, prompts and kept segments; S is the type of `segments`."""

    clock: Clock
    window_frames: int
    segments: list[S]
    num_prefix: int = 0
    """Number of last tokens of the newest prompt that are the beginning of its window's text."""

    @abstractmethod
    def next_speech(self, frame: int, end: int) -> int | None:
        """Return the frame at which decoding continues; None if no speech follows before `end`."""

    @abstractmethod
    def features(self, seek: int, end: int) -> Float[np.ndarray, "mel frame"]:
        """Cut a whole window, padded after its content."""

    def frames_encoded(self, content_frames: int) -> int | None:
        """Number of encoded frames of a window; None for all."""
        return None

    @abstractmethod
    def language(
        self,
        name: tuple[int, int],
        features: Float[np.ndarray, "mel frame"],
        num_frames: int | None,
    ) -> Steps[Language]:
        """Return the next window's language, detected in it or before."""

    @abstractmethod
    def prompt(self, language: Language) -> tuple[tuple[int, ...], int]:
        """Return the next window's prompt and the position of its start token."""

    @abstractmethod
    def max_new_tokens(self, prompt: Sequence[int]) -> int:
        """Return the maximum number of text tokens after this prompt."""

    @abstractmethod
    def content_s(self, frames: int) -> float:
        """Return where a text without an end time ends, in a window with `frames` of audio."""

    @abstractmethod
    def is_silence(self, attempt: Attempt) -> bool:
        """Whether a window is dropped as silence."""

    @abstractmethod
    def keep(self, attempt: Attempt, spans: Sequence[TokenSpan], seek: int) -> Steps[int]:
        """Append a window's segments to `segments`; return the frame to continue at."""

    def passed_over(self, window: Window, after: int) -> Steps[int]:
        """Process speech that a window's text omits; return the frame to continue at.

        Called after each window, whether or not any of it is kept.
        """
        yield from ()
        return after

    def advanced(self, frame: int) -> None:
        """Called after each window with the frame up to which `segments` are final."""

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
                    # A text that ends where its window starts would be decoded forever.
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
