"""Tasks: generators that yield jobs for the decoder's slots and receive their results.

A task yields one job at a time, or a `Gather` of other tasks; an `ItemError` is raised in it.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from corpus_asr.decoding.device import Encodings
from corpus_asr.decoding.protocols import Job, Outcome, SlotModel, check_job
from corpus_asr.errors import ItemError

T = TypeVar("T")
Steps = Generator["Job | Gather[Any]", Any, T]
"""Yields jobs, receives the result of each, and finally returns a value."""
Task = Steps[Any]
Done = Callable[[Any, Exception | None], None]


@dataclass(frozen=True, slots=True)
class Gather(Generic[T]):
    """Tasks to run in parallel; the yielding task receives their return values in order.

    The first task continues in the slot of the yielding one, so that a window of both is encoded
    once. The first error of a task ends the yielding task with it.
    """

    tasks: Iterable[Steps[T]]


@dataclass(slots=True)
class Running:
    """A task, the job it waits for, and its completion callback."""

    task: Task
    ended: "Ended"
    """Called with the task's return value or exception; returns the tasks to run next."""
    job: Job
    filled: bool = False
    """Whether its place already has the job's window."""
    encoded: tuple[Encodings, int] | None = None
    """Encoding of the job's window, if encoded ahead of time or for a following search."""
    owner: object = None
    """Owner passed to `add`, also for gathered tasks."""
    cancelled: Exception | None = None
    """Exception that ends the task in place of its job's result."""

    @property
    def is_encoded(self) -> bool:
        """Whether the job needs no encoder."""
        return self.encoded is not None or self.job.encoded is not None

    @property
    def waits_for_encoder(self) -> bool:
        """Whether the job's window is still being encoded by a thread."""
        return self.encoded is not None and not self.encoded[0].is_there

    def resume(self, result: Outcome, model: SlotModel) -> "list[Running]":
        """Send a result; return the tasks to run next, the first of which may take its place."""
        if self.cancelled is not None:
            self.task.close()
            return self.ended(None, self.cancelled)
        following = start(self.task, self.ended, model, result, self.owner)
        if following and _window_of(following[0]) == _window_of(self):
            following[0].filled, following[0].encoded = self.filled, self.encoded
        return following

    def fail(self, error: Exception) -> None:
        """End the task with `error`."""
        self.task.close()
        self.ended(None, error)


Ended = Callable[[Any, Exception | None], list[Running]]


def _window_of(running: Running) -> tuple[object, ...]:
    return running.job.window, running.job.num_frames


def start(
    task: Task, ended: Ended, model: SlotModel, answer: Any = None, owner: object = None
) -> list[Running]:
    """Send a value to a task; return the tasks to run next."""
    try:
        request = task.throw(answer) if isinstance(answer, ItemError) else task.send(answer)
        if isinstance(request, Gather):
            tasks = list(request.tasks)
        else:
            check_job(request, model)
    except StopIteration as stop:
        return ended(stop.value, None)
    except Exception as error:  # a task's failure is handled by its owner
        task.close()
        return ended(None, error)
    if isinstance(request, Gather):
        return _gather(task, ended, model, tasks, owner)
    return [Running(task, ended, request, owner=owner)]


def _gather(
    task: Task, ended: Ended, model: SlotModel, gathered: Sequence[Task], owner: object
) -> list[Running]:
    if not gathered:
        return start(task, ended, model, [], owner)
    results: list[Any] = [None] * len(gathered)
    waiting = set(range(len(gathered)))  # emptied by the first error

    def collect(index: int, result: Any, error: Exception | None) -> list[Running]:
        if not waiting:
            return []
        if error is not None:
            waiting.clear()
            task.close()
            return ended(None, error)
        results[index] = result
        waiting.remove(index)
        return [] if waiting else start(task, ended, model, results, owner)

    running: list[Running] = []
    for index, subtask in enumerate(gathered):
        if waiting:
            running += start(subtask, partial(collect, index), model, None, owner)
        else:
            subtask.close()
    return running
