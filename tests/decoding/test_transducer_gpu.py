"""Parakeet on a pretended GPU: what its batches cost, and results wherever memory fails.

What it says there, tests/gpu/test_parakeet.py compares.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.transducer import GreedySearch
from tests.support.device import pretended_gpu
from tests.support.device_state import Gpu
from tests.support.parakeet_networks import features, small_parakeet

FRAMES = (160, 90, 17)


@pytest.fixture(autouse=True)
def _few_warm_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaRecorder, "warm_ups", 1)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretended_gpu() as gpu:
        yield gpu


# Of a batch of three rows and an encoder of 2 layers, once rounds are recorded. A recording starts
# as one kernel. They may only fall.
BUDGETS = {
    "CTC": {"launches": 180, "replays": 0, "waits": 1},
    "RNNT": {"launches": 217, "round": 87, "replays": 2, "waits": 3},
    "TDT": {"launches": 221, "round": 90, "replays": 3, "waits": 4},
}


@pytest.mark.parametrize("kind", BUDGETS)
def test_a_batch_waits_and_starts_kernels_no_more_often_than_its_budget(
    gpu: Gpu, kind: str
) -> None:
    network = small_parakeet(kind).to("cuda")
    options = {}
    if kind != "CTC":
        options["search"] = GreedySearch(network, recorder=CudaRecorder(network.device))
    values = features(*FRAMES)[0].pin_memory().to("cuda", non_blocking=True)

    def said() -> Any:
        return network.transcribe(values, num_frames=FRAMES, **options).rows()

    for _ in range(2):
        said()
    gpu.waits.clear()
    replays = gpu.replays
    with gpu.launches() as launches:
        said()
    found = {
        "launches": sum(launches.values()),
        "replays": gpu.replays - replays,
        "waits": len(gpu.waits),
    }
    assert {wait.kind for wait in gpu.waits} == {"event"}
    if kind != "CTC":
        kept = options["search"]._kept
        assert kept is not None
        (rows,) = kept.by_rows.values()
        with torch.inference_mode(), gpu.launches() as launches:
            rows._round()
        found["round"] = sum(launches.values())
    assert found == BUDGETS[kind]


def test_a_capture_that_fails_changes_nothing(gpu: Gpu) -> None:
    network = small_parakeet("TDT")
    values, _ = features(*FRAMES)
    expected = network.transcribe(values, num_frames=FRAMES).rows()
    gpu.refuses_captures = True
    network.to("cuda")
    recorder = CudaRecorder(network.device)
    search = GreedySearch(network, recorder=recorder)
    given = values.pin_memory().to("cuda", non_blocking=True)
    for _ in range(3):
        found = network.transcribe(given, num_frames=FRAMES, search=search).rows()
    assert [row.tokens for row in found] == [row.tokens for row in expected]
    assert recorder.failures == 1
