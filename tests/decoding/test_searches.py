"""Jobs of every kind in one scheduler, whatever recorder it has; memory that is too small.

Each job gets what it gets alone. What memory costs are slots, never words.
"""

import gc
import logging
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.decoding.device import (
    CudaRecorder,
    FinishedFlags,
    out_of_memory_by_name,
)
from corpus_asr.decoding.jobs import (
    AlignJob,
    AlignResult,
    Job,
    Result,
    Search,
    TokenRules,
    WindowJob,
    WindowResult,
    check_job,
)
from corpus_asr.decoding.protocols import SlotModel, Slots
from corpus_asr.decoding.slots import SlotScheduler
from tests.support.markov import BEGIN, END, LENGTH, NO_TIMESTAMPS, VOCAB, MarkovModel, window
from tests.support.slots import assert_all_same, run_jobs

PLAIN = TokenRules(end=END, suppress_first=(END,))
GRAMMAR = TokenRules(
    end=END, timestamp_begin=BEGIN, no_timestamps=NO_TIMESTAMPS, max_initial_timestamp=4
)


class Steady(MarkovModel):
    """Looks at no position, as a model on a GPU."""

    def step(
        self, state: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        return self.table[state[: len(tokens)], tokens].clone()


class Counting(CudaRecorder):
    """Counts what it is asked for, and replays a step by running it; test_gpu.py has graphs."""

    warm_ups = 1

    def __init__(self) -> None:
        self.warmed = self.recorded = self.replayed = 0

    def warm_up(self, step: Callable[[], None]) -> None:
        self.warmed += 1
        step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay


ASSISTANT = MarkovModel(seed=1)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"search": Search(temperature=0.8)},
    "grammar": {"rules": GRAMMAR},
    "sampled grammar": {"rules": GRAMMAR, "search": Search(temperature=1.2)},
    "resumed grammar": {
        "rules": replace(GRAMMAR, resumes=True),
        "prompt": (21, BEGIN, 4, BEGIN + 2, BEGIN + 2),
        "num_prefix": 4,
    },
    "watched": {"search": Search(stop_loops=True), "max_new_tokens": 60},
    "narrowed": {"search": Search(temperature=1.0, top_k=4)},
    "penalised": {"search": Search(repetition_penalty=1.5, no_repeat_ngram_size=3)},
    "kept": {"search": Search(keep_scores=True)},
    "beams": {"search": Search(num_beams=3)},
    "watched beams": {"search": Search(num_beams=3, stop_loops=True), "max_new_tokens": 60},
    "with an assistant": {"search": Search(assistant=ASSISTANT, num_draft_tokens=3)},
}


def align(number: int, *tokens: int) -> AlignJob:
    whole = window(number % 4)
    return AlignJob(features=whole, window=(number,), tokens=(21, *tokens), heads=((0, 1), (2, 0)))


def ask(kind: str, number: int) -> Any:
    if kind == "align":
        return align(number, 4, 5)
    usual: dict[str, Any] = {
        "rules": PLAIN,
        "max_new_tokens": 8 + 5 * (number % 4),
        "prompt": (21, 22)[: 1 + number % 2],
    }
    return WindowJob(
        features=window(number % 4),
        window=(number,),
        seed=number,
        score_token=3 if number % 3 else None,
        **(usual | KINDS[kind]),
    )


def run(
    model: SlotModel,
    tasks: Sequence[Sequence[Job]],
    *,
    slots: int = 3,
    check_every: int | None = 1,
    recorder: CudaRecorder | None = None,
) -> list[list[Result]]:
    scheduler = SlotScheduler(
        model, slots, encode_batch=2, check_every=check_every, recorder=recorder
    )
    return run_jobs(scheduler, tasks)


Tasks = list[list[tuple[str, int]]]


@cache
def alone(kind: str, number: int) -> Result:
    """What a job gives alone, and in steps that nobody records."""
    return run(MarkovModel(), [[ask(kind, number)]], slots=1)[0][0]


def asked(tasks: Tasks) -> list[list[Job]]:
    return [[ask(*one) for one in task] for task in tasks]


def check(found: list[list[Result]], tasks: Tasks) -> None:
    assert_all_same(found, [[alone(*one) for one in task] for task in tasks])


kinds = st.sampled_from([*KINDS, "align"])
tasks_of_jobs = st.lists(
    st.lists(st.tuples(kinds, st.integers(0, 7)), max_size=4), min_size=1, max_size=8
)


@pytest.mark.long
@given(
    tasks=tasks_of_jobs, slots=st.integers(1, 9), check_every=st.none() | st.integers(1, 5),
    recorded=st.booleans(),
)  # fmt: skip
def test_every_job_gets_what_it_gets_alone(
    tasks: Tasks, slots: int, check_every: int | None, recorded: bool
) -> None:
    recorder = Counting() if recorded else None
    found = run(Steady(), asked(tasks), slots=slots, check_every=check_every, recorder=recorder)
    check(found, tasks)


def test_aligning_what_was_decoded_uses_the_window_in_its_slot() -> None:
    model = MarkovModel()
    [[said, messages, again]] = run(model, [[ask("greedy", 1), align(1, 5, 6), ask("greedy", 1)]])
    assert model.encoded == model.filled == [1]
    assert isinstance(messages, AlignResult)
    assert messages.weights is not None
    assert messages.weights.shape == (2, 3, LENGTH)
    assert messages.weights.dtype == "float32"
    expected = [
        float(model.after(1, before).log_softmax(0)[token]) for before, token in ((21, 5), (5, 6))
    ]
    assert messages.logprobs == pytest.approx(expected, abs=1e-5)
    assert_all_same([[said]], [[again]])
    # Of a single token it is told where it lies, and no probability.
    [[messages]] = run(MarkovModel(), [[align(2)]])
    assert isinstance(messages, AlignResult)
    assert messages.weights is not None
    assert (messages.logprobs, messages.weights.shape) == ((), (2, 1, LENGTH))


def test_a_window_that_changes_lanes_is_not_encoded_again() -> None:
    model = MarkovModel()
    tasks = [[ask(kind, 2) for kind in ("greedy", "beams", "align", "sampled")]]
    run(model, [[*tasks[0], ask("greedy", 3)]])
    assert model.encoded == [2, 3]


JOB = ask("greedy", 1)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (replace(JOB, prompt=()), "prompt of 0"),
        (replace(JOB, prompt=(1,) * LENGTH), "shorten the prompt"),
        (replace(JOB, max_new_tokens=0), "0 new tokens"),
        (
            replace(JOB, prompt=(1, VOCAB)),
            f"found token {VOCAB}, expected 0 to {VOCAB - 1}",
        ),
        (replace(JOB, prompt=(-1,)), "found token -1"),
        (replace(JOB, score_token=3, score_position=2), "positions 0 to 1"),
        (replace(JOB, search=Search(num_beams=VOCAB)), "at most 20"),
        (
            replace(JOB, encoded=torch.zeros(2, 1)),
            r"found shape \(2, 1\), expected \(1, 1\)",
        ),
        (align(0, *([1] * LENGTH)), f"aligning {LENGTH + 1} tokens"),
        (replace(align(0), heads=()), "no attention heads"),
        (align(0, VOCAB), "text to align"),
    ],
)
def test_what_no_model_could_do_is_refused(job: Job, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_job(job, MarkovModel())


def test_every_lane_is_pending_and_failed() -> None:
    scheduler = SlotScheduler(MarkovModel(), 2)
    errors: list[str] = []

    def task(kind: str) -> Generator[Job, Result, None]:
        yield ask(kind, 0)

    lanes = (*KINDS, "align")
    for kind in lanes:
        scheduler.add(task(kind), lambda value, error: errors.append(str(error)))
    assert scheduler.pending == len(lanes)
    scheduler.fail(RuntimeError("device lost"))
    assert errors == ["device lost"] * len(lanes)
    assert scheduler.pending == 0


def test_each_rung_is_recorded_once_and_replayed_from_then_on() -> None:
    recorder = Counting()
    tasks = [[ask("greedy", number) for number in range(8)] for _ in range(6)]
    run(Steady(), tasks, slots=6, recorder=recorder)
    assert recorder.recorded <= recorder.warmed <= 4  # 1, 2, 4 and 6 slots
    assert recorder.replayed > 10 * recorder.recorded
    # Loops are seen in replays, and options hold in them; steps that the host has a part in are not
    # replayed.
    recorder = Counting()
    found = run(Steady(), [[ask("watched", number)] for number in range(4)], slots=4,
                recorder=recorder)  # fmt: skip
    assert any(isinstance(one, WindowResult) and one.looped for (one,) in found)
    assert recorder.replayed > 40
    recorder = Counting()
    run(Steady(), [[ask("penalised", 3)], [ask("narrowed", 3)]], slots=2, recorder=recorder)
    assert recorder.replayed > 2
    recorder = Counting()
    run(Steady(), [[ask("kept", 3)]], slots=2, recorder=recorder)
    assert (recorder.warmed, recorder.recorded) == (0, 0)


class Failing(Counting):
    """Cannot record."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        super().record(step)
        raise RuntimeError("operation not permitted when stream is capturing")


def test_where_nothing_can_be_recorded_steps_are_run_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = Failing()
    tasks = [[ask("greedy", number), ask("sampled", number)] for number in range(5)]
    scheduler = SlotScheduler(Steady(), 3, check_every=1, recorder=failing)
    with caplog.at_level(logging.WARNING):
        found = run_jobs(scheduler, tasks)
    assert failing.recorded == scheduler.statistics.failed_captures == 1
    assert [record.message for record in caplog.records] == [
        "recording a decoding step as a CUDA graph: operation not permitted when stream is "
        "capturing; continuing without"
    ]
    kinds = ("greedy", "sampled")
    check(found, [[(kind, number) for kind in kinds] for number in range(5)])


@pytest.mark.parametrize("behind", [False, True])
def test_a_lookout_tells_what_was_so_when_it_was_asked(behind: bool) -> None:
    flags = torch.zeros(3, dtype=torch.bool)
    lookout = FinishedFlags(flags, behind=behind)
    assert lookout.read(3) == [False] * 3
    flags[0] = True
    lookout.ask()
    flags[1] = True  # what the last step does, which nobody waits for
    assert lookout.read(3) == [True, not behind, False]
    # Read once: in the meantime the flags may have come to mean other jobs.
    assert lookout.read(2) == ([False] * 2 if behind else [True] * 2)
    lookout.ask()
    assert lookout.read(2) == [True, True]


UNDER_PRESSURE = ("greedy", "sampled", "penalised", "beams", "align")
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

    def fill(self, state: Any, slots: Slots, encoded: Any, **options: Any) -> None:
        self._ask("fill", len(slots))
        super().fill(state, slots, encoded)

    def prefill(self, state: Any, slots: Slots, tokens: Any, lengths: Any) -> torch.Tensor:
        self._ask("prefill", len(slots))
        return super().prefill(state, slots, tokens, lengths)

    def step(
        self, state: Any, tokens: torch.Tensor, positions: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        self._ask("step", len(tokens))
        return super().step(state, tokens, positions)


@given(
    tasks=st.lists(
        st.lists(st.tuples(st.sampled_from(UNDER_PRESSURE), st.integers(0, 3)), max_size=4),
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
    found = run_jobs(hungry, asked(tasks))
    check(found, tasks)


@pytest.mark.parametrize("stage", STAGES)
def test_slots_are_halved_until_they_fit_and_that_is_said_each_time(
    stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [[("greedy", number % 4)] for number in range(20)]
    model = Hungry(most={stage: 2})
    with caplog.at_level(logging.WARNING):
        scheduler = SlotScheduler(model, 8, encode_batch=2 if stage == "step" else 8)
        found = run_jobs(scheduler, asked(tasks))
    check(found, tasks)
    assert scheduler.statistics.halvings == len(caplog.records) > 0
    assert scheduler.slots == scheduler.statistics.slots
    if stage in ("new_state", "prefill", "step"):
        assert scheduler.slots == 2
        assert caplog.records[-1].message == (
            f"memory of cpu is too small: no memory for {stage} of 4 (scripted); continuing "
            f"with slots=2 encode_batch={2 if stage == 'step' else 8}"
        )


def test_with_one_slot_the_encoder_s_batches_are_halved() -> None:
    model = Hungry(most={"encode": 1})
    tasks = [[("greedy", number % 4)] for number in range(6)]
    scheduler = SlotScheduler(model, 2, encode_batch=4)
    check(run_jobs(scheduler, asked(tasks)), tasks)
    assert scheduler.slots == 1
    assert scheduler.statistics.halvings == 3


def test_with_one_slot_and_one_window_at_once_the_error_is_the_caller_s() -> None:
    scheduler = SlotScheduler(Hungry(most={"step": 0}), 4, encode_batch=2)
    errors: list[Exception | None] = []

    def task() -> Generator[Job, Result, None]:
        yield ask("greedy", 1)

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
        run_jobs(scheduler, [[ask("greedy", number % 4)] for number in range(16)])
    finally:
        gc.enable()
    assert len(model.states) == 2
    assert recorder is None or recorder.replayed > 0


# cuBLAS, cuDNN and the instantiation of graphs do not raise OutOfMemoryError.
@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ],
)
def test_out_of_memory_is_known_by_the_names_of_all_libraries(message: str) -> None:
    with pytest.raises(torch.OutOfMemoryError), out_of_memory_by_name():
        raise RuntimeError(message)
