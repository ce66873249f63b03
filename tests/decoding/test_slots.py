import math
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, cast

import pytest
import torch

from corpus_asr.decoding.device import ThreadEncoder
from corpus_asr.decoding.jobs import Gather, Steps, TokenRules, WindowJob, WindowResult
from corpus_asr.decoding.protocols import Slots
from corpus_asr.decoding.slots import (
    SlotScheduler,
    check_every_on,
    encode_batch_on,
)
from tests.support.forks import in_fork
from tests.support.slots import END, LENGTH, ScriptedModel, outcomes, run_jobs, window

RULES = TokenRules(end=END)
Transcripts = list[tuple[int, ...]]


def job(script: int, *, name: int | None = None, prompt: int = 1, limit: int = LENGTH) -> WindowJob:
    return WindowJob(
        features=window(script),
        window=(script if name is None else name,),
        prompt=(1,) * prompt,
        rules=RULES,
        max_new_tokens=limit,
    )


def reader(jobs: list[WindowJob]) -> Generator[WindowJob, WindowResult, Transcripts]:
    said = []
    for one in jobs:
        result = yield one
        said.append(result.tokens)
    return said


def run(
    model: ScriptedModel,
    tasks: list[list[WindowJob]],
    *,
    slots: int,
    check_every: int | None = 1,
    encode_batch: int = 8,
) -> list[Transcripts]:
    scheduler = SlotScheduler(model, slots, check_every=check_every, encode_batch=encode_batch)
    found = run_jobs(scheduler, tasks)
    return [[cast("WindowResult", result).tokens for result in results] for results in found]


def test_a_fork_is_refused_where_the_thread_that_encodes_is_missing() -> None:
    scheduler = SlotScheduler(ScriptedModel([[5, 6, 7, 8, 9]]), 1, encode_beside=True)
    assert in_fork(lambda: run_jobs(scheduler, [[job(0)]])).startswith("ForkedError: decoding")
    assert in_fork(scheduler.advance).startswith("ForkedError: decoding")


def test_a_job_stops_at_its_limit_without_an_end_token() -> None:
    scheduler = SlotScheduler(ScriptedModel([[5, 6, 7, 8, 9]]), 1, check_every=3)
    ((cut, whole),) = run_jobs(scheduler, [[job(0, limit=2), job(0)]])
    assert isinstance(cut, WindowResult)
    assert isinstance(whole, WindowResult)
    assert [cut.tokens, whole.tokens] == [(5, 6), (5, 6, 7, 8, 9)]
    assert cut.end_logprob is None
    assert whole.end_logprob is not None
    expected = torch.log_softmax(torch.tensor([10.0] + [0.0] * 49), 0)[0].item()
    assert cut.logprobs == pytest.approx([expected, expected], abs=1e-5)


def test_freed_slots_are_refilled_before_the_next_step_and_finished_ones_cost_nothing() -> None:
    model = ScriptedModel([[5] * 15, [6]])
    run(model, [[job(0)], *[[job(1)] for _ in range(5)]], slots=2)
    # While short jobs wait, no step runs with an empty slot.
    assert model.steps[:5] == [2, 2, 2, 2, 2]
    assert set(model.steps[5:]) == {1}


def test_a_task_that_fails_or_asks_for_what_nobody_could_do_ends_alone() -> None:
    def bad() -> Steps[Any]:
        yield job(1)
        raise RuntimeError("bad recording")

    impossible = job(0, prompt=LENGTH)
    tasks = [bad(), reader([job(0), impossible]), reader([impossible]), reader([job(0), job(1)])]
    failed, late, early, good = outcomes(SlotScheduler(ScriptedModel([[5], [6]]), 2), tasks)
    assert str(failed) == "bad recording"
    for error in (late, early):
        assert isinstance(error, ValueError)
        assert "shorten the prompt" in str(error)
    assert good == [(5,), (6,)]


class Counted(ScriptedModel):
    """Counts what has been encoded and waits for a slot."""

    def __init__(self, scripts: Sequence[Sequence[int]]) -> None:
        super().__init__(scripts)
        self.batches: list[int] = []
        self.kept = self.most_kept = 0

    def encode(self, features: torch.Tensor, **options: Any) -> torch.Tensor:
        self.batches.append(len(features))
        self.kept += len(features)
        return super().encode(features)

    def fill(self, state: Any, slots: Slots, encoded: Any, **options: Any) -> None:
        self.kept -= len(slots)
        super().fill(state, slots, encoded)

    def step(
        self, state: Any, tokens: torch.Tensor, positions: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        self.most_kept = max(self.most_kept, self.kept)
        return super().step(state, tokens, positions)


@pytest.mark.parametrize(("slots", "encode_batch"), [(1, 4), (3, 4), (8, 4), (5, 16), (4, 1)])
@pytest.mark.parametrize("per_task", [1, 3])
def test_windows_are_encoded_in_full_batches_while_jobs_wait(
    slots: int, encode_batch: int, per_task: int
) -> None:
    scripts = [[5] * (number % 7) for number in range(40)]
    model = Counted(scripts)
    tasks = [[job((7 * task + n) % 40) for n in range(per_task)] for task in range(60)]
    said = run(model, tasks, slots=slots, encode_batch=encode_batch)
    assert said == [[tuple(scripts[one.window[0]]) for one in jobs] for jobs in tasks]
    # The last of several windows of a task come one by one: nobody else is there to wait for.
    few = 2 if per_task == 1 else 2 + per_task * min(slots, encode_batch)
    assert len(model.batches) <= math.ceil(60 * per_task / encode_batch) + few
    assert sum(model.batches) == 60 * per_task
    assert max(model.batches) <= encode_batch
    assert model.most_kept < encode_batch


def test_nothing_waits_for_a_batch_to_be_full() -> None:
    model = Counted([[5] * 3])
    run(model, [[job(0, name=n) for n in range(4)]], slots=4, encode_batch=8)
    assert model.batches == [1] * 4


def test_statistics_tell_how_full_the_slots_were() -> None:
    model = ScriptedModel([[5] * 10, [6]])
    scheduler = SlotScheduler(model, 2, encode_batch=4)
    assert scheduler.statistics.occupancy is None
    run_jobs(scheduler, [[job(script)] for script in (0, 1, 1, 1)])
    found = scheduler.statistics
    # The first token comes with the prompt: ten steps for the long text, one for each short one.
    assert found.steps == len(model.steps) == 10
    assert found.slot_steps == sum(model.steps) == 13
    assert (found.slot_room, found.occupancy) == (20, 13 / 20)
    assert (found.windows, found.encoder_batches) == (4, 1)
    assert found.tokens == 10 + 3
    seconds = (found.encode_s, found.fill_s, found.prefill_s, found.step_s, found.wait_s)
    assert all(spent > 0 for spent in seconds)


def test_a_cpu_encodes_a_window_per_thread_and_an_accelerator_runs_ahead_of_its_host() -> None:
    before = torch.get_num_threads()
    try:
        for threads, expected in ((1, 2), (2, 2), (5, 5)):
            torch.set_num_threads(threads)
            assert encode_batch_on("cpu") == expected
            assert encode_batch_on("cuda") == 16  # whatever the host has
    finally:
        torch.set_num_threads(before)
    assert check_every_on("cpu") == 1
    assert check_every_on("cuda") is None


def test_gathered_tasks_run_side_by_side_and_their_results_come_in_order() -> None:
    def parent() -> Steps[Any]:
        first = yield job(1)
        nothing = yield Gather([])
        several = yield Gather(reader([job(script)]) for script in (1, 0, 2))
        last = yield job(2)
        return first.tokens, nothing, several, last.tokens

    scheduler = SlotScheduler(ScriptedModel([[5] * 9, [6], [7] * 4]), 2)
    (outcome,) = outcomes(scheduler, [parent()])
    assert outcome == ((6,), [], [[(6,)], [(5,) * 9], [(7,) * 4]], (7,) * 4)
    # The window that parent and first task share is encoded once.
    assert scheduler.statistics.windows == 4


def test_the_first_error_of_a_gathered_task_ends_the_one_that_waits() -> None:
    def bad() -> Steps[Any]:
        yield job(1)
        raise ValueError("bad")

    def parent() -> Steps[Any]:
        yield Gather([reader([job(0)]), bad(), bad()])
        raise AssertionError("not reached")

    (error,) = outcomes(SlotScheduler(ScriptedModel([[5] * 9, [6]]), 2), [parent()])
    assert str(error) == "bad"


def test_what_an_owner_waits_for_is_cancelled_at_once_and_its_slots_after_their_jobs() -> None:
    def many() -> Steps[Any]:
        yield job(1)
        yield Gather(reader([job(0, name=number), job(1)]) for number in range(20))
        raise AssertionError("not reached")

    scheduler = SlotScheduler(ScriptedModel([[5] * 9, [6]]), 2)
    ended: list[Any] = []
    owner, why = object(), ValueError("nobody waits")
    scheduler.add(many(), lambda *outcome: ended.append(outcome), owner=owner)
    other: list[Any] = []
    scheduler.add(reader([job(0), job(1)]), lambda *outcome: other.append(outcome), owner=object())
    while scheduler.pending < 20:
        scheduler.advance()
    scheduler.cancel(owner, why)
    assert ended == [(None, why)]
    assert scheduler.pending <= 3  # two in places, and the other's
    scheduler.cancel(owner, why)
    rounds = 0
    while scheduler.pending:
        scheduler.advance()
        rounds += 1
    assert rounds < 30
    assert other == [([(5,) * 9, (6,)], None)]
    assert len(ended) == 1
    assert scheduler.statistics.windows < 15  # of 43; eight are encoded at once


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Beside(ScriptedModel):
    """Ends the first window of the other thread when a step was taken meanwhile."""

    def __init__(self, scripts: Sequence[Sequence[int]]) -> None:
        super().__init__(scripts)
        self.threads: list[int] = []  # of torch, in steps
        self.beside = 0
        self._begun, self._stepped = threading.Event(), threading.Event()

    def encode(self, features: torch.Tensor, **options: Any) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            assert torch.get_num_threads() == 1
            self.beside += len(features)
            self._begun.set()
            assert self._stepped.wait(60), "the slots waited for the encoder"
        return super().encode(features, **options)

    def step(self, *args: Any, **options: Any) -> torch.Tensor:
        self.threads.append(torch.get_num_threads())
        if self.threads[-1] == 1:
            assert self._begun.wait(60)
            self._stepped.set()
        return super().step(*args, **options)


def test_a_cpu_encodes_windows_in_one_thread_while_the_other_decodes(two_threads: None) -> None:
    scripts = [[5] * 20, *([number] * (3 + number) for number in range(1, 7))]
    tasks = [[job(0, name=number) for number in range(9)], *[[job(n)] for n in range(1, 7)]]
    model = Beside(scripts)
    scheduler = SlotScheduler(model, 3, encode_batch=2, encode_beside=True)
    found = run_jobs(scheduler, tasks)
    said = [[cast("WindowResult", result).tokens for result in results] for results in found]
    assert said == run(ScriptedModel(scripts), tasks, slots=3)
    assert model.beside > 0
    assert set(model.threads) == {1, 2}
    assert scheduler.statistics.windows == 15
    assert len(model.encoded) == 15


def test_a_window_that_is_needed_is_encoded_at_once_while_the_other_thread_is_busy(
    two_threads: None,
) -> None:
    class Slow(ScriptedModel):
        """The other thread ends its first window when all other texts are said."""

        free = threading.Event()
        alone = 0

        def encode(self, features: torch.Tensor, **options: Any) -> torch.Tensor:
            if threading.current_thread() is not threading.main_thread():
                assert self.free.wait(60)
            elif self.steps:
                self.alone += len(features)
            return super().encode(features, **options)

        def step(self, *args: Any, **options: Any) -> torch.Tensor:
            if len(self.encoded) == 9:
                self.free.set()
            return super().step(*args, **options)

    model = Slow([[5] * 20, [6] * 4])
    scheduler = SlotScheduler(model, 2, encode_batch=2, encode_beside=True)
    tasks = [[job(0, name=100)], *[[job(1, name=number)] for number in range(10)]]
    found = run_jobs(scheduler, tasks)
    assert [len(cast("WindowResult", result).tokens) for (result,) in found] == [20, *[4] * 10]
    assert model.alone > 0


def test_an_error_of_the_other_thread_s_encoder_is_the_scheduler_s(two_threads: None) -> None:
    class Broken(ScriptedModel):
        def encode(self, features: torch.Tensor, **options: Any) -> torch.Tensor:
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("no such kernel")
            return super().encode(features, **options)

    scheduler = SlotScheduler(Broken([[5] * 20]), 2, encode_batch=2, encode_beside=True)
    with pytest.raises(RuntimeError, match="no such kernel"):
        run_jobs(scheduler, [[job(0, name=number)] for number in range(9)])


def test_tasks_that_fail_leave_nothing_to_encode(two_threads: None) -> None:
    class Held(ScriptedModel):
        begun, free = threading.Event(), threading.Event()

        def encode(self, features: torch.Tensor, **options: Any) -> torch.Tensor:
            if threading.current_thread() is not threading.main_thread():
                self.begun.set()
                assert self.free.wait(60)
            return super().encode(features, **options)

    model = Held([[5] * 20])
    scheduler = SlotScheduler(model, 2, encode_batch=2, encode_beside=True)
    errors: list[Exception | None] = []
    for number in range(9):
        scheduler.add(reader([job(0, name=number)]), lambda _, error: errors.append(error))
    scheduler.advance()
    assert model.begun.wait(60)
    scheduler.advance()
    encoder = scheduler.encoder
    assert isinstance(encoder, ThreadEncoder)
    assert encoder.queued == 2  # one goes on and one waits for it
    scheduler.fail(RuntimeError("closed"))
    assert [str(error) for error in errors] == ["closed"] * 9
    assert encoder.queued == 1
    model.free.set()
