"""Batches of other programs' pipelines: audio in, the same batches with transcripts out.

A batch is an Arrow table, a pandas data frame or a mapping of columns.
"""

import threading
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import closing, suppress
from copy import copy
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from corpus_asr.audio.inputs import GivenAudio, given_audio
from corpus_asr.confidence import recording_confidence
from corpus_asr.config.load import name_hint
from corpus_asr.config.options import options_from
from corpus_asr.errors import ConfigError, DecodeError
from corpus_asr.formats.transcript import Transcript
from corpus_asr.runtime.transcriber import FIXED_OPTIONS, Transcriber
from corpus_asr.schemas import BATCH_COLUMNS
from corpus_asr.stages.parts import Failure, failure_fields

# Of Hugging Face's feature, `read_binary_files`, decoded features, `read_audio`, and listings.
_AUDIO = ("audio", "bytes", "array", "amplitude", "path", "uri")
_RATES = ("sampling_rate", "sample_rate")
_PLACES = ("path", "uri")


class Transcribe:
    """Adds transcripts to batches of audio; for `map_batches` of Ray Data, and the like.

    The columns `text`, `language`, `confidence`, `duration_s`, `segments`, `error_kind` and `error`
    join those of the batch, whose type stays. A recording that fails is a row with its error.
    Threads may call it at once: their batches share the model's slots. The model loads with the
    first batch and stays until `close`; an unpickled copy loads its own.

    Examples:
        >>> from corpus_asr import Transcribe
        >>> transcribe = Transcribe("whisper-tiny.en", temperature=0)
        >>> batch = transcribe({"path": ["talk.wav", "absent.wav"]})
        >>> batch["text"], batch["error_kind"]
        (['Today, only platforms 1 and 3 are used.', None], [None, 'not_found'])
        >>> transcribe.close()

    Args:
        checkpoint: as of `Transcriber`.
        audio_column: column with anything that `Transcriber.transcribe` takes; None: the first of
            `audio`, `bytes`, `array`, `amplitude`, `path`, `uri`. Arrays have their rates in
            `sampling_rate` or `sample_rate`.
        **settings: arguments and options of `Transcriber`.

    Raises:
        ConfigError: an invalid option.
    """

    def __init__(
        self, checkpoint: str | None = None, *, audio_column: str | None = None, **settings: Any
    ) -> None:
        options = {name: value for name, value in settings.items() if name not in FIXED_OPTIONS}
        options_from(options, fixed=FIXED_OPTIONS)  # raises here, rather than in a worker
        self._column = audio_column
        self._load = partial(Transcriber, checkpoint, **settings)
        self._transcriber: Transcriber | None = None
        self._loading = threading.Lock()

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the columns of its transcripts.

        Raises:
            ConfigError: it has no column of audio, or one with the name of an added one.
            CorpusAsrError: the model cannot be loaded, or cannot transcribe any recording.
        """
        # A batch of datasets decodes what is read of it, and would have that written back.
        source = copy(batch) if isinstance(batch, MutableMapping) else batch
        names = list(getattr(source, "column_names", source))
        if taken := ", ".join(name for name in BATCH_COLUMNS.names if name in names):
            raise ConfigError(
                f"transcribing a batch: found columns {taken}, expected to add these; rename them"
            )
        column = self._column or _first(_AUDIO, names)
        if column not in names and names and len(source[names[0]]):
            hint = name_hint(column, names) or "name the column of the audio by audio_column"
            raise ConfigError(
                f"transcribing a batch: found columns {', '.join(names)}, expected {column}; {hint}"
            )
        wanted = (column, _first(_RATES, names), _first(_PLACES, names))
        values = [_values(source[name]) if name in names else [] for name in wanted]
        rows = self._transcribed(zip_longest(*values))
        return _joined(batch, {
            field.name: pa.array([row.get(field.name) for row in rows], field.type)
            for field in BATCH_COLUMNS
        })  # fmt: skip

    def close(self) -> None:
        """Stop the model; another batch would load it again."""
        with self._loading:
            transcriber, self._transcriber = self._transcriber, None
        if transcriber is not None:
            transcriber.close()

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {"audio_column": self._column, **self._load.keywords}
        return partial(type(self), *self._load.args, **settings), ()

    def _transcribed(self, audios: Iterable[tuple[Any, Any, Any]]) -> list[dict[str, Any]]:
        """Return rows of BATCH_COLUMNS for audio, its rate, and its path or URI."""
        outcomes: list[GivenAudio | Transcript | Failure] = []
        for number, (audio, rate_hz, place) in enumerate(audios):
            try:
                outcomes.append(_recording(audio, rate_hz, place, number))
            except Exception as error:  # also of a decoder of another library
                wrong_value = isinstance(error, ValueError)
                failed = DecodeError(str(error), kind="not_audio") if wrong_value else error
                outcomes.append(Failure(error=failed, stage="extract"))
        # By identity: a batch may have a recording twice.
        numbers = {id(outcome): number for number, outcome in enumerate(outcomes)}
        if recordings := [outcome for outcome in outcomes if isinstance(outcome, GivenAudio)]:
            with self._loading:
                self._transcriber = transcriber = self._transcriber or self._load()
            with closing(transcriber.outcomes((audio, None) for audio in recordings)) as finished:
                for recording, outcome in finished:
                    outcomes[numbers[id(recording)]] = outcome
        return [_row(outcome) for outcome in outcomes]


def _first(wanted: tuple[str, ...], names: list[str]) -> str:
    return next((name for name in wanted if name in names), wanted[0])


def _values(column: Any) -> list[Any]:
    if not isinstance(column, pa.ChunkedArray):
        return list(column)
    is_tensor = isinstance(column.type, pa.BaseExtensionType)  # of Ray
    return list(column.to_pylist() if is_tensor else column.to_numpy())


def _recording(audio: Any, rate_hz: Any, place: Any, number: int) -> GivenAudio:
    """Return a row's recording; one without audio is read from its path or URI."""
    place = place if isinstance(place, str) else None
    if isinstance(audio, Mapping):
        audio = {name: _array(value) for name, value in audio.items()}
    elif isinstance(samples := _array(audio), np.ndarray):
        audio = {"array": samples, "sampling_rate": rate_hz, "path": place}
    elif isinstance(audio, bytes | bytearray | memoryview):
        audio = {"bytes": audio, "path": place}
    elif audio is None or isinstance(audio, float):  # null of pandas is NaN
        audio = place
    return given_audio(audio, sampling_rate=None, number=number)


def _array(samples: Any) -> Any:
    """Return lists of samples, and arrays of channels, as an array."""
    is_nested = isinstance(samples, np.ndarray) and samples.dtype == object
    with suppress(ValueError):  # of channels with unequal lengths
        if is_nested or isinstance(samples, list):
            return np.array([*samples])
    return samples


def _row(outcome: Any) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        failure = failure_fields(outcome.error, stage=outcome.stage)
        return {"error_kind": failure["error_kind"], "error": failure["error_message"]}
    segments = [
        asdict(segment) | {"channel": channel}
        for channel, of_channel in outcome.by_channel().items()
        for segment in of_channel
    ]
    return {name: getattr(outcome, name) for name in ("text", "language", "duration_s")} | {
        "confidence": recording_confidence(outcome.segments),
        "segments": sorted(segments, key=itemgetter("start_s")),
    }


def _joined(batch: Any, columns: dict[str, pa.Array]) -> Any:
    if isinstance(batch, pa.Table):
        for name, values in columns.items():
            batch = batch.append_column(name, values)
        return batch
    arrays = {name: _numpy(values) for name, values in columns.items()}
    if not isinstance(batch, MutableMapping):
        return batch.assign(**arrays)
    source, joined = copy(batch), copy(batch)
    is_numpy = isinstance(next(iter(source.values()), None), np.ndarray)
    lists = {name: values.to_pylist() for name, values in columns.items()}
    joined.update(arrays if is_numpy else lists)
    return joined


def _numpy(values: pa.Array) -> np.ndarray:
    if pa.types.is_floating(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    # Ray takes lists of structs, but not arrays of them.
    return np.fromiter(values.to_pylist(), dtype=object, count=len(values))
