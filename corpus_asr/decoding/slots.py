"""Continuous batching: many tasks share the decoder's slots, and a freed slot is refilled at once.

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
    free_cached_memory,
    out_of_memory_by_name,
)
from corpus_asr.decoding.encoding import Encodings, Work, encoder_on
from corpus_asr.decoding.protocols import (
    Job,
    Outcome,
    Search,
    SlotModel,
    WindowJob,
    WindowResult,
)
from corpus_asr.decoding.tasks import Done, Running, Task, start
from corpus_asr.errors import check_same_process

logger = logging.getLogger(__name__)


class SearchQueue:
    """Keeps the places of one batch full.

    Windows are encoded in batches of `encode_batch`: with those that are needed now go some of jobs
    that still wait. A job whose window is encoded goes before one whose window is not. A GPU
    encodes what waits next, half a batch at a time, while it decodes. So does a CPU with a thread
    for it; a window that is needed meanwhile is encoded at once by the thread that decodes.

    Whatever leaves a method for want of memory, every task is in exactly one place or queue, and
    has not been sent the result of its present job: `empty` then gives all that are to be started
    again.
    """

    def __init__(self, batch: SlotBatch | BeamBatch, scheduler: "SlotScheduler") -> None:
        self._batch = batch
        # Not a circle: a GPU's memory must come back at once, not with the next collection.
        self._scheduler: SlotScheduler = weakref.proxy(scheduler)
        self._encode_batch = scheduler.encode_batch
        self._encoder = scheduler.encoder
        self._statistics = scheduler.statistics
        self._waiting: deque[Running] = deque()
        self._encoded: deque[Running] = deque()  # these wait too, and need no encoder
        self._active: dict[int, Running] = {}  # by place
        self._step_s: float | None = None  # what a step takes lately, waiting for it included

    @property
    def pending(self) -> int:
        """Tasks whose present job is here."""
        return len(self._active) + len(self._waiting) + len(self._encoded)

    def add(self, running: Running, *, first: bool = False) -> None:
        """Queue a task; `first` lets one that is under way already overtake the others."""
        waiting = self._encoded if running.is_encoded else self._waiting
        if first:
            waiting.appendleft(running)
        else:
            waiting.append(running)

    def advance(self, steps: int | None) -> None:
        """Refill free places, decode for so many steps and deal with what ended.

        None takes as many steps as are worth a look.
        """
        self._refill()
        if not self._active:
            return
        steps = steps or steps_between_looks(self._step_s)
        began_s = time.perf_counter()
        active = len(self._active)
        jobs = [running.job for running in self._active.values()]
        sampled = any(isinstance(job, WindowJob) and job.search.temperature > 0 for job in jobs)
        self._encoder.share(self._encode_batch)  # steps take what threads are left
        with self._statistics.timing("step_s"):
            for num_left in range(steps, 0, -1):
                if num_left == 1:
                    self._batch.look()
                self._batch.step(active, sampled=sampled)
        self._statistics.count_steps(steps, active=active, places=self._batch.places)
        self._encode_ahead()  # the device has steps to do while the host queues this
        ended = self._ended()
        taken_s = (time.perf_counter() - began_s) / steps
        self._step_s = taken_s if self._step_s is None else (self._step_s + taken_s) / 2
        if self._batch.works_behind and len(ended) < active // _ACTIVE_PER_START:
            return
        if ended and self._batch.works_behind:
            # One step more, so that the device has work while the host deals with these results:
            # it costs a step of the slots that ended, where idling would cost one of all.
            with self._statistics.timing("step_s"):
                self._batch.request(ended)
                self._batch.step(active, sampled=sampled)
            self._statistics.count_steps(1, active=active, places=self._batch.places)
        self._finish(ended)

    def empty(self) -> list[Running]:
        """Give up every task; those under way come first."""
        all_running = [*self._active.values(), *self._encoded, *self._waiting]
        for tasks in (self._active, self._encoded, self._waiting):
            tasks.clear()
        return all_running

    def cancel(self, owner: object, error: Exception) -> list[Running]:
        """Give up the tasks of an owner that wait; those in a place end when their job has."""
        for running in self._active.values():
            if running.owner is owner:
                running.cancelled = error
        return [*_taken_of(owner, self._encoded), *_taken_of(owner, self._waiting)]

    @property
    def _num_startable(self) -> int:
        """Waiting tasks worth a place now: no window is waited for while there is other work."""
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
        # A task that asks for the same window again keeps its place: nothing is filled again.
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
            # Wherever memory runs out from here on, all of these are in a place or a queue.
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
        self._statistics.refills += len(refilled)
        return refilled

    def _close_gaps(self, starting: list[int]) -> None:
        # Occupied places must be the first ones: a step computes no others.
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


# Plain searches, or a number of beams, or an assistant by its id with its number of drafts: what
# the tensors of a queue's batch are shaped by.
_Kind = tuple[str, int, int]
_PLAIN: _Kind = ("plain", 1, 0)


def encode_batch_on(device_type: str) -> int:
    """How many windows to encode at once on `cpu`, or on an accelerator."""
    if device_type == "cpu":
        # Windows run side by side, one per thread; more of them would only take memory.
        return max(2, torch.get_num_threads())
    return 16


def check_every_on(device_type: str) -> int | None:
    """How many steps to take between looks on `cpu`; None on an accelerator: by their time."""
    return 1 if device_type == "cpu" else None


# On an accelerator, windows start together once this share of the slots is free: prompts of one
# window or of several keep it busy for as long. Half as many of the slots are idle on average.
_ACTIVE_PER_START = 16

# A window that ends waits for the next look, and one that ended is computed until then. A look
# itself does not hold up the device, but what the host does after it must not outlast the steps
# that are queued meanwhile: about 2 ms for an admission (reckoned, not measured).
_BETWEEN_LOOKS_S = 0.004
_MOST_STEPS = 8


def steps_between_looks(step_s: float | None) -> int:
    """How many steps of so many seconds to take between looks for ended slots on an accelerator."""
    if not step_s:
        return _MOST_STEPS
    return max(1, min(_MOST_STEPS, round(_BETWEEN_LOOKS_S / step_s)))


class SlotScheduler:
    """Keeps up to `slots` jobs of each kind of search decoding side by side.

    A job's result does not depend on its neighbors. A task that raises, or asks for what no model
    could do, ends with that exception; an exception of the model itself, or of a caller's own
    processor, leaves `advance` (or `add`) and makes the scheduler unusable.

    When memory runs out, the slots are halved, or with one slot left the encoder's batches, and the
    jobs under way are decoded again, to the same results.
    """

    def __init__(
        self,
        model: SlotModel,
        slots: int,
        *,
        encode_batch: int = 8,
        check_every: int | None = 1,
        recorder: CudaRecorder | None = None,
        record: bool = True,
        num_beams: int = 1,
        reproducible: bool = False,
        encode_beside: bool = False,
    ) -> None:
        """Allocate `slots` for the queue of searches with `num_beams`; others come with their jobs.

        `check_every` steps lie between looks for finished slots, None: as many as take some
        milliseconds. Without a `recorder` steps are recorded on GPUs alone, as CUDA graphs, and
        without `record` nowhere: of a model whose steps run Python that counts. With
        `encode_beside` a CPU of several threads encodes in half of them while it decodes.

        A GPU has other kernels for other sizes of a batch, which round otherwise. With
        `reproducible` sizes do not depend on what else there is: steps take all slots along,
        windows are encoded in full batches, short ones alone, and prompts and alignments are run
        one by one.
        """
        self._made_in = os.getpid()
        self._model = model
        self._slots = slots
        self.encode_batch = encode_batch
        """Windows encoded at once."""
        self._check_every = check_every
        if recorder is None and record and model.device.type == "cuda":
            recorder = CudaRecorder(model.device)
        self._recorder = recorder
        self._search = Search(num_beams=num_beams)
        # The CPU's kernels are chosen, and threads divided, so that rows are independent.
        self.reproducible = reproducible and model.device.type != "cpu"
        self.encoder = encoder_on(
            model.device, beside=encode_beside, whole_batches=self.reproducible
        )
        self.statistics = Activity(slots=slots)
        self._queues: dict[_Kind, SearchQueue] = {}
        self._stranded: deque[Running] = deque()  # tasks whose queue is to be made again
        # The first queue is allocated now, so that too little memory shows before any work.
        self._halve_while_needed(self._settle)

    @property
    def slots(self) -> int:
        """Windows decoded side by side at present."""
        return self._slots

    @property
    def pending(self) -> int:
        """Tasks not finished yet."""
        return len(self._stranded) + sum(queue.pending for queue in self._queues.values())

    def add(self, task: Task, done: Done, *, owner: object = None) -> None:
        """Start `task`; `done(result, error)` is called from within `add` or `advance`.

        `owner` is what `cancel` knows it by.

        Raises:
            ForkedError: this is a fork of the process that made the scheduler; so for `advance`.
        """
        check_same_process("decoding", "scheduler", made_in=self._made_in)

        def ended(result: Any, error: Exception | None) -> list[Running]:
            done(result, error)
            return []

        self._stranded.extend(start(task, ended, self._model, None, owner))
        self._halve_while_needed(self._settle)

    def advance(self) -> None:
        """Refill free slots, then decode until the next look and deal with what ended."""
        check_same_process("decoding", "scheduler", made_in=self._made_in)
        self._halve_while_needed(self._advance_queues)

    def cancel(self, owner: object, error: Exception) -> None:
        """End an owner's tasks with `error`: those that wait at once, others with their job."""
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
        """Add tasks, such as others gather, to the queues of their searches."""
        self._stranded.extend(tasks)
        self._settle()

    def _settle(self) -> None:
        # The queues that were given up are allocated again, and get their tasks back.
        self._search_queue(self._search)
        while self._stranded:
            running = self._stranded[0]
            self.queue_of(running.job).add(running)
            self._stranded.popleft()

    def _halve_while_needed(self, action: Callable[[], None]) -> None:
        # Not in the handler, whose exception would keep the old slots in memory.
        while (problem := self._memory_problem(action)) is not None:
            self._halve(problem)

    def _memory_problem(self, action: Callable[[], None]) -> str | None:
        # Raised where memory does not suffice for one slot and one window either.
        try:
            with out_of_memory_by_name():
                action()
        except torch.OutOfMemoryError as error:
            if self._slots == 1 and self.encode_batch == 1:
                raise
            # After a capture that failed torch gives no memory back: its allocator takes it for
            # still going on (pytorch/pytorch#190308, open in July 2026). A new worker can.
            if self._recorder is not None and self._recorder.failures:
                raise
            return str(error)
        return None

    def _halve(self, problem: str) -> None:
        # All queues go: the caches of the smaller ones need their memory.
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
            "memory of %s does not suffice: %s; continuing with slots=%d encode_batch=%d",
            self._model.device,
            problem,
            self._slots,
            self.encode_batch,
        )

    def _strand(self) -> None:
        self.encoder.cancel()  # else a process that ends would wait for it
        for queue in self._queues.values():
            self._stranded.extend(queue.empty())

    def queue_of(self, job: Job) -> SearchQueue:
        """Return the queue of a job's search, made again if need be."""
        return self._search_queue(job.search if isinstance(job, WindowJob) else Search())

    def _search_queue(self, search: Search) -> SearchQueue:
        kind = _kind(search)
        if kind not in self._queues:
            self._queues[kind] = SearchQueue(self._batch(search), self)
        return self._queues[kind]

    def _batch(self, search: Search) -> SlotBatch | BeamBatch:
        # The rows of a queue, not its places, are what costs memory and time.
        places = max(1, self._slots // search.num_beams)
        if _kind(search) == _PLAIN:
            return SlotBatch(
                self._model, self._slots, recorder=self._recorder, whole=self.reproducible
            )
        if search.assistant is None:
            return BeamBatch(
                self._model,
                places,
                search.num_beams,
                recorder=self._recorder,
                whole=self.reproducible,
            )
        from corpus_asr.decoding.speculative import SpeculativeBatch

        return SpeculativeBatch(self._model, search.assistant, places, search.num_draft_tokens)


def _kind(search: Search) -> _Kind:
    if search.assistant is not None:
        return ("draft", id(search.assistant), search.num_draft_tokens)
    return ("beams", search.num_beams, 0) if search.num_beams > 1 else _PLAIN
