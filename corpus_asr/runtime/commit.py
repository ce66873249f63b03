"""Results in, committed objects out; picklable, so that it works in any process of a run.

Knows neither Ray nor the pipeline. Committing the same part twice is harmless: the finish keeps
one.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from corpus_asr.activity import Activity
from corpus_asr.confidence import ConfidenceModel
from corpus_asr.logs import event
from corpus_asr.storage.run_state.lock import LockKey
from corpus_asr.storage.run_state.tables import ModelName, OutputStore
from corpus_asr.storage.stores.retry import retries_so_far

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committer:
    """Where a run's results go and what they are stamped with."""

    uri: str
    endpoint_url: str | None
    run_id: str
    model: str
    model_revision: str
    by_language: Mapping[str, ModelName] = field(default_factory=dict)
    """What transcribes the parts in these languages instead."""
    calibration: ConfidenceModel | None = None
    """What segments of `model` get their confidence from; None for the default."""
    lock: LockKey | None = None
    """Looked at before each commit; None where nobody else can be at work."""

    def __call__(self, results: pa.Table) -> None:
        """Commit RESULTS rows as one segments object and one outcomes object.

        Raises:
            EngineError: another run took over the output.
            FetchError: the output store failed beyond its retries.
        """
        if self.lock is not None:
            self.lock.check()
        OutputStore(self.uri, endpoint_url=self.endpoint_url).commit(
            results,
            run_id=self.run_id,
            model=self.model,
            model_revision=self.model_revision,
            by_language=self.by_language,
            calibration=self.calibration,
        )

    def timed(self, results: pa.Table) -> Activity:
        """Commit, and return what that took.

        Raises:
            EngineError: another run took over the output.
            FetchError: the output store failed beyond its retries.
        """
        began_s, retries = time.monotonic(), retries_so_far()
        self(results)
        spent = Activity(
            commits=1,
            commit_s=time.monotonic() - began_s,
            commit_retries=retries_so_far() - retries,
        )
        event(
            _LOG, logging.INFO, "committed", run_id=self.run_id, parts=results.num_rows,
            commit_s=round(spent.commit_s, 3), retries=spent.commit_retries,
        )  # fmt: skip
        return spent


class CommitBuffer:
    """Collects small results so that a commit is worth its two objects.

    Args:
        commit: what is called with the rows collected.
        min_bytes: rows are committed once they are this large, ...
        max_age_s: ... or the oldest has waited this long and `add` or `poll` is called.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        commit: Callable[[pa.Table], None],
        *,
        min_bytes: int,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commit = commit
        self._min_bytes = min_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._waiting: list[pa.Table] = []
        self._since = 0.0

    def add(self, results: pa.Table) -> None:
        """Take rows, and commit if that is due."""
        if not self._waiting:
            self._since = self._clock()
        self._waiting.append(results)
        self.poll()

    def poll(self) -> None:
        """Commit if that is due."""
        size = sum(table.nbytes for table in self._waiting)
        if size >= self._min_bytes or self._clock() - self._since >= self._max_age_s:
            self.flush()

    def flush(self) -> None:
        """Commit everything that waits."""
        if self._waiting:
            self._commit(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting = []
