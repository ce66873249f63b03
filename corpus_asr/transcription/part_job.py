"""All the decoding one part needs: its language, then its ranges, in order or side by side.

In: a part and the settings. Out: one `PartTranscript`, once every range is done.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import WindowJob, WindowResult
from corpus_asr.decoding.slots import Done, Task
from corpus_asr.segments import Segment
from corpus_asr.transcription.chunked import chunk_ranges
from corpus_asr.transcription.dialect import Dialect
from corpus_asr.transcription.language import Language, find_language
from corpus_asr.transcription.sequential import transcribe_range
from corpus_asr.transcription.windows import PartRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTranscript:
    """What one part says."""

    segments: tuple[Segment, ...]
    language: str | None
    language_probability: float | None
    transcribe_s: float
    """Wall time from submission to result."""


class PartJob:
    """Runs one part's tasks on a scheduler.

    The language and the first range are one task, so that a window that serves both is encoded
    once; the other ranges become tasks of their own as soon as the language is known.
    """

    def __init__(
        self,
        part: PartRequest,
        *,
        dialect: Dialect,
        settings: DecodingSettings,
        add: Callable[[Task, Done], None],
        done: Callable[[list[Segment], Language | None, Exception | None], None],
    ) -> None:
        self._part = part
        self._dialect = dialect
        self._settings = settings
        if settings.strategy == "chunked":  # ranges are independent, and so are their windows
            self._settings = settings.model_copy(update={"condition_on_prev_tokens": False})
        self._add = add
        self._done = done
        self._ranges = (
            chunk_ranges(part) if settings.strategy == "chunked" else [(0, part.num_frames)]
        )
        self._segments: list[list[Segment]] = [[] for _ in self._ranges]
        self._left = len(self._ranges)
        self._language: Language | None = None

    def start(self) -> None:
        """Hand the first task to the scheduler; a part without any audio is done at once."""
        if not self._ranges:
            self._done([], None, None)
            return
        self._add(self._lead(), self._collector(0))

    def _lead(self) -> Generator[WindowJob, WindowResult, list[Segment]]:
        self._language = yield from find_language(self._part, self._dialect, self._settings)
        for index in range(1, len(self._ranges)):
            self._add(self._range(index, self._language), self._collector(index))
        return (yield from self._range(0, self._language))

    def _range(
        self, index: int, language: Language
    ) -> Generator[WindowJob, WindowResult, list[Segment]]:
        start, end = self._ranges[index]
        return transcribe_range(
            self._part,
            start,
            end,
            language=language,
            dialect=self._dialect,
            settings=self._settings,
            # A chunk is a clip of its own, as in the references' chunked pipelines.
            cut=self._part.window_in_silence if self._settings.strategy == "chunked" else None,
        )

    def _collector(self, index: int) -> Done:
        def collect(segments: list[Segment] | None, error: Exception | None) -> None:
            if self._left <= 0:
                return  # the part has failed already
            if error is not None:
                self._left = 0
                self._done([], self._language, error)
                return
            self._segments[index] = segments or []
            self._left -= 1
            if self._left == 0:
                ordered = [segment for found in self._segments for segment in found]
                self._done(ordered, self._language, None)

        return collect
