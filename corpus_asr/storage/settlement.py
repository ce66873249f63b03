"""Commits that lost are taken out of the tables; what no commit names is removed.

In: an output folder, and which rows of which outcomes objects count. Out: a folder in which every
row counts. Each rewrite puts the replacement first and removes the old objects after it: killed in
between, the folder holds some rows twice, which the next finish resolves like any duplicate. Knows
nothing of why a row lost.
"""

import logging
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


def remove_leftovers(store: OutputStore) -> None:
    """Remove segments objects that no outcomes object names, and files of killed local writes.

    Another run's commit that is between its two puts just now loses its segments object: its
    outcomes then name an object that is gone, do not count, and their recordings are done again.

    Raises:
        FetchError: the store failed beyond its retries.
    """
    leftovers = set(store.names(SEGMENTS_FOLDER)) - set(store.named_segments())
    leftovers |= {
        name
        for folder in (OUTCOMES_FOLDER, SEGMENTS_FOLDER, RECORDINGS_FOLDER)
        for name in store.all_names(folder)
        if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX)
    }
    for name in sorted(leftovers):
        store.remove(name)
        logger.info("removed leftover=%s", name)
