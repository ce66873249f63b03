"""Batches windows of many parts by length, for models that process a window once."""

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from corpus_asr.activity import Activity
from corpus_asr.array_types import Float
from corpus_asr.decoding.device import free_cached_memory, out_of_memory_by_name
from corpus_asr.decoding.jobs import Done
from corpus_asr.decoding.recognizer import Recognized, checked
from corpus_asr.errors import ItemError, check_same_process
from corpus_asr.failure_kinds import RECOGNIZER
from corpus_asr.units import FRAMES_PER_SECOND


class OnePassModel(Protocol):
    """Interface that the scheduler requires of a `Recognizer`."""

    @property
    def batch_s(self) -> float:
        """Maximum seconds of audio per call, each window counted as long as the longest one."""

    def transcribe(
        self, windows: Sequence[Float[np.ndarray, "..."]], *, language: str | None
    ) -> Sequence[Any]:
        """Recognize windows, as cut by the family's features, or score their classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecognizer:
    """A recognizer or classifier with its device."""

    recognizer: OnePassModel
    device: torch.device
    check: Callable[[Any, Sequence[float]], list[Any]] = checked
    """Returns the results of windows of so many seconds, with their error for invalid ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowToRead:
    """One window of a part."""

    num_frames: int
    """Number of hops of 10 ms."""
    read: Callable[[], Float[np.ndarray, "..."]]
    """Returns the window's features; called when it is processed, to save memory."""

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return self.num_frames / FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Request for the recognition of windows; returns the list of their results in order."""

    windows: Sequence[WindowToRead]
    language: str | None
    told: Callable[[int, Recognized], None] | None = None
    """Called for each recognized window with its index."""


Task = Generator[Recognition, Any, Any]


@dataclass(slots=True, eq=False)
class _PendingTask:
    """A task with the results of its windows so far."""

    task: Task
    request: Recognition
    done: Done
    owner: object
    results: list[Any] = field(default_factory=list)
    num_pending: int = 0

    def __post_init__(self) -> None:
        self.num_pending = len(self.request.windows)
        self.results = [None] * self.num_pending


_Waiting = tuple[_PendingTask, int]
"""A request, and the index of one of its windows."""


class OnePassScheduler:
    """Batches the longest-waiting window with those of most similar length, over all tasks.

    When memory runs out, the batch size is halved and the batch is repeated. A window that raises
    is processed individually; if it raises again, its task ends with `ItemError`. Errors of the
    device are raised by `advance` and make the scheduler unusable.
    """

    slots = 1

    def __init__(self, model: LoadedRecognizer) -> None:
        self._made_in = os.getpid()
        self._model = model.recognizer
        self._device = model.device
        self._check = model.check
        self._batch_frames = max(1, round(self._model.batch_s * FRAMES_PER_SECOND))
        self._waiting: list[_Waiting] = []
        self.statistics = Activity(slots=self.slots)

    @property
    def pending(self) -> int:
        """Number of windows not processed yet."""
        return len(self._waiting)

    def add(self, task: Task, done: Done, *, owner: object = None) -> None:
        """Start `task`; `done(result, error)` is called from within `add` or `advance`."""
        check_same_process("recognizing", "scheduler", made_in=self._made_in)
        self._send(task, None, done, owner)

    def advance(self) -> None:
        """Process one batch, and continue the tasks whose windows are all finished."""
        check_same_process("recognizing", "scheduler", made_in=self._made_in)
        if not self._waiting:
            return
        batch = self._next_batch()
        try:
            results = self._read_or_fail(batch)
        except torch.OutOfMemoryError:
            free_cached_memory(self._device)
            if len(batch) == 1:
                raise
            longest = max(_frames(entry) for entry in batch)
            self._batch_frames = len(batch) // 2 * longest
            self.statistics.halvings += 1
            return
        taken = set(map(_name, batch))
        self._waiting = [entry for entry in self._waiting if _name(entry) not in taken]
        for (asker, number), result in zip(batch, results, strict=True):
            self._take(asker, number, result)

    def cancel(self, owner: object, error: Exception) -> None:
        """End an owner's tasks with `error`."""
        for asker in {
            id(asker): asker for asker, _ in self._waiting if asker.owner is owner
        }.values():
            self._end(asker, error)

    def fail(self, error: Exception) -> None:
        """End every task with `error`."""
        for asker in {id(asker): asker for asker, _ in self._waiting}.values():
            self._end(asker, error)

    def _send(self, task: Task, answer: Any, done: Done, owner: object) -> None:
        while True:
            try:
                request = task.send(answer)
            except StopIteration as stop:
                done(stop.value, None)
                return
            except Exception as error:  # a task's failure is handled by its owner
                task.close()
                done(None, error)
                return
            if request.windows:
                break
            answer = []
        asker = _PendingTask(task, request, done, owner)
        self._waiting += ((asker, number) for number in range(asker.num_pending))

    def _next_batch(self) -> list[_Waiting]:
        """Return the longest-waiting window with those of most similar length, within `batch_s`."""
        first = self._waiting[0]
        language = first[0].request.language
        alike = [entry for entry in self._waiting if entry[0].request.language == language]
        alike.sort(key=_frames)
        low = high = alike.index(first)
        while True:
            room = self._batch_frames // (high - low + 2)
            above = _frames(alike[high + 1]) if high + 1 < len(alike) else None
            below = _frames(alike[low - 1]) if low else None
            longest = _frames(alike[high])
            if above is not None and above > room:
                above = None
            if below is not None and longest > room:
                below = None
            if above is None and below is None:
                return alike[low : high + 1]
            if below is None or (above is not None and above - longest <= longest - below):
                high += 1
            else:
                low -= 1

    def _read_or_fail(self, batch: Sequence[_Waiting]) -> list[Any]:
        windows = [asker.request.windows[number] for asker, number in batch]
        inputs = [window.read() for window in windows]
        try:
            with self.statistics.timing("encode_s"), out_of_memory_by_name():
                outputs = self._model.transcribe(inputs, language=batch[0][0].request.language)
            results = self._check(outputs, [window.duration_s for window in windows])
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # of a custom model; possibly for one window only
            if len(batch) == 1:
                return [_failure(error)]
            return [result for entry in batch for result in self._read_or_fail([entry])]
        self.statistics.encoder_batches += 1
        self.statistics.windows += len(windows)
        return results

    def _take(self, asked: _PendingTask, number: int, result: Any) -> None:
        if asked.num_pending <= 0:
            return  # another window of the task has failed
        if isinstance(result, ItemError):
            self._end(asked, result)
            return
        self.statistics.tokens += len(result.words) if isinstance(result, Recognized) else 1
        asked.results[number] = result
        asked.num_pending -= 1
        if asked.request.told is not None:
            asked.request.told(number, result)
        if asked.num_pending == 0:
            self._send(asked.task, asked.results, asked.done, asked.owner)

    def _end(self, asked: _PendingTask, error: Exception) -> None:
        self._waiting = [entry for entry in self._waiting if entry[0] is not asked]
        asked.num_pending = -1
        asked.task.close()
        asked.done(None, error)


def _frames(waiting: _Waiting) -> int:
    return waiting[0].request.windows[waiting[1]].num_frames


def _name(waiting: _Waiting) -> tuple[int, int]:
    return id(waiting[0]), waiting[1]


def _failure(error: Exception) -> ItemError:
    if isinstance(error, ItemError):
        return error
    failure = ItemError(
        f"recognizing a window: the recognizer raised {type(error).__name__}: {error}; correct it, "
        "or exclude the recording",
        kind=RECOGNIZER,
    )
    failure.__cause__ = error
    return failure
