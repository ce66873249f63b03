"""Continuous batching: many tasks share the decoder's slots, and a freed slot is refilled at once.

A task is a generator that yields one job at a time, or a `Gather` of other tasks, and is sent what
came of it. Recordings, fallback retries, language detection and alignment mix freely; each kind of
search has a queue of its own.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from corpus_asr.activity import Activity
from corpus_asr.decoding.batch import SlotBatch
from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.device import Recorder, default_recorder
from corpus_asr.decoding.protocols import Job, Search, SlotModel, WindowJob, check_job
from corpus_asr.decoding.search_queue import (
    Done,
    Gather,
    Running,
    SearchBatch,
    SearchQueue,
    Steps,
    Task,
    start,
)
from corpus_asr.decoding.speculative import SpeculativeBatch
from corpus_asr.errors import EngineError

__all__ = ["Done", "Gather", "SlotScheduler", "Steps", "Task", "check_every_on", "encode_batch_on"]

logger = logging.getLogger(__name__)

_Kind = tuple[str, int, int]
_PLAIN: _Kind = ("plain", 1, 0)


def encode_batch_on(device_type: str) -> int:
    """How many windows to encode at once on `cpu`, or on an accelerator."""
    if device_type == "cpu":
        # Windows run side by side, one per thread; more of them would only take memory.
        return max(2, torch.get_num_threads())
    return 16


def check_every_on(device_type: str) -> int:
    """How many steps to take between looks for finished slots on `cpu`, or on an accelerator."""
    # Looking makes the host wait for the device; an accelerator had better be kept busy.
    return 1 if device_type == "cpu" else 8


class SlotScheduler:
    """Keeps up to `slots` jobs of each kind of search decoding side by side.

    A job's result does not depend on its neighbours. A task that raises, or asks for what no model
    could do, ends with that exception; an exception of the model itself, or of a caller's own
    processor, leaves `advance` (or `add`) and makes the scheduler unusable.

    One queue is there from the start, mostly the plain one (greedy and sampled). Others come into
    being with their first job; those of beams and of drafts hold about as many rows as `slots`.

    When memory runs out, the slots are halved, or with one slot left the encoder's batches, and the
    jobs under way are decoded anew; what they give stays the same.
    """

    def __init__(
        self,
        model: SlotModel,
        slots: int,
        *,
        encode_batch: int = 8,
        check_every: int = 1,
        recorder: Recorder | None = None,
        num_beams: int = 1,
    ) -> None:
        """Allocate `slots` for the queue of searches with `num_beams`.

        `encode_batch` bounds the encoder's memory. `check_every` steps lie between looks for
        finished slots: above 1 on devices where looking means waiting. Without a `recorder` steps
        are recorded on GPUs alone, as CUDA graphs.
        """
        self._model = model
        self._slots = slots
        self._encode_batch = encode_batch
        self._check_every = check_every
        self._recorder = recorder
        self._search = Search(num_beams=num_beams)
        self.statistics = Activity(slots=slots)
        self._queues: dict[_Kind, SearchQueue] = {}
        self._stranded: deque[Running] = deque()  # tasks whose queue is to be made anew
        self._halve_while_needed(self._settle)

    @property
    def slots(self) -> int:
        """Windows decoded side by side at present."""
        return self._slots

    @property
    def pending(self) -> int:
        """Tasks not finished yet."""
        return len(self._stranded) + sum(queue.pending for queue in self._queues.values())

    def add(self, task: Task, done: Done) -> None:
        """Start `task`; `done(result, error)` is called from within `add` or `advance`."""

        def ended(result: Any, error: Exception | None) -> list[Running]:
            done(result, error)
            return []

        self._queue(start(task, ended, self._check))

    def advance(self) -> None:
        """Refill free slots, then decode for `check_every` tokens and deal with what ended."""
        self._halve_while_needed(self._advance_queues)

    def fail(self, error: Exception) -> None:
        """End every task with `error`."""
        self._strand()
        while self._stranded:
            self._stranded.popleft().fail(error)

    def _advance_queues(self) -> None:
        self._settle()
        for queue in tuple(self._queues.values()):
            queue.advance(self._check_every)

    def _queue(self, tasks: Iterable[Running]) -> None:
        self._stranded.extend(tasks)
        self._settle()

    def _settle(self) -> None:
        """Make the queues anew that were given up, and give them their tasks back."""
        self._search_queue(self._search)
        while self._stranded:
            running = self._stranded[0]
            self._queue_of(running.job).add(running)
            self._stranded.popleft()

    def _halve_while_needed(self, action: Callable[[], None]) -> None:
        # Not in the handler, whose exception would keep the old slots in memory.
        while (problem := self._memory_problem(action)) is not None:
            self._halve(problem)

    def _memory_problem(self, action: Callable[[], None]) -> str | None:
        # Raised where memory does not suffice for one slot and one window either.
        try:
            action()
        except torch.OutOfMemoryError as error:
            if self._slots == 1 and self._encode_batch == 1:
                raise
            return str(error)
        return None

    def _halve(self, problem: str) -> None:
        """Give up all queues, for smaller ones that start their jobs anew."""
        self._strand()
        for running in self._stranded:
            running.forget()
        self._queues.clear()
        if self._slots > 1:
            self._slots //= 2
        else:
            self._encode_batch //= 2
        self.statistics.slots = self._slots
        self.statistics.halvings += 1
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "memory of %s does not suffice: %s; going on with slots=%d encode_batch=%d",
            self._model.device,
            problem,
            self._slots,
            self._encode_batch,
        )

    def _strand(self) -> None:
        for queue in self._queues.values():
            self._stranded.extend(queue.empty())

    def _queue_of(self, job: Job) -> SearchQueue:
        return self._search_queue(job.search if isinstance(job, WindowJob) else Search())

    def _search_queue(self, search: Search) -> SearchQueue:
        kind = _kind(search)
        if kind not in self._queues:
            self._queues[kind] = SearchQueue(
                self._batch(search),
                encode_batch=self._encode_batch,
                check=self._check,
                queue_of=self._queue_of,
                queue=self._queue,
                statistics=self.statistics,
            )
        return self._queues[kind]

    def _batch(self, search: Search) -> SearchBatch:
        # The rows of a queue, not its places, are what costs memory and time.
        places = max(1, self._slots // search.num_beams)
        try:
            if _kind(search) == _PLAIN:
                recorder = self._recorder or default_recorder(self._model.device)
                return SlotBatch(self._model, self._slots, recorder=recorder)
            if search.assistant is None:
                return BeamBatch(self._model, places, search.num_beams)
            return SpeculativeBatch(self._model, search.assistant, places, search.num_draft_tokens)
        except torch.OutOfMemoryError as error:
            if not self._queues:
                raise  # fewer slots may fit
            raise EngineError(
                f"allocating {places} places for {search.num_beams} beams beside {self._slots} "
                f"slots on {self._model.device}: {error}; use fewer slots"
            ) from error

    def _check(self, job: Job) -> None:
        check_job(job, self._model)


def _kind(search: Search) -> _Kind:
    """The queue a search belongs to."""
    if search.assistant is not None:
        return ("draft", id(search.assistant), search.num_draft_tokens)
    return ("beams", search.num_beams, 0) if search.num_beams > 1 else _PLAIN
