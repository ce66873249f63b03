"""Memory that does not suffice costs slots, never words."""

import gc
import logging
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.protocols import (
    AlignJob,
    Job,
    Result,
    Search,
    TokenRules,
    WindowJob,
)
from corpus_asr.decoding.slots import SlotScheduler
from tests.support.markov import END, MarkovModel, window
from tests.support.slots import assert_all_same, run_jobs

STAGES = ("new_state", "encode", "fill", "prefill", "step")


class Hungry(MarkovModel):
    """Runs out of memory at chosen calls, or where it is asked for too many rows at once."""

    def __init__(self, calls: Sequence[int] = (), *, most: dict[str, int] | None = None) -> None:
        super().__init__()
        self._fails_at = set(calls)
        self._calls = 0
        self._most = most or {}
        self.states: list[weakref.ref[torch.Tensor]] = []

    def _ask(self, stage: str, rows: int) -> None:
        self._calls += 1
        if self._calls in self._fails_at or rows > self._most.get(stage, rows):
            raise torch.OutOfMemoryError(f"no memory for {stage} of {rows} (scripted)")

    def new_state(self, slots: int, *, beams: int = 1) -> torch.Tensor:
        self._ask("new_state", slots)
        state = super().new_state(slots)
        self.states.append(weakref.ref(state))
        return state

    def encode(self, features: torch.Tensor, **options: Any) -> torch.Tensor:
        self._ask("encode", len(features))
        return super().encode(features)

    def fill(self, state: Any, slots: Sequence[int], encoded: Any, **options: Any) -> None:
        self._ask("fill", len(slots))
        super().fill(state, slots, encoded)

    def prefill(self, state: Any, slots: Sequence[int], tokens: Any, lengths: Any) -> torch.Tensor:
        self._ask("prefill", len(slots))
        return super().prefill(state, slots, tokens, lengths)

    def step(
        self, state: Any, tokens: torch.Tensor, positions: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        self._ask("step", len(tokens))
        return super().step(state, tokens, positions)


SEARCHES = (Search(), Search(temperature=0.9), Search(repetition_penalty=1.4), Search(num_beams=2))


def ask(number: int, kind: int) -> Job:
    if kind == len(SEARCHES):
        return AlignJob(
            features=window(number), window=(number,), tokens=(21, 4, 5), heads=((0, 1),)
        )
    return WindowJob(
        features=window(number),
        window=(number,),
        prompt=(21, 22),
        rules=TokenRules(end=END),
        max_new_tokens=5 + 4 * number,
        search=SEARCHES[kind],
        seed=number,
    )


Tasks = Sequence[Sequence[tuple[int, int]]]


def run(scheduler: SlotScheduler, tasks: Tasks) -> list[list[Result]]:
    return run_jobs(scheduler, [[ask(*job) for job in jobs] for jobs in tasks])


def expected_of(tasks: Tasks) -> list[list[Result]]:
    return run(SlotScheduler(MarkovModel(), 3, encode_batch=4, check_every=2), tasks)


@settings(max_examples=15, deadline=None)
@given(
    tasks=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, len(SEARCHES))), max_size=4),
        min_size=1,
        max_size=9,
    ),
    calls=st.sets(st.integers(1, 60), max_size=4),
)
def test_wherever_memory_runs_out_every_task_gets_its_results_once(
    tasks: Tasks, calls: set[int]
) -> None:
    # 8 slots and 4 windows a batch can be halved five times.
    hungry = SlotScheduler(Hungry(sorted(calls)), 8, encode_batch=4, check_every=2)
    found = run(hungry, tasks)
    assert_all_same(found, expected_of(tasks))


@pytest.mark.parametrize("stage", STAGES)
def test_slots_are_halved_until_they_fit_and_that_is_said_each_time(
    stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [[(number % 4, 0)] for number in range(20)]
    model = Hungry(most={stage: 2})
    with caplog.at_level(logging.WARNING):
        scheduler = SlotScheduler(model, 8, encode_batch=2 if stage == "step" else 8)
        found = run(scheduler, tasks)
    assert_all_same(found, expected_of(tasks))
    assert scheduler.statistics.halvings == len(caplog.records) > 0
    assert scheduler.slots == scheduler.statistics.slots
    if stage in ("new_state", "prefill", "step"):
        assert scheduler.slots == 2
        assert caplog.records[-1].message == (
            f"memory of cpu does not suffice: no memory for {stage} of 4 (scripted); continuing "
            f"with slots=2 encode_batch={2 if stage == 'step' else 8}"
        )


def test_with_one_slot_the_encoder_s_batches_are_halved() -> None:
    model = Hungry(most={"encode": 1})
    tasks = [[(number % 4, 0)] for number in range(6)]
    scheduler = SlotScheduler(model, 2, encode_batch=4)
    assert_all_same(run(scheduler, tasks), expected_of(tasks))
    assert scheduler.slots == 1
    assert scheduler.statistics.halvings == 3


def test_with_one_slot_and_one_window_at_once_the_error_is_the_caller_s() -> None:
    scheduler = SlotScheduler(Hungry(most={"step": 0}), 4, encode_batch=2)
    errors: list[Exception | None] = []

    def task() -> Generator[Job, Result, None]:
        yield ask(1, 0)

    for _ in range(3):
        scheduler.add(task(), lambda value, error: errors.append(error))
    with pytest.raises(torch.OutOfMemoryError, match="no memory for step of 1"):
        scheduler.advance()
    assert scheduler.pending == 3
    scheduler.fail(RuntimeError("broken"))
    assert [str(error) for error in errors] == ["broken"] * 3
    assert scheduler.pending == 0


class Forgetful(CudaRecorder):
    """Holds on to no tensor, as a graph's recording does not, and replays by calling again."""

    warm_ups = 1
    replayed = 0

    def __init__(self) -> None: ...

    def warm_up(self, step: Callable[[], None]) -> None:
        step()

    def record(self, step: Any) -> Callable[[], None]:
        method, arguments = weakref.WeakMethod(step.func), (step.args, step.keywords)
        del step

        def replay() -> None:
            self.replayed += 1
            step = method()
            assert step is not None
            step(*arguments[0], **arguments[1])

        return replay


@pytest.mark.parametrize("recorder", [None, Forgetful()])
def test_the_old_slots_are_given_back_before_there_are_new_ones(
    recorder: Forgetful | None,
) -> None:
    class Watching(Hungry):
        def new_state(self, slots: int, *, beams: int = 1) -> torch.Tensor:
            assert all(state() is None for state in self.states), "old slots are still there"
            return super().new_state(slots)

    model = Watching(calls=[9])
    scheduler = SlotScheduler(model, 8, recorder=recorder)
    gc.disable()  # memory must not wait for the next collection
    try:
        run(scheduler, [[(number % 4, 0)] for number in range(16)])
    finally:
        gc.enable()
    assert len(model.states) == 2
    assert recorder is None or recorder.replayed > 0
