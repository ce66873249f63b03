"""Continuous batching: many tasks share the decoder's slots, and a freed slot is refilled at once.

In: tasks, which are generators that yield one job at a time and are sent its result. Out: whatever
each task returns. Knows nothing of what the tasks are for, so recordings, fallback retries,
language detection and alignment mix freely; each kind of search has a lane of its own.
"""

import torch

from corpus_asr.decoding.batch import SlotBatch
from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.checks import check_job
from corpus_asr.decoding.lanes import Done, Lane, LaneBatch, Running, Steps, Task
from corpus_asr.decoding.protocols import Job, Search, SlotModel, WindowJob
from corpus_asr.decoding.speculative import SpeculativeBatch
from corpus_asr.errors import EngineError

__all__ = ["Done", "SlotScheduler", "Steps", "Task"]

_Kind = tuple[str, int, int]


class SlotScheduler:
    """Keeps up to `slots` jobs of each kind of search decoding side by side.

    A job's result does not depend on its neighbours. A task that raises, or asks for what no model
    could do, ends with that exception; an exception of the model itself, or of a caller's own
    processor, leaves `advance` (or `add`) and makes the scheduler unusable.

    The plain lane (greedy and sampled) is there from the start. The lanes of beams and of drafts
    come into being with their first job, and hold about as many rows as `slots`.
    """

    def __init__(
        self, model: SlotModel, slots: int, *, encode_batch: int = 8, check_every: int = 1
    ) -> None:
        """Allocate the slots of the plain lane.

        Args:
            model: encoder and decoder.
            slots: windows decoded side by side.
            encode_batch: windows encoded at once, which bounds the encoder's memory.
            check_every: steps between looks for finished slots; above 1 on devices where looking
                means waiting.
        """
        self._model = model
        self._slots = slots
        self._encode_batch = encode_batch
        self._check_every = check_every
        self._plain = self._lane(SlotBatch(model, slots))
        self._special: dict[_Kind, Lane] = {}

    @property
    def pending(self) -> int:
        """Tasks not finished yet."""
        return self._plain.pending + sum(lane.pending for lane in self._special.values())

    def add(self, task: Task, done: Done) -> None:
        """Start `task`; `done(result, error)` is called from within `add` or `advance`."""
        try:
            job = next(task)
            self._check(job)
        except StopIteration as stop:
            done(stop.value, None)
        except Exception as error:  # a task's failure is its owner's to handle
            task.close()
            done(None, error)
        else:
            self._lane_of(job).add(Running(task, done, job))

    def advance(self) -> None:
        """Refill free slots, then decode for `check_every` tokens and deal with what ended."""
        for lane in (self._plain, *self._special.values()):
            lane.advance(self._check_every)

    def fail(self, error: Exception) -> None:
        """End every task with `error`."""
        lanes = (self._plain, *self._special.values())
        for running in [running for lane in lanes for running in lane.empty()]:
            running.fail(error)

    def _lane_of(self, job: Job) -> Lane:
        kind = _kind(job.search) if isinstance(job, WindowJob) else None
        if kind is None:
            return self._plain
        if kind not in self._special:
            assert isinstance(job, WindowJob)
            self._special[kind] = self._lane(self._special_batch(job.search))
        return self._special[kind]

    def _lane(self, batch: LaneBatch) -> Lane:
        return Lane(
            batch, encode_batch=self._encode_batch, check=self._check, lane_of=self._lane_of
        )

    def _special_batch(self, search: Search) -> LaneBatch:
        # The rows of a lane, not its places, are what costs memory and time.
        places = max(1, self._slots // search.num_beams)
        try:
            if search.assistant is None:
                return BeamBatch(self._model, places, search.num_beams)
            return SpeculativeBatch(self._model, search.assistant, places, search.num_draft_tokens)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"allocating {places} places for {search.num_beams} beams beside {self._slots} "
                f"slots on {self._model.device}: {error}; use fewer slots"
            ) from error

    def _check(self, job: Job) -> None:
        check_job(job, self._model)


def _kind(search: Search) -> _Kind | None:
    """The lane a search belongs to; None for the plain one."""
    if search.assistant is not None:
        return ("draft", id(search.assistant), search.num_draft_tokens)
    return ("beams", search.num_beams, 0) if search.num_beams > 1 else None
