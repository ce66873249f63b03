"""Segments and labels of parts: nested in the outcomes of commits, in tables of their own after."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.confidence import DEFAULT_MODEL, EVIDENCE_COLUMNS, ConfidenceModel, evidence_of
from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import OUTCOMES, RESULTS
from corpus_asr.storage.parquet import conform, with_column
from corpus_asr.storage.run_state.table_names import (
    PART_ROWS,
    SEGMENT_ROWS,
    PartRows,
    beside,
    is_commit,
    repair_advice,
)
from corpus_asr.storage.run_state.tables import READ_AHEAD_ROWS, OutputStore, projected
from corpus_asr.storage.stores.filesystem import read_ahead
from corpus_asr.storage.stores.uri import (
    public,
    public_text,
    redact_uri,
    without_named_secrets,
)

ModelName = tuple[str, str]
"""A checkpoint as configured, and the revision of its weights."""
NO_OTHERS: Final[Mapping[str, ModelName]] = MappingProxyType({})
_KEY = ("recording_id", "part")
_Owned = tuple[pa.Table, np.ndarray]


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
        "begun_by": pc.fill_null(results["begun_by"], run_id),
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


def part_rows(
    store: OutputStore, names: Iterable[str], kind: PartRows, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table, np.ndarray]]:
    """Yield segments or labels, a bounded number at a time, and whose they are.

    That is the name of their commit, or object of outcomes, and the row of each one's part.

    Raises:
        CorpusAsrError: an object has other rows than its outcomes say.
    """
    schema = projected(kind.schema, columns)

    def read(name: str) -> Iterator[_Owned]:
        return (_nested if is_commit(name) else _finished)(store, kind, schema, name)

    for name, (table, owners) in read_ahead(names, read):
        yield name, table, owners


def _nested(store: OutputStore, kind: PartRows, schema: pa.Schema, name: str) -> Iterator[_Owned]:
    columns = [f"{kind.folder}.list.element.{column}" for column in schema.names]
    start = 0
    for batch in store.batches(name, columns=columns, batch_rows=READ_AHEAD_ROWS):
        if batch.num_columns:
            owners = pc.list_parent_indices(batch.column(0)).to_numpy()
            flat = pa.RecordBatch.from_struct_array(pc.list_flatten(batch.column(0)))
            yield conform(flat, schema), start + owners
        start += batch.num_rows


def _finished(store: OutputStore, kind: PartRows, schema: pa.Schema, name: str) -> Iterator[_Owned]:
    outcomes = store.read_table(name, projected(OUTCOMES, (*_KEY, "segments_written")))
    owners = np.repeat(np.arange(len(outcomes)), outcomes["segments_written"].fill_null(0))
    keys, num_rows = outcomes.select(_KEY), 0
    wanted = projected(kind.schema, tuple(dict.fromkeys((*_KEY, *schema.names))))
    for batch in store.batches(
        beside(name, kind.folder), columns=wanted.names, batch_rows=READ_AHEAD_ROWS
    ):
        table = conform(batch, wanted)
        chosen = owners[num_rows : num_rows + len(batch)]
        num_rows += len(batch)
        if not keys.take(pa.array(chosen)).equals(table.select(_KEY)):
            num_rows = -1
            break
        yield table.select(schema.names), chosen
    if num_rows != len(owners):
        raise CorpusAsrError(
            f"reading {redact_uri(store.address(beside(name, kind.folder)))}: found other rows, "
            f"expected the {len(owners)} of {name}; {repair_advice(beside(name, kind.folder))}"
        )


def part_rows_at(
    store: OutputStore,
    name: str,
    kind: PartRows,
    columns: Sequence[str],
    ranges: Sequence[tuple[int, int]],
) -> list[pa.Table]:
    """Return ranges of the segments or labels of a commit, or object of outcomes."""
    schema = projected(kind.schema, columns)
    if not is_commit(name):
        return [store.rows(beside(name, kind.folder), schema, [span]) for span in ranges]
    tables = [table for table, _ in _nested(store, kind, schema, name)]
    table = pa.concat_tables([schema.empty_table(), *tables])
    return [table.slice(start, stop - start) for start, stop in ranges]


def kind_of(store: OutputStore, names: Iterable[str]) -> PartRows:
    """Tell whether commits and objects of outcomes have segments or labels."""
    for name in names:
        for kind in PART_ROWS:
            column = f"{kind.folder}.list.element.part"
            if (
                any(batch.num_columns for batch in store.batches(name, columns=[column]))
                if is_commit(name)
                else store.exists(beside(name, kind.folder))
            ):
                return kind
    return SEGMENT_ROWS
