"""Measures of a part: arrays computed from its samples, and columns derived for part and segments.

The array of a measure is computed once per part where audio is decoded, and is sent as the bytes of
an .npy file; its columns are computed in another process, once segments are known. A failed measure
affects neither other measures nor the text: its columns are null, and `measures` has the error.
"""

import functools
import inspect
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from corpus_asr.audio.parts import AudioPart
from corpus_asr.audio.vad import Samples
from corpus_asr.config.extraction import NO_SEGMENTATION, ExtractSettings, SpeakerSettings
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.families.registry import resolve
from corpus_asr.logs import event
from corpus_asr.schemas import SEGMENT_FIELDS
from corpus_asr.stages.parts import check_finite, span_rows
from corpus_asr.storage.stores.uri import without_secrets
from corpus_asr.units import SAMPLE_RATE_HZ

_LOG = logging.getLogger(__name__)

SampleSpan = tuple[int, int]

# Imported on use: voice encoders load ONNX Runtime, which the driver does not need.
_REFERENCES: Mapping[str, str] = {
    "sound": "corpus_asr.audio.sound_quality:SoundQuality",
    "fingerprint": "corpus_asr.audio.fingerprint:Fingerprint",
    "voices": "corpus_asr.stages.measures:Voices",
}
_ERROR = "error"
"""Field in `measures` with the error of a failed measure."""
_MESSAGE_CHARS = 500
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_OF_SEGMENTS = {field.name for field in SEGMENT_FIELDS}


class Measure(Protocol):
    """Interface of a measure of parts. Custom classes are listed in `extract.measures`."""

    name: ClassVar[str]
    columns: ClassVar[Sequence[str]]
    """Names of the columns that `over` returns."""

    def measure(self, samples: Samples, speech: Sequence[SampleSpan] | None) -> np.ndarray:
        """Return the values of a part: an array of numbers of any shape.

        Args:
            samples: 16 kHz mono, between -1 and 1; read-only.
            speech: spans of detected speech in samples; None without speech detection.
        """

    @staticmethod
    def over(
        values: Any, spans: Sequence[tuple[float, float]], *, start_s: float
    ) -> Mapping[str, Any]:
        """Return the columns for spans: a segment, or a part's speech.

        Args:
            values: what `measure` returned for the part.
            spans: seconds from the start of the part.
            start_s: start of the part in the recording, in seconds.
        """


class Voices:
    """The measure `voices` of whole parts: windows of speech with embeddings, and overlaps."""

    name: ClassVar[str] = "voices"
    columns: ClassVar[Sequence[str]] = ("voice_spans", "voices", "overlap_spans")

    def __init__(self, *, model: str, segmentation: str, pad_s: float) -> None:
        """Load the networks, given as `speakers` has them; speech is padded by `pad_s` seconds."""
        from corpus_asr.speakers.networks import SpeakerEmbedder
        from corpus_asr.speakers.segmentation import Segmenter

        self._embedder, self._pad_s = SpeakerEmbedder(model), pad_s
        self._segmenter = None if segmentation == NO_SEGMENTATION else Segmenter(segmentation)

    def measure(self, samples: Samples, speech: Sequence[SampleSpan] | None) -> np.ndarray:
        """Return start and end in seconds and a float16 embedding: zero for overlaps."""
        from corpus_asr.speakers.networks import unpadded

        detected = [(0, samples.size)] if speech is None else speech
        spans = [unpadded(span, self._pad_s, samples.size) for span in detected]
        pieces: Sequence[SampleSpan] = spans
        overlaps: Sequence[SampleSpan] = ()
        if self._segmenter is not None:
            pieces, overlaps = self._segmenter(samples, spans)
        windows = self._embedder(samples, pieces)
        # Two speak all the time, or only single words are said.
        if self._segmenter is not None and not len(windows):
            windows, overlaps = self._embedder(samples, spans), ()
        width = windows.embeddings.shape[1:]
        row = [("start_s", "<f8"), ("end_s", "<f8"), ("embedding", "<f2", width)]
        values = np.zeros(len(windows) + len(overlaps), dtype=row)
        both = np.array(overlaps, dtype=np.float64).reshape(-1, 2) / SAMPLE_RATE_HZ
        values["start_s"] = np.append(windows.start_s, both[:, 0])
        values["end_s"] = np.append(windows.end_s, both[:, 1])
        values["embedding"][: len(windows)] = windows.embeddings
        return values

    @staticmethod
    def over(values: np.ndarray, spans: object, *, start_s: float) -> Mapping[str, Any]:
        """Return windows and overlaps in recording time, and the bytes of all embeddings."""
        has_voice = values["embedding"].any(axis=1)

        def times(rows: np.ndarray) -> list[dict[str, float]]:
            columns = ((rows[name] + start_s).tolist() for name in ("start_s", "end_s"))
            return span_rows(zip(*columns, strict=True))

        return {
            "voice_spans": times(values[has_voice]),
            "voices": values["embedding"][has_voice].tobytes(),
            "overlap_spans": times(values[~has_voice]) or None,
        }


def wanted_measures(
    extract: ExtractSettings, speakers: SpeakerSettings
) -> dict[str, dict[str, Any]]:
    """Return the references of a job's measure classes, with their options."""
    wanted: dict[str, dict[str, Any]] = {
        _REFERENCES.get(name, name): {} for name in extract.measures
    }
    if speakers.wanted:
        networks = {"model": speakers.model, "segmentation": speakers.segmentation}
        wanted[_REFERENCES["voices"]] = networks | {"pad_s": extract.vad_pad_s}
    return wanted


def check_measures(config: RunConfig) -> None:
    """Check that a job's measures can be created.

    Raises:
        ConfigError: a class cannot be imported or created, is no measure, or has a duplicate name.
        CheckpointError: a speaker network cannot be fetched or read.
    """
    references: dict[str, str] = {}
    for reference, options in wanted_measures(config.extract, config.speakers).items():
        name = new_measure(reference, options).name
        packaged = _REFERENCES.get(name, reference)
        if packaged != reference or name in references:
            raise ConfigError(
                f"reading extract.measures: found {reference} with the name {name!r}, expected "
                f"a name other than that of {references.get(name, packaged)}; rename it"
            )
        references[name] = reference


def new_measure(reference: str, options: Mapping[str, Any]) -> Measure:
    """Create a measure of a class with these options.

    Raises:
        ConfigError: the class cannot be imported or created, or is not a measure.
        CheckpointError: a network cannot be fetched or read.
    """
    kind = _measure_class(reference)
    try:
        return kind(**options)
    except CorpusAsrError:
        raise
    except Exception as error:  # of a custom class
        raise ConfigError(
            f"making the measure {reference}: {type(error).__name__}: {error}; correct it, or "
            "remove it from extract.measures"
        ) from error


@functools.cache
def _measure_class(reference: str) -> type[Measure]:
    try:
        resolved = resolve(reference)
    except Exception as error:  # of a custom module
        raise ConfigError(
            f"importing the measure {reference}: {type(error).__name__}: {error}; install its "
            "package on every machine, or correct extract.measures"
        ) from error
    name, columns = (getattr(resolved, attribute, None) for attribute in ("name", "columns"))
    over = inspect.getattr_static(resolved, "over", None)
    if not isinstance(resolved, type):
        problem = f"{resolved!r:.200}, expected a class"
    elif not (isinstance(name, str) and _NAME.fullmatch(name)):
        problem = f"the name {name!r}, expected lower-case letters, digits and underscores"
    elif not isinstance(columns, list | tuple) or not columns or _ERROR in columns:
        problem = f"the columns {columns!r}, expected a list of names other than {_ERROR!r}"
    elif not (callable(getattr(resolved, "measure", None)) and isinstance(over, staticmethod)):
        problem = (
            f"the methods {sorted(vars(resolved))}, expected measure, and over as static method"
        )
    else:
        measure: type[Measure] = resolved
        return measure
    raise ConfigError(f"importing the measure {reference}: found {problem}; correct it")


def measure_part(measures: Mapping[str, Measure], audio: AudioPart) -> list[dict[str, Any]]:
    """Return a part's measures as in the PARTS column, each with its reference."""
    samples = audio.samples.view()
    samples.flags.writeable = False  # shared with later steps and other measures
    speech = None if audio.speech is None else [
        (start - audio.start_sample, end - audio.start_sample) for start, end in audio.speech
    ]  # fmt: skip
    return [
        _measured(reference, measure, samples, speech) for reference, measure in measures.items()
    ]


def _measured(
    reference: str, measure: Measure, samples: Samples, speech: Sequence[SampleSpan] | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": measure.name, "reference": reference}
    file = io.BytesIO()
    try:
        np.save(file, measure.measure(samples, speech), allow_pickle=False)
    except Exception as error:  # the part is transcribed without the measure
        return row | {_ERROR: _noted(measure.name, error)}
    return row | {"values": file.getvalue()}


def measured_columns(
    measured: Iterable[Mapping[str, Any]],
    spans: Sequence[Mapping[str, float]],
    segments: Sequence[dict[str, Any]],
    *,
    start_s: float,
) -> dict[str, Any]:
    """Return the columns of a part's measures over its speech, and add those of its segments.

    Args:
        measured: the measures as in the PARTS column.
        spans: speech of the part, in seconds of the recording, as `segments` are.
        segments: rows to which columns are added.
        start_s: start of the part in the recording, in seconds.
    """
    columns: dict[str, Any] = {}
    users: list[dict[str, Any]] = [{} for _ in range(1 + len(segments))]
    pieces = [spans, *([segment] for segment in segments)]
    for row in measured:
        name = row["name"]
        try:
            over = [] if row.get(_ERROR) else _over(row, pieces, start_s=start_s)
        except Exception as error:  # as above
            users[0][name] = {_ERROR: _noted(name, error)}
            continue
        if not over:
            users[0][name] = {_ERROR: row[_ERROR]}
        elif name in _REFERENCES:
            columns |= over[0]
            for segment, values in zip(segments, over[1:], strict=False):
                segment |= values
        else:
            for piece, values in zip(users, over, strict=True):
                piece[name] = values
    for segment, piece in zip(segments, users[1:], strict=True):
        segment["measures"] = json.dumps(piece) if piece else None
    return columns | {"measures": json.dumps(users[0]) if users[0] else None}


def _over(
    row: Mapping[str, Any], pieces: Sequence[Sequence[Mapping[str, float]]], *, start_s: float
) -> list[dict[str, Any]]:
    """Return the columns of each piece; only of the first if segments have no such columns."""
    measure, values = _measure_class(row["reference"]), _values(row)
    packaged = row["name"] in _REFERENCES
    if packaged and not _OF_SEGMENTS.issuperset(measure.columns):
        pieces = pieces[:1]
    rows = []
    for piece in pieces:
        within = [(span["start_s"] - start_s, span["end_s"] - start_s) for span in piece]
        columns = dict(measure.over(values, within, start_s=start_s))
        if {*columns} != {*measure.columns}:
            raise ValueError(f"found the columns {[*columns]}, expected {[*measure.columns]}")
        if packaged:
            check_finite(columns, row["name"])
        else:
            text = json.dumps(columns, allow_nan=False, default=lambda value: value.tolist())
            columns = json.loads(text)
        rows.append(columns)
    return rows


def _values(row: Mapping[str, Any]) -> np.ndarray:
    values: np.ndarray = np.load(io.BytesIO(row["values"]), allow_pickle=False)
    return values


def _noted(name: str, error: Exception) -> str:
    """Return an error's message for the tables, and log the first one of each measure."""
    words = without_secrets(f"{type(error).__name__}: {error}")[:_MESSAGE_CHARS]
    _warn_once(name, words)
    return words


_warned: set[str] = set()


def _warn_once(name: str, words: str) -> None:
    """Log the first failure of a measure in this process, as all parts may have the same."""
    if name not in _warned:
        _warned.add(name)
        event(_LOG, logging.WARNING, "measure_failed", measure=name, error=words)
