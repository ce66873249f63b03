"""Shared state of the workers of a run on Ray: activity, stop requests, usable workers.

One actor per run adds up what workers did since they last said so: a report costs the same whatever
the number of workers, and they report so seldom that all together stay below a bound. It holds
nothing that a run needs: it may die at any time, its successor learns from the driver whether to
stop, and activity of before is not counted. Without its answer work goes on.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from corpus_asr.activity import Activity
from corpus_asr.errors import CorpusAsrError
from corpus_asr.logs import event
from corpus_asr.storage.run_state.lock import ProcessName

_LOG = logging.getLogger(__name__)

# Interval of reports between the ends of a worker's calls, whose answers tell whether to stop;
# shorter at first, so that it is soon known how long its recordings are.
REPORT_EVERY_S = 2.0
FIRST_REPORT_S = 0.5
# All workers together report no more often: each takes Ray some 0.3 ms of the coordinator's CPU.
MOST_REPORTS_PER_S = 300
# A worker that reports nothing for so long is frozen, whatever it works on: reports have a thread
# of their own.
SILENT_S = 300.0
# An answer that takes so long is not worth waiting for; work goes on without.
ANSWER_S = 10.0
_EXIT_CODE = 70  # EX_SOFTWARE; any but 0, which Ray takes for a wish to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Device of a worker: a GPU of a machine, or its CPUs."""

    node_id: str
    host: str
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)} of {self.host}" if self.gpus else f"CPUs of {self.host}"


class Worker(NamedTuple):
    """A process of an actor that works."""

    stage: str
    actor: str
    device: Device
    process: ProcessName
    was_restarted: bool = False
    """Whether it took the place of another process."""

    @classmethod
    def this(cls, stage: str) -> "Worker":
        """Return this process."""
        context = ray.get_runtime_context()
        gpus = tuple(map(str, context.get_accelerator_ids().get("GPU", [])))
        device = Device(node_id=context.get_node_id(), host=socket.gethostname(), gpus=gpus)
        actor = context.get_actor_id()  # None in a driver
        was_restarted = bool(actor and context.was_current_actor_reconstructed)
        return cls(stage, str(actor), device, ProcessName.mine(), was_restarted)


class TakenOut(NamedTuple):
    """A worker that gets no more work: all processes of one actor."""

    stage: str
    device: Device
    why: str

    def __str__(self) -> str:
        return f"{self.device}: {self.why}"


def end_for_good() -> None:
    """End this actor: Ray starts no other process for it."""
    ray.kill(ray.get_runtime_context().current_actor)
    time.sleep(ANSWER_S)  # until it is dead


@ray.remote(num_cpus=0, max_retries=0)
def _end_frozen(process: ProcessName, silent_s: float, coordinator: Any) -> None:
    """Kill a process of this machine, so that Ray starts another, unless it has ended before."""
    if process.machine == ProcessName.mine().machine and not process.is_surely_dead():
        os.kill(process.pid, signal.SIGKILL)
        coordinator.replace.remote(
            f"process {process.pid} on {process.host} reported nothing for {silent_s:g} s: it was "
            "frozen, and was killed"
        )


class ReportReply(NamedTuple):
    """Reply to a report."""

    is_stopping: bool = False
    """Whether nothing new is to be started."""
    pause_s: float = 0.0
    """It reports no more often than that."""


@dataclass(slots=True, kw_only=True)
class RunStatus:
    """Status of a run as the driver polls it each second."""

    activity: Activity = field(default_factory=Activity)
    """Activity of all workers, including dead ones."""
    replaced: list[str] = field(default_factory=list)
    """Reasons why workers were replaced since the last poll."""
    out: dict[str, TakenOut] = field(default_factory=dict)
    """Workers that were taken out of work, by actor."""
    failure: CorpusAsrError | None = None
    """Error of a worker that every recording would meet."""


class RunCoordinator:
    """The actor."""

    def __init__(self, _: None = None, *, silent_s: float = SILENT_S) -> None:
        self._silent_s = silent_s
        self._stopping: Collection[str] = ()
        self._status = RunStatus()
        self._num_polls = 0
        # Each worker's process, with the number of polls before its last report.
        self._heard: dict[str, tuple[int, Worker]] = {}

    def report(self, worker: Worker, activity: Activity) -> ReportReply:
        """Add the activity of a process since its last report."""
        self._status.activity += activity
        self._heard[worker.actor] = self._num_polls, worker
        return ReportReply(worker.stage in self._stopping, len(self._heard) / MOST_REPORTS_PER_S)

    def take_out(self, worker: Worker, why: str) -> None:
        """Note that a worker is taken out of work."""
        self._status.out[worker.actor] = TakenOut(worker.stage, worker.device, why)

    def fail(self, failure: CorpusAsrError) -> None:
        """Note what every recording would meet."""
        self._status.failure = self._status.failure or failure

    def replace(self, why: str) -> None:
        """Record that a worker is unusable and will be replaced by another process."""
        self._status.replaced.append(why)
        self._status.activity += Activity(workers_replaced=1)

    def poll(self, stopping: Collection[str]) -> RunStatus:
        """Return all that the driver shows and acts upon; for calls a second apart.

        Workers of the stages `stopping` start nothing new.
        """
        self._stopping = stopping
        for silent in self.take_silent():
            on_node = NodeAffinitySchedulingStrategy(silent.device.node_id, soft=False)
            me = ray.get_runtime_context().current_actor
            end = _end_frozen.options(scheduling_strategy=on_node)
            end.remote(silent.process, self._silent_s, me)
        status, self._status = self._status, replace(self._status, replaced=[])
        return status

    def take_silent(self) -> list[Worker]:
        """Count a poll; return workers of which nothing was heard for too many, each once.

        Polls are counted, not time: after a pause of the coordinator or its machine, what workers
        sent meanwhile is still to be read.
        """
        self._num_polls += 1
        heard = [*self._heard.values()]
        silent = [worker for polls, worker in heard if self._num_polls - polls > self._silent_s]
        for worker in silent:
            del self._heard[worker.actor]
        return silent


def on_this_machine() -> NodeAffinitySchedulingStrategy:
    """Return where the driver's actors run: its loss ends the run anyway, others are preempted."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def start_coordinator() -> Any:
    """Start the run's coordinator and return its handle; it ends with the last handle.

    If it dies, an empty one replaces it.
    """
    coordinator = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RunCoordinator)
    # Ray warns about the first restartable actor in a process that gets an object by reference, as
    # Ray Data's workers do: if the object were lost, a restart would fail. Their objects live as
    # long as the driver. This actor comes first, and its warning is suppressed.
    # https://github.com/ray-project/ray/issues/53727; remove once Ray Data's workers are exempt.
    with _stderr_without(_RESTART_WARNING):
        placed = coordinator.options(scheduling_strategy=on_this_machine())
        argument = ray.put(None)
        handle = placed.remote(argument, silent_s=SILENT_S)
    # A restart needs the object: it is kept as long as the driver holds the handle.
    weakref.finalize(handle, lambda _: None, argument)
    return handle


_RESTART_WARNING = b"the actor restart will fail"


@contextlib.contextmanager
def _stderr_without(words: bytes) -> Iterator[None]:
    """Buffer stderr, including native code's, then write it without lines that contain `words`."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if words not in line:
                    os.write(2, line)


class CoordinatorClient(threading.Thread):
    """A worker's view of the coordinator, without which it goes on.

    Once started it says every few seconds what the worker did, and calls `after`.
    """

    def __init__(
        self,
        coordinator: Any,
        stage: str,
        read: Callable[[], Activity],
        *,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="report-activity", daemon=True)
        self._coordinator, self._read, self._after = coordinator, read, after
        self.worker = Worker.this(stage)
        self._sending, self._leaving = threading.Lock(), threading.Lock()
        self._before, self._sent_s = Activity(), float("-inf")
        self._pending: Any = None
        self._reply = ReportReply()

    @property
    def is_stopping(self) -> bool:
        """Whether no new work may be started, as far as the last reply said."""
        return self._reply.is_stopping

    def run(self) -> None:
        """Report until the process exits."""
        pause_s = FIRST_REPORT_S
        while True:
            time.sleep(max(pause_s, self._reply.pause_s))
            self.report()
            self._after()
            pause_s = min(2 * pause_s, REPORT_EVERY_S)

    def report(self) -> None:
        """Report now, and read the reply."""
        self.send()
        self._reply = self._get(self._pending) or self._reply

    def send(self) -> None:
        """Report now, unless that is too often; nobody waits for it: only a count is late."""
        with self._sending:
            if time.monotonic() - self._sent_s >= self._reply.pause_s:
                self._sent_s = time.monotonic()
                before, self._before = self._before, self._read()
                activity = self._before.since(before)
                self._pending = self._coordinator.report.remote(self.worker, activity)

    def take_out(self, why: str) -> None:
        """Say that this worker is taken out of work."""
        self._get(self._coordinator.take_out.remote(self.worker, why))

    def fail(self, error: CorpusAsrError) -> None:
        """Say what every recording would meet: the run is to end with it."""
        event(_LOG, logging.ERROR, "worker_failed", exc_info=True)
        self._get(self._coordinator.fail.remote(error))

    def leave(self, why: str) -> NoReturn:
        """Exit this process, so that Ray starts another."""
        # Every call in flight may end here with the same error, but it is one worker.
        with self._leaving:
            self.send()
            self._get(self._coordinator.replace.remote(f"{self.worker.device}: {why}"))
            event(_LOG, logging.ERROR, "worker_unusable", error=why)
            logging.shutdown()
            os._exit(_EXIT_CODE)

    def _get(self, answer: Any) -> Any:
        try:
            return ray.get(answer, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            # Only counts and the display are delayed.
            event(_LOG, logging.WARNING, "coordinator_silent", error=repr(error))
            return None
