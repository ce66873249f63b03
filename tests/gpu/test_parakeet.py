"""Parakeet on a CUDA device says what it says on a CPU, by recorded rounds, and seldom waits.

tests/decoding/test_transducer_gpu.py runs the same code on a pretended one.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from corpus_asr.decoding import transducer
from corpus_asr.decoding.device import CudaRecorder, to_device
from corpus_asr.decoding.emissions import EmittedRow
from corpus_asr.decoding.transducer import GreedySearch
from tests.gpu.test_cuda import device as device
from tests.support.parakeet_networks import features, small_parakeet

pytestmark = pytest.mark.gpu

# Batches of several sizes: rows are filled up, and room is made for more of them.
BATCHES = ((90, 33, 8), (1,), (70,) * 5, (160, 90, 17, 64), (90, 33, 8))


@pytest.fixture(autouse=True)
def _small_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaRecorder, "warm_ups", 1)
    monkeypatch.setattr(transducer, "_ROUNDS", 2)


def said(network: Any, frames: Sequence[int], **search: Any) -> list[EmittedRow]:
    values = to_device(features(*frames, seed=len(frames))[0], network.device)
    rows: list[EmittedRow] = network.transcribe(values, num_frames=frames, **search).rows()
    return rows


def assert_same(found: Sequence[EmittedRow], expected: Sequence[EmittedRow]) -> None:
    for row, other in zip(found, expected, strict=True):
        assert (row.tokens, row.frames, row.durations) == (
            other.tokens, other.frames, other.durations,
        )  # fmt: skip
        assert row.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.parametrize("kind", ["RNNT", "TDT"])
def test_batches_of_any_size_say_what_they_say_on_a_cpu(
    device: torch.device, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_parakeet(kind)
    expected = [said(network, frames) for frames in BATCHES]
    assert any(row.tokens for rows in expected for row in rows)
    recorder = CudaRecorder(device)
    recorded: list[Any] = []
    record = CudaRecorder.record

    def noted(self: CudaRecorder, step: Any) -> Any:
        recorded.append(step)
        return record(self, step)

    monkeypatch.setattr(CudaRecorder, "record", noted)
    search = GreedySearch(network.to(device), recorder=recorder)
    for frames, rows in zip(BATCHES, expected, strict=True):
        assert_same(said(network, frames, search=search), rows)
    assert len(recorded) >= 3, "without recordings this shows little"
    assert recorder.failures == 0
    assert_same(said(network, BATCHES[0]), expected[0])  # never recorded


# torch says so, once in a process, when it is asked to find waits.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("kind", ["CTC", "TDT"])
def test_the_host_waits_for_no_more_than_events(device: torch.device, kind: str) -> None:
    network = small_parakeet(kind)
    expected = said(network, BATCHES[0])
    network.to(device)
    options = {}
    if kind != "CTC":
        options["search"] = GreedySearch(network, recorder=CudaRecorder(device))
        for _ in range(2):  # a recording waits
            said(network, BATCHES[0], **options)
    set_mode = torch.cuda.set_sync_debug_mode
    try:
        set_mode("error")
        found = said(network, BATCHES[0], **options)
    finally:
        set_mode("default")
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_ends_and_records(device: torch.device, dtype: torch.dtype) -> None:
    network = small_parakeet("TDT").to(dtype).to(device)
    search = GreedySearch(network, recorder=CudaRecorder(device))
    values = to_device(features(*BATCHES[0])[0].to(dtype), device)
    first, *others = (
        network.transcribe(values, num_frames=BATCHES[0], search=search).rows() for _ in range(3)
    )
    assert any(row.tokens for row in first)
    assert others == [first, first]
