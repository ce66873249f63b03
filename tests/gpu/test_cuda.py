"""A CUDA device gives what the CPU gives, by recorded steps, and never makes the host wait for it.

tests/decoding/test_gpu.py runs the same code on a pretended one. Nothing here needs more than
pytest and the libraries of the engine (tests/repo/test_bare.py).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.decoding.batch import SlotBatch, encode_windows
from corpus_asr.decoding.beam import BeamBatch
from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.whisper.model import WhisperSlotModel
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor
from tests.support.searches import KINDS, ask, small_whisper
from tests.support.slots import assert_all_same, begin, load, run_jobs, sequences, windows

pytestmark = pytest.mark.gpu

# float32 is summed in another order by other libraries; half precision rounds logits of about 10
# to multiples of 1/128 or 1/16, many times over.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
FEATURES_TOLERANCE = 1e-4


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    # Unlike products, convolutions in float32 round to ten bits by default.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        pytest.skip(f"needs a CUDA device: torch {torch.__version__} (CUDA {built}) sees none")
    return torch.device("cuda")


def outcomes(model: SlotModel, slots: int, *, check_every: int) -> list[list[Any]]:
    # Windows of 0.4 s are short as they are, and have too few positions to time words.
    kinds = [kind for kind in KINDS if kind not in ("short", "short beams", "timed")]
    tasks = [[ask(kinds[n % len(kinds)], n), ask(("greedy", "beams")[n % 2], n)] for n in range(20)]
    return run_jobs(SlotScheduler(model, slots, encode_batch=2, check_every=check_every), tasks)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_jobs_of_every_kind_say_what_they_say_on_a_cpu(
    device: torch.device, slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = set()
    record = CudaRecorder.record

    def noted(self: CudaRecorder, step: Any) -> Callable[[], None]:
        recorded.add(type(step.func.__self__))
        return record(self, step)

    network = small_whisper(tmp_path)
    expected = outcomes(network.slot_model(), 3, check_every=1)
    monkeypatch.setattr(CudaRecorder, "record", noted)
    monkeypatch.setattr(CudaRecorder, "warm_ups", 2)
    found = outcomes(network.to(device).slot_model(), slots, check_every=3)
    assert_all_same(found, expected)
    assert recorded >= {SlotBatch, BeamBatch}, "without recordings this shows little"


# torch says so, once in a process, when it is asked to find waits.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize(
    ("make", "kind"),
    [(SlotBatch, "sampled"), (partial(BeamBatch, num_beams=3), "watched beams")],
    ids=["slots", "beams"],
)
def test_no_step_admission_or_move_makes_the_host_wait(
    device: torch.device, make: Callable[..., SlotBatch | BeamBatch], kind: str, tmp_path: Path
) -> None:
    model = small_whisper(tmp_path).to(device).slot_model()
    batch = make(model, 6, recorder=CudaRecorder(device))
    jobs: list[Any] = [ask(kind, number) for number in range(6)]
    encoded = encode_windows(model, jobs)
    batch.fill(range(6), jobs, encoded)
    batch.admit(range(6), jobs)
    scattered = [0, 2, 5]
    for _ in range(CudaRecorder.warm_ups + 1):
        batch.fill(scattered, [jobs[slot] for slot in scattered], encoded[:3])
        batch.admit(scattered, [jobs[slot] for slot in scattered])
        batch.step(6, sampled=True)
    batch.step(4, sampled=False)
    set_mode = torch.cuda.set_sync_debug_mode
    try:
        set_mode("error")
        batch.look()
        batch.step(6, sampled=True)
        batch.fill(scattered, [jobs[slot] for slot in scattered], encoded[:3])
        batch.admit(scattered, [jobs[slot] for slot in scattered])
        batch.move(5, 1)
        batch.fill(range(5), jobs[:5], encoded[:5])  # never recorded
        batch.admit(range(5), jobs[:5])
        batch.step(5, sampled=True)
    finally:
        set_mode("default")


@torch.inference_mode()
def decode(model: WhisperSlotModel, step: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Read a prompt and further tokens over a window of noise; returns the logits on the CPU."""
    state, tokens = model.new_state(1), sequences(1, 9).to(model.device)
    features = windows(1).to(model.device, model.dtype)
    logits = [begin(model, state, [0], features, tokens[:, :3], [3])[:, -1].float().cpu()]
    token, position = (torch.zeros(1, dtype=torch.long, device=model.device) for _ in range(2))
    for at in range(3, 9):  # in place: a captured step reads the same tensors again
        token.copy_(tokens[:, at])
        position.fill_(at)
        logits.append(step(state, token, position).float().cpu())
    return torch.cat(logits)


class Replayed:
    """A step captured as a CUDA graph at its first call."""

    def __init__(self, model: WhisperSlotModel) -> None:
        self.model = model
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, state: Any, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        if self.graph is None:
            self.model.step(state, token, position)  # warms up; the graph writes the same again
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.stepped = self.model.step(state, token, position)
        self.graph.replay()
        return self.stepped


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_logits_are_those_of_a_cpu_also_from_a_captured_graph(
    device: torch.device, dtype: torch.dtype, tmp_path: Path
) -> None:
    exact = load(tmp_path).slot_model()
    expected = decode(exact, exact.step)
    model = WhisperForConditionalGeneration.from_pretrained(
        tmp_path, device=device, dtype=dtype
    ).slot_model()
    for step in (model.step, Replayed(model)):
        assert (decode(model, step) - expected).abs().max() < TOLERANCES[dtype]


def test_log_mel_features_are_those_of_a_cpu(device: torch.device) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    extractor = WhisperFeatureExtractor()
    found = extractor(noise, sampling_rate=16_000, device="cuda")["input_features"]
    expected = extractor(noise, sampling_rate=16_000)["input_features"]
    np.testing.assert_allclose(found, expected, atol=FEATURES_TOLERANCE)
