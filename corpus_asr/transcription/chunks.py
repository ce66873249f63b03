"""Windows of a part that are decoded independently: cut at silences, gathered, in order of time.

A family says what a window asks for, and what becomes of its tokens.
"""

from abc import abstractmethod
from collections.abc import Collection, Sequence

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.jobs import Gather, Steps
from corpus_asr.errors import ConfigError
from corpus_asr.languages import advise_codes
from corpus_asr.segments import Segment
from corpus_asr.transcription.fallback import OpenAIRules
from corpus_asr.transcription.windows import (
    Listener,
    Loudness,
    PartRequest,
    chunk_ranges,
    clip_ranges,
    mean_loudness,
)
from corpus_asr.units import FRAMES_PER_SECOND

# Excludes the padding of detected speech, by which the silence is longer on both sides.
_LONGEST_PAUSE_S = 1.0
# Limit of a part's windows that wait for a slot; each holds 0.5 MB of features.
WINDOWS_AT_ONCE = 32


def window_ranges(
    part: PartRequest,
    settings: DecodingSettings,
    *,
    default_s: float,
    longest_frames: int,
    loudness: Loudness = mean_loudness,
) -> list[tuple[int, int]]:
    """Cut the requested clips of a part into windows, in hops of 10 ms."""
    window_s = default_s if settings.window_s is None else settings.window_s
    return chunk_ranges(
        part,
        clip_ranges(part, settings.clip_timestamps),
        window_frames=min(longest_frames, round(window_s * FRAMES_PER_SECOND)),
        pause_frames=round(_LONGEST_PAUSE_S * FRAMES_PER_SECOND),
        loudness=loudness,
    )


def check_window_settings(
    settings: DecodingSettings, *, model: str, longest_s: float, languages: Collection[str] = ()
) -> None:
    """Raise ConfigError for several languages, unknown `languages` if any, and longer windows."""
    if not isinstance(settings.language, str):
        raise ConfigError(
            f"decoding.language: found a choice of {len(settings.language)}, but {model} does not "
            "choose among languages; name one, or remove it"
        )
    if languages and settings.language not in ("auto", *languages):
        raise ConfigError(
            f"decoding.language: found {settings.language}, but {model} knows "
            f"{', '.join(sorted(languages))}; {advise_codes([settings.language], languages)}"
            "name one of these, or remove it"
        )
    if settings.window_s is not None and settings.window_s > longest_s:
        raise ConfigError(
            f"decoding.window_s: found {settings.window_s:g}, but windows of {model} are at most "
            f"{longest_s:g} s; set it to less"
        )


class SpansInOrder:
    """Reports segments of a part's spans as they become final, in order of time, to a listener.

    Spans, numbered in that order, may be decoded in parallel: segments of a later span are held
    until the preceding spans have ended.
    """

    def __init__(self, listener: Listener | None, spans: Sequence[tuple[int, int]]) -> None:
        self._listener = listener
        self._spans = list(spans)
        self._waiting: list[list[Segment]] = [[] for _ in spans]
        self._num_frames = [0] * len(spans)
        self._ended = [False] * len(spans)
        self._first = 0  # first span that has not ended

    def add(self, index: int, segments: Sequence[Segment], *, frame: int) -> None:
        """Add a span's new segments; the span is transcribed up to `frame`."""
        start, end = self._spans[index]
        # A window's last timestamp may lie in the padding after the span.
        self._num_frames[index] = min(frame, end) - start
        self._waiting[index].extend(segments)
        self._pass_on()

    def end(self, index: int) -> None:
        """Mark a span as ended."""
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
        if self._listener is not None:
            self._listener(sum(self._num_frames) / FRAMES_PER_SECOND, segments)


class ChunkRules(OpenAIRules):
    """Decodes the windows of a part with temperature fallback, each to one segment at most."""

    @abstractmethod
    def decode_range(self, start: int, end: int) -> Steps[Segment | None]:
        """Decode the window between two frames; None if it has no text."""

    def decode_all(self, ranges: Sequence[tuple[int, int]]) -> Steps[tuple[Segment, ...]]:
        """Decode all windows in parallel; return their segments in order of time.

        The longest windows are first, so that windows of similar length are encoded together and no
        long window starts last.
        """
        spans = SpansInOrder(self.part.listener, ranges)
        order = sorted(range(len(ranges)), key=lambda index: ranges[index][0] - ranges[index][1])

        def decode_some(indices: Sequence[int]) -> Steps[list[Segment]]:
            segments: list[Segment] = []
            for index in indices:
                start, end = ranges[index]
                segment = yield from self.decode_range(start, end)
                window_segments = [] if segment is None else [segment]
                segments += window_segments
                spans.add(index, window_segments, frame=end)
                spans.end(index)
            return segments

        # Distributed round-robin: each list has long and short windows.
        results = yield Gather(
            decode_some(order[first::WINDOWS_AT_ONCE])
            for first in range(min(WINDOWS_AT_ONCE, len(order)))
        )
        segments = (segment for window_segments in results for segment in window_segments)
        return tuple(sorted(segments, key=lambda segment: segment.start_s))


def after_a_blank(text: str) -> str:
    """Return a text with a space before it, since segments are concatenated."""
    return text if text.startswith(" ") else f" {text}"
