"""Parts of recordings between stages: messages of the extractor, table rows and failures."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from corpus_asr.array_types import Float16
from corpus_asr.config.extraction import ExtractSettings, SpeakerSettings
from corpus_asr.errors import DecodeError, ItemError
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.families.registry import PartFeatures
from corpus_asr.logs import event
from corpus_asr.schemas import PARTS
from corpus_asr.storage.stores.uri import redact_uri, without_secrets
from corpus_asr.units import SAMPLE_RATE_HZ

_LOG = logging.getLogger(__name__)

OK = "ok"
NO_SPEECH = "no_speech"
FAILED = "failed"
Stage = Literal["extract", "transcribe"]
# Failures caused by a bug or the machine, not by the recording.
INTERNAL = "internal"
# Large columns of PARTS, never converted to Python objects.
FEATURE_COLUMNS = ("features", "language_features", "further_features")
# Fields of a RESULTS row without text.
NOTHING_SAID: dict[str, Any] = {"attempts": 1, "segments_written": 0, "segments": []}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Exception that ended a recording, and the stage that raised it."""

    error: Exception
    stage: Stage


def failure_fields(
    error: Exception,
    *,
    stage: Stage,
    of: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the status columns that record `error` for one row, `of` this recording.

    Unexpected errors are logged with a traceback.
    """
    if isinstance(error, ItemError):
        kind, words, retryable = error.kind, str(error), error.retryable
    else:
        event(
            _LOG, logging.ERROR, "part_failed", stage=stage, recording_id=of.get("recording_id"),
            part=of.get("part"), uri=redact_uri(of.get("uri", "")), exc_info=error,
        )  # fmt: skip
        kind, words, retryable = INTERNAL, f"{type(error).__name__}: {error}", True
    return {
        "status": FAILED,
        "error_stage": stage,
        "error_kind": kind,
        # A library's or recognizer's message may contain the original URI.
        "error_message": str(ItemError(without_secrets(words))),
        "retryable": failure_kind(kind, retryable=retryable).retryable,
    }


def one_row(schema: pa.Schema, row: Mapping[str, Any]) -> pa.Table:
    """Build a table of one row; float16 arrays for list columns are not copied.

    Columns that `row` does not name are null.
    """
    if unknown := set(row) - set(schema.names):
        raise ValueError(f"columns {sorted(unknown)} are not in the schema {schema.names}")
    values = ((row.get(field.name), field.type) for field in schema)
    columns = [
        half_list([value]) if isinstance(value, np.ndarray) else pa.array([value], type=kind)
        for value, kind in values
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def check_finite(value: Any, name: str = "row") -> None:
    """Raise a ValueError for a number, at any depth, that is not finite.

    It would invalidate sums over all recordings, and JSON cannot represent it.
    """
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise ValueError(f"keeping a result: found {name} {value}, expected a finite number")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_finite(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_finite(inner, name)


def half_list(arrays: Sequence[Float16[np.ndarray, "..."]]) -> pa.ListArray:
    """Return one list per array, flattened in C order; a single contiguous array is not copied."""
    flat = [np.ascontiguousarray(array, dtype=np.float16).reshape(-1) for array in arrays]
    values = flat[0] if len(flat) == 1 else np.concatenate(flat)
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in flat])]).astype(np.int32)
    halves = pa.Array.from_buffers(pa.float16(), len(values), [None, pa.py_buffer(values)])
    return pa.ListArray.from_arrays(pa.array(offsets), halves)


def half_views(column: pa.ChunkedArray) -> list[Float16[np.ndarray, " value"] | None]:
    """Return each row's float16 values as a read-only view of the column's memory, null as None."""
    views: list[np.ndarray | None] = []
    for chunk in column.chunks:
        values = chunk.values
        buffer = values.buffers()[1]
        flat = (
            np.frombuffer(buffer, dtype=np.float16)[values.offset : values.offset + len(values)]
            if buffer is not None
            else np.empty(0, np.float16)
        )
        offsets = chunk.offsets.to_numpy()
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        views.extend(
            flat[start:end] if present else None
            for start, end, present in zip(offsets[:-1], offsets[1:], valid, strict=True)
        )
    return views


def further_columns(further: Mapping[str, PartFeatures]) -> dict[str, Any]:
    """Return the PARTS columns for features of additional kinds, by kind."""
    if not further:
        return {}
    kinds = [
        {
            "kind": kind,
            "num_frames": len(features.values),
            "num_mel_bins": features.values.shape[1],
            "pad_value": float(features.pad_value),
        }
        for kind, features in further.items()
    ]
    flat = np.concatenate([features.values.reshape(-1) for features in further.values()])
    return {"further_kinds": kinds, "further_features": flat}


def further_features(
    kinds: Iterable[Mapping[str, Any]] | None, flat: Float16[np.ndarray, " value"] | None
) -> dict[str, PartFeatures]:
    """Return a part's features of additional kinds, by kind, as views of their column."""
    features_by_kind: dict[str, PartFeatures] = {}
    at = 0
    for kind in kinds or ():
        assert flat is not None, "the kinds are of these features"
        shape = kind["num_frames"], kind["num_mel_bins"]
        size = shape[0] * shape[1]
        values = flat[at : at + size].reshape(shape)
        features_by_kind[kind["kind"]] = PartFeatures(values=values, pad_value=kind["pad_value"])
        at += size
    return features_by_kind


GIGABYTE = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractRequest:
    """A recording to extract, and the indices of its parts that are not needed."""

    uri: str
    name: str | None = None
    """Name in messages; None: its URI."""
    done_parts: frozenset[int] = frozenset()
    upcoming: tuple[str, ...] = ()
    """URIs of the next requests that may be opened ahead."""
    settings: ExtractSettings | None = field(default=None, repr=False)
    """Settings for this recording only; None: the extractor's. File limits are the extractor's."""
    speakers: SpeakerSettings | None = None
    """Speaker settings for this recording only; None: the extractor's."""
    languages: tuple[str, ...] | None = None
    """Codes of the expected languages; None: the extractor's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedPart:
    """One part; `wanted` is False for already processed parts, which have only an index."""

    part: int
    wanted: bool
    spoken: bool
    """Whether the part has speech, or speech detection is off."""
    channel: int | None
    """Number of its channel, from 0, or of its track, from 1; None: all channels mixed."""
    start_sample: int
    num_samples: int
    speech: tuple[tuple[float, float], ...] | None
    """Speech spans in seconds of the recording; empty without speech, None without detection."""
    features: Float16[np.ndarray, "frame mel"] | None
    """None for a part without speech."""
    num_mel_bins: int
    pad_value: float | None
    language_features: Float16[np.ndarray, "_ mel"] | None
    """Whole windows, concatenated; None if they lie in this part."""
    language_window_start_s: float | None
    codec: str
    sample_rate_hz: int
    channels: int
    header_duration_s: float | None
    decode_errors: int
    time_corrections: int
    clock_restarts: int
    audio_track: int | None
    """Number of its track, from 1; None if there is only one."""
    audio_tracks: tuple[str, ...] | None
    """Languages and titles of all tracks; None if there is only one."""
    silent_tracks: tuple[int, ...]
    """Tracks skipped for lack of speech."""
    decode_s: float
    cpu_s: float = 0.0
    """CPU seconds of the extracting process; the rest of `decode_s` was waiting."""
    fetch_retries: int = 0
    """Number of retried requests to its store."""
    measured: Sequence[Mapping[str, Any]] = ()
    """Values of its measures, as in PARTS."""
    further: Mapping[str, PartFeatures] = field(default_factory=dict)
    """Features of additional kinds, by kind; empty for a part without speech."""

    def columns(self) -> dict[str, Any]:
        """Return its PARTS columns, except those of the recording and `last_part`."""
        speech = self.speech
        columns = {name: getattr(self, name) for name in _SAME_COLUMNS} | {
            "part_start_s": self.start_sample / SAMPLE_RATE_HZ,
            "part_end_s": (self.start_sample + self.num_samples) / SAMPLE_RATE_HZ,
            "status": NO_SPEECH if self.features is None else OK,
            "speech_s": None
            if speech is None
            else sum((end - start for start, end in speech), 0.0),
            "speech_spans": None if speech is None else span_rows(speech),
        }
        return columns | further_columns(self.further)


_SAME_COLUMNS = [field.name for field in fields(ExtractedPart) if field.name in set(PARTS.names)]


def span_rows(spans: Iterable[tuple[float, float]]) -> list[dict[str, float]]:
    """Return spans as table rows."""
    return [{"start_s": start_s, "end_s": end_s} for start_s, end_s in spans]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeProgress:
    """Decoding progress of a recording between its parts; separate channels count each."""

    decoded_s: float
    expected_s: float | None
    """Duration in the header in seconds; None if missing."""
    content_digest: str | None = None
    """Digest of the sound, when all of it was read; None in earlier messages."""


def check_size(num_bytes: int, *, uri: str, max_file_gb: float) -> None:
    """Reject a file by its size, before any of it is read."""
    if num_bytes > max_file_gb * GIGABYTE:
        raise DecodeError(
            f"decoding {uri}: {num_bytes / GIGABYTE:.3g} GB, expected at most {max_file_gb:g} "
            "(extract.max_file_gb); raise the limit, or exclude it",
            uri=uri,
            kind="too_large",
        )
