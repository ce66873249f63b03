"""Shared state of the workers of a run on Ray: counts, stop requests, usable workers.

One actor per run adds up what workers did since they last said so: a report costs the same whatever
the number of workers, and they report so seldom that all together stay below a bound. It holds
nothing that a run needs: it may die at any time, the driver keeps what it had counted and tells its
successor whether to stop, workers tell it how they are, and without its answer work goes on.
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
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from corpus_asr.activity import Activity
from corpus_asr.errors import CorpusAsrError, EngineError
from corpus_asr.logs import event
from corpus_asr.runtime.commit import Tally
from corpus_asr.storage.run_state.lock import ProcessName

_LOG = logging.getLogger(__name__)

# Interval at which a busy worker checks whether to stop.
ASK_EVERY_S = 1.0
# Interval of reports between the ends of a worker's calls; shorter at first, so that
# it is soon known how long its recordings are.
REPORT_EVERY_S = 5.0
FIRST_REPORT_S = 0.5
# All workers together report no more often: each takes Ray some 0.3 ms of the coordinator's CPU.
MOST_REPORTS_PER_S = 300
# A worker that reports nothing for so long is frozen, whatever it works on: reports have a thread
# of their own.
SILENT_S = 300.0
# An answer that takes so long is not worth waiting for; work goes on without.
ANSWER_S = 60.0
NOTHING = Activity()
_EXIT_CODE = 70  # EX_SOFTWARE; any but 0, which Ray takes for a wish to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Device of a worker: a GPU of a machine, or its CPUs."""

    node_id: str
    host: str
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)} of {self.host}" if self.gpus else f"CPUs of {self.host}"


class TakenOut(NamedTuple):
    """A worker that gets no more work: all processes of one actor."""

    stage: str
    worker: str
    device: Device
    why: str


def this_device() -> Device:
    """Return the device of this worker."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return Device(
        node_id=context.get_node_id(), host=socket.gethostname(), gpus=tuple(map(str, gpus))
    )


def this_worker() -> tuple[str, bool]:
    """Return the name of this actor, and whether it was restarted."""
    context = ray.get_runtime_context()
    return str(context.get_actor_id()), bool(context.was_current_actor_reconstructed)


def end_for_good() -> None:
    """End this actor: Ray starts no other process for it."""
    ray.kill(ray.get_runtime_context().current_actor)
    time.sleep(ANSWER_S)  # until it is dead


@ray.remote(num_cpus=0, max_retries=0)
def _end_frozen(process: ProcessName) -> bool:
    """Kill a local process, so that Ray starts another; return whether it existed."""
    if process.machine != ProcessName.mine().machine or process.is_surely_dead():
        return False
    os.kill(process.pid, signal.SIGKILL)
    return True


class Report(NamedTuple):
    """Periodic report of a worker's process."""

    worker: str
    activity: Activity
    """Activity since its last report."""
    node_id: str
    process: ProcessName


class ReportReply(NamedTuple):
    """Reply to a report."""

    stopping: bool = False
    """Whether nothing new is to be started."""
    pause_s: float = 0.0
    """It reports no more often than that."""
    over: bool = False
    """Whether all that workers have together is done."""


class RunStatus(NamedTuple):
    """Status of a run as the driver polls it each second."""

    life: str
    """Random ID of the coordinator; a new one counts from 0."""
    tally: Tally
    activity: Activity
    """Activity of all workers, including dead ones."""
    replaced: list[str]
    """Reasons why workers were replaced since the last poll."""
    out: list[TakenOut]
    """Workers that were taken out of work."""
    failure: CorpusAsrError | None
    """Error of a worker that every recording would meet."""


class RunCoordinator:
    """The actor."""

    def __init__(self, _: None = None, *, silent_s: float = SILENT_S) -> None:
        self._life = uuid.uuid4().hex
        self._tally = Tally()
        self._silent_s = silent_s
        self._stopping = self._over = False
        self._replaced: list[str] = []
        self._sum = Activity()
        # By the time of the last report, the earliest first.
        self._heard: dict[str, tuple[float, Report]] = {}
        self._out: dict[str, TakenOut] = {}
        self._failure: CorpusAsrError | None = None
        self._looked_s = time.monotonic()
        self._ending: list[Any] = []

    def add(self, tally: Tally, spent: Activity = NOTHING) -> None:
        """Count committed results, and what committing them took."""
        self._tally += tally
        self._sum += spent

    def report(self, report: Report) -> ReportReply:
        """Add what a process did since its last report."""
        self._sum += report.activity
        self._heard.pop(report.worker, None)
        self._heard[report.worker] = time.monotonic(), report._replace(activity=NOTHING)
        return ReportReply(self._stopping, len(self._heard) / MOST_REPORTS_PER_S, self._over)

    def num_heard(self) -> int:
        """Return the number of workers that reported recently."""
        return len(self._heard)

    def take_out(self, worker: TakenOut) -> None:
        """Note that a worker is taken out of work."""
        self._out[worker.worker] = worker

    def fail(self, failure: CorpusAsrError) -> None:
        """Note what every recording would meet."""
        self._failure = self._failure or failure

    def look(self, *, stop: bool = False, over: bool = False) -> RunStatus:
        """Return all that the driver shows and acts upon; for calls a second apart.

        A coordinator that took the place of another learns from it whether to stop.
        """
        self._stopping |= stop
        self._over |= over
        replaced = self._take_replaced()
        out = list(self._out.values())
        return RunStatus(self._life, self._tally, self._sum, replaced, out, self._failure)

    def replace(self, why: str) -> None:
        """Record that a worker is unusable and will be replaced by another process."""
        self._replaced.append(why)
        self._sum += Activity(workers_replaced=1)

    def _take_replaced(self) -> list[str]:
        for silent in self._silent(time.monotonic()):
            on_node = NodeAffinitySchedulingStrategy(silent.node_id, soft=False)
            ended = _end_frozen.options(scheduling_strategy=on_node).remote(silent.process)
            self._ending.append((silent.process, ended))
        self._note_ended()
        replaced, self._replaced = self._replaced, []
        return replaced

    def _silent(self, now_s: float) -> list[Report]:
        # After a pause of its own, what workers sent meanwhile is still to be read.
        if now_s - self._looked_s > self._silent_s / 2:
            self._heard = {worker: (now_s, last) for worker, (_, last) in self._heard.items()}
        self._looked_s = now_s
        silent: list[Report] = []
        while self._heard and now_s - next(iter(self._heard.values()))[0] > self._silent_s:
            worker, (_, last) = next(iter(self._heard.items()))
            del self._heard[worker]
            silent.append(last)
        return silent

    def _note_ended(self) -> None:
        for process, ended in [
            ending for ending in self._ending if ray.wait([ending[1]], timeout=0)[0]
        ]:
            self._ending.remove((process, ended))
            try:
                if not ray.get(ended):  # it had died, and was replaced, before
                    continue
            except ray.exceptions.RayError:  # its machine is gone
                continue
            self._replaced.append(
                f"process {process.pid} on {process.host} reported nothing for "
                f"{self._silent_s:g} s: it was frozen, and was killed"
            )
            self._sum += Activity(workers_replaced=1)


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
        read: Callable[[], Activity],
        *,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="report-activity", daemon=True)
        self._coordinator, self._read = coordinator, read
        self._after = after
        self._worker, self._process = uuid.uuid4().hex, ProcessName.mine()
        self._node_id = ray.get_runtime_context().get_node_id()
        self._sending, self._leaving = threading.Lock(), threading.Lock()
        self._before, self._sent_s = Activity(), float("-inf")
        self._reply: Any = None
        self._answer = ReportReply()
        self._asked_s = float("-inf")

    def run(self) -> None:
        """Report until the process exits."""
        pause_s = FIRST_REPORT_S
        while True:
            time.sleep(max(pause_s, self._answer.pause_s))
            self.send()
            self._after()
            pause_s = min(2 * pause_s, REPORT_EVERY_S)

    def send(self) -> None:
        """Report now, unless that is too often; nobody waits for it: only a count is late."""
        with self._sending:
            if time.monotonic() - self._sent_s < self._answer.pause_s:
                return
            self._sent_s = time.monotonic()
            activity = self._read()
            did, self._before = activity.since(self._before), activity
            report = Report(self._worker, did, self._node_id, self._process)
            reply, self._reply = self._reply, self._coordinator.report.remote(report)
        if reply is not None and ray.wait([reply], timeout=0)[0]:
            self._take(reply)

    def stopping(self) -> bool:
        """Return whether no new work may be started; asks at most once a second."""
        every_s = max(ASK_EVERY_S, self._answer.pause_s)
        if not self._answer.stopping and time.monotonic() - self._asked_s >= every_s:
            self._asked_s = time.monotonic()
            self.send()
            self._take(self._reply)
        return self._answer.stopping

    @property
    def over(self) -> bool:
        """Whether all that workers have together is done."""
        return self._answer.over

    def _take(self, reply: Any) -> None:
        answer = self._answer_to("report", reply)
        if answer is not None:
            self._answer = answer

    def take_out(self, worker: TakenOut) -> None:
        """Say that this worker is taken out of work."""
        self._ask("take_out", worker)

    def fail(self, error: Exception) -> None:
        """Say what every recording would meet: the run is to end with it."""
        ours = isinstance(error, CorpusAsrError)
        words = f"running the pipeline on Ray: {type(error).__name__}: {error}"
        event(_LOG, logging.ERROR, "worker_failed", exc_info=error)
        self._ask("fail", error if ours else EngineError(words))

    def leave(self, why: str) -> NoReturn:
        """Exit this process, so that Ray starts another."""
        # Every call in flight may end here with the same error, but it is one worker.
        with self._leaving:
            self.send()
            self._ask("replace", why)
            event(_LOG, logging.ERROR, "worker_unusable", error=why)
            logging.shutdown()
            os._exit(_EXIT_CODE)

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._answer_to(method, getattr(self._coordinator, method).remote(*arguments))

    def _answer_to(self, method: str, question: Any) -> Any:
        try:
            return ray.get(question, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            # Only counts and the display are delayed.
            event(_LOG, logging.WARNING, "board_lost", method=method, error=repr(error))
            return None
