"""Transcription for scripts and notebooks: audio in, transcripts out, without Ray and tables."""

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, Unpack

import numpy as np

from corpus_asr.audio.inputs import AudioInput, GivenAudio, given_audio, several
from corpus_asr.confidence import DEFAULT_MODEL, with_confidence
from corpus_asr.config.decoding import (
    PACKAGED_CHECKPOINT,
    ComputeType,
    default_model_notice,
)
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.config.options import (
    CallSettings,
    TranscriptionOptions,
    options_from,
    translated,
)
from corpus_asr.config.run import ModelSettings
from corpus_asr.errors import CheckpointError, ConfigError, EngineError, ItemError
from corpus_asr.formats.transcript import Transcript
from corpus_asr.runtime.checkpoints import (
    Checkpoint,
    check_transcribes,
    fetch_aligner,
    fetch_others,
)
from corpus_asr.runtime.finished_recordings import DetectedLanguage, detecting, transcript_of
from corpus_asr.runtime.in_flight import (
    CallInFlight,
    Cancellation,
    ExtractorPool,
    OnProgress,
)
from corpus_asr.segments import Segment
from corpus_asr.stages.extract import EXTRACTOR, further_features_of
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.parts import OK, Failure, Stage
from corpus_asr.stages.transcribe import load_transcriber
from corpus_asr.storage.model_files import full_name
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.host_allowlist import HostRules
from corpus_asr.threads import spin_briefly
from corpus_asr.units import SAMPLE_RATE_HZ

if TYPE_CHECKING:  # imports torch
    from corpus_asr.transcription.engine import Engine
    from corpus_asr.transcription.routing import RoutedEngine

_LOG = logging.getLogger(__name__)
ITEM_TIMEOUT_S: float = ExtractSettings.model_fields["item_timeout_s"].default


# Options that calls cannot change.
FIXED_OPTIONS = (
    "checkpoint", "revision", "device", "compute_type", "slots", "num_threads", "recognizer",
    "by_language", "align_model", "calibration", "item_timeout_s", "allow_hosts",
)  # fmt: skip


OnError = Callable[[str, Exception], None]
OnSegment = Callable[[str, Segment], None]


class Transcriber:
    """A loaded model that transcribes audio. Use as a context manager, or call `close`.

    Any number of threads may call it at once: their calls share the model's slots. It works only
    in the process that made it; it raises in a fork, and cannot be pickled.

    Examples:
        >>> from corpus_asr import Transcriber
        >>> with Transcriber("whisper-tiny.en", temperature=0) as transcriber:
        ...     transcript = transcriber.transcribe("talk.wav")
        >>> transcript.text
        'Today, only platforms 1 and 3 are used.'

    Args:
        checkpoint: a folder, an fsspec URI, a Hub model ID, or a short name such as `small`,
            `large-v3` or `turbo`. None uses whisper-tiny.en, the English model included in the
            package, and logs this.
        revision: Hub branch, tag or commit.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        compute_type: `auto`, the best data type of the device, or a data type.
        slots: windows decoded in parallel.
        num_threads: CPU threads for the model; None: torch's default.
        recognizer: your own model in place of Whisper, as package.module:Class or the name of one
            in an installed package; it gets `checkpoint` unchanged.
        by_language: checkpoints of any family for some languages, by code; `checkpoint`, a
            multilingual Whisper, detects the language and transcribes all others.
        align_model: aligner checkpoint that computes word times in place of the model, of any
            family: for `word_timestamps`, and for texts to align.
        calibration: output folder or .json file of `corpus-asr evaluate --calibrate`, used for
            `confidence`; None: the default.
        item_timeout_s: seconds without progress after which a recording fails.
        allow_hosts: the only hosts to which URLs may redirect, in addition to their own: names,
            *.wildcards or networks; None: public hosts.
        **options: defaults of every call; see `TranscriptionOptions`.

    Raises:
        CheckpointError: the checkpoint cannot be fetched or loaded.
        ConfigError: an invalid option, or one not supported by an English-only checkpoint.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        revision: str | None = None,
        device: str = "auto",
        compute_type: ComputeType = "auto",
        slots: int | Literal["auto"] = "auto",
        num_threads: int | None = None,
        recognizer: str | None = None,
        by_language: Mapping[str, str] | None = None,
        align_model: str | None = None,
        calibration: str | None = None,
        item_timeout_s: float = ITEM_TIMEOUT_S,
        allow_hosts: str | Sequence[str] | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> None:
        hosts = HostRules.of_call(allow_hosts)
        settings = options_from(options, fixed=FIXED_OPTIONS)
        if checkpoint is None and recognizer is None:
            checkpoint = PACKAGED_CHECKPOINT
            _LOG.warning("%s", default_model_notice('Transcriber("small") or "large-v3"'))
        # Its settings are validated like those of a job.
        named: dict[str, Any] = {} if checkpoint is None else {"checkpoint": checkpoint}
        model = ModelSettings(
            **named, revision=revision, recognizer=recognizer, by_language=dict(by_language or {})
        )
        main = Checkpoint.of(model)
        check_transcribes(main, settings.decoding)
        fetch_others(main, model.by_language)  # checks them
        fetch_aligner(align_model)
        fitted = DEFAULT_MODEL
        if calibration is not None:
            # Imports a job's output modules, which are not needed otherwise.
            from corpus_asr.storage.run_state.run_files import read_calibration

            fitted = read_calibration(calibration, family=main.family_name)
        # Under canonical names; calls may use any synonym.
        self._options = translated(options)
        extractor = partial(
            IsolatedGenerator,
            EXTRACTOR,
            init_kwargs={
                "folder": str(main.folder),
                "recognizer": recognizer,
                "further_folders": further_features_of(model, align_model),
                # The caller chose the files: no size or duration limits.
                "settings": settings.extract.model_copy(
                    update={"max_file_gb": math.inf, "max_duration_h": math.inf}
                ),
                "store": StoreOptions(hosts=hosts),
            },
            timeout_s=item_timeout_s,
        )
        # The child process starts while this one imports torch.
        self._pool = ExtractorPool(extractor)
        try:
            self._pool.start()
            spin_briefly()
            self._engine: Engine | RoutedEngine = load_transcriber(
                model,
                settings.decoding,
                align_model=align_model,
                device=device,
                dtype=compute_type,
                num_threads=num_threads,
                slots=slots,
            )
        except BaseException:
            self._pool.close()
            raise
        self._model = full_name(main.name)
        self._calibration = fitted
        # Languages with their own checkpoints, to which the calibration does not apply.
        self._own_models = frozenset(by_language or ())

    @classmethod
    def from_pretrained(cls, checkpoint: str | None = None, **options: Any) -> Self:
        """Load a checkpoint; `options` are the arguments of the class."""
        return cls(checkpoint, **options)

    def transcribe(
        self,
        audio: AudioInput,
        *,
        sampling_rate: float | None = None,
        on_progress: OnProgress | None = None,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> Transcript:
        """Transcribe one recording.

        With `channels="each"` or `track="all"`, `Transcript.channels` has one of each.

        Examples:
            >>> import numpy as np
            >>> silence = np.zeros(16_000, dtype=np.float32)
            >>> transcript = transcriber.transcribe(silence, sampling_rate=16_000)
            >>> (transcript.text, transcript.duration_s, transcript.speech_s)
            ('', 1.0, 0.0)
            >>> timed = transcriber.transcribe("talk.wav", word_timestamps=True)
            >>> [word.word for word in timed.segments[0].words][:3]
            [' Today,', ' only', ' platforms']

        Args:
            audio: a path, URL or URI; the bytes of a file of any format, or an open binary file; a
                numpy array or torch tensor, float in -1 to 1 or int16, of shape (sample,) or
                (channel, sample); a dictionary of Hugging Face datasets, with `array` and
                `sampling_rate`, with `bytes`, or with `path`.
            sampling_rate: in Hz, of an array or tensor.
            on_progress: called in this thread during decoding and transcription.
            cancellation: ends the call when another thread calls its `cancel`.
            **options: for this call only.

        Raises:
            CallCancelledError: `cancellation` was canceled.
            FetchError: the audio cannot be read.
            DecodeError: it contains no usable audio.
            ValueError: an unsupported object, or an array of another type, shape or rate.
            ConfigError: an invalid option.
        """
        settings = self._checked(options)
        return next(
            self._many(
                [(audio, None)], settings, sampling_rate, None, on_progress, None, cancellation
            )
        )

    def transcribe_many(
        self,
        audios: Iterable[AudioInput],
        *,
        sampling_rate: float | None = None,
        on_error: OnError | None = None,
        on_progress: OnProgress | None = None,
        on_segment: OnSegment | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> Iterator[Transcript]:
        """Transcribe recordings, sharing the model's slots; yields transcripts as they finish.

        `audios` are as for `transcribe`, consumed on demand, so that they may be endless. A
        transcript's `uri` is the URI; inputs without one are named `input-0` and so on by index.
        `on_error` is called with each failed recording, while the others continue. `on_segment` is
        called with the `uri` and each final segment, in time order of each recording; not if
        channels are transcribed separately, nor with speakers, which are known only at the end.

        Raises:
            ItemError: a recording failed and `on_error` is None.
            ValueError: an input is not audio; see `transcribe`.
            ConfigError: an invalid option.
        """
        settings = self._checked(options)
        if settings.extract.separate or settings.speakers.wanted:
            on_segment = None
        inputs = ((audio, None) for audio in several(audios))
        return self._many(inputs, settings, sampling_rate, on_error, on_progress, on_segment)

    def align(
        self,
        audio: AudioInput,
        text: str,
        *,
        sampling_rate: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> Transcript:
        """Align a known text with a recording, both of any length: start and end of each word.

        The transcript has the text's words with times and the probabilities given by the model;
        each segment is a sentence. Words absent from the audio are in `missing`, and in no segment.
        The recording is transcribed first, with the given options.

        Examples:
            >>> transcript = transcriber.align("talk.wav", "Once more: today platform 1 is used.")
            >>> [word.word for word in transcript.missing]
            [' Once', ' more:']

        Raises:
            AlignmentError: the text has no words, or almost none of them are in the audio.
            ItemError: the recording cannot be read, or contains no usable audio.
            ValueError: the input is not audio, or the text not a string.
            ConfigError: an invalid option, or the checkpoint is not a Whisper and there is no
                `align_model`.
        """
        return next(
            self.align_many(
                [(audio, text)], sampling_rate=sampling_rate, on_progress=on_progress, **options
            )
        )

    def align_many(
        self,
        pairs: Iterable[tuple[AudioInput, str]],
        *,
        sampling_rate: float | None = None,
        on_error: OnError | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> Iterator[Transcript]:
        """Align recordings with their texts as in `align`, sharing the model's slots.

        `on_error` is called with each failed recording, while the others continue.
        """
        settings = self._checked(options)
        if settings.extract.separate:
            raise ConfigError(
                f"aligning a text: found {settings.extract.separate}, expected one channel or "
                "track, or all channels mixed, for one text; set one"
            )
        decoding = replace(settings.decoding, align=True)
        self._engine.check(decoding)
        return self._many(
            ((audio, _checked_text(text)) for audio, text in pairs),
            replace(settings, decoding=decoding),
            sampling_rate,
            on_error,
            on_progress,
            None,
        )

    def detect_language(
        self,
        audio: AudioInput,
        *,
        sampling_rate: float | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> DetectedLanguage:
        """Detect the language of a recording, with the probabilities of all languages.

        The same as in `transcribe`: from up to three windows of speech in the first part. Without
        speech, it is the model's guess for silence. A `language` option with several codes limits
        the choice; a single one does not. Fields may be unpacked, as in faster-whisper.

        Args:
            audio: as for `transcribe`; likewise `sampling_rate` and `options`.

        Raises:
            ItemError: the recording cannot be read, or contains no usable audio.
            ValueError: the input is not audio.
            ConfigError: an invalid option, or the checkpoint is not a multilingual Whisper.
        """
        settings = detecting(self._checked(options), self._engine.languages)
        audio_input = given_audio(audio, sampling_rate=sampling_rate)
        languages = self._languages(audio_input, settings)
        if not languages:
            # The result is the same for any length of silence, including zero.
            silence = given_audio(np.zeros(SAMPLE_RATE_HZ, np.int16), sampling_rate=SAMPLE_RATE_HZ)
            extract = settings.extract.model_copy(update={"vad_filter": False})
            languages = self._languages(silence, replace(settings, extract=extract))
        return DetectedLanguage(*languages[0], languages)

    def _languages(self, audio: GivenAudio, settings: CallSettings) -> list[tuple[str, float]]:
        """Return the languages of the first part with speech; empty without speech."""
        with CallInFlight(self._pool, self._engine, settings, detect_only=True) as call:
            for recording, has_ended in call.run([(audio, None)], to_the_end=True):
                spoken = [part for part in recording.parts if part.row["status"] == OK]
                if spoken and spoken[0].done:
                    return list(spoken[0].transcript.result().languages)
                if has_ended and recording.error is not None:
                    raise recording.error
        return []

    def stream(
        self,
        audio: AudioInput,
        *,
        sampling_rate: float | None = None,
        on_progress: OnProgress | None = None,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> Iterator[Segment]:
        """Transcribe one recording and yield its segments in time order as they become final.

        The same segments as from `transcribe`, in windows of at most 30 s. The first follow once
        the first part of the recording (`part_s`) is decoded and searched for speech. A damaged
        recording raises an error after the segments before the damage. Closing the iterator, or
        leaving a loop over it, stops the work; from another thread, `cancellation` does.

        Examples:
            >>> for segment in transcriber.stream("talk.wav"):
            ...     print(f"{segment.start_s:.1f} s: {segment.text}")
            0.0 s:  Today, only platforms 1 and 3 are used.

        Raises:
            CallCancelledError: `cancellation` was canceled.
            ItemError: the recording cannot be read, or contains no usable audio.
            ValueError: the input is not audio; see `transcribe`.
            ConfigError: an invalid option.
        """
        settings = self._checked(options)
        if settings.extract.separate:
            raise ConfigError(
                f"streaming segments: found {settings.extract.separate}, expected one channel or "
                "track, or all channels mixed; set one, or use transcribe"
            )
        if settings.speakers.wanted:
            raise ConfigError(
                "streaming segments: found diarize: true, expected false, since speakers need the "
                "whole recording; remove it, or use transcribe"
            )
        audio_input = given_audio(audio, sampling_rate=sampling_rate)

        def segments() -> Iterator[Segment]:
            with CallInFlight(
                self._pool, self._engine, settings, on_progress, cancellation
            ) as call:
                for recording, has_ended in call.run([(audio_input, None)], to_the_end=True):
                    for segment in recording.take_segments():
                        yield self._calibrated(segment)
                        call.check()  # may resume in a fork
                    if has_ended and recording.error is not None:
                        raise recording.error

        return segments()

    def close(self) -> None:
        """Stop the engine and the decoding processes; calls in other threads raise an error.

        No effect in a fork of the process that made this object, which has neither.
        """
        self._pool.close()
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "pickling or copying a Transcriber: found a model with threads, expected its "
            "checkpoint and options; make a Transcriber in each process"
        )

    def _checked(self, options: TranscriptionOptions) -> CallSettings:
        # Checked first: an invalid option costs no decoding.
        self._pool.check()
        call_options = {**self._options, **translated(options)}
        settings = options_from(call_options, fixed=FIXED_OPTIONS)
        self._engine.check(settings.decoding)
        return settings

    def _many(
        self,
        audios: Iterable[tuple[AudioInput, str | None]],
        settings: CallSettings,
        sampling_rate: float | None,
        on_error: OnError | None,
        on_progress: OnProgress | None,
        on_segment: OnSegment | None,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Transcript]:
        recordings = _readable(audios, sampling_rate, on_error)
        call = self.outcomes(recordings, settings, on_progress, on_segment, cancellation)
        with closing(call):
            for recording, outcome in call:
                if isinstance(outcome, Transcript):
                    yield outcome
                else:
                    _note(outcome.error, recording.name, on_error)

    def outcomes(
        self,
        recordings: Iterable[tuple[GivenAudio, str | None]],
        settings: CallSettings | None = None,
        on_progress: OnProgress | None = None,
        on_segment: OnSegment | None = None,
        cancellation: Cancellation | None = None,
    ) -> Generator[tuple[GivenAudio, Transcript | Failure]]:
        """Yield recordings, given with texts to align or None, as they finish or fail."""
        settings = settings or self._checked({})
        with CallInFlight(self._pool, self._engine, settings, on_progress, cancellation) as call:
            for recording, has_ended in call.run(recordings):
                if on_segment is not None:
                    # A failed part ends the segments passed on, and later the recording.
                    with suppress(ItemError):
                        for segment in recording.take_segments():
                            on_segment(recording.audio.name, self._calibrated(segment))
                if not has_ended:
                    continue
                outcome: Transcript | Failure
                try:
                    outcome = transcript_of(
                        recording, settings.speakers, self._model, self._calibrated
                    )
                except (CheckpointError, ConfigError, EngineError):
                    raise
                except Exception as error:
                    self._pool.check()  # errors caused by closing the pool are reported as such
                    stage: Stage = "extract" if error is recording.error else "transcribe"
                    outcome = Failure(error=error, stage=stage)
                yield recording.audio, outcome

    def _calibrated(self, segment: Segment) -> Segment:
        """Return a segment with calibrated confidence."""
        if self._calibration is DEFAULT_MODEL or segment.language in self._own_models:
            return segment
        return with_confidence(segment, self._calibration)


def _checked_text(text: object) -> str:
    if not isinstance(text, str):
        raise ValueError(
            f"aligning a text: found {type(text).__name__}, expected str; pass the transcript"
        )
    return text


def _note(error: Exception, uri: str, on_error: OnError | None) -> None:
    if on_error is None:
        raise error
    on_error(uri, error)


def _readable(
    audios: Iterable[tuple[AudioInput, str | None]],
    sampling_rate: float | None,
    on_error: OnError | None,
) -> Iterator[tuple[GivenAudio, str | None]]:
    for number, (audio, text) in enumerate(audios):
        try:
            recording = given_audio(audio, sampling_rate=sampling_rate, number=number)
        except ItemError as error:
            _note(error, str(error.uri), on_error)
            continue
        yield recording, text
