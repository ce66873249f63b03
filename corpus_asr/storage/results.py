"""What stages found, as the rows of tables: one of outcomes per part, and the part's own rows.

In: RESULTS rows. Out: OUTCOMES rows, and SEGMENTS or LABELS rows. A run writes one of the two, by
what its pipeline does. Knows no store.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.confidence import (
    DEFAULT_MODEL,
    EVIDENCE_COLUMNS,
    ConfidenceModel,
    evidence_of,
)
from corpus_asr.schemas import LABEL_FIELDS, LABELS, OUTCOMES, SEGMENT_FIELDS, SEGMENTS

ModelName = tuple[str, str]
"""A checkpoint as configured, and the revision of its weights."""
NO_OTHERS: Final[Mapping[str, ModelName]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PartRows:
    """A table whose rows belong to parts, written together with their outcomes."""

    folder: str
    """Below the output folder; also the column of RESULTS that holds a part's rows."""
    schema: pa.Schema
    fields: tuple[pa.Field, ...]
    """Of one row, as it lies in RESULTS."""


SEGMENT_ROWS = PartRows("segments", SEGMENTS, SEGMENT_FIELDS)
LABEL_ROWS = PartRows("labels", LABELS, LABEL_FIELDS)
PART_ROWS = (SEGMENT_ROWS, LABEL_ROWS)
PART_ROWS_FOLDERS = tuple(rows.folder for rows in PART_ROWS)


def part_rows_named(names: Iterable[str | None]) -> PartRows:
    """Tell by the names of their objects which rows some outcomes have.

    Raises:
        ValueError: they have rows of both tables.
    """
    folders = {name.partition("/")[0] for name in names if name is not None}
    found = [rows for rows in PART_ROWS if rows.folder in folders]
    if len(found) > 1:
        raise ValueError("rewriting commits: found segments and labels, expected one of them")
    return found[0] if found else SEGMENT_ROWS


def part_rows_in(results: pa.Table) -> PartRows:
    """Tell which rows results hold; segments where there are none at all.

    Raises:
        ValueError: they hold both.
    """
    found = [rows for rows in PART_ROWS if pc.sum(_counts(results, rows)).as_py()]
    if len(found) > 1:
        raise ValueError("committing results: found segments and labels, expected one of them")
    return found[0] if found else SEGMENT_ROWS


def check_accountable(results: pa.Table) -> None:
    """Refuse rows that would break the balance of recordings.

    Raises:
        ValueError: a row says too little.
    """
    for name in ("recording_id", "uri", "part", "last_part", "status"):
        if results[name].null_count:
            raise ValueError(f"committing results: {results[name].null_count} rows without {name}")
    unknown = set(results["status"].unique().to_pylist()) - {"ok", "no_speech", "failed"}
    if unknown:
        raise ValueError(f"committing results: unknown status {sorted(unknown)}")


def outcomes_of(results: pa.Table, *, run_id: str) -> pa.Table:
    """Return the outcomes rows of results, not yet naming an object of theirs."""
    columns = {name: results[name] for name in results.schema.names if name in OUTCOMES.names}
    columns["run_id"] = pa.repeat(pa.scalar(run_id, pa.string()), results.num_rows)
    # Counted, not believed: part rows are found by these counts when commits are rewritten.
    segments, labels = (_counts(results, rows) for rows in PART_ROWS)
    columns["segments_written"] = pc.add(segments, labels)
    columns["segments_object"] = pa.nulls(results.num_rows, pa.string())
    return pa.table([columns[name] for name in OUTCOMES.names], schema=OUTCOMES)


def segments_of(results: pa.Table, *, run_id: str, model: str, model_revision: str) -> pa.Table:
    """Return the segments rows of results, in the order of the results."""
    return rows_of(results, SEGMENT_ROWS, run_id=run_id, model=(model, model_revision))


def rows_of(
    results: pa.Table,
    rows: PartRows,
    *,
    run_id: str,
    model: ModelName,
    by_language: Mapping[str, ModelName] = NO_OTHERS,
    calibration: ConfidenceModel | None = None,
) -> pa.Table:
    """Return the segments or labels rows of results, in the order of the results.

    Args:
        results: RESULTS rows.
        rows: which of the two.
        run_id: the run that writes them.
        model: what made them, ...
        by_language: ... but for parts in these languages.
        calibration: what segments of `model` get their confidence from; None for the default.
    """
    lists = results[rows.folder].combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # no chunk at all
        return rows.schema.empty_table()
    parents = pc.list_parent_indices(lists)
    columns = {
        name: results[name].take(parents)
        for name in results.schema.names
        if name in rows.schema.names
    }
    models = _models(results["language"], model, by_language)
    columns |= {name: column.take(parents) for name, column in models.items()}
    flat = pc.list_flatten(lists)
    columns |= {field.name: pc.struct_field(flat, field.name) for field in rows.fields}
    columns["run_id"] = pa.repeat(pa.scalar(run_id, pa.string()), len(parents))
    columns["calibration"] = pa.repeat(DEFAULT_MODEL.name, len(parents))
    found = pa.table([columns[name] for name in rows.schema.names], schema=rows.schema)
    if calibration is None or rows is not SEGMENT_ROWS:
        return found
    return calibrated(found, calibration, model_revision=model[1])


def calibrated(
    segments: pa.Table, calibration: ConfidenceModel, *, model_revision: str
) -> pa.Table:
    """Return SEGMENTS rows with the confidences of a calibration, and its name.

    Rows of other weights, and rows without a log-probability, stay as they are.
    """
    confidences, names = (segments[name].to_pylist() for name in ("confidence", "calibration"))
    for at, row in enumerate(segments.select(["model_revision", *EVIDENCE_COLUMNS]).to_pylist()):
        evidence = evidence_of(row)
        if evidence is not None and row["model_revision"] == model_revision:
            confidences[at], names[at] = calibration.confidence(evidence), calibration.name
    for name, values in (("confidence", confidences), ("calibration", names)):
        place = segments.schema.get_field_index(name)
        field = segments.schema.field(place)
        segments = segments.set_column(place, field, pa.array(values, field.type))
    return segments


def _models(
    language: pa.ChunkedArray, model: ModelName, by_language: Mapping[str, ModelName]
) -> dict[str, pa.Array]:
    """Return `model` and `model_revision` of each part."""
    which = pc.index_in(language, value_set=pa.array(list(by_language), pa.string()))
    which = pc.fill_null(which, len(by_language)).combine_chunks()
    names = [*by_language.values(), model]
    return {
        column: pa.array([name[at] for name in names], pa.string()).take(which)
        for at, column in enumerate(("model", "model_revision"))
    }


def _counts(results: pa.Table, rows: PartRows) -> pa.ChunkedArray:
    return pc.fill_null(pc.list_value_length(results[rows.folder]), 0).cast(pa.int32())
