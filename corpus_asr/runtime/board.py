"""What the workers of a run on Ray tell each other, and how one that is unusable is replaced.

One actor per run counts results, remembers which parts were begun, and passes on the wish to
stop. Without an answer of it nothing is known and work goes on.
"""

import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from corpus_asr.activity import Activity
from corpus_asr.errors import EngineError
from corpus_asr.logs import event
from corpus_asr.runtime.metrics import Metrics
from corpus_asr.runtime.progress import Tally
from corpus_asr.runtime.quarantine import PartKey

_LOG = logging.getLogger(__name__)

# Workers that may become unusable one after the other while no part is finished: what breaks each
# of them is then not one of them.
MAX_REPLACEMENTS = 3
# How often a worker in the middle of something asks whether to stop.
ASK_EVERY_S = 1.0
# How often a worker says what it did, beside the ends of its calls.
REPORT_EVERY_S = 5.0
NOTHING = Activity()
_EXIT_CODE = 70  # EX_SOFTWARE; any but 0, which Ray takes for a wish to end


class Board:
    """The actor. A part that was begun and never ended was in an actor that died."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._begun: Counter[PartKey] = Counter()
        self._stopping = False
        self._replaced_in_a_row = 0
        self._replaced: list[str] = []
        self._own = Activity()
        self._workers: dict[str, Activity] = {}
        self._metrics = Metrics()

    def add(self, tally: Tally, spent: Activity = NOTHING) -> None:
        """Count committed results, and what committing them took."""
        self._tally += tally
        self._own += spent
        self._metrics.committed(spent.commit_s)
        self._metrics.update(self._tally, self.activity())

    def report(self, worker: str, activity: Activity) -> None:
        """Take a worker's counts since it began, in place of those it sent before."""
        self._workers[worker] = activity
        self._metrics.update(self._tally, self.activity())

    def activity(self) -> Activity:
        """Return what all workers did, dead ones included."""
        return self._own + Activity.total(self._workers.values())

    def read(self) -> Tally:
        """Return the count."""
        return self._tally

    def unfinished(self, parts: Iterable[PartKey]) -> list[int]:
        """Return how often each part was begun without an end."""
        return [self._begun[part] for part in parts]

    def begin(self, parts: Iterable[PartKey]) -> None:
        """Note that a worker starts on these parts."""
        self._begun.update(parts)

    def end(self, parts: Iterable[PartKey]) -> None:
        """Note that a worker has these parts' results."""
        for part in parts:
            self._begun.pop(part, None)
        self._replaced_in_a_row = 0

    def stop(self) -> None:
        """Ask all workers to begin nothing new."""
        self._stopping = True

    def stopping(self) -> bool:
        """Return whether nothing new is to be begun."""
        return self._stopping

    def replace(self, why: str) -> bool:
        """Note that a worker is unusable; return whether another is to take its place."""
        self._replaced_in_a_row += 1
        if self._replaced_in_a_row > MAX_REPLACEMENTS:
            return False
        self._replaced.append(why)
        self._own += Activity(workers_replaced=1)
        return True

    def take_replaced(self) -> list[str]:
        """Return why workers were replaced since the last call."""
        replaced, self._replaced = self._replaced, []
        return replaced


def start_board() -> Any:
    """Start the run's board and return its handle; it ends with the last handle.

    It lives on the driver's machine, whose end is the run's end anyway, and not on one that may be
    taken away. Should it die all the same, an empty one takes its place.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board)
    return board.options(scheduling_strategy=here).remote()


class Reporter(threading.Thread):
    """Sends a worker's counts to the board every few seconds, and when told to.

    Args:
        board: the run's board.
        read: returns the counts, from any thread.
    """

    def __init__(self, board: Any, read: Callable[[], Activity]) -> None:
        super().__init__(name="report-activity", daemon=True)
        self._board, self._read = board, read
        self._worker = uuid.uuid4().hex

    def run(self) -> None:
        """Report until the process ends."""
        while True:
            time.sleep(REPORT_EVERY_S)
            self.send()

    def send(self) -> None:
        """Report now; nobody waits for it: only a count is late."""
        self._board.report.remote(self._worker, self._read())


class BoardMemory:
    """A worker's view of the board: a `Memory`, and what else it asks."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._leaving = threading.Lock()
        self._stopping = False
        self._asked_s = float("-inf")

    def unfinished(self, parts: Sequence[PartKey]) -> list[int]:
        """Return how often each part was begun without an end; 0 where that is not known."""
        counts: list[int] | None = self._ask("unfinished", parts)
        return [0] * len(parts) if counts is None else counts

    def begin(self, parts: Sequence[PartKey]) -> None:
        """Note that a worker starts on these parts."""
        self._ask("begin", parts)

    def end(self, parts: Sequence[PartKey]) -> None:
        """Note that a worker has these parts' results."""
        self._ask("end", parts)

    def stopping(self) -> bool:
        """Return whether nothing new is to be begun; asks at most once a second."""
        if not self._stopping and time.monotonic() - self._asked_s >= ASK_EVERY_S:
            self._asked_s = time.monotonic()
            self._stopping = bool(self._ask("stopping"))
        return self._stopping

    def leave(self, error: EngineError) -> None:
        """End this process, so that Ray starts another; return if that was done too often.

        Parts in flight count a death: one of them may be what breaks the engine.
        """
        # Every call in flight sees the same error; it is one worker all the same.
        with self._leaving:
            if self._ask("replace", str(error)):
                event(_LOG, logging.ERROR, "worker_unusable", error=str(error))
                logging.shutdown()
                os._exit(_EXIT_CODE)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._board, method).remote(*arguments))
        except ray.exceptions.RayError as error:
            # Only a part that kills its worker is harder to find now.
            event(_LOG, logging.WARNING, "board_lost", method=method, error=repr(error))
            return None
