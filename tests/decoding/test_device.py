"""Recorded steps say what steps say that are run one by one."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.decoding.device import (
    CudaRecorder,
    FinishedFlags,
    StepGraphs,
    upload,
    upload_stack,
)
from corpus_asr.decoding.protocols import (
    AlignJob,
    Job,
    Result,
    Search,
    SlotModel,
    TokenRules,
    WindowJob,
    WindowResult,
)
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.layers import kv_cache
from tests.support.graph_capture import TapeRecorder
from tests.support.markov import BEGIN, END, NO_TIMESTAMPS, MarkovModel, window
from tests.support.slots import SOURCE_POSITIONS, assert_all_same, load, run_jobs

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


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"search": Search(temperature=0.8)},
    "grammar": {"rules": GRAMMAR},
    "sampled grammar": {"rules": GRAMMAR, "search": Search(temperature=1.2)},
    "watched": {"search": Search(stop_loops=True), "max_new_tokens": 60},
    "narrowed": {"search": Search(temperature=1.0, top_k=4)},
    "penalised": {"search": Search(repetition_penalty=1.5, no_repeat_ngram_size=3)},
    "kept": {"search": Search(keep_scores=True, keep_logits=True)},
}


def ask(kind: str, number: int, *, features: np.ndarray | None = None) -> Job:
    whole = window(number % 4) if features is None else features
    if kind == "align":
        return AlignJob(features=whole, window=(number,), tokens=(21, 4, 5), heads=((0, 1),))
    usual: dict[str, Any] = {"rules": PLAIN, "max_new_tokens": 8 + 5 * (number % 4)}
    return WindowJob(
        features=whole,
        window=(number,),
        prompt=(21, 22)[: 1 + number % 2],
        seed=number,
        score_token=3 if number % 3 else None,
        **(usual | KINDS.get(kind, {})),
    )


def run(
    model: SlotModel,
    tasks: list[list[Job]],
    *,
    slots: int,
    check_every: int = 1,
    recorder: CudaRecorder | None = None,
) -> list[list[Result]]:
    scheduler = SlotScheduler(
        model, slots, encode_batch=2, check_every=check_every, recorder=recorder
    )
    return run_jobs(scheduler, tasks)


kinds = st.sampled_from([*KINDS, "align"])
tasks_of_jobs = st.lists(
    st.lists(st.tuples(kinds, st.integers(0, 7)), max_size=5), min_size=1, max_size=12
)


@cache
def alone(kind: str, number: int) -> Result:
    """What a job gives alone, and in steps that nobody records."""
    return run(MarkovModel(), [[ask(kind, number)]], slots=1)[0][0]


@settings(max_examples=12, deadline=None)
@given(tasks=tasks_of_jobs, slots=st.integers(1, 9), check_every=st.integers(1, 5))
def test_replays_give_what_steps_give(
    tasks: list[list[tuple[str, int]]], slots: int, check_every: int
) -> None:
    jobs = [[ask(kind, number) for kind, number in task] for task in tasks]
    found = run(Steady(), jobs, slots=slots, check_every=check_every, recorder=TapeRecorder())
    assert_all_same(found, [[alone(*one) for one in task] for task in tasks])


def test_each_rung_is_recorded_once_and_replayed_from_then_on() -> None:
    recorder = TapeRecorder()
    tasks = [[ask("greedy", number) for number in range(8)] for _ in range(6)]
    run(Steady(), tasks, slots=6, recorder=recorder)
    assert recorder.recorded <= recorder.warmed <= 4  # 1, 2, 4 and 6 slots
    assert recorder.replayed > 10 * recorder.recorded
    # Loops are seen in replays, and options hold in them; steps that the host has a part in are not
    # replayed.
    recorder = TapeRecorder()
    found = run(Steady(), [[ask("watched", number)] for number in range(4)], slots=4,
                recorder=recorder)  # fmt: skip
    assert any(isinstance(one, WindowResult) and one.looped for (one,) in found)
    assert recorder.replayed > 40
    recorder = TapeRecorder()
    run(Steady(), [[ask("penalised", 3)], [ask("narrowed", 3)]], slots=2, recorder=recorder)
    assert recorder.replayed > 2
    recorder = TapeRecorder()
    run(Steady(), [[ask("kept", 3)]], slots=2, recorder=recorder)
    assert (recorder.warmed, recorder.recorded) == (0, 0)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> SlotModel:
    return load(tmp_path_factory.mktemp("checkpoint")).slot_model()


def speech(number: int) -> np.ndarray:
    generator = np.random.default_rng(number)
    return generator.standard_normal((80, 2 * SOURCE_POSITIONS)).astype(np.float32)


@pytest.mark.parametrize("slots", [1, 8])
def test_a_network_s_replays_give_what_its_steps_give_at_any_size(
    network: SlotModel, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than the slots, so that some are refilled and gaps are closed.
    kinds = ["greedy", "sampled", "penalised", *["greedy", "sampled"] * slots][: slots + 3]
    tasks = [
        [ask(one, number, features=speech(number)) for one in (kind, "sampled")]
        for number, kind in enumerate(kinds)
    ]
    expected = run(network, tasks, slots=5)
    # As it is where the cache is not on a CPU: the same shape for every step.
    monkeypatch.setattr(kv_cache, "_looked_at", lambda positions, *, max_positions: max_positions)
    recorder = TapeRecorder()
    found = run(network, tasks, slots=slots, check_every=3, recorder=recorder)
    assert_all_same(found, expected)
    assert recorder.replayed > 0


class Failing(TapeRecorder):
    """Cannot record."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        super().record(step)
        raise RuntimeError("operation not permitted when stream is capturing")


def test_where_nothing_can_be_recorded_steps_are_run_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = Failing()
    tasks = [[ask("greedy", number), ask("sampled", number)] for number in range(5)]
    with caplog.at_level(logging.WARNING):
        found = run(Steady(), tasks, slots=3, recorder=failing)
    assert failing.recorded == 1
    assert [record.message for record in caplog.records] == [
        "recording a decoding step as a CUDA graph: operation not permitted when stream is "
        "capturing; continuing without"
    ]
    kinds = ("greedy", "sampled")
    assert_all_same(found, [[alone(kind, number) for kind in kinds] for number in range(5)])


def test_a_step_is_recorded_once_it_has_been_run_often_enough() -> None:
    recorder, steps = TapeRecorder(), torch.zeros(1)
    recorder.warm_ups = 3
    graphs = StepGraphs(4, recorder)
    seen = []

    def step() -> None:
        steps.add_(1)

    for _ in range(5):
        graphs.run("key", step)
        seen.append((recorder.warmed, recorder.recorded, recorder.replayed))
    assert seen == [(1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 1), (3, 1, 2)]
    assert steps.item() == 5


def test_rungs_are_powers_of_two_up_to_all_places() -> None:
    graphs = StepGraphs(12, TapeRecorder())
    assert [graphs.rung(active) for active in range(1, 13)] == [1, 2, 4, 4, *[8] * 4, *[12] * 4]


@pytest.mark.parametrize("reads", [torch.Tensor.tolist, int, bool, torch.Tensor.item])
def test_the_tape_refuses_what_would_make_a_gpu_wait(reads: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="a recorded step calls"):
        TapeRecorder().record(lambda: reads(torch.ones(1)))


CPU = torch.device("cpu")
longs = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=64, allow_nan=False)


@given(st.lists(st.one_of(st.lists(longs), st.lists(floats, min_size=1)), min_size=1, max_size=6))
def test_numbers_arrive_as_they_were_sent(parts: list[list[int]] | list[list[float]]) -> None:
    assert [tensor.tolist() for tensor in upload(CPU, *parts)] == parts


def test_tensors_keep_shape_and_type() -> None:
    block = torch.arange(6).view(2, 3)
    found, empty, halves = upload(CPU, block, [], [0.5, 1.0])
    assert torch.equal(found, block)
    assert (empty.dtype, empty.shape) == (torch.long, (0,))
    assert (halves.dtype, halves.tolist()) == (torch.float64, [0.5, 1.0])
    rows = [torch.full((2, 3), float(n), dtype=torch.float16) for n in range(4)]
    stacked = upload_stack(rows, CPU)
    assert (stacked.dtype, stacked.tolist()) == (torch.float16, torch.stack(rows).tolist())


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
