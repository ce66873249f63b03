"""Work submitted to workers on Ray one by one, and its results or errors when they end.

Tasks for what needs nothing but a CPU; actors where a model has to be loaded first, and for the
commits of a run.

Commits: in, RESULTS rows, which workers hand over with each call, since a block of Ray Data leaves
a task only with its last row; out, counts of what was committed. A few actors on the
driver's machine decide what is committed together. That nothing is missing, the driver sees by the
names of parts that come out of the tasks, exactly once each.
"""

import math
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import ray

from corpus_asr.activity import Activity, Tally
from corpus_asr.config.run import OutputSettings
from corpus_asr.errors import CorpusAsrError, EngineError
from corpus_asr.logs import LogSettings, configure
from corpus_asr.runtime.commit import (
    CommitBuffer,
    Committed,
    Committer,
    digest_wholes,
)
from corpus_asr.runtime.coordinator import Device, on_this_machine
from corpus_asr.runtime.resources import WORKERS_PER_ACTOR
from corpus_asr.runtime.second_try import RetriedRecording
from corpus_asr.storage.run_state.recording_rows import LostPortion
from corpus_asr.storage.stores.uri import without_secrets

T = TypeVar("T")
R = TypeVar("R")

_DIED = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RayActorError,
)
_FULL = (ray.exceptions.OutOfDiskError, ray.exceptions.ObjectStoreFullError)
_RAY_ADVICE = "\nFailed to apply UDF transform"
# Processes of one worker that may end in a row before one of them is known to work.
MAX_FAILURES = 2
KILLED = "its process was killed, or ran out of memory"
POLL_S = 1.0
# Where some workers were taken out of work and no other shows a sign of life for so long, none will
# come: there is no room for it.
NEWCOMER_S = 60.0


# Commits that wait at one actor while its store fails; then workers wait with their results.
MOST_PENDING = 4


def on_workers(
    work: Callable[[T], R], portions: Iterable[T], *, at_once: int, retries: int = 0
) -> Iterator[R | LostPortion]:
    """Yield results of portions, in any order: tasks of one CPU each on the connected Ray.

    A portion whose process ended `retries` times and once more is a `LostPortion`.
    """
    task: Any = ray.remote(num_cpus=1, max_retries=retries)(lambda work, portion: work(portion))
    shared, waiting = ray.put(work), dict[Any, T]()
    try:
        for portion in portions:
            waiting[task.remote(shared, portion)] = portion
            if len(waiting) >= at_once:
                yield _first_done(waiting)
        while waiting:
            yield _first_done(waiting)
    except ray.exceptions.RayError as error:
        raise own_error(error) from error


def _first_done(waiting: dict[Any, T]) -> Any:
    [done], _ = ray.wait([*waiting])
    portion = waiting.pop(done)
    try:
        return ray.get(done)
    except _DIED as error:
        return LostPortion(portion, own_error(error))


def own_error(error: BaseException) -> CorpusAsrError:
    """Find this package's error in what Ray raised, or wrap the rest as an `EngineError`."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    # Breadth first: the outermost of our errors is the one with words for the user.
    while queue:
        cause = queue.pop(0)
        if cause is None or cause in seen:
            continue
        seen.append(cause)
        # By its module: Ray makes classes that are subclasses of ours and of its own.
        if type(cause).__module__ == CorpusAsrError.__module__:
            assert isinstance(cause, CorpusAsrError)
            # Ray 2.60 appends advice about its own retries to the message.
            return type(cause)(str(cause).split(_RAY_ADVICE)[0])
        if isinstance(cause, _FULL):
            return _no_room(cause)
        queue += [getattr(cause, "cause", None), cause.__cause__, cause.__context__]
    last_line = str(error).strip().splitlines()[-1] if str(error).strip() else ""
    return EngineError(
        f"running the pipeline on Ray: {type(error).__name__}: {last_line}; run again to continue "
        "from the last commit"
    )


def _no_room(error: BaseException) -> EngineError:
    # On a cluster it may have been another machine; its places have the same names.
    places = [place for place in ("/dev/shm", tempfile.gettempdir()) if Path(place).is_dir()]
    free = ", ".join(f"{shutil.disk_usage(place).free:,} bytes in {place}" for place in places)
    return EngineError(
        f"storing features in Ray's object store: {type(error).__name__}, found {free} free, "
        "expected room; enlarge the object store or RAY_TMPDIR, or lower extract.part_s or "
        "transcribe.slots"
    )


def is_hopeless(num_out: int, wanted: int, quiet_s: float) -> bool:
    """Return whether no worker of those that are wanted can be expected to work.

    Args:
        num_out: those of them that were taken out of work.
        wanted: how many there are to be.
        quiet_s: how long no other has shown a sign of life.
    """
    return num_out >= wanted or (num_out > 0 and quiet_s > NEWCOMER_S)


@dataclass(slots=True)
class _Place:
    """One of the workers: an actor, and those that took its place."""

    actor: Any
    pending: Any
    """Pending call of the worker; None while it is idle."""
    device: Device | None = None
    """Once there is one for it."""
    recording: RetriedRecording | None = None
    failures: int = 0
    """Processes that ended in a row before they were known to work."""

    @property
    def is_ready(self) -> bool:
        """Whether it is known to work."""
        return self.device is not None and (self.pending is None or self.recording is not None)

    @property
    def is_out(self) -> bool:
        """Whether no other is tried there."""
        return self.failures >= MAX_FAILURES


class RecordingWorkers:
    """Actors that transcribe a recording at a time; one that ends is followed by another."""

    def __init__(
        self,
        start: Callable[[], Any],
        *,
        num_workers: int,
        patience_s: float,
        stopping: Callable[[], bool],
        replaced: Callable[[str], object],
    ) -> None:
        """`start` makes an actor of `RecordingWorker`; `replaced` is told why one ended.

        Nothing new is begun once `stopping` says so. It is an error if nothing happens for
        `patience_s`.
        """
        self._start, self._patience_s = start, patience_s
        self._stopping, self._replaced = stopping, replaced
        self._places = [self._begun(_Place(None, None)) for _ in range(num_workers)]
        self._reasons: dict[str, None] = {}

    def __call__(self, recordings: Iterable[RetriedRecording]) -> Iterator[pa.Table | LostPortion]:
        """Yield results as they come, and `LostPortion` for recordings with which a worker ended.

        Raises:
            EngineError: no worker can work.
            CorpusAsrError: what every recording would meet.
        """
        waiting = deque(recordings)
        moved_s = time.monotonic()
        while waiting or any(place.recording for place in self._places):
            if self._stopping():
                waiting.clear()
            self._give(waiting)
            pending = {place.pending: place for place in self._places if place.pending is not None}
            ready, _ = ray.wait([*pending], timeout=POLL_S)
            for reference in ready:
                moved_s = time.monotonic()
                yield from self._taken(pending[reference], waiting)
            quiet_s = time.monotonic() - moved_s
            if quiet_s > self._patience_s:
                raise self._no_worker(f"nothing happened for {self._patience_s:g} s")
            num_out = sum(place.is_out for place in self._places)
            none_came = not any(place.device for place in self._places)
            if none_came and is_hopeless(num_out, len(self._places), quiet_s):
                raise self._no_worker("; ".join(self._reasons))

    def close(self) -> None:
        """End all of them."""
        for place in self._places:
            ray.kill(place.actor)

    def _begun(self, place: _Place) -> _Place:
        place.actor = self._start()
        place.pending, place.device = place.actor.device.remote(), None
        return place

    def _give(self, waiting: deque[RetriedRecording]) -> None:
        devices = {place.device for place in self._places if place.device is not None}
        for place in self._places:
            if not place.is_ready or place.pending is not None:
                continue
            for recording in waiting:
                # Another device is to try what ended a worker here, where there is one.
                if place.device not in recording.devices or devices <= recording.devices:
                    waiting.remove(recording)
                    place.recording = recording
                    place.pending = place.actor.transcribe.options(num_returns="streaming").remote(
                        recording.pack(), recording.attempt
                    )
                    break

    def _taken(
        self, place: _Place, waiting: deque[RetriedRecording]
    ) -> Iterator[pa.Table | LostPortion]:
        """Take what is ready of a worker."""
        recording, reference = place.recording, place.pending
        try:
            if place.device is None:
                place.device = ray.get(reference)
                place.pending = place.actor.prepare.remote()
                return
            if recording is None:
                ray.get(reference)
                place.pending, place.failures = None, 0
                return
            results = ray.get(next(reference))
            recording.add_done(results["part"].to_pylist())
            yield results
        except StopIteration:
            place.recording = place.pending = None
        except ray.exceptions.RayError as error:
            lost = self._ended(place, error)
            if lost is not None:
                yield lost
            elif recording is not None:
                waiting.append(recording)  # a lost machine says nothing about it

    def _ended(self, place: _Place, error: ray.exceptions.RayError) -> LostPortion | None:
        """Follow a worker that ended by another, unless it cannot work."""
        ours = own_error(error)
        died = isinstance(error, _DIED)
        if not died and type(ours) is not EngineError:
            raise ours
        reason = KILLED if died else str(ours)
        recording, device = place.recording, place.device
        place.recording = None
        ray.kill(place.actor)
        self._replaced(reason)
        if recording is None:
            place.failures += 1
            self._reasons[reason] = None
        if place.is_out:
            place.pending = place.device = None
        else:
            self._begun(place)
        if recording is None or device is None or (died and not _is_alive(device.node_id)):
            return None
        recording.devices.add(device)
        recording.reasons.append(f"{device}: {reason}")
        return LostPortion(recording, ours)

    def _no_worker(self, why: str) -> EngineError:
        return EngineError(
            f"no transcribe worker can work, expected at least one: {why}; run again to continue "
            "from the last commit"
        )


def _is_alive(node_id: str) -> bool:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return any(node["NodeID"] == node_id and node["Alive"] for node in nodes)


class CommitActor:
    """Commits what workers hand to it, together, once that is due."""

    def __init__(self, committer: Committer, output: OutputSettings, logs: LogSettings) -> None:
        configure(logs, redact=without_secrets)
        self._committer = committer
        self._buffer = CommitBuffer[pa.Table].of(output, self._begin)
        # While a store takes its time, the results of the next commit are gathered.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._commits: list[Future[Committed]] = []

    def add(self, results: pa.Table) -> None:
        """Take RESULTS rows; wait while too many commits are pending."""
        self._buffer.add(results, results.nbytes)
        wait(self._commits[-1 - MOST_PENDING : -MOST_PENDING])

    def collect(self, *, hurry: bool = False) -> list[Committed]:
        """Commit what is due, or all if `hurry`; return the commits that ended since the last call.

        Raises:
            Exception: of a failed commit.
        """
        if hurry:
            self._buffer.flush()
        else:
            self._buffer.poll()
        ended = [*takewhile(Future.done, self._commits)]
        del self._commits[: len(ended)]
        return [commit.result() for commit in ended]

    def settle(self) -> list[Committed]:
        """Commit everything, wait for completion, and return the commits since the last call.

        Raises:
            Exception: of a failed commit.
        """
        self._buffer.flush()
        wait(self._commits)
        return self.collect()

    def _begin(self, results: list[pa.Table]) -> None:
        self._commits.append(self._thread.submit(self._commit, results))

    def _commit(self, results: list[pa.Table]) -> Committed:
        return self._committer(pa.concat_tables(results).combine_chunks())


def hand_over(results: pa.Table, actor: Any) -> None:
    """Give RESULTS rows to a commit actor; wait until it takes them."""
    ray.get(actor.add.remote(results))


class Commits:
    """The commit actors of a run, and counts of what they have committed."""

    def __init__(self, committer: Committer, output: OutputSettings, *, num_workers: int) -> None:
        # Committing waits for the store; a CPU reserved for it could be what a stage waits for.
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CommitActor)
        actor = actor.options(scheduling_strategy=on_this_machine())
        logs = LogSettings.from_environment()
        self.actors: list[Any] = [
            actor.remote(committer, output, logs)
            for _ in range(math.ceil(num_workers / WORKERS_PER_ACTOR))
        ]
        self.tally, self.activity = Tally(), Activity()
        """Counts of what was committed, and what that took."""
        self._answers: list[Any] = []
        self._turn = threading.Lock()
        self._uncommitted = 0

    def has_all_of(self, num_files: int) -> bool:
        """Return whether all parts of so many recordings were committed, each exactly once.

        A worker that begins again commits parts a second time; an actor that does loses some.
        """
        return (self.tally.files, self._uncommitted) == (num_files, 0)

    def expect(self, results: pa.Table) -> None:
        """Expect all parts of recordings whose last one is among rows of IDS."""
        self._uncommitted += digest_wholes(results)

    def poll(self, *, hurry: bool) -> None:
        """Have committed what is due, or all if `hurry`; count what was. For calls a second apart.

        Raises:
            Exception: of a failed commit.
        """
        if self._turn.acquire(blocking=False):  # else it is being settled
            try:
                if not self._answers:
                    self._answers = [actor.collect.remote(hurry=hurry) for actor in self.actors]
                ended, self._answers = ray.wait(
                    self._answers, num_returns=len(self._answers), timeout=0
                )
                self.add_up(chain.from_iterable(ray.get(ended)))
            finally:
                self._turn.release()

    def settle(self) -> None:
        """Commit everything, wait for completion, and count it.

        Raises:
            Exception: of a failed commit.
        """
        with self._turn:
            answers = self._answers + [actor.settle.remote() for actor in self.actors]
            self._answers = []
            self.add_up(chain.from_iterable(ray.get(answers)))

    def add_up(self, commits: Iterable[Committed]) -> None:
        """Count commits."""
        for commit in commits:
            self.tally += commit.tally
            self.activity += commit.spent
            self._uncommitted -= commit.digest
