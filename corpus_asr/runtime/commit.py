"""Results gathered, counted and committed as objects of the output folder, from any process.

Committing the same part twice is harmless: the finish keeps one.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.activity import Activity, FailureCount, Tally, merged
from corpus_asr.confidence import ConfidenceModel
from corpus_asr.config.run import OutputSettings
from corpus_asr.errors import FetchError
from corpus_asr.failure_kinds import NO_SPACE, failure_kind
from corpus_asr.logs import event
from corpus_asr.stages.parts import FAILED
from corpus_asr.storage.run_state.part_rows import ModelName, commit_rows
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.store import retries_so_far
from corpus_asr.storage.stores.uri import public, redact_uri
from corpus_asr.units import MEBIBYTE

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

# Commit sooner at the beginning of a run, so that first results are soon visible.
FIRST_COMMIT_S = 1.0
# Most work that a killed process loses.
COMMIT_EVERY_S = 30.0
# Between tries of a commit whose store failed, each of which takes minutes itself.
TRY_AGAIN_S = 10.0


def tally_of(results: pa.Table) -> Tally:
    """Count RESULTS rows."""
    last = results.filter(results.column("last_part"))
    failed = results.filter(pc.equal(results.column("status"), FAILED))
    return Tally(
        parts=results.num_rows,
        files=last.num_rows,
        failed=failed.num_rows,
        audio_s=pc.sum(results.column("duration_s")).as_py() or 0.0,
        parts_retried=pc.sum(pc.greater(results.column("attempts"), 1)).as_py() or 0,
        failures=merged(_failure_of(row) for row in failed.select(_FAILURE).to_pylist()),
    )


def digest_parts(results: pa.Table) -> int:
    """Return a sum over RESULTS rows that is the same for the same parts alone, in any order."""
    parts = zip(results["recording_id"].to_pylist(), results["part"].to_pylist(), strict=True)
    return sum(_digest(recording_id, part) for recording_id, part in parts)


def digest_wholes(results: pa.Table) -> int:
    """Return what `digest_parts` is of all parts of recordings whose last one is among the rows."""
    ends = results.filter(results["last_part"])
    parts = zip(ends["recording_id"].to_pylist(), ends["part"].to_pylist(), strict=True)
    return sum(_digest(name, part) for name, last in parts for part in range(last + 1))


def _digest(recording_id: str, part: int) -> int:
    name = f"{recording_id} {part}".encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest())


IDS = ["recording_id", "part", "last_part"]
"""Columns of RESULTS that tell which parts these are."""
_FAILURE = ["error_stage", "error_kind", "retryable", "uri", "error_message"]
COUNTED = [*IDS, "status", "duration_s", "attempts", *_FAILURE]
"""Columns of RESULTS that counts of them are made of."""


def _failure_of(row: dict[str, Any]) -> FailureCount:
    kind = row["error_kind"] or "unknown"
    return FailureCount(
        stage=row["error_stage"] or "unknown",
        kind=kind,
        count=1,
        retryable=failure_kind(kind, retryable=bool(row["retryable"])).retryable,
        message=row["error_message"] or "",
        examples=(redact_uri(public(row["uri"])),),
    )


class Committed(NamedTuple):
    """Counts of results that were committed together."""

    tally: Tally
    spent: Activity
    """Activity of the commit."""
    digest: int
    """Sum that tells which parts these are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committer:
    """Commits results of a run with the run's ID, settings and model names."""

    store: OutputStore
    run_id: str
    model: str
    model_revision: str
    by_language: Mapping[str, ModelName] = field(default_factory=dict)
    """Models that transcribe parts in these languages instead."""
    calibration: ConfidenceModel | None = None
    """Confidence model of segments of `model`; None for the default."""

    patience_s: float = 0.0
    """Time for which a commit is retried while the store fails, in seconds."""

    def __call__(
        self, results: pa.Table, *, leaving: Callable[[], bool] = lambda: False
    ) -> Committed:
        """Commit RESULTS rows as one object.

        Where the store fails, a commit is retried for `patience_s` and until `leaving`; not if the
        store is full, since a person has to make room.
        """
        rows = commit_rows(
            results,
            run_id=self.run_id,
            model=(self.model, self.model_revision),
            by_language=self.by_language,
            calibration=self.calibration,
        )
        began_s, retries = time.monotonic(), retries_so_far()
        while True:
            try:
                self.store.put_commit(rows)
                break
            except FetchError as error:
                waited_s = time.monotonic() - began_s
                can_wait = error.retryable and error.kind != NO_SPACE and waited_s < self.patience_s
                if not can_wait or leaving():
                    raise
                event(
                    _LOG, logging.WARNING, "commit_waits", run_id=self.run_id,
                    parts=results.num_rows, waited_s=round(waited_s, 1), error=str(error),
                )  # fmt: skip
                time.sleep(min(TRY_AGAIN_S, self.patience_s - waited_s))
        spent = Activity(
            commits=1,
            commit_s=time.monotonic() - began_s,
            commit_retries=retries_so_far() - retries,
        )
        event(
            _LOG, logging.INFO, "committed", run_id=self.run_id, parts=results.num_rows,
            commit_s=round(spent.commit_s, 3), retries=spent.commit_retries,
        )  # fmt: skip
        return Committed(tally_of(results), spent, digest_parts(results))


class CommitBuffer(Generic[T]):
    """Collects results, or what stands for them, so that a commit is worth its object."""

    def __init__(
        self,
        commit: Callable[[list[T]], object],
        *,
        max_bytes: float,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commit = commit
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._waiting: list[T] = []
        self._num_bytes = 0
        self._age_s = FIRST_COMMIT_S
        self._due_s = float("-inf")  # the first result is committed at once

    @classmethod
    def of(cls, output: OutputSettings, commit: Callable[[list[T]], object]) -> Self:
        """Return the buffer configured for a job."""
        return cls(commit, max_bytes=output.commit_mb * MEBIBYTE, max_age_s=COMMIT_EVERY_S)

    def add(self, item: T, num_bytes: int) -> None:
        """Add results, and commit if due."""
        self._waiting.append(item)
        self._num_bytes += num_bytes
        self.poll()

    def poll(self) -> None:
        """Commit if due."""
        if self._num_bytes >= self._max_bytes or self._clock() >= self._due_s:
            self.flush()

    def flush(self) -> None:
        """Commit everything buffered."""
        if self._waiting:
            waiting, self._waiting, self._num_bytes = self._waiting, [], 0
            self._commit(waiting)
            self._due_s = self._clock() + min(self._age_s, self._max_age_s)
            self._age_s = min(2 * self._age_s, self._max_age_s)
