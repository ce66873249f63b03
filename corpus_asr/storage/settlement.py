"""Commits that lost are taken out of the tables; what no commit names is removed.

In: an output folder, and which rows of which outcomes objects count. Out: a folder in which every
row counts. Each rewrite puts the replacement first and removes the old objects after it: killed in
between, the folder holds some rows twice, which the next finish resolves like any duplicate. Knows
nothing of why a row lost.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.results import PART_ROWS_FOLDERS, part_rows_named
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, RECORDINGS_FOLDER, OutputStore
from corpus_asr.storage.stores.local import TEMPORARY_PREFIX
from corpus_asr.storage.stores.uri import shown

logger = logging.getLogger(__name__)


def keep_only(store: OutputStore, keep: Mapping[str, np.ndarray]) -> None:
    """Rewrite or remove outcomes objects, and the segments objects they name.

    Args:
        store: the output folder.
        keep: per outcomes object, a mask over its rows in order.

    Raises:
        CorpusAsrError: a segments object does not hold what its commit says.
        FetchError: the store failed beyond its retries.
    """
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
    """Remove outcomes objects, and the segments objects they name.

    Raises:
        FetchError: the store failed beyond its retries.
    """
    # First the commits, then what they named: in between there are orphans, no broken promises.
    store.remove_all(outcomes_names)
    store.remove_all(segments_names)


def claimed_segments(store: OutputStore, outcomes: pa.Table, title: str) -> Iterator[pa.Table]:
    """Yield the segments or labels of outcomes rows, in order, a bounded number at a time.

    Args:
        store: the output folder.
        outcomes: OUTCOMES rows of whole objects.
        title: names them in messages.

    Raises:
        CorpusAsrError: (while iterating) a segments object does not hold what the outcomes say.
        FetchError: (while iterating) the store failed beyond its retries.
    """
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
        f"rewriting {shown(store.address(title))}: its segments object {name} holds {holds}, "
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

    Raises:
        FetchError: the store failed beyond its retries.
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
