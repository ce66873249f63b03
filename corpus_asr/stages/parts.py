"""Parts of recordings between stages: messages of the extractor, table rows and failures."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from corpus_asr.activity import Activity
from corpus_asr.config.extraction import ExtractSettings, SpeakerSettings
from corpus_asr.errors import DecodeError, ItemError
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.families.registry import PartFeatures
from corpus_asr.logs import event
from corpus_asr.storage.stores.uri import redact_uri, without_secrets

_LOG = logging.getLogger(__name__)

OK = "ok"
NO_SPEECH = "no_speech"
FAILED = "failed"
DONE = "done"
"""Status of a part that an earlier run transcribed, of which no row is kept."""
Stage = Literal["extract", "transcribe"]
# Failures caused by a bug or the machine, not by the recording.
INTERNAL = "internal"
PartRow = dict[str, Any]
"""A PARTS row, of which a message of the extractor has all but the columns of the recording, and
`silent_tracks`, numbers of tracks skipped for lack of speech; features are arrays of any shape."""
# Large columns of PARTS, never converted to Python objects.
FEATURE_COLUMNS = ("features", "language_features", "further")
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
    """Build a table of one row of the columns that `row` names; its arrays are not copied."""
    columns = []
    for column in schema:
        value = row.get(column.name)
        if isinstance(value, np.ndarray):
            offsets = pa.array([0, value.size], pa.int32())
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(value.reshape(-1))))
        else:
            columns.append(pa.array([value], column.type))
    return pa.Table.from_arrays(columns, schema=schema)


def part_rows(parts: pa.Table) -> list[PartRow]:
    """Return PARTS rows whose features are views of the table's memory."""
    rows: list[PartRow] = parts.drop_columns(list(FEATURE_COLUMNS)).to_pylist()
    for name in FEATURE_COLUMNS:
        for row, value in zip(rows, parts[name], strict=True):
            row[name] = _view(value)
    return rows


def _view(value: pa.Scalar) -> Any:
    """Return a scalar as a Python value with views of its lists of float16."""
    if not value.is_valid:
        return None
    if isinstance(value, pa.StructScalar):
        return {name: _view(inner) for name, inner in value.items()}
    if value.type == pa.list_(pa.float16()):
        halves = value.values
        if not len(halves):
            return np.empty(0, np.float16)
        # Not `to_numpy`, whose arrays cannot be written to, of which torch warns.
        view = np.frombuffer(halves.buffers()[1], dtype=np.float16)
        return view[halves.offset : halves.offset + len(halves)]
    return [_view(inner) for inner in value] if isinstance(value, pa.ListScalar) else value.as_py()


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


def further_rows(further: Mapping[str, PartFeatures]) -> list[dict[str, Any]]:
    """Return the PARTS column of features of additional kinds, by kind."""
    return [
        {
            "kind": kind,
            "num_mel_bins": features.values.shape[1],
            "pad_value": float(features.pad_value),
            "features": features.values.reshape(-1),
        }
        for kind, features in further.items()
    ]


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


Message = PartRow | DecodeProgress | Activity
"""What an extractor yields: parts, and what it did in the meantime."""


def with_last(parts: Iterable[PartRow]) -> Iterator[PartRow]:
    """Yield parts with `last_part`, each once the next is known, and before an error."""
    last: PartRow | None = None
    try:
        for part in parts:
            if last is not None:
                yield last | {"last_part": False}
            last = part
    except Exception:
        if last is not None:
            yield last | {"last_part": False}
        raise
    if last is not None:
        yield last | {"last_part": True}


def check_size(num_bytes: int, *, uri: str, max_file_gb: float) -> None:
    """Reject a file by its size, before any of it is read."""
    if num_bytes > max_file_gb * GIGABYTE:
        raise DecodeError(
            f"decoding {uri}: {num_bytes / GIGABYTE:.3g} GB, expected at most {max_file_gb:g} "
            "(extract.max_file_gb); raise the limit, or exclude it",
            uri=uri,
            kind="too_large",
        )
