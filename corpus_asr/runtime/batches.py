"""Batches of other programs' pipelines: audio in, the same batches with transcripts out.

A batch is an Arrow table or record batch, a data frame of pandas or polars, or a mapping of
columns; a mapping of single values is one row. The columns that join it have the types of
`BATCH_COLUMNS`, also where all of their values are null.
"""

import numbers
import sys
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
_ARROW = (pa.Table, pa.RecordBatch)


class Transcribe:
    """Adds transcripts to batches of audio; for `map_batches` of Ray Data, and the like.

    The columns `text`, `language`, `confidence`, `duration_s`, `segments`, `error_kind` and `error`
    join those of the batch, whose type stays. A recording that fails is a row with its error. One
    row, as `datasets.map` gives it without `batched=True`, returns as one row.
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
            ConfigError: it is no batch, has no column of audio, or one with the name of an added
                one.
            CorpusAsrError: the model cannot be loaded, or cannot transcribe any recording.
        """
        is_mapping = isinstance(batch, Mapping)
        if not (is_mapping or isinstance(batch, _ARROW) or hasattr(batch, "assign")):
            return type(batch)(self(_table(batch)))  # such as of polars
        # A batch of datasets decodes what is read of it, and would have that written back.
        source = copy(batch) if is_mapping else batch
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
        inputs = (column, _first(_RATES, names), _first(_PLACES, names))
        columns = [source[name] if name in names else [] for name in inputs]
        if is_mapping and column in names and _is_single(columns[0], columns[1]):
            audio, rate_hz, place = (source[name] if name in names else None for name in inputs)
            [row] = self._transcribed([(audio, rate_hz, place)])
            return _updated(batch, {name: row.get(name) for name in BATCH_COLUMNS.names})
        rows = self._transcribed(zip_longest(*map(_values, columns)))
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


def _table(batch: Any) -> pa.Table:
    """Return a table of another library as one of Arrow."""
    with suppress(TypeError, ValueError):  # of a single column, and of what is no table
        return pa.table(batch)
    raise ConfigError(
        f"transcribing a batch: found a {type(batch).__name__}, expected an Arrow table, a data "
        "frame or a mapping of columns; pass a list of recordings as {'audio': recordings}"
    )


def _first(wanted: tuple[str, ...], names: list[str]) -> str:
    return next((name for name in wanted if name in names), wanted[0])


def _is_single(audio: Any, rate_hz: Any) -> bool:
    """Tell whether the audio of a mapping is one recording in place of a column."""
    if _is_number(rate_hz) or not isinstance(audio, Iterable):
        return True
    if isinstance(audio, str | bytes | bytearray | memoryview | Mapping) or hasattr(audio, "read"):
        return True
    # A null of pandas is a number, too.
    samples = [value for value in _values(audio) if not _is_nan(value)]
    return bool(samples) and all(_is_number(value) for value in samples)


def _is_number(value: Any) -> bool:
    is_scalar = getattr(value, "ndim", None) == 0 and not isinstance(value, str | bytes)
    return is_scalar or isinstance(value, numbers.Number)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _values(column: Any) -> list[Any]:
    if not isinstance(column, pa.ChunkedArray | pa.Array):
        return list(column)
    is_tensor = isinstance(column.type, pa.BaseExtensionType)  # of Ray
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    return list(chunked.to_pylist() if is_tensor else chunked.to_numpy())


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
    if isinstance(batch, _ARROW):
        for name, values in columns.items():
            batch = batch.append_column(name, values)
        return batch
    if not isinstance(batch, Mapping):
        pandas: Any = sys.modules["pandas"]  # whose frame this is
        frames = {
            name: values.to_pandas(types_mapper=pandas.ArrowDtype)
            for name, values in columns.items()
        }
        return batch.assign(
            **{name: series.set_axis(batch.index) for name, series in frames.items()}
        )
    if _is_ray_worker():
        return _updated(batch, columns)  # Ray would guess the types of lists and NumPy's arrays
    return _updated(batch, {name: _TypedList(values) for name, values in columns.items()})


def _is_ray_worker() -> bool:
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


def _updated(batch: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
    """Return a copy of a mapping, of its type if that can be changed, with further columns."""
    updated: Any = copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
    updated.update(columns)
    return updated


class _TypedList(list[Any]):
    """Values of a column whose type Arrow and datasets take from it, also where all are null."""

    def __init__(self, values: pa.Array) -> None:
        super().__init__(values.to_pylist())
        self._type = values.type

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.__arrow_array__(),)

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return pa.array(list(self), self._type)
