"""Small commits in, few commits of a sensible size out.

In: an output folder in which every row counts. Out: the same rows in fewer objects, those of a
commit sorted by address and part. Safe to be killed anywhere: a merged commit is put before the
commits it was made of are removed, and its name sorts before theirs. So while some of them are
still there, the ledger counts the merged rows and the next finish removes the others, like any
second commit of a part. Memory is bounded by one object as it is written, its outcomes, and a
constant; segments are sorted through a scratch file on local disk.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.results import PART_ROWS_FOLDERS, part_rows_named
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore
from corpus_asr.storage.settlement import claimed_segments, remove_commits
from corpus_asr.storage.stems import stem_before
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)

OUTCOMES_WEIGHT = 16  # sorted in memory, where they take so many times their bytes and more
GROWTH = 2
SORTED_ROWS = 32_768  # of segments, sorted at once; a row group of what is written
CHUNK_BYTES = 32 * MEBIBYTE  # of segments, in memory, before they go to the scratch file


def compact(store: OutputStore, target_bytes: float) -> int:
    """Merge small commits; return how many were merged into others.

    Args:
        store: the output folder; every row counts, and no writer is at work.
        target_bytes: what a merged commit's objects should measure. Objects of half of it and more
            are left alone.

    Raises:
        CorpusAsrError: a segments object does not hold what its commit says.
        FetchError: the store failed beyond its retries; the next finish goes on.
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
    """Replace commits by one that holds their rows, sorted by address, part and time.

    Args:
        store: the output folder.
        names: the outcomes objects, sorted.

    Raises:
        CorpusAsrError: a segments object does not hold what its commit says.
        FetchError: the store failed beyond its retries.
    """
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
    """Return where each segments row belongs once the outcomes are in another order.

    Args:
        written: segments rows of each outcomes row.
        order: the outcomes rows, in their new order.
    """
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
