"""Qwen3-ASR on a pretended GPU: the CPU's results, no wait, and how many kernels a step starts."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus_asr.decoding.batch import SlotBatch, encode_windows
from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.jobs import Job, Search, TokenRules, WindowJob
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.qwen3_asr.model import Qwen3ASRSeq2SeqLM
from tests.families.qwen3_asr.test_network import features_of, prompt_of
from tests.support.device import pretended_gpu
from tests.support.qwen3_asr import Pair, qwen3_asr_pair
from tests.support.slots import assert_all_same, run_jobs

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

FRAMES = [137, 300, 820, 7, 450]
SEARCHES = (Search(), Search(temperature=0.7), Search(num_beams=3), Search(stop_loops=True))
# Operations that start kernels, of 3 layers, in a step of greedy search. They may only fall.
LAUNCHES = {"encode": 47, "fill": 1, "step": 119}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return qwen3_asr_pair(tmp_path_factory.mktemp("pair"), seed=1)


def jobs_of(pair: Pair) -> list[list[Job]]:
    windows = features_of(FRAMES)
    job = WindowJob(
        features=windows[0].numpy(), window=(0,), prompt=(1,), max_new_tokens=20,
        rules=TokenRules(end=pair.ours.config.end_tokens[0]),
    )  # fmt: skip
    return [
        [
            replace(
                job, features=windows[row].numpy(), window=(row,), num_frames=frames,
                prompt=prompt_of(pair, frames, seed=row), search=search, seed=row,
            )
        ]
        for row, frames in enumerate(FRAMES) for search in SEARCHES
    ]  # fmt: skip


def slots_on(folder: Path, device: str) -> Any:
    return Qwen3ASRSeq2SeqLM.from_pretrained(folder, device=device).slot_model()


def test_a_gpu_gives_what_a_cpu_gives(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaRecorder, "warm_ups", 1)
    tasks = jobs_of(pair)
    expected = run_jobs(SlotScheduler(pair.slots, 6), tasks)
    with pretended_gpu() as gpu:
        model = slots_on(pair.folder, "cuda")
        gpu.waits.clear()
        found = run_jobs(SlotScheduler(model, 6, encode_batch=4, check_every=3), tasks)
        waits = Counter(wait.place for wait in gpu.waits if wait.operation != "torch.cuda.graph")
        assert_all_same(found, expected)
        assert gpu.replays > gpu.captures > 0
        # Reading which slots have ended, and what they say.
        assert set(waits) <= {"ended", "collect"}


def test_a_step_starts_no_more_kernels_than_its_budget(pair: Pair) -> None:
    found: dict[str, int] = {}
    jobs: list[Any] = [job for task in jobs_of(pair)[:: len(SEARCHES)] for job in task][:3]
    with pretended_gpu() as gpu:
        model = slots_on(pair.folder, "cuda")

        def count(name: str, action: Any) -> Any:
            with torch.inference_mode(), gpu.launches() as launches:
                result = action()
            found[name] = sum(launches.values())
            return result

        batch = SlotBatch(model, 3)
        encoded = count("encode", partial(encode_windows, model, jobs))
        count("fill", partial(batch.fill, range(3), jobs, encoded))
        batch.admit(range(3), jobs)
        count("step", partial(batch.step, 3, sampled=False))
    assert found == LAUNCHES
