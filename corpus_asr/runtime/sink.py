"""The end of the Ray pipeline: blocks of RESULTS in, commits in the output folder out.

A write task that Ray runs twice commits twice; finishing the run keeps one. Nothing is left for
the driver to commit, so a killed run keeps everything that was written.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data import Datasink
from ray.data.block import Block
from ray.data.datasource import WriteResult  # noqa: F401  (named in the base class)

from corpus_asr.logs import LogSettings, configure
from corpus_asr.runtime.commit import Committer
from corpus_asr.runtime.progress import tally_of
from corpus_asr.schemas import RESULTS
from corpus_asr.storage.stores.uri import without_secrets


class ResultsSink(Datasink[int]):
    """Commits each bundle of results it is given.

    Args:
        committer: where to.
        board: the run's board, told what was committed.
        min_bytes: results are held back until so many wait, since a commit is two small objects.
    """

    def __init__(self, committer: Committer, *, board: Any, min_bytes: int) -> None:
        self._committer = committer
        self._board = board
        self._min_bytes = min_bytes
        self._logs = LogSettings.from_environment()  # of the driver; it is pickled with the rest

    def write(self, blocks: Iterable[Block], ctx: Any) -> int:
        """Commit the rows of `blocks` together and return their number.

        Raises:
            FetchError: the output store failed beyond its retries.
        """
        configure(self._logs, redact=without_secrets)
        tables = [block for block in blocks if block.num_rows]
        if not tables:
            return 0
        results = pa.concat_tables(tables).cast(RESULTS).combine_chunks()
        # Nobody waits for it: only progress is lost.
        self._board.add.remote(tally_of(results), self._committer.timed(results))
        return int(results.num_rows)

    @property
    def min_bytes_per_write(self) -> int:
        """Bundle small results; also keeps the write from running inside the stage before it."""
        return self._min_bytes
