"""What the engine needs of a model family: settings it admits, and how a part becomes text."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.slots import Steps
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.segments import PartLabels, Segment
from corpus_asr.transcription.windows import PartRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTranscript:
    """What one part says."""

    segments: tuple[Segment, ...] = ()
    language: str | None = None
    language_probability: float | None = None
    transcribe_s: float = 0.0
    """Wall time from submission to result, which the engine sets."""
    labels: PartLabels | None = None
    """In place of segments, where the part was classified."""


class PartTranscriber(Protocol):
    """One checkpoint, as its family transcribes parts with it; used from one thread at a time.

    Those in `TRANSCRIBERS` have a class method `from_folder(folder)`.
    """

    def check(self, settings: DecodingSettings) -> None:
        """Refuse what this checkpoint cannot do, before any audio is read.

        Raises:
            ConfigError: names the key.
        """

    def transcribe(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        """Transcribe one part, as a task of the scheduler.

        What a part says must depend neither on other parts nor on the order of tasks.
        """


@runtime_checkable
class LeavesLanguages(PartTranscriber, Protocol):
    """Tells languages apart and can leave some of them to other models."""

    def leaving(self, languages: Collection[str]) -> Self:
        """Return the same, but that a part in one of these languages is only detected.

        Its transcript then has no segments.
        """


TRANSCRIBERS: dict[str, str] = {
    "whisper": "corpus_asr.transcription.whisper.transcribe_part:WhisperTranscriber",
    "speech_to_text": "corpus_asr.transcription.speech2text.transcribe_part:Speech2TextTranscriber",
}
"""The `PartTranscriber` of each family by its `model_type`; imported when a checkpoint asks."""


def part_transcriber(folder: Path) -> PartTranscriber:
    """Read how the family of a checkpoint transcribes with it.

    Raises:
        CheckpointError: a file is missing or unusable.
    """
    kind = resolve(TRANSCRIBERS[family_of(folder).model_type])
    transcriber: PartTranscriber = kind.from_folder(folder)
    return transcriber
