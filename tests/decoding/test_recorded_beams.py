"""Steps of beams are replayed on a pretended GPU, to the very results of steps that are not."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.protocols import Job, Result, SlotModel, TokenRules
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.device import pretended_gpu
from tests.support.searches import END, KINDS, ask, job, small_whisper
from tests.support.slots import assert_all_same, run_jobs

pytestmark = pytest.mark.long

KINDS_OF_BEAMS = [kind for kind in KINDS if "beams" in kind and kind != "short beams"]
PLACES = 5  # steps run 1, 2, 4 or 5 of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    small_whisper(folder, seed=3, max_target_positions=200)
    return folder


def load(folder: Path, where: str) -> SlotModel:
    return WhisperForConditionalGeneration.from_pretrained(folder, device=where).slot_model()


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count steps, and those of them that are run kernel by kernel."""
    monkeypatch.setattr(CudaRecorder, "warm_ups", 1)
    counts = {"step": 0, "_advance": 0}
    for name in counts:
        method: Callable[..., None] = getattr(BeamBatch, name)

        def run(self: Any, *given: Any, name: str = name, do: Any = method, **more: Any) -> None:
            counts[name] += 1
            do(self, *given, **more)

        monkeypatch.setattr(BeamBatch, name, run)
    return counts


def run(model: SlotModel, tasks: list[list[Job]], *, record: bool = True) -> list[list[Result]]:
    scheduler = SlotScheduler(model, 3 * PLACES, encode_batch=4, check_every=3, record=record)
    found = run_jobs(scheduler, tasks)
    assert scheduler.statistics.failed_captures == 0
    return found


def told(found: list[list[Any]]) -> list[Any]:
    results = [one for task in found for one in task]
    return [(one.tokens, one.logprobs, one.sequence_score, one.parents) for one in results]


def test_what_is_replayed_is_what_would_have_been_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted(monkeypatch)
    # Of several lengths, so that places are refilled and moved; the host has a part in one kind.
    tasks = [
        [ask(KINDS_OF_BEAMS[(number + 2 * n) % len(KINDS_OF_BEAMS)], number + n) for n in range(2)]
        for number in range(12)
    ]
    with pretended_gpu() as gpu:
        model = load(folder, "cuda")
        found = run(model, tasks)
        assert gpu.replays > gpu.captures > 0
        assert counts["_advance"] < counts["step"]
        as_run = run(model, tasks, record=False)
    assert told(found) == told(as_run)
    assert_all_same(found, run(load(folder, "cpu"), tasks))


def test_nearly_all_steps_are_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counted(monkeypatch)
    endless = TokenRules(end=END, suppress=(END,))
    tasks: list[list[Job]] = [
        [job(n, endless, limit=100 + 20 * (n % 3), num_beams=3)] for n in range(8)
    ]
    with pretended_gpu() as gpu:
        run(load(folder, "cuda"), tasks)
        # One that warms up and one that is recorded, for each count of places and each reach.
        assert counts["_advance"] == 2 * gpu.captures
        assert gpu.captures <= 4 * 3
        assert counts["step"] > 200


def test_loops_are_found_in_replays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing but two tokens may be said, so that it cannot but go round in circles.
    asked: dict[str, Any] = {"rules": TokenRules(end=END, only=(5, 6)), "limit": 150}
    tasks: list[list[Job]] = [
        [job(n, prompt=(1,) * (n + 1), num_beams=3, stop_loops=n % 3 > 0, **asked)]
        for n in range(7)
    ]
    expected: list[list[Any]] = run(load(folder, "cpu"), tasks)
    assert {result.looped for (result,) in expected} == {True, False}
    counts = counted(monkeypatch)
    with pretended_gpu():
        assert_all_same(run(load(folder, "cuda"), tasks), expected)
    assert counts["_advance"] < counts["step"] / 4


def stops_at_12(tokens: torch.Tensor, scores: Any) -> bool:
    return tokens.shape[1] >= 12


def test_free_places_are_taken_along_without_effect(folder: Path) -> None:
    endless = TokenRules(end=END, suppress=(END,))
    # Steps of three go with a fourth, in which the host had a part.
    tasks: list[list[Job]] = [[job(n, endless, limit=60, num_beams=3)] for n in range(3)]
    tasks.append([job(3, endless, limit=60, num_beams=3, stopping=(stops_at_12,))])
    with pretended_gpu() as gpu:
        found = run(load(folder, "cuda"), tasks)
        assert gpu.replays > 20
    assert_all_same(found, run(load(folder, "cpu"), tasks))


def test_cancelled_places_are_given_to_others(folder: Path) -> None:
    jobs = [ask(KINDS_OF_BEAMS[n % 3], n) for n in range(12)]
    expected = [run(load(folder, "cpu"), [[one]])[0] for one in jobs]
    found: dict[int, Any] = {}

    def task(number: int) -> Generator[Job, Result, list[Result]]:
        return [(yield jobs[number])]

    with pretended_gpu():
        scheduler = SlotScheduler(load(folder, "cuda"), 3 * PLACES, encode_batch=4, check_every=3)
        for number in range(len(jobs)):

            def done(result: Any, error: Exception | None, number: int = number) -> None:
                found[number] = error or result

            scheduler.add(task(number), done, owner=number % 4)
        scheduler.advance()
        scheduler.cancel(1, RuntimeError("no longer wanted"))
        while scheduler.pending:
            scheduler.advance()
    cancelled = [number for number in range(len(jobs)) if isinstance(found[number], Exception)]
    assert cancelled == [1, 5, 9]
    kept = [number for number in range(len(jobs)) if number not in cancelled]
    assert_all_same([found[number] for number in kept], [expected[number] for number in kept])
