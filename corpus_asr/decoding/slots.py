"""Continuous batching: tasks share the decoder's slots; a freed slot is refilled immediately.

Recordings, fallback retries, language detection and alignment mix freely; each kind of search has a
queue of its own.
"""

import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from corpus_asr.activity import Activity
from corpus_asr.decoding.batch import SlotBatch, encode_windows
from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.device import (
    CudaRecorder,
    Encodings,
    Work,
    encoder_on,
    free_cached_memory,
    out_of_memory_by_name,
)
from corpus_asr.decoding.jobs import (
    Done,
    Job,
    Outcome,
    Running,
    Search,
    Task,
    WindowJob,
    WindowResult,
    start,
)
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.errors import check_same_process

logger = logging.getLogger(__name__)


class SearchQueue:
    """Keeps the places of one batch filled with waiting tasks.

    Windows are encoded in batches of `encode_batch`, which waiting jobs fill up. Jobs with an
    encoded window start first. A GPU encodes waiting windows while it decodes, half a batch at a
    time, as does a CPU with an encoder thread; if a window is needed meanwhile, the decoding thread
    encodes it.

    If a method raises for lack of memory, every task is in exactly one place or queue, and has not
    received the result of its current job: `empty` then returns all tasks to be restarted.
    """

    def __init__(self, batch: SlotBatch | BeamBatch, scheduler: "SlotScheduler") -> None:
        self._batch = batch
        # No reference cycle, so that GPU memory is freed without garbage collection.
        self._scheduler: SlotScheduler = weakref.proxy(scheduler)
        self._encode_batch = scheduler.encode_batch
        self._encoder = scheduler.encoder
        self._statistics = scheduler.statistics
        self._waiting: deque[Running] = deque()
        self._encoded: deque[Running] = deque()  # waiting tasks with an encoded window
        self._active: dict[int, Running] = {}  # by place
        self._step_s: float | None = None  # moving average of a step's duration, waiting included

    @property
    def pending(self) -> int:
        """Number of tasks whose current job is in this queue."""
        return len(self._active) + len(self._waiting) + len(self._encoded)

    def add(self, running: Running, *, first: bool = False) -> None:
        """Queue a task; with `first` it precedes the others, as a task already in progress."""
        waiting = self._encoded if running.is_encoded else self._waiting
        if first:
            waiting.appendleft(running)
        else:
            waiting.append(running)

    def advance(self, steps: int | None) -> None:
        """Refill free places, decode for `steps` steps and process finished jobs.

        None is the number of steps between two checks for finished slots.
        """
        self._refill()
        if not self._active:
            return
        steps = steps or steps_between_looks(self._step_s)
        began_s = time.perf_counter()
        active = len(self._active)
        jobs = [running.job for running in self._active.values()]
        sampled = any(isinstance(job, WindowJob) and job.search.temperature > 0 for job in jobs)
        self._encoder.share(self._encode_batch)  # steps use the remaining threads
        with self._statistics.timing("step_s"):
            for num_left in range(steps, 0, -1):
                if num_left == 1:
                    self._batch.look()
                self._batch.step(active, sampled=sampled)
        self._statistics.count_steps(steps, active=active, places=self._batch.places)
        self._encode_ahead()  # the device is busy with steps while the host queues this
        ended = self._ended()
        taken_s = (time.perf_counter() - began_s) / steps
        self._step_s = taken_s if self._step_s is None else (self._step_s + taken_s) / 2
        if self._batch.is_asynchronous and len(ended) < active // _ACTIVE_PER_START:
            return
        if ended and self._batch.is_asynchronous:
            # One more step keeps the device busy while the host processes these results: it wastes
            # a step of the ended slots, where idling would waste a step of all.
            with self._statistics.timing("step_s"):
                self._batch.request(ended)
                self._batch.step(active, sampled=sampled)
            self._statistics.count_steps(1, active=active, places=self._batch.places)
        self._finish(ended)

    def empty(self) -> list[Running]:
        """Remove and return every task, those in progress first."""
        all_running = [*self._active.values(), *self._encoded, *self._waiting]
        for tasks in (self._active, self._encoded, self._waiting):
            tasks.clear()
        return all_running

    def cancel(self, owner: object, error: Exception) -> list[Running]:
        """Remove and return an owner's waiting tasks; tasks in a place end with their job."""
        for running in self._active.values():
            if running.owner is owner:
                running.cancelled = error
        return [*_taken_of(owner, self._encoded), *_taken_of(owner, self._waiting)]

    @property
    def _num_startable(self) -> int:
        """Waiting tasks to start now; tasks whose window is being encoded only if no other work."""
        num_ready = sum(not running.waits_for_encoder for running in self._encoded)
        if not self._active:
            return num_ready + len(self._waiting) or len(self._encoded)
        return num_ready + (0 if self._encoder.takes_more else len(self._waiting))

    def _refill(self) -> None:
        while len(self._active) < self._batch.places and (startable := self._num_startable):
            first = len(self._active)
            places = range(first, min(self._batch.places, first + startable))
            for place in places:
                self._active[place] = self._next()
            self._admit(places)
            self._finish(self._ended())  # a job may end with its first token

    def _next(self) -> Running:
        for running in self._encoded:
            if not running.waits_for_encoder:
                self._encoded.remove(running)
                return running
        return (self._waiting or self._encoded).popleft()

    def _admit(self, places: Sequence[int]) -> None:
        starting = [self._active[place] for place in places]
        self._encode(
            [running for running in starting if not running.filled and not running.is_encoded]
        )
        empty = [place for place in places if not self._active[place].filled]
        with self._statistics.timing("fill_s"):
            for first in range(0, len(empty), self._encode_batch):
                places_to_fill = empty[first : first + self._encode_batch]
                jobs: list[Any] = [_with_encoding(self._active[place]) for place in places_to_fill]
                self._batch.fill(places_to_fill, jobs, self._encoded_windows(jobs))
        with self._statistics.timing("prefill_s"):
            at_once = 1 if self._scheduler.reproducible else len(places)
            for first in range(0, len(places), at_once):
                places_to_start = places[first : first + at_once]
                started: list[Any] = [self._active[place].job for place in places_to_start]
                self._batch.admit(places_to_start, started)
        for running in starting:
            running.filled = True

    def _encode(self, needed: Sequence[Running]) -> None:
        size = self._encoder.share(self._encode_batch)
        for first in range(0, len(needed), size):
            group = list(needed[first : first + size])
            group += self._take_to_encode(size - len(group))
            self._encode_together(group, self._encoder.now)

    def _encode_ahead(self) -> None:
        size = self._encoder.num_ahead(
            waiting=len(self._waiting), encoded=len(self._encoded), batch=self._encode_batch
        )
        if size:
            self._encode_together(self._take_to_encode(size), self._encoder.later)

    def _take_to_encode(self, most: int) -> list[Running]:
        group = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        self._encoded += group
        return group

    def _encode_together(
        self, some: Sequence[Running], encode: Callable[[Work], Encodings]
    ) -> None:
        with self._statistics.timing("encode_s"):
            batch = encode(partial(self._encoded_rows, [running.job for running in some]))
        for row, running in enumerate(some):
            running.encoded = batch, row
        self._statistics.windows += len(some)
        self._statistics.encoder_batches += 1

    def _encoded_rows(self, jobs: Sequence[Job]) -> list[Tensor]:
        # Copies, so that a row does not keep its whole batch in memory.
        return [row.clone() for row in self._encoded_windows(jobs)]

    def _encoded_windows(self, jobs: Sequence[Job]) -> Tensor:
        size = self._encode_batch if self._scheduler.reproducible else None
        return encode_windows(self._batch.model, jobs, batch_size=size)

    def _finish(self, ended: list[int]) -> None:
        # A task that requests the same window again keeps its place, which need not be refilled.
        while ended:
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
            ended = self._ended()

    def _ended(self) -> list[int]:
        with self._statistics.timing("wait_s"):
            return self._batch.ended(len(self._active))

    def _stays(self, place: int, result: Outcome) -> bool:
        following = self._active[place].resume(result, self._batch.model)
        if following:
            # If memory runs out after this point, each task is in a place or a queue.
            running = self._active[place] = following[0]
            self._scheduler.queue(following[1:])
            queue = self._scheduler.queue_of(running.job)
            if queue is self and running.filled:
                return True
            running.filled = False
            queue.add(running, first=True)
        del self._active[place]
        return False

    def _refill_freed(self, free: Iterable[int]) -> list[int]:
        refilled = sorted(free)[: self._num_startable]
        for place in refilled:
            self._active[place] = self._next()
        return refilled

    def _close_gaps(self, starting: list[int]) -> None:
        # Occupied places must come first: a step computes only those.
        count = len(self._active)
        gaps = [place for place in range(count) if place not in self._active]
        beyond = [place for place in self._active if place >= count]
        for source, target in zip(sorted(beyond), gaps, strict=True):
            self._batch.move(source, target)
            self._active[target] = self._active.pop(source)
            if source in starting:
                starting[starting.index(source)] = target


def _taken_of(owner: object, tasks: deque[Running]) -> list[Running]:
    owner_tasks = [running for running in tasks if running.owner is owner]
    for running in owner_tasks:
        tasks.remove(running)
    return owner_tasks


def _with_encoding(running: Running) -> Job:
    if running.encoded is None or running.job.encoded is not None:
        return running.job
    batch, row = running.encoded
    return replace(running.job, encoded=batch.row(row))


# Parameters that determine tensor shapes of a queue's batch: plain search, or a number of beams, or
# an assistant by ID with its number of drafts.
_Kind = tuple[str, int, int]
_PLAIN: _Kind = ("plain", 1, 0)


def encode_batch_on(device_type: str) -> int:
    """Return the encoding batch size for `cpu` or an accelerator, in windows."""
    if device_type == "cpu":
        # One window per thread; larger batches would only take memory.
        return max(2, torch.get_num_threads())
    return 16


def check_every_on(device_type: str) -> int | None:
    """Return the steps between checks on `cpu`; None on an accelerator, to derive them."""
    return 1 if device_type == "cpu" else None


# Reciprocal of the fraction of slots that must be free before windows start on an accelerator,
# since one prompt takes as long as several. On average half as many slots are idle.
_ACTIVE_PER_START = 16

# Finished slots are computed until the next check. The check does not block the device, but the
# host's work after it must not take longer than the queued steps: about 2 ms for an admission
# (estimated, not measured).
_BETWEEN_LOOKS_S = 0.004
_MOST_STEPS = 8


def steps_between_looks(step_s: float | None) -> int:
    """Return the steps between checks for finished slots on an accelerator, from their duration."""
    if not step_s:
        return _MOST_STEPS
    return max(1, min(_MOST_STEPS, round(_BETWEEN_LOOKS_S / step_s)))


class SlotScheduler:
    """Decodes up to `slots` jobs of each kind of search in parallel.

    A job's result does not depend on its neighbors. A task that raises, or yields an invalid job,
    ends with that exception; an exception of the model itself, or of a caller's own processor, is
    raised by `advance` (or `add`) and makes the scheduler unusable.

    When memory runs out, the slots are halved, or with one slot the encoder's batches, and the
    jobs in progress are decoded again, to the same results.
    """

    def __init__(
        self,
        model: SlotModel,
        slots: int,
        *,
        encode_batch: int = 8,
        check_every: int | None = 1,
        recorder: CudaRecorder | None = None,
        num_beams: int = 1,
        reproducible: bool = False,
        encode_beside: bool = False,
    ) -> None:
        """Allocate `slots` for searches with `num_beams`; other queues are allocated on demand.

        `check_every` is the number of steps between checks for finished slots; None adapts it to
        the steps' duration. Without a `recorder`, steps are recorded on GPUs only, as CUDA graphs.
        With `encode_beside` a CPU with several threads encodes in half of them while it decodes.

        GPU kernels differ with the batch size and round differently. With `reproducible`, sizes are
        constant: steps compute all slots, windows are encoded in full batches, short ones
        individually, and prompts and alignments are run one by one.
        """
        self._made_in = os.getpid()
        self._model = model
        self._slots = slots
        self.encode_batch = encode_batch
        """Number of windows per encoder batch."""
        self._check_every = check_every
        if recorder is None and model.device.type == "cuda":
            recorder = CudaRecorder(model.device)
        self._recorder = recorder
        self._search = Search(num_beams=num_beams)
        # CPU kernels and threads are configured so that rows are independent.
        self.reproducible = reproducible and model.device.type != "cpu"
        self.encoder = encoder_on(
            model.device, beside=encode_beside, whole_batches=self.reproducible
        )
        self.statistics = Activity(slots=slots)
        self._queues: dict[_Kind, SearchQueue] = {}
        self._stranded: deque[Running] = deque()  # tasks whose queue must be reallocated
        # The first queue is allocated now, so that insufficient memory is detected before any work.
        self._halve_while_needed(self._settle)

    @property
    def slots(self) -> int:
        """Current number of windows decoded in parallel."""
        return self._slots

    @property
    def pending(self) -> int:
        """Number of unfinished tasks."""
        return len(self._stranded) + sum(queue.pending for queue in self._queues.values())

    def add(self, task: Task, done: Done, *, owner: object = None) -> None:
        """Start `task`; `done(result, error)` is called from within `add` or `advance`.

        `owner` identifies the task for `cancel`.

        Raises:
            ForkedError: the process is a fork of the scheduler's; also raised by `advance`.
        """
        check_same_process("decoding", "scheduler", made_in=self._made_in)

        def ended(result: Any, error: Exception | None) -> list[Running]:
            done(result, error)
            return []

        self._stranded.extend(start(task, ended, self._model, None, owner))
        self._halve_while_needed(self._settle)

    def advance(self) -> None:
        """Refill free slots, decode until the next check and process finished jobs."""
        check_same_process("decoding", "scheduler", made_in=self._made_in)
        self._halve_while_needed(self._advance_queues)

    def cancel(self, owner: object, error: Exception) -> None:
        """End an owner's tasks with `error`: waiting ones at once, others after their job."""
        owner_tasks = _taken_of(owner, self._stranded)
        for queue in self._queues.values():
            owner_tasks += queue.cancel(owner, error)
        for running in owner_tasks:
            running.fail(error)

    def fail(self, error: Exception) -> None:
        """End every task with `error`."""
        self._strand()
        while self._stranded:
            self._stranded.popleft().fail(error)

    def _advance_queues(self) -> None:
        self._settle()
        for queue in tuple(self._queues.values()):
            queue.advance(self._check_every)
        if self._recorder is not None:
            self.statistics.failed_captures = self._recorder.failures

    def queue(self, tasks: Iterable[Running]) -> None:
        """Add tasks, such as those of a `Gather`, to the queues of their searches."""
        self._stranded.extend(tasks)
        self._settle()

    def _settle(self) -> None:
        # Released queues are allocated again and get their tasks back.
        self._search_queue(self._search)
        while self._stranded:
            running = self._stranded[0]
            self.queue_of(running.job).add(running)
            self._stranded.popleft()

    def _halve_while_needed(self, action: Callable[[], None]) -> None:
        # Outside the handler, whose exception would keep the old slots in memory.
        while (problem := self._memory_problem(action)) is not None:
            self._halve(problem)

    def _memory_problem(self, action: Callable[[], None]) -> str | None:
        # Also raised if memory is insufficient for one slot and one window.
        try:
            with out_of_memory_by_name():
                action()
        except torch.OutOfMemoryError as error:
            if self._slots == 1 and self.encode_batch == 1:
                raise
            # A failed capture makes torch's allocator keep all memory (pytorch/pytorch#190308, open
            # in July 2026). A new worker process is not affected.
            if self._recorder is not None and self._recorder.failures:
                raise
            return str(error)
        return None

    def _halve(self, problem: str) -> None:
        # All queues are released: the smaller ones need the memory of their caches.
        self._strand()
        for running in self._stranded:
            running.filled, running.encoded = False, None
        self._queues.clear()
        if self._slots > 1:
            self._slots //= 2
        else:
            self.encode_batch //= 2
        self.statistics.slots = self._slots
        self.statistics.halvings += 1
        free_cached_memory(self._model.device)
        logger.warning(
            "memory of %s is too small: %s; continuing with slots=%d encode_batch=%d",
            self._model.device,
            problem,
            self._slots,
            self.encode_batch,
        )

    def _strand(self) -> None:
        self.encoder.cancel()  # else the process would wait for it at exit
        for queue in self._queues.values():
            self._stranded.extend(queue.empty())

    def queue_of(self, job: Job) -> SearchQueue:
        """Return the queue of a job's search, allocating it if needed."""
        return self._search_queue(job.search if isinstance(job, WindowJob) else Search())

    def _search_queue(self, search: Search) -> SearchQueue:
        kind = _kind(search)
        if kind not in self._queues:
            self._queues[kind] = SearchQueue(self._batch(search), self)
        return self._queues[kind]

    def _batch(self, search: Search) -> SlotBatch | BeamBatch:
        places = places_of(self._slots, search.num_beams, self._model.device)
        if search.assistant is not None:
            from corpus_asr.decoding.speculative import SpeculativeBatch

            return SpeculativeBatch(self._model, search.assistant, places, search.num_draft_tokens)
        kind = BeamBatch if search.num_beams > 1 else SlotBatch
        return kind(
            self._model,
            places,
            search.num_beams,
            recorder=self._recorder,
            whole=self.reproducible,
        )


def places_of(slots: int, num_beams: int, device: torch.device) -> int:
    """Return how many windows are decoded at the same time in `slots` with so many beams."""
    # On a GPU memory and time depend on a queue's rows, not on its places. On a CPU a step is
    # mostly reading weights, whatever the number of rows: whisper-base with five beams takes
    # 17.8 CPU s a window at a time, 11.1 with eight (307 s of speech, bfloat16; greedy 8.2).
    return slots if device.type == "cpu" else max(1, slots // num_beams)


def _kind(search: Search) -> _Kind:
    if search.assistant is not None:
        return ("draft", id(search.assistant), search.num_draft_tokens)
    return ("beams", search.num_beams, 0) if search.num_beams > 1 else _PLAIN
