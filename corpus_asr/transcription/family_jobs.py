"""What the engine needs of a model family: which settings it admits, and how a part becomes jobs.

Each family names a class that meets `FamilyJobs` in its `models.family.Family`. The engine, its
slots and everything around it know no more of a family than this.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.slots import Done, Task
from corpus_asr.segments import PartLabels, Segment
from corpus_asr.transcription.language import Language
from corpus_asr.transcription.windows import PartRequest

Add = Callable[[Task, Done], None]
"""Hands a task to the scheduler, which tells `Done` its result or its error."""


class PartDone(Protocol):
    """Told once what a part says and in which language, or why it cannot be said."""

    def __call__(
        self,
        segments: list[Segment],
        language: Language | None,
        error: Exception | None,
        labels: PartLabels | None = None,
        /,
    ) -> None:
        """Take it; `labels` in place of segments, where the part was classified."""


class PartJobs(Protocol):
    """What parts become with one checkpoint; used from one thread at a time."""

    def check(self, settings: DecodingSettings) -> None:
        """Refuse what this checkpoint cannot do, before any audio is read.

        Raises:
            ConfigError: names the key.
        """

    def start(
        self, part: PartRequest, *, settings: DecodingSettings, add: Add, done: PartDone
    ) -> None:
        """Add the tasks of one part, now or from within them; `done` is called once at the end.

        What a part says must depend neither on other parts nor on the order of tasks.
        """


class FamilyJobs(PartJobs, Protocol):
    """One checkpoint, as its family transcribes parts with it."""

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read what the checkpoint says of its vocabulary and limits.

        Raises:
            CheckpointError: a file is missing or unusable.
        """


@runtime_checkable
class LeavesLanguages(FamilyJobs, Protocol):
    """Jobs of a family that tells languages apart and can leave some of them to other models."""

    def leaving(self, languages: Collection[str]) -> Self:
        """Return the same jobs, but that a part in one of these languages is only detected.

        It is then done without segments, with its language.
        """
