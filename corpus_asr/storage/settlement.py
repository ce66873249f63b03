"""Commits that lost are taken out of the tables; what no commit names is removed.

In: an output folder, and which rows of which outcomes objects count. Out: a folder in which every
row counts, but for segments another writer may be about to name. Each rewrite puts the
replacement first and removes the old objects after it: killed in between, the folder holds some
rows twice, which the next finish resolves like any duplicate. Knows nothing of why a row lost.
"""

import logging
import time
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import OUTCOMES, SEGMENTS
from corpus_asr.storage.addresses import shown
from corpus_asr.storage.local import TEMPORARY_PREFIX
from corpus_asr.storage.tables import (
    OUTCOMES_FOLDER,
    RECORDINGS_FOLDER,
    SEGMENTS_FOLDER,
    OutputStore,
)

logger = logging.getLogger(__name__)

IN_THE_MAKING_S = 3600.0  # far longer than a put with all its retries


def keep_only(store: OutputStore, keep: Mapping[str, np.ndarray]) -> None:
    """Rewrite or remove outcomes objects, and the segments objects they name.

    Args:
        store: the output folder.
        keep: per outcomes object, a mask over its rows in order.

    Raises:
        CorpusAsrError: a segments object does not hold what its commit says.
        FetchError: the store failed beyond its retries.
    """
    for name in sorted(keep):
        mask = keep[name]
        outcomes = store.read_table(name, OUTCOMES)
        named = outcomes["segments_object"].unique().drop_null().to_pylist()
        if mask.any():
            segments = [store.read_table(segments_name, SEGMENTS) for segments_name in named]
            segments_mask = np.repeat(mask, outcomes["segments_written"].to_numpy())
            table = pa.concat_tables([SEGMENTS.empty_table(), *segments])
            if len(table) != len(segments_mask):
                raise CorpusAsrError(
                    f"rewriting {shown(store.address(name))}: its segments object holds "
                    f"{len(table)} rows, expected {len(segments_mask)} as the outcomes say; "
                    "restore both, or remove both to have these recordings transcribed again"
                )
            store.write_commit(outcomes.filter(mask), table.filter(segments_mask))
        # First the commit, then what it named: in between there is an orphan, no broken promise.
        store.remove(name)
        for segments_name in named:
            store.remove(segments_name)
        logger.info("settled object=%s kept=%d of=%d", name, int(mask.sum()), len(mask))


def remove_leftovers(store: OutputStore, *, run_id: str) -> None:
    """Remove segments objects that no outcomes object names, and files of killed local writes.

    Those younger than an hour stay, unless this run made them: another writer may be between its
    two puts.

    Args:
        store: the output folder.
        run_id: the run that is over.

    Raises:
        FetchError: the store failed beyond its retries.
    """
    orphans = set(store.names(SEGMENTS_FOLDER)) - set(store.named_segments())
    temporary = [
        name
        for folder in (OUTCOMES_FOLDER, SEGMENTS_FOLDER, RECORDINGS_FOLDER)
        for name in store.all_names(folder)
        if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX)
    ]
    over = [name for name in orphans if _is_old(name) or _run_of(store, name) == run_id]
    over += [name for name in temporary if _is_old(name)]
    for name in sorted(over):
        store.remove(name)
        logger.info("removed leftover=%s", name)
    for name in sorted({*orphans, *temporary} - {*over}):
        logger.warning("left alone, perhaps in the making: leftover=%s", name)


def _is_old(name: str) -> bool:
    """Tell by its name; one without a time is of no writer of today."""
    stem = name.rpartition("/")[2].removeprefix(TEMPORARY_PREFIX)
    made_ns = stem.partition("-")[0]
    return not made_ns.isdecimal() or time.time_ns() - int(made_ns) > IN_THE_MAKING_S * 1e9


def _run_of(store: OutputStore, name: str) -> str | None:
    batch = next(store.batches(name, columns=["run_id"], batch_rows=1), None)
    run_id: str | None = None if batch is None else batch.column(0)[0].as_py()
    return run_id
