"""Windows of many parts in batches of similar length, for models that read a window once."""

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from corpus_asr.activity import Activity
from corpus_asr.array_types import Float
from corpus_asr.decoding.device import free_cached_memory, out_of_memory_by_name
from corpus_asr.decoding.recognizer import Recognized, checked
from corpus_asr.decoding.tasks import Done
from corpus_asr.errors import ItemError, check_same_process
from corpus_asr.failure_kinds import RECOGNIZER
from corpus_asr.units import FRAMES_PER_SECOND


class OnePassModel(Protocol):
    """What the scheduler needs of a `Recognizer`."""

    @property
    def batch_s(self) -> float:
        """Seconds of windows in one call at most, each counted as the longest of them."""

    def transcribe(
        self, windows: Sequence[Float[np.ndarray, "..."]], *, language: str | None
    ) -> Sequence[Recognized]:
        """Recognize windows, each as the family's features cut it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecognizer:
    """A recognizer, and the device that it was told to use."""

    recognizer: OnePassModel
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowToRead:
    """One window of a part."""

    num_frames: int
    """Hops of 10 ms in it."""
    read: Callable[[], Float[np.ndarray, "..."]]
    """Cuts it out; called when it is its turn, so that few are in memory."""

    @property
    def duration_s(self) -> float:
        """Its length in seconds."""
        return self.num_frames / FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Windows that a task asks for at once; it is sent a `Recognized` for each, in order."""

    windows: Sequence[WindowToRead]
    language: str | None
    told: Callable[[int, Recognized], None] | None = None
    """Told of each window as soon as it is read, by its number."""


Task = Generator[Recognition, Any, Any]


@dataclass(slots=True, eq=False)
class _Asked:
    """A task and what came of its windows so far."""

    task: Task
    request: Recognition
    done: Done
    owner: object
    results: list[Recognized | None] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        self.left = len(self.request.windows)
        self.results = [None] * self.left


_Waiting = tuple[_Asked, int]
"""A request, and the number of one of its windows."""


class OnePassScheduler:
    """Reads the windows of all tasks, the longest waiting first, with those nearest in length.

    When memory runs out, batches are halved and their windows read again. A window whose reading
    raises is read alone; if that raises too, its task ends with `ItemError`. Errors of the device
    leave `advance` and make the scheduler unusable.
    """

    slots = 1

    def __init__(self, model: LoadedRecognizer) -> None:
        self._made_in = os.getpid()
        self._model = model.recognizer
        self._device = model.device
        self._batch_frames = max(1, round(self._model.batch_s * FRAMES_PER_SECOND))
        self._waiting: list[_Waiting] = []
        self.statistics = Activity(slots=self.slots)

    @property
    def pending(self) -> int:
        """Windows that nobody has read yet."""
        return len(self._waiting)

    def add(self, task: Task, done: Done, *, owner: object = None) -> None:
        """Start `task`; `done(result, error)` is called from within `add` or `advance`."""
        check_same_process("recognizing", "scheduler", made_in=self._made_in)
        self._send(task, None, done, owner)

    def advance(self) -> None:
        """Read one batch, and go on with the tasks that have all their windows."""
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
            except Exception as error:  # a task's failure is its owner's to handle
                task.close()
                done(None, error)
                return
            if request.windows:
                break
            answer = []
        asker = _Asked(task, request, done, owner)
        self._waiting += ((asker, number) for number in range(asker.left))

    def _next_batch(self) -> list[_Waiting]:
        """Return the window that waits longest with those nearest in length, while they fit."""
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

    def _read_or_fail(self, batch: Sequence[_Waiting]) -> list[Recognized | ItemError]:
        windows = [asker.request.windows[number] for asker, number in batch]
        inputs = [window.read() for window in windows]
        try:
            with self.statistics.timing("encode_s"), out_of_memory_by_name():
                outputs = self._model.transcribe(inputs, language=batch[0][0].request.language)
            results = checked(outputs, [window.duration_s for window in windows])
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # of the user's model: it may be one window's alone
            if len(batch) == 1:
                return [_failure(error)]
            return [result for entry in batch for result in self._read_or_fail([entry])]
        self.statistics.encoder_batches += 1
        self.statistics.windows += len(windows)
        return results

    def _take(self, asked: _Asked, number: int, result: Recognized | ItemError) -> None:
        if asked.left <= 0:
            return  # another window of it has failed
        if isinstance(result, ItemError):
            self._end(asked, result)
            return
        self.statistics.tokens += len(result.words)
        asked.results[number] = result
        asked.left -= 1
        if asked.request.told is not None:
            asked.request.told(number, result)
        if asked.left == 0:
            self._send(asked.task, asked.results, asked.done, asked.owner)

    def _end(self, asked: _Asked, error: Exception) -> None:
        self._waiting = [entry for entry in self._waiting if entry[0] is not asked]
        asked.left = -1
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
