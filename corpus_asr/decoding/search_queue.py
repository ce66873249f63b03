"""One kind of search: its places on the device, and the jobs that wait for one."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.activity import Activity
from corpus_asr.decoding.device import upload_stack
from corpus_asr.decoding.protocols import Job, Result, SlotModel, WindowJob, WindowResult

T = TypeVar("T")
Steps = Generator["Job | Gather[Any]", Any, T]
"""Yields jobs, is sent the result of each, and returns something in the end."""
Task = Steps[Any]
Done = Callable[[Any, Exception | None], None]
Check = Callable[[Job], None]
"""Raises on a job that nobody could do."""


@dataclass(frozen=True, slots=True)
class Gather(Generic[T]):
    """Tasks to run side by side; the task that yields it is sent what they return, in order.

    The first task continues in the slot of the one that yields, and tasks that are gathered name
    windows alike, so that a window of both is encoded once. The first error of a task ends the one
    that yields with it.
    """

    tasks: Iterable[Steps[T]]


class SearchBatch(Protocol):
    """Places on the device in which one kind of search goes on side by side.

    The occupied places are always the first ones. What a place gives never depends on what the
    others hold.
    """

    @property
    def model(self) -> SlotModel:
        """Encodes the windows."""

    @property
    def places(self) -> int:
        """How many jobs fit in."""

    def fill(
        self,
        places: Sequence[int],
        jobs: Sequence[Any],
        encoded: Float[Tensor, "batch pos width"],
    ) -> None:
        """Put the jobs' encoded windows into `places`; they stay until the next fill."""

    def admit(self, places: Sequence[int], jobs: Sequence[Any]) -> None:
        """Start the jobs in `places`, whose windows are filled; a job may end at once."""

    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` places; those that have ended stay as they are."""

    def look(self) -> None:
        """Ask which places have finished by now, for `ended` to tell; does not wait."""

    def ended(self, active: int) -> list[int]:
        """The places among the first `active` that are known to have finished.

        Where the device works behind the host, what became true since the last `look` is not known
        yet, but for what the host itself did.
        """

    def collect(self, places: Sequence[int]) -> Sequence[Result]:
        """Read the results of finished places."""

    def move(self, source: int, target: int) -> None:
        """Make place `target` what place `source` is; `source` is free afterwards."""


def encode_windows(model: SlotModel, jobs: Sequence[Job]) -> Float[Tensor, "batch pos width"]:
    """Encode the jobs' features; a job that brings its encoding is not encoded again."""
    with torch.inference_mode():
        rows: dict[int, Tensor] = {
            row: job.encoded.to(model.device, model.dtype)
            for row, job in enumerate(jobs)
            if job.encoded is not None
        }
        missing = [row for row in range(len(jobs)) if row not in rows]
        if missing:
            features = [torch.from_numpy(jobs[row].features) for row in missing]
            # In their own type, mostly half as wide, until they are there.
            stacked = upload_stack(features, model.device).to(model.dtype)
            encoded = model.encode(stacked, num_frames=frames_heard([jobs[row] for row in missing]))
            if not rows:
                return encoded
            rows.update(zip(missing, encoded, strict=True))
        shapes = sorted({tuple(row.shape) for row in rows.values()})
        if len(shapes) > 1:
            raise ValueError(
                f"filling {len(jobs)} windows with encodings: found shapes {shapes}, expected one "
                "(pos, width) for all; encode each with this very model"
            )
        return torch.stack([rows[row] for row in range(len(jobs))])


def frames_heard(jobs: Sequence[Job]) -> list[int] | None:
    """The frames of each job's window that are heard; None where all are."""
    whole = [job.features.shape[1] for job in jobs]
    heard = [job.num_frames or frames for job, frames in zip(jobs, whole, strict=True)]
    return None if heard == whole else heard


def pad_prompts(jobs: Sequence[WindowJob]) -> Int[Tensor, "batch token"]:
    """The jobs' prompts as rows, padded on the right."""
    lengths = [len(job.prompt) for job in jobs]
    prompts = torch.zeros(len(jobs), max(lengths), dtype=torch.long)
    for row, job in enumerate(jobs):
        prompts[row, : lengths[row]] = torch.tensor(job.prompt)
    return prompts


@dataclass(slots=True)
class Running:
    """A task, the job it waits for, and what follows its end."""

    task: Task
    ended: "Ended"
    """Told what the task returned or raised; returns what can run because of that."""
    job: Job
    filled: bool = False
    """Whether the place it sits in already holds the job's window."""
    encoded: Tensor | None = None
    """The job's window, once encoded: ahead of need, or for a search the task asks for later."""

    @property
    def is_encoded(self) -> bool:
        """Whether the encoder has nothing to do for the job."""
        return self.encoded is not None or self.job.encoded is not None

    def resume(self, result: Result, check: Check) -> "list[Running]":
        """Send a result; returns what runs next, of which the first may take this one's place."""
        following = start(self.task, self.ended, check, result)
        if following and _window_of(following[0]) == _window_of(self):
            following[0].filled, following[0].encoded = self.filled, self.encoded
        return following

    def forget(self) -> None:
        """Have the job's window encoded and filled anew."""
        self.filled, self.encoded = False, None

    def fail(self, error: Exception) -> None:
        """End the task with `error`."""
        self.task.close()
        self.ended(None, error)


Ended = Callable[[Any, Exception | None], list[Running]]


def _window_of(running: Running) -> tuple[object, ...]:
    return running.job.window, running.job.num_frames


def start(
    task: Task,
    ended: Ended,
    check: Check,
    answer: Any = None,
) -> list[Running]:
    """Send something to a task; returns what runs next: it, those it gathers, or what waited."""
    try:
        request = task.send(answer)
        if isinstance(request, Gather):
            tasks = list(request.tasks)
        else:
            check(request)
    except StopIteration as stop:
        return ended(stop.value, None)
    except Exception as error:  # a task's failure is its owner's to handle
        task.close()
        return ended(None, error)
    if isinstance(request, Gather):
        return _Gathering(task, ended, check).start(tasks)
    return [Running(task, ended, request)]


class _Gathering:
    """A task that waits until those it gathers have ended."""

    def __init__(self, task: Task, ended: Ended, check: Check) -> None:
        self._task, self._ended, self._check = task, ended, check
        self._results: list[Any] = []
        self._remaining = 0
        self._failed = False

    def start(self, tasks: Sequence[Task]) -> list[Running]:
        if not tasks:
            return start(self._task, self._ended, self._check, [])
        self._results = [None] * len(tasks)
        self._remaining = len(tasks)
        running: list[Running] = []
        for index, task in enumerate(tasks):
            if self._failed:
                task.close()
            else:
                running += start(task, partial(self._collect, index), self._check)
        return running

    def _collect(self, index: int, result: Any, error: Exception | None) -> list[Running]:
        if self._failed:
            return []
        if error is not None:
            self._failed = True
            self._task.close()
            return self._ended(None, error)
        self._results[index] = result
        self._remaining -= 1
        if self._remaining:
            return []
        return start(self._task, self._ended, self._check, self._results)


class SearchQueue:
    """Keeps the places of one batch full.

    Windows are encoded in batches of `encode_batch`: with those that are needed now go some of
    jobs that still wait, on the same stream, as the encoder alone keeps a device busy. A job whose
    window is encoded goes before one whose window is not, so that these too come to be encoded
    together.

    Whatever leaves a method for want of memory, every task is in exactly one place or queue, and
    has not been sent the result of its present job: `empty` then gives all that are to be started
    anew.
    """

    def __init__(
        self,
        batch: SearchBatch,
        *,
        encode_batch: int,
        check: Check,
        queue_of: Callable[[Job], "SearchQueue"],
        queue: Callable[[Iterable[Running]], None],
        statistics: Activity,
    ) -> None:
        """Take over a batch; `queue` adds tasks that other tasks gather to their search queues."""
        self._batch = batch
        self._encode_batch = encode_batch
        self._check = check
        self._queue_of = queue_of
        self._queue = queue
        self._statistics = statistics
        self._waiting: deque[Running] = deque()
        self._encoded: deque[Running] = deque()  # these wait too, and need no encoder
        self._active: dict[int, Running] = {}  # by place

    @property
    def pending(self) -> int:
        """Tasks whose present job is here."""
        return len(self._active) + self._num_waiting

    @property
    def _num_waiting(self) -> int:
        return len(self._waiting) + len(self._encoded)

    def add(self, running: Running, *, first: bool = False) -> None:
        """Queue a task; `first` lets one that is under way already overtake the others."""
        waiting = self._encoded if running.is_encoded else self._waiting
        if first:
            waiting.appendleft(running)
        else:
            waiting.append(running)

    def advance(self, steps: int) -> None:
        """Refill free places, decode for so many steps and deal with what ended."""
        self._refill()
        if not self._active:
            return
        active = len(self._active)
        sampled = any(_is_sampled(running.job) for running in self._active.values())
        with self._statistics.timing("step_s"):
            for left in range(steps, 0, -1):
                if left == 1:
                    self._batch.look()
                self._batch.step(active, sampled=sampled)
        self._statistics.count_steps(
            steps, active=active, places=self._batch.places, pending=self.pending
        )
        self._finish()

    def empty(self) -> list[Running]:
        """Give up every task; those under way come first."""
        found = [*self._active.values(), *self._encoded, *self._waiting]
        for tasks in (self._active, self._encoded, self._waiting):
            tasks.clear()
        return found

    def _refill(self) -> None:
        while self._num_waiting and len(self._active) < self._batch.places:
            first = len(self._active)
            places = range(first, min(self._batch.places, first + self._num_waiting))
            for place in places:
                self._active[place] = self._next()
            self._admit(places)
            self._finish()  # a job may end with its first token

    def _next(self) -> Running:
        return (self._encoded or self._waiting).popleft()

    def _admit(self, places: Sequence[int]) -> None:
        """Start the jobs in `places`, with their windows where they do not hold them yet."""
        starting = [self._active[place] for place in places]
        self._encode([one for one in starting if not one.filled and not one.is_encoded])
        empty = [place for place in places if not self._active[place].filled]
        with self._statistics.timing("fill_s"):
            for first in range(0, len(empty), self._encode_batch):
                some = empty[first : first + self._encode_batch]
                jobs = [_with_encoding(self._active[place]) for place in some]
                self._batch.fill(some, jobs, encode_windows(self._batch.model, jobs))
        with self._statistics.timing("prefill_s"):
            self._batch.admit(places, [running.job for running in starting])
        for running in starting:
            running.filled = True

    def _encode(self, needed: Sequence[Running]) -> None:
        """Encode the windows of these jobs, and to fill the last batch those of some that wait."""
        for first in range(0, len(needed), self._encode_batch):
            some = list(needed[first : first + self._encode_batch])
            while len(some) < self._encode_batch and self._waiting:
                some.append(self._waiting.popleft())
                self._encoded.append(some[-1])
            with self._statistics.timing("encode_s"):
                encoded = encode_windows(self._batch.model, [running.job for running in some])
                for running, row in zip(some, encoded, strict=True):
                    # A copy, so that the row does not keep its whole batch in memory.
                    running.encoded = row.clone()
            self._statistics.windows += len(some)
            self._statistics.encoder_batches += 1

    def _finish(self) -> None:
        """Send results to their tasks; a task that asks for the same window again stays put."""
        while ended := self._ended():
            with self._statistics.timing("wait_s"):
                results = self._batch.collect(ended)
            starting: list[int] = []
            free: list[int] = []
            for place, result in zip(ended, results, strict=True):
                if isinstance(result, WindowResult):
                    self._statistics.tokens += len(result.tokens)
                (starting if self._stays(place, result) else free).append(place)
            starting += self._refill_freed(free)
            self._close_gaps(starting)
            if starting:
                self._admit(starting)

    def _ended(self) -> list[int]:
        with self._statistics.timing("wait_s"):
            return self._batch.ended(len(self._active))

    def _stays(self, place: int, result: Result) -> bool:
        """Send a task its result; tells whether its next job is for the window in its place."""
        following = self._active[place].resume(result, self._check)
        if following:
            # Wherever memory runs out from here on, all of these are in a place or a queue.
            running = self._active[place] = following[0]
            self._queue(following[1:])
            other = self._queue_of(running.job)
            if other is self and running.filled:
                return True
            running.filled = False
            other.add(running, first=True)
        del self._active[place]
        return False

    def _refill_freed(self, free: Iterable[int]) -> list[int]:
        """Give freed places, the first ones first, to waiting jobs; returns those."""
        refilled = sorted(free)[: self._num_waiting]
        for place in refilled:
            self._active[place] = self._next()
        self._statistics.refills += len(refilled)
        return refilled

    def _close_gaps(self, starting: list[int]) -> None:
        """Move the last jobs into places left free; places that are to be started move along."""
        count = len(self._active)
        gaps = [place for place in range(count) if place not in self._active]
        beyond = [place for place in self._active if place >= count]
        for source, target in zip(sorted(beyond), gaps, strict=True):
            self._batch.move(source, target)
            self._active[target] = self._active.pop(source)
            if source in starting:
                starting[starting.index(source)] = target


def _with_encoding(running: Running) -> Job:
    if running.encoded is None or running.job.encoded is not None:
        return running.job
    return replace(running.job, encoded=running.encoded)


def _is_sampled(job: Job) -> bool:
    return isinstance(job, WindowJob) and job.search.temperature > 0
