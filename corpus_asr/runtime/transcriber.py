"""Transcription for scripts and notebooks: files in, transcripts out, without Ray and tables."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self, Unpack

from corpus_asr.confidence import DEFAULT_MODEL, ConfidenceModel, with_confidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.default_model import PACKAGED_CHECKPOINT, default_model_notice
from corpus_asr.config.options import TranscriptionOptions, options_from
from corpus_asr.config.run import ExtractSettings
from corpus_asr.errors import ItemError
from corpus_asr.runtime.checkpoints import Checkpoint, check_transcribes, fetch_others
from corpus_asr.segments import Segment, SpeechSpan, Transcript
from corpus_asr.stages.extract import EXTRACTOR
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.parts import ExtractedPart, ExtractRequest
from corpus_asr.storage.run_state.run_files import read_calibration
from corpus_asr.transcription.engine import Engine, PartTranscript
from corpus_asr.transcription.language import spoken_most
from corpus_asr.transcription.routing import RoutedEngine
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import SAMPLE_RATE_HZ

_LOG = logging.getLogger(__name__)
# Parts extracted ahead per slot: one in it and one to follow; about 10 MiB each at most.
_PARTS_PER_SLOT = 2
# What `Transcriber` takes beside the decoding options.
_ARGUMENTS = (
    "checkpoint", "revision", "device", "compute_type", "slots", "num_threads",
    "by_language", "calibration", "item_timeout_s",
)  # fmt: skip
ITEM_TIMEOUT_S: float = ExtractSettings.model_fields["item_timeout_s"].default
_NO_LIMITS = {"max_file_gb": math.inf, "max_duration_h": math.inf}


@dataclass(slots=True)
class _Recording:
    """A file on its way."""

    uri: str
    parts: list["Future[PartTranscript] | None"] = field(default_factory=list)
    duration_s: float = 0.0
    speech_s: float | None = 0.0
    extracted: bool = False

    @property
    def done(self) -> bool:
        return self.extracted and all(part is None or part.done() for part in self.parts)


class Transcriber:
    """A loaded model that transcribes files. Use as a context manager, or call `close`.

    Args:
        checkpoint: a folder, an fsspec address, a hub name, or a short name such as `small`,
            `large-v3` or `turbo`. None takes whisper-tiny.en, the English model that comes with the
            package, and logs so.
        revision: hub branch, tag or commit.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        compute_type: `auto`, `float32`, `float16`, `bfloat16` or `int8`.
        slots: windows decoded side by side.
        num_threads: CPU threads for the model; None leaves torch's own choice.
        by_language: checkpoints for files in some languages, by code; `checkpoint` detects the
            language and transcribes all others.
        calibration: output folder or .json file of `corpus-asr evaluate --calibrate`, which gives
            `confidence`; None means the default.
        item_timeout_s: seconds without a new part after which a recording fails.
        **options: keys of the settings, as the defaults of every call; see `TranscriptionOptions`.

    Raises:
        CheckpointError: the checkpoint cannot be had or loaded.
        ConfigError: a wrong option, or the checkpoint is English-only and more is asked of it.
    """

    _calibration: ConfidenceModel = DEFAULT_MODEL
    # Languages with checkpoints of their own, which the calibration was not fitted for.
    _own_models: frozenset[str] = frozenset()

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        revision: str | None = None,
        device: str = "auto",
        compute_type: str = "auto",
        slots: int | Literal["auto"] = "auto",
        num_threads: int | None = None,
        by_language: Mapping[str, str] | None = None,
        calibration: str | None = None,
        item_timeout_s: float = ITEM_TIMEOUT_S,
        **options: Unpack[TranscriptionOptions],
    ) -> None:
        settings = options_from(options, fixed=_ARGUMENTS)
        if checkpoint is None:
            checkpoint = PACKAGED_CHECKPOINT
            _LOG.warning("%s", default_model_notice('Transcriber("small") or "large-v3"'))
        fitted = DEFAULT_MODEL if calibration is None else read_calibration(calibration)
        main = Checkpoint.fetch(checkpoint, revision=revision)
        check_transcribes(main, settings.decoding)
        others = fetch_others(main, by_language or {}, weights=True)
        folder = main.with_weights().folder
        folders = {code: other.folder for code, other in others.items()}
        load = partial(RoutedEngine.from_folders, folder, folders)
        engine: Engine | RoutedEngine = (load if others else partial(Engine.from_folder, folder))(
            decoding=settings.decoding,
            device=device,
            dtype=compute_type,
            slots=slots,
            num_threads=num_threads,
        )
        self._set_up(engine, str(folder), options=options, item_timeout_s=item_timeout_s)
        self._calibration = fitted
        self._own_models = frozenset(others)

    @classmethod
    def from_pretrained(cls, checkpoint: str, **options: Any) -> Self:
        """Load a checkpoint, as the class itself does, whose arguments `options` are."""
        return cls(checkpoint, **options)

    @classmethod
    def around(
        cls,
        engine: Engine | RoutedEngine,
        folder: str,
        options: TranscriptionOptions,
    ) -> Self:
        """Transcribe with a loaded engine, closed with this object, and its checkpoint's folder."""
        made = cls.__new__(cls)
        made._set_up(engine, folder, options=options, item_timeout_s=ITEM_TIMEOUT_S)
        return made

    def _set_up(
        self,
        engine: Engine | RoutedEngine,
        folder: str,
        *,
        options: TranscriptionOptions,
        item_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._options = options
        extract = options_from(options).extract
        self._child = IsolatedGenerator(
            EXTRACTOR,
            # The caller chose the files: nothing is too large or too long.
            init_kwargs={"folder": folder, "settings": extract.model_copy(update=_NO_LIMITS)},
            timeout_s=item_timeout_s,
        )

    def transcribe(self, path: str, **options: Unpack[TranscriptionOptions]) -> Transcript:
        """Transcribe one file or address; `options` are for this call alone.

        Raises:
            FetchError: it cannot be read.
            DecodeError: it holds no usable audio.
            ConfigError: a wrong option.
        """
        return next(self.transcribe_many([path], **options))

    def transcribe_many(
        self,
        paths: Iterable[str],
        *,
        on_error: Callable[[str, ItemError], None] | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> Iterator[Transcript]:
        """Transcribe files, sharing the model's slots; yields transcripts as they finish.

        `paths` are taken as needed, so they may be endless. `on_error` is given each file that
        failed, while the others go on. `options` are for this call alone.

        Raises:
            ItemError: a file failed and `on_error` is None.
            ConfigError: a wrong option.
        """
        # Checked before the first file is opened: a wrong option costs no decoding.
        settings = options_from({**self._options, **options}, fixed=_ARGUMENTS)
        self._engine.check(settings.decoding)
        extract = settings.extract.model_copy(update=_NO_LIMITS)
        flying: list[_Recording] = []
        for path in paths:
            recording = _Recording(uri=str(path))
            flying.append(recording)
            try:
                for part in self._child.run(ExtractRequest(uri=recording.uri, settings=extract)):
                    self._submit(recording, part, settings.decoding)
                    yield from self._landed(
                        flying, at_most=_PARTS_PER_SLOT * self._engine.slots, on_error=on_error
                    )
            except ItemError as error:
                flying.remove(recording)
                if on_error is None:
                    raise
                on_error(recording.uri, error)
            recording.extracted = True
        yield from self._landed(flying, at_most=0, on_error=on_error)

    def close(self) -> None:
        """Stop the engine and the decoding process."""
        self._child.close()
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self, recording: _Recording, part: ExtractedPart, settings: DecodingSettings
    ) -> None:
        recording.duration_s += part.num_samples / SAMPLE_RATE_HZ
        if part.speech is None:
            recording.speech_s = None  # not detected in a part is not known of the whole
        elif recording.speech_s is not None:
            recording.speech_s += sum(end - start for start, end in part.speech)
        if part.features is None:
            recording.parts.append(None)  # without speech: nothing to wait for
            return
        request = _request(recording.uri, part)
        recording.parts.append(self._engine.submit(request, decoding=settings))

    def _landed(
        self,
        flying: list[_Recording],
        *,
        at_most: int,
        on_error: Callable[[str, ItemError], None] | None,
    ) -> Iterator[Transcript]:
        """Yield what is finished, and wait until at most so many parts are in flight."""
        while True:
            # In the order in which they end: one of hours must not hold back a hundred clips.
            for recording in [recording for recording in flying if recording.done]:
                flying.remove(recording)
                try:
                    yield _transcript(recording, self._segments(recording))
                except ItemError as error:
                    if on_error is None:
                        raise
                    on_error(recording.uri, error)
            running = {
                part
                for recording in flying
                for part in recording.parts
                if part is not None and not part.done()
            }
            if len(running) <= at_most:
                return
            wait(running, return_when=FIRST_COMPLETED)

    def _segments(self, recording: _Recording) -> tuple[Segment, ...]:
        """Return a recording's segments with the confidences of this object's calibration."""
        segments: list[Segment] = []
        for part in (future.result() for future in recording.parts if future is not None):
            if self._calibration is DEFAULT_MODEL or part.language in self._own_models:
                segments.extend(part.segments)
            else:
                model = self._calibration
                segments.extend(with_confidence(segment, model) for segment in part.segments)
        return tuple(segments)


def _request(uri: str, part: ExtractedPart) -> PartRequest:
    assert part.features is not None, "a part with speech has features"
    assert part.pad_value is not None, "features come with their pad value"
    speech = part.speech
    return PartRequest(
        recording_id=uri,
        part=part.part,
        features=part.features,
        num_samples=part.num_samples,
        pad_value=part.pad_value,
        start_s=part.start_sample / SAMPLE_RATE_HZ,
        speech=None
        if speech is None
        else tuple(SpeechSpan(start_s=start, end_s=end) for start, end in speech),
        language_features=part.language_features,
    )


def _transcript(recording: _Recording, segments: tuple[Segment, ...]) -> Transcript:
    parts = [part.result() for part in recording.parts if part is not None]
    # Where parts have languages of their own, the first one's may be that of a jingle.
    spoken = [part for part in parts if part.language is not None]
    language = spoken[0] if spoken else None
    if language is not None and any(part.language != language.language for part in spoken):
        most = spoken_most(segments)
        language = next((part for part in spoken if most and part.language == most.code), language)
    return Transcript(
        segments=segments,
        language=language.language if language else None,
        language_probability=language.language_probability if language else None,
        duration_s=recording.duration_s,
        speech_s=recording.speech_s,
        uri=recording.uri,
    )
