"""Continuous batching: many tasks share the decoder's slots, and a freed slot is refilled at once.

In: tasks, which are generators that yield one `WindowJob` at a time and are sent its
`WindowResult`. Out: whatever each task returns. Knows nothing of what the tasks are for, so
recordings, fallback retries and language detection mix freely in one batch.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from corpus_asr.decoding.batch import SlotBatch
from corpus_asr.decoding.protocols import SlotModel, WindowJob, WindowResult

Task = Generator[WindowJob, WindowResult, Any]
Done = Callable[[Any, Exception | None], None]


@dataclass(slots=True)
class _Running:
    """A task, the job it waits for, and whom to tell in the end."""

    task: Task
    done: Done
    job: WindowJob
    filled: bool = False
    """Whether the slot it sits in already holds the job's window."""


class SlotScheduler:
    """Keeps up to `slots` jobs decoding side by side.

    A job's result does not depend on its neighbours. A task that raises ends with that exception;
    an exception of the model itself leaves `advance` and makes the scheduler unusable.
    """

    def __init__(
        self, model: SlotModel, slots: int, *, encode_batch: int = 8, check_every: int = 1
    ) -> None:
        """Allocate the slots.

        Args:
            model: encoder and decoder.
            slots: windows decoded side by side.
            encode_batch: windows encoded at once, which bounds the encoder's memory.
            check_every: steps between looks for finished slots; above 1 on devices where looking
                means waiting.
        """
        self._batch = SlotBatch(model, slots)
        self._slots = slots
        self._encode_batch = encode_batch
        self._check_every = check_every
        self._waiting: deque[_Running] = deque()
        self._active: list[_Running] = []  # the task in slot 0, 1, ...

    @property
    def pending(self) -> int:
        """Tasks not finished yet."""
        return len(self._waiting) + len(self._active)

    def add(self, task: Task, done: Done) -> None:
        """Start `task`; `done(result, error)` is called from within `add` or `advance`."""
        running = _start(task, done)
        if running is not None:
            self._waiting.append(running)

    def advance(self) -> None:
        """Refill free slots, then decode for `check_every` tokens and deal with what ended."""
        self._refill()
        if not self._active:
            return
        sampled = any(running.job.search.temperature > 0 for running in self._active)
        for _ in range(self._check_every):
            self._batch.step(len(self._active), sampled=sampled)
        self._finish()

    def fail(self, error: Exception) -> None:
        """End every task with `error`."""
        doomed = [*self._active, *self._waiting]
        self._active.clear()
        self._waiting.clear()
        for running in doomed:
            running.task.close()
            running.done(None, error)

    def _refill(self) -> None:
        while self._waiting and len(self._active) < self._slots:
            first = len(self._active)
            count = min(self._slots - first, len(self._waiting))
            admitted = [self._waiting.popleft() for _ in range(count)]
            self._active.extend(admitted)
            self._admit(list(range(first, first + count)))
            self._finish()  # a job may end with its first token

    def _admit(self, slots: list[int]) -> None:
        """Encode what is not there yet and run the prompts of the jobs in `slots`."""
        empty = [slot for slot in slots if not self._active[slot].filled]
        for first in range(0, len(empty), self._encode_batch):
            some = empty[first : first + self._encode_batch]
            self._batch.fill(some, self._batch.encode([self._active[slot].job for slot in some]))
        self._batch.admit(slots, [self._active[slot].job for slot in slots])

    def _finish(self) -> None:
        """Send results to their tasks; a task that asks for the same window again stays put."""
        while ended := self._batch.ended(len(self._active)):
            again: list[int] = []
            free: list[int] = []
            for slot in ended:
                running = self._active[slot]
                window = running.job.window
                if not _resume(running, self._batch.collect(slot)):
                    free.append(slot)
                elif running.job.window == window:
                    running.filled = True
                    again.append(slot)
                else:
                    running.filled = False
                    self._waiting.appendleft(running)
                    free.append(slot)
            if again:
                self._admit(again)
            self._close_gaps(free)

    def _close_gaps(self, free: list[int]) -> None:
        """Refill freed slots with waiting jobs, or move the last slots into them."""
        refilled = free[: len(self._waiting)]
        for slot in refilled:
            self._active[slot] = self._waiting.popleft()
        if refilled:
            self._admit(refilled)
        for slot in sorted(free[len(refilled) :], reverse=True):
            last = self._active.pop()
            if slot < len(self._active):
                self._batch.move(len(self._active), slot)
                self._active[slot] = last


def _start(task: Task, done: Done) -> _Running | None:
    try:
        return _Running(task, done, next(task))
    except StopIteration as stop:
        done(stop.value, None)
    except Exception as error:  # a task's failure is its owner's to handle
        done(None, error)
    return None


def _resume(running: _Running, result: WindowResult) -> bool:
    """Send a result; returns whether the task wants another window."""
    try:
        running.job = running.task.send(result)
    except StopIteration as stop:
        running.done(stop.value, None)
        return False
    except Exception as error:  # a task's failure is its owner's to handle
        running.done(None, error)
        return False
    return True
