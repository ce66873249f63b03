"""Rows of tables, made of results: outcomes, and the segments or labels that belong to them.

Labels are written in the same way in place of segments; the same words mean them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.confidence import DEFAULT_MODEL, EVIDENCE_COLUMNS, ConfidenceModel, evidence_of
from corpus_asr.schemas import LABELS, OUTCOMES, RESULTS, SEGMENTS
from corpus_asr.storage.parquet import conform, with_column
from corpus_asr.storage.stores.uri import public, public_text, without_named_secrets


def without_credentials(rows: pa.Table) -> pa.Table:
    """Return rows without credentials in URIs and texts; the same table if it has none."""
    texts = {"uri": public, "error_message": _public_message, "metadata": public_text}
    for name in texts.keys() & set(rows.schema.names):
        # Few texts hold a URI with a password or a query; a message holds what a library said.
        suspect = "." if name == "error_message" else r"(?s)://.*[?@]"
        if not pc.any(pc.match_substring_regex(rows[name], suspect)).as_py():
            continue
        remove = texts[name]
        rows = with_column(rows, name, [text and remove(text) for text in rows[name].to_pylist()])
    return rows


def _public_message(text: str) -> str:
    return without_named_secrets(public_text(text))


ModelName = tuple[str, str]
"""A checkpoint as configured, and the revision of its weights."""
NO_OTHERS: Final[Mapping[str, ModelName]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PartRows:
    """A table whose rows belong to parts, written together with their outcomes."""

    folder: str  # below the output folder; also the column of RESULTS that holds a part's rows
    schema: pa.Schema


SEGMENT_ROWS = PartRows("segments", SEGMENTS)
LABEL_ROWS = PartRows("labels", LABELS)
PART_ROWS = (SEGMENT_ROWS, LABEL_ROWS)
PART_ROWS_FOLDERS = tuple(rows.folder for rows in PART_ROWS)


def commit_rows(
    results: pa.Table,
    *,
    run_id: str,
    model: ModelName,
    by_language: Mapping[str, ModelName] = NO_OTHERS,
    calibration: ConfidenceModel | None = None,
) -> pa.Table:
    """Return the rows of a commit: outcomes of results, each with its segments or labels.

    Raises:
        ValueError: results without what accounts for their recordings, or with both.
    """
    results = conform(results, RESULTS).combine_chunks()
    _check_accountable(results)
    results = without_credentials(results)
    # Counted, not believed: part rows are found by these counts when commits are rewritten.
    counts = [pc.fill_null(pc.list_value_length(results[kind.folder]), 0) for kind in PART_ROWS]
    held = [kind for kind, number in zip(PART_ROWS, counts, strict=True) if pc.sum(number).as_py()]
    if len(held) > 1:
        raise ValueError("committing results: found segments and labels, expected one of them")
    stamps = {
        "run_id": pa.repeat(pa.scalar(run_id, pa.string()), len(results)),
        "calibration": pa.repeat(DEFAULT_MODEL.name, len(results)),
        "segments_written": pc.add(*counts).cast(pa.int32()),
        **_models(results["language"], model, by_language),
    }
    columns = dict(zip(results.schema.names, results.columns, strict=True)) | stamps
    outcomes = pa.table([columns[name] for name in OUTCOMES.names], schema=OUTCOMES)
    if not held:
        return outcomes
    [kind] = held
    lists = results[kind.folder].combine_chunks()
    parents, flat = pc.list_parent_indices(lists), pc.list_flatten(lists)
    of_rows = {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    of_parts = {name: columns[name].take(parents) for name in {*kind.schema.names} - {*of_rows}}
    rows = pa.table([(of_parts | of_rows)[name] for name in kind.schema.names], schema=kind.schema)
    if calibration is not None and kind is SEGMENT_ROWS:
        rows = _calibrated(rows, calibration, model_revision=model[1])
    return nested(outcomes, rows, kind)


def nested(outcomes: pa.Table, part_rows: pa.Table, rows: PartRows) -> pa.Table:
    """Return outcomes with their segments or labels, which are in the same order, in lists."""
    table = outcomes.cast(OUTCOMES)
    if not part_rows.num_rows:
        return table
    written = pc.fill_null(table["segments_written"], 0).to_numpy()
    offsets = pa.array(np.append(0, np.cumsum(written)), pa.int32())
    values = pa.concat_arrays(part_rows.cast(rows.schema).to_struct_array().chunks)
    return table.append_column(rows.folder, pa.ListArray.from_arrays(offsets, values))


def _check_accountable(results: pa.Table) -> None:
    # Each of these would break the balance of recordings.
    for name in ("recording_id", "uri", "part", "last_part", "status"):
        if results[name].null_count:
            raise ValueError(f"committing results: {results[name].null_count} rows without {name}")
    unknown = set(results["status"].unique().to_pylist()) - {"ok", "no_speech", "failed"}
    if unknown:
        raise ValueError(f"committing results: unknown status {sorted(unknown)}")


def _calibrated(
    segments: pa.Table, calibration: ConfidenceModel, *, model_revision: str
) -> pa.Table:
    """Return SEGMENTS rows with the confidences of a calibration, and its name."""
    # It was fitted for these weights alone: rows of other models keep what they have.
    confidences, names = (segments[name].to_pylist() for name in ("confidence", "calibration"))
    for at, row in enumerate(segments.select(["model_revision", *EVIDENCE_COLUMNS]).to_pylist()):
        evidence = evidence_of(row)
        if evidence is not None and row["model_revision"] == model_revision:
            confidences[at], names[at] = calibration.confidence(evidence), calibration.name
    return with_column(with_column(segments, "confidence", confidences), "calibration", names)


def _models(
    language: pa.ChunkedArray, model: ModelName, by_language: Mapping[str, ModelName]
) -> dict[str, pa.Array]:
    """Return the model of each part; parts in some languages have a model of their own."""
    which = pc.index_in(language, value_set=pa.array(list(by_language), pa.string()))
    which = pc.fill_null(which, len(by_language)).combine_chunks()
    names = [*by_language.values(), model]
    return {
        "model": pa.array([public(name) for name, _ in names], pa.string()).take(which),
        "model_revision": pa.array([made for _, made in names], pa.string()).take(which),
    }
