"""The commits of a run on Ray, gathered by reference.

In: references to blocks of RESULTS, as the last stage yields them. Out: counts, and the names of
commits. The driver decides when what is committed together and never sees a row; a few
actors on any node fetch the blocks and commit them. One that dies is started again, and does again
what it had not answered.
"""

import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray

from corpus_asr.config.run import OutputSettings
from corpus_asr.logs import LogSettings, configure
from corpus_asr.runtime.commit import CommitBuffer, Committed, Committer, Tally
from corpus_asr.runtime.resources import WORKERS_PER_ACTOR
from corpus_asr.schemas import RESULTS
from corpus_asr.storage.stores.uri import without_secrets

# Commits that wait at one actor while its store fails; then results wait where they were made.
MOST_OPEN = 4
_WAIT_S = 1.0


class CommitActor:
    """Commits what it is given."""

    def __init__(self, committer: Committer, coordinator: Any, logs: LogSettings) -> None:
        configure(logs, redact=without_secrets)
        self._committer, self._coordinator = committer, coordinator

    def commit(self, *blocks: pa.Table) -> Committed:
        """Commit these RESULTS rows together."""
        done = self._committer(pa.concat_tables(blocks).cast(RESULTS).combine_chunks())
        # Fire and forget: only progress would be lost.
        self._coordinator.add.remote(done.tally, done.spent)
        return done


class Commits:
    """Gathers results until a commit is due; `add` for one thread, `poll` for another."""

    def __init__(
        self,
        committer: Committer,
        output: OutputSettings,
        coordinator: Any,
        *,
        num_workers: int,
    ) -> None:
        num_actors = math.ceil(num_workers / WORKERS_PER_ACTOR)
        # Committing waits for the store; a CPU reserved for it could be what a stage waits for.
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CommitActor)
        logs = LogSettings.from_environment()
        self._actors: Iterator[Any] = itertools.cycle(
            [actor.remote(committer, coordinator, logs) for _ in range(num_actors)]
        )
        self._buffer = CommitBuffer[Any].of(output, self._send)
        self._open: list[Any] = []
        self._most_open = MOST_OPEN * num_actors
        self._turn = threading.Lock()
        self.tally = Tally()
        """What was committed."""
        self.names: list[str] = []
        """The commits of it."""
        self._num_parts = 0
        self.failure: Exception | None = None
        """What ended a commit for good."""

    def has_all_of(self, num_files: int) -> bool:
        """Return whether all parts of so many recordings were committed, none of them earlier."""
        return (self.tally.files, self.tally.parts) == (num_files, self._num_parts)

    def add(self, block: Any, num_bytes: int) -> None:
        """Add a reference to results; wait while too many commits are pending.

        Raises:
            Exception: of a failed commit.
        """
        with self._turn:
            self._buffer.add(block, num_bytes)
        while len(self._open) > self._most_open:
            ray.wait(self._open[:1], timeout=_WAIT_S)
            self._take()
        self._check()

    def poll(self, *, hurry: bool) -> None:
        """Commit what is due, or all if `hurry`, unless too many commits are pending."""
        with self._turn:
            if len(self._open) <= self._most_open:
                if hurry:
                    self._buffer.flush()
                else:
                    self._buffer.poll()
        self._take()

    def settle(self) -> None:
        """Commit everything, and wait for completion.

        Raises:
            Exception: of a failed commit.
        """
        with self._turn:
            self._buffer.flush()
        while self._open:
            ray.wait(self._open[:1], timeout=_WAIT_S)
            self._take()
        self._check()

    def _send(self, blocks: list[Any]) -> None:
        self._open.append(next(self._actors).commit.remote(*blocks))

    def _take(self) -> None:
        with self._turn:
            if not self._open:
                return
            ready, self._open = ray.wait(self._open, num_returns=len(self._open), timeout=0)
            for reference in ready:
                try:
                    done: Committed = ray.get(reference)
                except ray.exceptions.ObjectLostError:
                    pass  # with a machine; what is not committed is tried again
                except Exception as error:  # raised in the main thread
                    self.failure = error
                else:
                    self.tally += done.tally
                    self.names += done.names
                    self._num_parts += done.num_parts

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
