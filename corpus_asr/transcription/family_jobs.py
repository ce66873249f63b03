"""What the engine needs of a model family: which settings it admits, and how a part becomes jobs.

The engine, its slots and everything around it know no more of a family than this.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.slots import Done, Task
from corpus_asr.families.registry import family_of, resolve
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


JOBS: dict[str, str] = {
    "whisper": "corpus_asr.transcription.whisper.part_job:WhisperJobs",
    "speech_to_text": "corpus_asr.transcription.speech2text.part_job:Speech2TextJobs",
}
"""The `FamilyJobs` of each family by its `model_type`; imported when a checkpoint asks for it."""


def family_jobs(folder: Path) -> FamilyJobs:
    """Read how the family of a checkpoint transcribes with it.

    Raises:
        CheckpointError: a file is missing or unusable.
    """
    jobs: FamilyJobs = resolve(JOBS[family_of(folder).model_type]).from_folder(folder)
    return jobs
