"""How Whisper transcribes one part: its language, then its ranges, in order or side by side."""

from collections.abc import Collection
from pathlib import Path

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.slots import Gather, Steps
from corpus_asr.segments import Segment
from corpus_asr.transcription.language import (
    find_language,
    given_language,
    spoken_most,
)
from corpus_asr.transcription.long_form import SeekLoop
from corpus_asr.transcription.part_transcriber import PartTranscript
from corpus_asr.transcription.whisper.prompt_format import PromptFormat
from corpus_asr.transcription.windows import (
    PartRequest,
    chunk_ranges,
    clip_ranges,
    holds_the_beginning,
)
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_S


class WhisperTranscriber:
    """Transcribes parts with one Whisper checkpoint; meets `LeavesLanguages`."""

    def __init__(self, prompt_format: PromptFormat, *, elsewhere: Collection[str] = ()) -> None:
        self._prompt_format = prompt_format
        self._elsewhere = frozenset(elsewhere)

    @classmethod
    def from_folder(cls, folder: Path) -> "WhisperTranscriber":
        """Read what the checkpoint says of its vocabulary and limits.

        Raises:
            CheckpointError: a file is missing or unreadable, or the vocabulary has no timestamps.
        """
        return cls(PromptFormat.from_folder(folder))

    def leaving(self, languages: Collection[str]) -> "WhisperTranscriber":
        """Return the same, but that parts in these languages are only detected."""
        return WhisperTranscriber(self._prompt_format, elsewhere=languages)

    def check(self, settings: DecodingSettings) -> None:
        """Refuse what this checkpoint cannot do.

        Raises:
            ConfigError: names the key.
        """
        self._prompt_format.check(settings)

    def transcribe(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        """Give the segments of all ranges that are asked for, and the part's language."""
        sequences = _sequences(part, settings)
        if not sequences:
            return PartTranscript()
        prompt_format = self._prompt_format
        language = given_language(prompt_format, settings)
        if language is None and settings.language_mode != "window":
            language = yield from find_language(part, prompt_format, settings)
        segments: list[Segment] = []
        if language is None or language.code not in self._elsewhere:
            begins = holds_the_beginning(part, settings.clip_timestamps)
            # A chunk is a clip of its own, as in the references' chunked pipelines.
            cut = part.window_in_silence if settings.strategy == "chunked" else None
            results = yield Gather(
                SeekLoop(
                    part,
                    language=language,
                    prompt_format=prompt_format,
                    settings=settings,
                    at_beginning=begins and index == 0,
                    cut=cut,
                ).run(ranges)
                for index, ranges in enumerate(sequences)
            )
            segments = [segment for some in results for segment in some]
        language = language or spoken_most(segments)
        return PartTranscript(
            segments=tuple(segments),
            language=language.code if language else None,
            language_probability=language.probability if language else None,
        )


def _sequences(part: PartRequest, settings: DecodingSettings) -> list[list[tuple[int, int]]]:
    """Ranges that are decoded one after the other, in lists that are decoded side by side."""
    clips = clip_ranges(part, settings.clip_timestamps)
    if settings.strategy != "chunked":
        return [clips] if clips else []
    window_frames = round((settings.window_s or WINDOW_S) * FRAMES_PER_SECOND)
    return [[chunk] for chunk in chunk_ranges(part, clips, window_frames=window_frames)]
