"""Replayed steps of beams beyond test_gpu.py: loops, and places with a part for the host."""

from pathlib import Path
from typing import Any

import pytest
import torch

from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.protocols import Job, Result, SlotModel, TokenRules
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.device import pretended_gpu
from tests.support.searches import END, job, small_whisper
from tests.support.slots import assert_all_same, run_jobs

pytestmark = pytest.mark.long

PLACES = 5  # steps run 1, 2, 4 or 5 of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    small_whisper(folder, seed=3, max_target_positions=200)
    return folder


def load(folder: Path, where: str) -> SlotModel:
    return WhisperForConditionalGeneration.from_pretrained(folder, device=where).slot_model()


def run(model: SlotModel, tasks: list[list[Job]]) -> list[list[Result]]:
    return run_jobs(SlotScheduler(model, 3 * PLACES, encode_batch=4, check_every=3), tasks)


def test_loops_are_found_in_replays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaRecorder, "warm_ups", 1)
    # Nothing but two tokens may be said, so that it cannot but go round in circles.
    asked: dict[str, Any] = {"rules": TokenRules(end=END, only=(5, 6)), "limit": 120}
    tasks: list[list[Job]] = [
        [job(n, prompt=(1,) * (n + 1), num_beams=3, stop_loops=n > 0, **asked)] for n in range(2)
    ]
    expected: list[list[Any]] = run(load(folder, "cpu"), tasks)
    assert {result.looped for (result,) in expected} == {True, False}
    with pretended_gpu() as gpu:
        assert_all_same(run(load(folder, "cuda"), tasks), expected)
        assert gpu.replays > 3 * gpu.captures


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
