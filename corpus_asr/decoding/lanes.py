"""A lane: one kind of search, its places, and the jobs that wait for one.

In: running tasks whose next job belongs here. Out: their results, and those tasks whose next job
belongs to another lane. Knows nothing of how a `LaneBatch` searches, nor what the tasks are for.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from corpus_asr.decoding.protocols import Job, Result, SlotModel, WindowJob

T = TypeVar("T")
Steps = Generator[Job, Any, T]
"""Yields jobs, is sent the result of each, and returns something in the end."""
Task = Steps[Any]
Done = Callable[[Any, Exception | None], None]


class LaneBatch(Protocol):
    """Places on the device in which one kind of search goes on side by side.

    The occupied places are always the first ones. What a place gives never depends on what the
    others hold.
    """

    @property
    def places(self) -> int:
        """How many jobs fit in."""

    def encode(self, jobs: Sequence[WindowJob]) -> Float[Tensor, "batch pos width"]:
        """Encode the jobs' windows, or take the jobs' own encodings (`encode_windows`).

        `fill` always follows directly, with the same windows in the same order, so a batch whose
        assistant listens for itself may keep what that one heard until then.
        """

    def fill(self, places: Sequence[int], encoded: Float[Tensor, "batch pos width"]) -> None:
        """Put encoded windows into `places`; they stay until the next fill."""

    def admit(self, places: Sequence[int], jobs: Sequence[WindowJob]) -> None:
        """Start the jobs in `places`, whose windows are filled; a job may end at once."""

    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` places; those that have ended stay as they are.

        Args:
            active: places in use.
            sampled: whether any of their jobs has a temperature above 0.
        """

    def ended(self, active: int) -> list[int]:
        """The places among the first `active` that are finished; waits for the device."""

    def collect(self, place: int) -> Result:
        """Read the result of a finished place."""

    def move(self, source: int, target: int) -> None:
        """Make place `target` what place `source` is; `source` is free afterwards."""


def encode_windows(model: SlotModel, jobs: Sequence[Job]) -> Float[Tensor, "batch pos width"]:
    """Encode the jobs' features; a job that brings its encoding is not encoded again.

    Raises:
        ValueError: encodings that are brought are not of the shape of the others.
    """
    with torch.inference_mode():
        rows: dict[int, Tensor] = {
            row: job.encoded.to(model.device, model.dtype)
            for row, job in enumerate(jobs)
            if job.encoded is not None
        }
        missing = [row for row in range(len(jobs)) if row not in rows]
        if missing:
            windows = torch.stack([torch.from_numpy(jobs[row].features) for row in missing])
            encoded = model.encode(windows.to(model.device, model.dtype))
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


@dataclass(slots=True)
class Running:
    """A task, the job it waits for, and whom to tell in the end."""

    task: Task
    done: Done
    job: Job
    filled: bool = False
    """Whether the place it sits in already holds the job's window."""
    encoded: Tensor | None = None
    """The job's window, should the task ask for it again in another lane."""

    def resume(self, result: Result, check: Callable[[Job], None]) -> bool:
        """Send a result; returns whether the task has another job, which `check` accepts."""
        try:
            job = self.task.send(result)
            check(job)
        except StopIteration as stop:
            self.done(stop.value, None)
            return False
        except Exception as error:  # a task's failure is its owner's to handle
            self.task.close()
            self.done(None, error)
            return False
        if job.window != self.job.window:
            self.filled, self.encoded = False, None
        self.job = job
        return True

    def fail(self, error: Exception) -> None:
        """End the task with `error`."""
        self.task.close()
        self.done(None, error)


class Lane:
    """Keeps the places of one batch full."""

    def __init__(
        self,
        batch: LaneBatch,
        *,
        encode_batch: int,
        check: Callable[[Job], None],
        lane_of: Callable[[Job], "Lane"],
    ) -> None:
        """Take over a batch.

        Args:
            batch: the places.
            encode_batch: windows encoded at once, which bounds the encoder's memory.
            check: raises on a job that nobody could do.
            lane_of: where a job belongs.
        """
        self._batch = batch
        self._encode_batch = encode_batch
        self._check = check
        self._lane_of = lane_of
        self._waiting: deque[Running] = deque()
        self._active: list[Running] = []  # the task in place 0, 1, ...

    @property
    def pending(self) -> int:
        """Tasks whose present job is here."""
        return len(self._waiting) + len(self._active)

    def add(self, running: Running, *, first: bool = False) -> None:
        """Queue a task; `first` lets one that is under way already overtake the others."""
        if first:
            self._waiting.appendleft(running)
        else:
            self._waiting.append(running)

    def advance(self, steps: int) -> None:
        """Refill free places, decode for so many steps and deal with what ended."""
        self._refill()
        if not self._active:
            return
        sampled = any(_is_sampled(running.job) for running in self._active)
        for _ in range(steps):
            self._batch.step(len(self._active), sampled=sampled)
        self._finish()

    def empty(self) -> list[Running]:
        """Give up every task."""
        found = [*self._active, *self._waiting]
        self._active.clear()
        self._waiting.clear()
        return found

    def _refill(self) -> None:
        while self._waiting and len(self._active) < self._batch.places:
            first = len(self._active)
            count = min(self._batch.places - first, len(self._waiting))
            admitted = [self._waiting.popleft() for _ in range(count)]
            self._active.extend(admitted)
            self._admit(list(range(first, first + count)))
            self._finish()  # a job may end with its first token

    def _admit(self, places: list[int]) -> None:
        """Encode what is not there yet and start the jobs in `places`."""
        empty = [place for place in places if not self._active[place].filled]
        for first in range(0, len(empty), self._encode_batch):
            some = empty[first : first + self._encode_batch]
            jobs = [_with_encoding(self._active[place]) for place in some]
            encoded = self._batch.encode(_for_batch(jobs))
            self._batch.fill(some, encoded)
            for place, row in zip(some, encoded, strict=True):
                # A copy, so that the row does not keep its whole batch in memory.
                self._active[place].encoded = row.clone()
        self._batch.admit(places, _for_batch([self._active[place].job for place in places]))

    def _finish(self) -> None:
        """Send results to their tasks; a task that asks for the same window again stays put."""
        while ended := self._batch.ended(len(self._active)):
            again: list[int] = []
            free: list[int] = []
            for place in ended:
                running = self._active[place]
                window = running.job.window
                if not running.resume(self._batch.collect(place), self._check):
                    free.append(place)
                    continue
                lane = self._lane_of(running.job)
                if lane is self and running.job.window == window:
                    running.filled = True
                    again.append(place)
                else:
                    running.filled = False
                    lane.add(running, first=True)
                    free.append(place)
            if again:
                self._admit(again)
            self._close_gaps(free)

    def _close_gaps(self, free: list[int]) -> None:
        """Refill freed places with waiting jobs, or move the last ones into them."""
        refilled = free[: len(self._waiting)]
        for place in refilled:
            self._active[place] = self._waiting.popleft()
        if refilled:
            self._admit(refilled)
        for place in sorted(free[len(refilled) :], reverse=True):
            last = self._active.pop()
            if place < len(self._active):
                self._batch.move(len(self._active), place)
                self._active[place] = last


def _with_encoding(running: Running) -> Job:
    """The job, with the window's encoding where another lane has left it."""
    if running.encoded is None or running.job.encoded is not None:
        return running.job
    return replace(running.job, encoded=running.encoded)


def _for_batch(jobs: list[Job]) -> Any:
    """The jobs as their batch takes them: `AlignJob`s too, but in the plain lane alone."""
    return jobs


def _is_sampled(job: Job) -> bool:
    return isinstance(job, WindowJob) and job.search.temperature > 0
