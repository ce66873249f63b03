"""Selects the transcriber of a checkpoint's family, and the optional word aligner."""

from collections.abc import Collection, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.families.registry import (
    Family,
    family_of,
    recognizer_class,
    resolve,
)
from corpus_asr.segments import PartTranscript
from corpus_asr.threads import run_apart
from corpus_asr.transcription.windows import PartRequest

if TYPE_CHECKING:  # imports the networks of Parakeet
    from corpus_asr.transcription.word_placer import WordPlacer


class PartTranscriber(Protocol):
    """Transcribes parts with one checkpoint of a family; used from one thread at a time.

    Those in `TRANSCRIBERS` have a class method `from_folder(folder)`. They yield the jobs of their
    models' scheduler: slot jobs, or a `Recognition`.
    """

    @property
    def languages(self) -> Collection[str]:
        """Codes of the languages that it can detect; empty without language detection."""

    def check(self, settings: DecodingSettings) -> None:
        """Reject settings that this checkpoint does not support, before any audio is read.

        Raises:
            ConfigError: names the key.
        """

    def transcribe(
        self, part: PartRequest, settings: DecodingSettings
    ) -> Generator[Any, Any, PartTranscript]:
        """Transcribe one part, as a task of the scheduler.

        The result must not depend on other parts or on the order of tasks.
        """


TRANSCRIBERS: dict[str, str] = {
    "whisper": "corpus_asr.transcription.whisper:WhisperTranscriber",
    "speech_to_text": "corpus_asr.transcription.speech2text:Speech2TextTranscriber",
}
"""The `PartTranscriber` of each encoder-decoder family by its `model_type`; imported on demand."""
_PROMPTED = "corpus_asr.transcription.prompted:PromptedTranscriber"


def part_transcriber(folder: Path) -> PartTranscriber:
    """Load the transcriber of a checkpoint's family."""
    family = family_of(folder)
    if family.recognizer is not None:
        return one_pass_transcriber(family, str(folder))
    name = _PROMPTED if family.prompts is not None else TRANSCRIBERS[family.model_type]
    transcriber: PartTranscriber = resolve(name).from_folder(folder)
    return transcriber


def one_pass_transcriber(family: Family, checkpoint: str | None) -> PartTranscriber:
    """Return the transcriber for the recognizer of a family."""
    model = recognizer_class(family)
    features = resolve(family.part_features).from_folder(Path(checkpoint or ""))
    kind = resolve("corpus_asr.transcription.one_pass:OnePassTranscriber")
    transcriber: PartTranscriber = kind(
        model,
        features,
        name=family.model_type,
        longest_window_s=model.window_limit_s(checkpoint),
    )
    return transcriber


def word_placer(aligner: Path | None, *, device: str, dtype: str) -> "WordPlacer | None":
    """Load the configured word aligner, if any, before the model allocates its memory."""
    if aligner is None:
        return None
    kind = resolve("corpus_asr.transcription.word_placer:WordPlacer")
    placer: WordPlacer = run_apart(lambda: kind.from_folder(aligner, device=device, dtype=dtype))
    return placer


def check_decoding(
    transcriber: PartTranscriber, placer: "WordPlacer | None", decoding: DecodingSettings
) -> None:
    """Raise `ConfigError` for settings that a checkpoint, or its word aligner, does not support."""
    if placer is not None:
        placer.check(decoding)
        decoding = placer.settings_given(decoding)
    transcriber.check(decoding)
