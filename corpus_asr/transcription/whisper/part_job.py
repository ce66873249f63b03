"""Whisper's jobs for one part: its language, then its ranges, in order or side by side.

In: a part and the settings. Out: the part's segments and its language, once every range is done.
"""

from collections.abc import Collection
from pathlib import Path

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.segments import Segment
from corpus_asr.transcription.chunked import chunk_ranges
from corpus_asr.transcription.clips import clip_ranges, holds_the_beginning
from corpus_asr.transcription.family_jobs import Add, PartDone
from corpus_asr.transcription.in_order import InOrder
from corpus_asr.transcription.language import (
    Language,
    find_language,
    given_language,
    spoken_most,
)
from corpus_asr.transcription.whisper.dialect import Dialect
from corpus_asr.transcription.whisper.sequential import SeekLoop, Steps
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_S


class WhisperJobs:
    """Transcribes parts with one Whisper checkpoint; meets `LeavesLanguages`."""

    def __init__(self, dialect: Dialect, *, elsewhere: Collection[str] = ()) -> None:
        self._dialect = dialect
        self._elsewhere = frozenset(elsewhere)

    @classmethod
    def from_folder(cls, folder: Path) -> "WhisperJobs":
        """Read what the checkpoint says of its vocabulary and limits.

        Raises:
            CheckpointError: a file is missing or unreadable, or the vocabulary has no timestamps.
        """
        return cls(Dialect.from_folder(folder))

    def leaving(self, languages: Collection[str]) -> "WhisperJobs":
        """Return the same jobs, but that parts in these languages are only detected."""
        return WhisperJobs(self._dialect, elsewhere=languages)

    def check(self, settings: DecodingSettings) -> None:
        """Refuse what this checkpoint cannot do.

        Raises:
            ConfigError: names the key.
        """
        self._dialect.check(settings)

    def start(
        self, part: PartRequest, *, settings: DecodingSettings, add: Add, done: PartDone
    ) -> None:
        """Add the part's first task; the others follow from it."""
        PartJob(
            part,
            dialect=self._dialect,
            settings=settings,
            elsewhere=self._elsewhere,
            add=add,
            done=done,
        ).start()


class _LeftToOthersError(Exception):
    """Ends a part whose language another model is for; never seen outside."""


class PartJob:
    """Runs one part's tasks on a scheduler.

    The language and the first range (when chunked; else all of them) are one task, so that a window
    that serves both is encoded once; the other ranges become tasks of their own as soon as the
    language is known.
    """

    def __init__(
        self,
        part: PartRequest,
        *,
        dialect: Dialect,
        settings: DecodingSettings,
        elsewhere: Collection[str] = (),
        add: Add,
        done: PartDone,
    ) -> None:
        self._elsewhere = elsewhere
        self._part = part
        self._dialect = dialect
        self._settings = settings
        self._add = add
        self._done = done
        clips = clip_ranges(part, settings.clip_timestamps)
        # Each entry is a task of its own: one stretch after the other, or all side by side.
        self._tasks: list[list[tuple[int, int]]] = [clips] if clips else []
        if settings.strategy == "chunked":
            longest_frames = round((settings.window_s or WINDOW_S) * FRAMES_PER_SECOND)
            chunks = chunk_ranges(part, clips, window_frames=longest_frames)
            self._tasks = [[chunk] for chunk in chunks]
        self._found = InOrder(len(self._tasks), self._finish)
        self._language: Language | None = None

    def start(self) -> None:
        """Hand the first task to the scheduler; a part without any audio is done at once."""
        if not self._tasks:
            self._done([], None, None)
            return
        self._add(self._lead(), self._found.collector(0))

    def _lead(self) -> Steps[list[Segment]]:
        language = given_language(self._dialect, self._settings)
        if language is None and self._settings.language_mode != "window":
            language = yield from find_language(self._part, self._dialect, self._settings)
        self._language = language
        if language is not None and language.code in self._elsewhere:
            raise _LeftToOthersError
        for index in range(1, len(self._tasks)):
            self._add(self._run(index, language), self._found.collector(index))
        return (yield from self._run(0, language))

    def _run(self, index: int, language: Language | None) -> Steps[list[Segment]]:
        chunked = self._settings.strategy == "chunked"
        loop = SeekLoop(
            self._part,
            language=language,
            dialect=self._dialect,
            settings=self._settings,
            at_beginning=index == 0
            and holds_the_beginning(self._part, self._settings.clip_timestamps),
            # A chunk is a clip of its own, as in the references' chunked pipelines.
            cut=self._part.window_in_silence if chunked else None,
        )
        return loop.run(self._tasks[index])

    def _finish(self, segments: list[Segment], error: Exception | None) -> None:
        if isinstance(error, _LeftToOthersError):
            error = None
        self._done(segments, self._language or spoken_most(segments), error)
