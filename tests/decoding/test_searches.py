"""Jobs of every kind in one scheduler: each in its queue, no window encoded twice."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.decoding.batch import encode_windows
from corpus_asr.decoding.protocols import (
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
from corpus_asr.decoding.slots import SlotScheduler
from tests.support.markov import END, LENGTH, VOCAB, MarkovModel, window
from tests.support.slots import run_jobs

RULES = TokenRules(end=END)
GREEDY, BEAMS = Search(), Search(num_beams=3)


def ask(number: int, *, search: Search = GREEDY, limit: int = 12) -> WindowJob:
    return WindowJob(
        features=window(number),
        window=(number,),
        prompt=(21, 22),
        rules=RULES,
        max_new_tokens=limit,
        search=search,
        seed=number,
    )


def align(number: int, *tokens: int) -> AlignJob:
    return AlignJob(
        features=window(number), window=(number,), tokens=(21, *tokens), heads=((0, 1), (2, 0))
    )


def run(
    model: MarkovModel, tasks: Sequence[Sequence[Job]], *, slots: int = 3, check_every: int = 1
) -> list[list[Result]]:
    scheduler = SlotScheduler(model, slots, encode_batch=2, check_every=check_every)
    return run_jobs(scheduler, tasks)


def plain(result: Result) -> Any:
    """What can be compared of a result."""
    if isinstance(result, AlignResult):
        assert result.weights is not None
        return result.logprobs, result.weights.tolist()
    # Sums of log-probabilities, in float32, depend on how many rows are summed at once.
    return result.tokens, [round(logprob, 4) for logprob in result.logprobs]


def test_aligning_what_was_decoded_uses_the_window_in_its_slot() -> None:
    model = MarkovModel()
    [[said, messages, again]] = run(model, [[ask(1), align(1, 5, 6), ask(1)]])
    assert model.encoded == model.filled == [1]
    assert isinstance(messages, AlignResult)
    assert messages.weights is not None
    assert messages.weights.shape == (2, 3, LENGTH)
    assert messages.weights.dtype == "float32"
    expected = [
        float(model.after(1, before).log_softmax(0)[token]) for before, token in ((21, 5), (5, 6))
    ]
    assert messages.logprobs == pytest.approx(expected, abs=1e-5)
    assert plain(said) == plain(again)
    # Of a single token it is told where it lies, and no probability.
    [[messages]] = run(MarkovModel(), [[align(2)]])
    assert isinstance(messages, AlignResult)
    assert messages.weights is not None
    assert (messages.logprobs, messages.weights.shape) == ((), (2, 1, LENGTH))


kinds = st.sampled_from(["greedy", "sampled", "beams", "drafted", "align"])
tasks_of_jobs = st.lists(
    st.lists(st.tuples(kinds, st.integers(0, 3)), max_size=4), min_size=1, max_size=7
)
ASSISTANT = MarkovModel(seed=1)
SEARCHES = {
    "greedy": GREEDY,
    "sampled": Search(temperature=0.8),
    "beams": BEAMS,
    "drafted": Search(assistant=ASSISTANT, num_draft_tokens=3),
}


def of_kind(kind: str, number: int) -> Job:
    if kind == "align":
        return align(number, 4, 5, number)
    return ask(number, search=SEARCHES[kind], limit=6 + 3 * number)


@cache
def alone(kind: str, number: int) -> Any:
    return plain(run(MarkovModel(), [[of_kind(kind, number)]], slots=1)[0][0])


@settings(max_examples=25)
@given(tasks=tasks_of_jobs, slots=st.integers(1, 4), check_every=st.integers(1, 3))
def test_every_job_gets_what_it_gets_alone(
    tasks: list[list[tuple[str, int]]], slots: int, check_every: int
) -> None:
    jobs = [[of_kind(kind, number) for kind, number in task] for task in tasks]
    found = run(MarkovModel(), jobs, slots=slots, check_every=check_every)
    assert [[plain(result) for result in results] for results in found] == [
        [alone(*one) for one in task] for task in tasks
    ]


def test_drafts_change_nothing_and_beams_do() -> None:
    assert [alone("drafted", n) for n in range(4)] == [alone("greedy", n) for n in range(4)]
    assert any(alone("beams", n) != alone("greedy", n) for n in range(4))


def test_a_window_that_changes_lanes_is_not_encoded_again() -> None:
    model = MarkovModel()
    sampled = Search(temperature=1.0)
    run(model, [[ask(2), ask(2, search=BEAMS), align(2, 5), ask(2, search=sampled), ask(3)]])
    assert model.encoded == [2, 3]


def test_an_encoding_that_is_brought_is_used_in_place_of_the_features() -> None:
    model = MarkovModel()
    brought = replace(ask(0), encoded=torch.tensor([[3.0]]))
    [[said], [other], [messages]] = run(
        model, [[brought], [ask(1)], [replace(align(0, 5), encoded=torch.tensor([[3.0]]))]]
    )
    assert model.encoded == [1]
    assert plain(said) == plain(run(model, [[ask(3, limit=12)]])[0][0])
    assert plain(other) == plain(run(model, [[ask(1, limit=12)]])[0][0])
    assert plain(messages) == plain(run(model, [[align(3, 5)]])[0][0])


def test_encodings_of_different_shapes_are_refused() -> None:
    jobs = [replace(ask(0), encoded=torch.zeros(1, 1)), replace(ask(0), encoded=torch.zeros(2, 1))]
    with pytest.raises(ValueError, match=r"found shapes \[\(1, 1\), \(2, 1\)\]"):
        encode_windows(MarkovModel(), jobs)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (replace(ask(0), prompt=()), "prompt of 0"),
        (replace(ask(0), prompt=(1,) * LENGTH), "shorten the prompt"),
        (replace(ask(0), max_new_tokens=0), "0 new tokens"),
        (replace(ask(0), prompt=(1, VOCAB)), f"found token {VOCAB}, expected 0 to {VOCAB - 1}"),
        (replace(ask(0), prompt=(-1,)), "found token -1"),
        (replace(ask(0), score_token=3, score_position=2), "positions 0 to 1"),
        (ask(0, search=Search(num_beams=VOCAB)), "at most 20"),
        (replace(ask(0), encoded=torch.zeros(2, 1)), r"found shape \(2, 1\), expected \(1, 1\)"),
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

    def task(kind: str) -> Generator[Job, WindowResult, None]:
        yield of_kind(kind, 0)

    for kind in (*SEARCHES, "align"):
        scheduler.add(task(kind), lambda value, error: errors.append(str(error)))
    assert scheduler.pending == 5
    scheduler.fail(RuntimeError("device lost"))
    assert errors == ["device lost"] * 5
    assert scheduler.pending == 0


@pytest.mark.parametrize("rows", [0, 3])
def test_slots_are_halved_until_a_lane_of_beams_fits(rows: int) -> None:
    class Small(MarkovModel):
        def new_state(self, slots: int, *, beams: int = 1) -> torch.Tensor:
            if beams > 1 and slots > rows:
                raise torch.OutOfMemoryError("tried to allocate 3 GiB")
            return super().new_state(slots)

    tasks = [[ask(0, search=BEAMS)]]
    if rows == 0:
        with pytest.raises(torch.OutOfMemoryError, match="3 GiB"):
            run(Small(), tasks, slots=6)
    else:
        assert run(Small(), tasks, slots=6) == run(MarkovModel(), tasks, slots=3)
