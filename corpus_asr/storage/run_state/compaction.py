"""Commits rewritten: rows that lost are dropped, and small commits are merged.

Safe to be killed anywhere: a replacement is put before what it replaces is removed. So for a while
some rows are there twice, which the next finish resolves like any second commit of a part. A merged
commit's name sorts before those of the commits it was made of, so the ledger counts its rows.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.run_state.tables import (
    OUTCOMES_FOLDER,
    PART_ROWS_FOLDERS,
    RECORDINGS_FOLDER,
    OutputStore,
    part_rows_named,
    stem_before,
)
from corpus_asr.storage.stores.local import TEMPORARY_PREFIX
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)

OUTCOMES_WEIGHT = 16  # sorted in memory, where they take so many times their bytes and more
GROWTH = 2
SORTED_ROWS = 32_768  # of segments, sorted at once; a row group of what is written
# Memory is bounded by one object as it is written, its outcomes, and this.
CHUNK_BYTES = 32 * MEBIBYTE  # of segments, in memory, before they go to the scratch file


def compact(store: OutputStore, target_bytes: float) -> int:
    """Merge small commits; return how many were merged into others.

    Args:
        store: the output folder; every row counts, and no writer is at work.
        target_bytes: what a merged commit's objects should measure. Objects of half of it and more
            are left alone.
    """
    merged = 0
    # Rows that were spread over many objects take fewer bytes together: what came out small is
    # looked at again, until nothing is left to do and another finish would do nothing.
    while groups := groups_to_merge(_weights(store), target_bytes):
        for names in groups:
            merge(store, names)
            merged += len(names)
    return merged


def groups_to_merge(weights: Mapping[str, float], target_bytes: float) -> list[list[str]]:
    """Choose what to merge with what.

    The rule: only commits below half the target are merged; of those, all up to the largest that
    is at most `GROWTH` times as large as all smaller ones together. So a night's commits are merged
    among themselves, and an older file joins in once what has gathered since is of its own order
    of size: every row is rewritten about as often as the files double on their way to half the
    target, not every night, and below that size only a handful of files is ever left.

    Args:
        weights: bytes by name of the outcomes object.
        target_bytes: the most that a group may weigh.

    Returns:
        Groups of two and more names, neighbours in time.
    """
    small = sorted((weight, name) for name, weight in weights.items() if 2 * weight < target_bytes)
    chosen, total = 0, 0.0
    for index, (weight, _) in enumerate(small):
        if weight <= GROWTH * total:
            chosen = index + 1
        total += weight
    groups: list[list[str]] = [[]]
    filled = 0.0
    for name in sorted(name for _, name in small[:chosen]):
        if filled + weights[name] > target_bytes:
            groups.append([])
            filled = 0.0
        groups[-1].append(name)
        filled += weights[name]
    return [names for names in groups if len(names) > 1]


def _weights(store: OutputStore) -> dict[str, float]:
    objects = [store.sizes(folder) for folder in PART_ROWS_FOLDERS]
    rows = {name.partition("/")[2]: size for sizes in objects for name, size in sizes.items()}
    return {
        # A commit's two objects have one stem.
        name: max(OUTCOMES_WEIGHT * size, rows.get(name.partition("/")[2], 0))
        for name, size in store.sizes(OUTCOMES_FOLDER).items()
    }


def merge(store: OutputStore, names: list[str]) -> None:
    """Replace commits by one that holds their rows, sorted by address, part and time."""
    outcomes = pa.Table.from_batches(
        [batch.rows for batch in store.committed(names=names)], OUTCOMES
    ).combine_chunks()
    order = pc.sort_indices(outcomes, [("uri", "ascending"), ("part", "ascending")]).to_numpy()
    segments = claimed_segments(store, outcomes, names[0])
    named = outcomes["segments_object"].unique().drop_null().to_pylist()
    rows = part_rows_named(named)
    places = _places(outcomes["segments_written"].to_numpy(), order)
    done = store.write_commit(
        outcomes.take(order),
        sorted_rows(segments, places, rows.schema),
        rows=rows,
        stem=stem_before(names[0]),
    )
    remove_commits(store, names, named)
    logger.info("merged commits=%d rows=%d into=%s", len(names), done.rows, done.outcomes_name)


def _places(written: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return where each segments row belongs once the outcomes are in another order."""
    in_order = written[order]
    starts = np.empty(len(order), np.int64)
    starts[order] = np.cumsum(in_order) - in_order
    within = np.arange(written.sum()) - np.repeat(np.cumsum(written) - written, written)
    places: np.ndarray = np.repeat(starts, written) + within
    return places


def sorted_rows(
    segments: Iterable[pa.Table], places: np.ndarray, schema: pa.Schema
) -> Iterator[pa.Table]:
    """Sort more rows than should be in memory; yield them `SORTED_ROWS` at a time.

    What arrives is sorted chunk by chunk into a scratch file, cut where the tables to be yielded
    begin and end; each of these then gathers its pieces.

    Args:
        segments: SEGMENTS or LABELS rows.
        places: for each of them where it belongs, from 0.
        schema: theirs.
    """
    edges = np.arange(0, len(places), SORTED_ROWS)
    pieces: list[list[tuple[int, np.ndarray]]] = [[] for _ in edges]
    with tempfile.TemporaryFile(prefix="corpus-asr-sort-") as scratch:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(scratch, schema, options=options) as writer:
            number = start = 0
            for chunk in _chunks(segments):
                theirs = places[start : start + chunk.num_rows]
                start += chunk.num_rows
                order = np.argsort(theirs)
                chunk, theirs = chunk.take(order).combine_chunks(), theirs[order]
                cuts = np.searchsorted(theirs, [*edges, len(places)])
                for index in np.flatnonzero(np.diff(cuts)).tolist():
                    length = int(cuts[index + 1] - cuts[index])
                    writer.write_table(chunk.slice(int(cuts[index]), length))
                    pieces[index].append((number, theirs[cuts[index] : cuts[index + 1]]))
                    number += 1
        scratch.seek(0)
        reader = pa.ipc.open_file(scratch)
        for found in pieces:
            table = pa.Table.from_batches([reader.get_batch(index) for index, _ in found])
            order = np.argsort(np.concatenate([theirs for _, theirs in found]))
            yield table.combine_chunks().take(order)


def _chunks(segments: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Collect tables until they are worth being sorted together."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in segments:
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes >= CHUNK_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, num_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def keep_only(store: OutputStore, keep: Mapping[str, np.ndarray]) -> None:
    """Rewrite or remove outcomes objects, and the segments objects they name."""
    # One at a time: they may be large. Those that lost as a whole are not even read.
    for name in sorted(name for name, mask in keep.items() if mask.any()):
        mask = keep[name]
        outcomes = store.read_table(name, OUTCOMES)
        segments = claimed_segments(store, outcomes, name)
        rows = part_rows_named(outcomes["segments_object"].unique().to_pylist())
        store.write_commit(outcomes.filter(mask), _filtered(segments, outcomes, mask), rows=rows)
        logger.info("settled object=%s kept=%d of=%d", name, int(mask.sum()), len(mask))
    remove_commits(store, sorted(keep), store.named_segments(sorted(keep)))


def remove_commits(
    store: OutputStore, outcomes_names: Iterable[str], segments_names: Iterable[str]
) -> None:
    """Remove outcomes objects, and the segments objects they name."""
    # First the commits, then what they named: in between there are orphans, no broken promises.
    store.remove_all(outcomes_names)
    store.remove_all(segments_names)


def claimed_segments(store: OutputStore, outcomes: pa.Table, title: str) -> Iterator[pa.Table]:
    """Yield the segments or labels of outcomes rows, in order, a bounded number at a time."""
    written = outcomes["segments_written"].to_numpy()
    owners = np.repeat(np.arange(outcomes.num_rows), written)
    keys = outcomes.select(["recording_id", "part"]).combine_chunks()
    objects = outcomes["segments_object"].combine_chunks().dictionary_encode()
    # Numbered by first appearance; the groups of a `group_by` would come in no order.
    names = objects.dictionary.to_pylist()
    numbers = pc.fill_null(objects.indices, len(names)).to_numpy()
    claims = np.bincount(numbers, written, minlength=len(names) + 1).astype(np.int64)
    starts = dict(zip(names, np.cumsum(claims) - claims, strict=False))
    found = dict.fromkeys(names, 0)
    for name, table in store.read_tables(names, part_rows_named(names).schema):
        start = int(starts[name]) + found[name]
        found[name] += table.num_rows
        theirs = keys.take(owners[start : start + table.num_rows])
        if not theirs.equals(table.select(keys.schema.names).cast(theirs.schema)):
            raise _broken(store, title, name, "rows of other parts")
        yield table
    for name, count in zip([*names, "(none)"], claims.tolist(), strict=True):
        if found.get(name, 0) != count:
            raise _broken(store, title, name, f"{found.get(name, 0)} rows instead of {count}")


def _broken(store: OutputStore, title: str, name: str, holds: str) -> CorpusAsrError:
    return CorpusAsrError(
        f"rewriting {redact_uri(store.address(title))}: its segments object {name} holds {holds}, "
        "expected the segments that the outcomes say; restore both, or remove both to have these "
        "recordings transcribed again"
    )


def _filtered(
    segments: Iterable[pa.Table], outcomes: pa.Table, mask: np.ndarray
) -> Iterator[pa.Table]:
    rows = np.repeat(mask, outcomes["segments_written"].to_numpy())
    start = 0
    for table in segments:
        chosen = rows[start : start + table.num_rows]
        start += table.num_rows
        yield table.filter(chosen)


def remove_leftovers(store: OutputStore) -> None:
    """Remove segments objects that no outcomes object names, and files of killed local writes.

    Another run's commit that is between its two puts just now loses its segments object: its
    outcomes then name an object that is gone, do not count, and their recordings are done again.
    """
    leftovers = {name for folder in PART_ROWS_FOLDERS for name in store.names(folder)}
    leftovers -= set(store.named_segments())
    leftovers |= {
        name
        for folder in (OUTCOMES_FOLDER, *PART_ROWS_FOLDERS, RECORDINGS_FOLDER)
        for name in store.all_names(folder)
        if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX)
    }
    for name in sorted(leftovers):
        store.remove(name)
        logger.info("removed leftover=%s", name)
