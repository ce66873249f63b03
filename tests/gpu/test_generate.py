"""`generate`, networks and training give on a CUDA device what they give on the CPU.

Nothing here needs more than pytest and the engine's own libraries (tests/repo/test_bare.py).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.models import speech2text, whisper
from tests.gpu.test_cuda import device as device
from tests.support.checkpoints import tiny_speech2text, tiny_whisper

pytestmark = pytest.mark.gpu

# float32 is summed in another order by other libraries.
TOLERANCE = 1e-4
FAMILIES = ("Whisper", "Speech2Text")
SIZES: dict[str, Any] = {"d_model": 32, "heads": 2, "layers": 2, "spread": 0.2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    tiny_whisper(root / "Whisper", max_source_positions=50, **SIZES)
    tiny_speech2text(root / "Speech2Text", conv_channels=16, **SIZES)
    return {name: root / name for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def both(
    request: pytest.FixtureRequest, folders: dict[str, Path], device: torch.device
) -> tuple[Any, Any, Tensor]:
    """A network on the CPU, the same on the device, and the features of two windows."""
    name = request.param
    package = whisper if name == "Whisper" else speech2text
    loader = getattr(package, f"{name}ForConditionalGeneration")
    shape = (2, 80, 100) if name == "Whisper" else (2, 100, 80)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    here = loader.from_pretrained(folders[name])
    return here, loader.from_pretrained(folders[name], device=device), features


def close(found: Any, expected: Any) -> None:
    """Compare tensors of any nesting; those found are on any device."""
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found.cpu(), expected, atol=TOLERANCE, rtol=1e-3)
        return
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 4, "length_penalty": 0.5},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"suppress_tokens": [3, 4], "begin_suppress_tokens": [5]},
    {"eos_token_id": None},
    {"use_cache": False},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_k": 1, "top_p": 0.9},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda given: ",".join(given) or "greedy")
def test_texts_are_those_of_the_cpu(
    both: tuple[Any, Any, Tensor], device: torch.device, options: dict[str, Any]
) -> None:
    here, there, features = both
    expected = here.generate(features, max_new_tokens=12, **options)
    found = there.generate(features.to(device), max_new_tokens=12, **options)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["tokens", "beams"])
def test_samples_repeat_with_their_seed(
    both: tuple[Any, Any, Tensor], device: torch.device, options: dict[str, Any]
) -> None:
    _, there, features = both

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        found: Tensor = there.generate(
            features.to(device), do_sample=True, max_new_tokens=12, temperature=2.0, **options
        )
        return found.cpu()

    first = sample(1)
    assert torch.equal(sample(1), first)
    others = [sample(seed) for seed in range(2, 6)]
    assert any(one.shape != first.shape or not torch.equal(one, first) for one in others)


def test_gradients_are_those_of_the_cpu(
    both: tuple[Any, Any, Tensor], device: torch.device
) -> None:
    *networks, features = both
    labels = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    found = []
    for network in networks:
        where = next(network.parameters()).device
        loss = network(features.to(where), labels=labels.to(where)).loss
        loss.backward()
        found.append({name: one.grad for name, one in network.named_parameters()})
    given = {name for name, one in found[0].items() if one is not None}
    assert given == {name for name, one in found[1].items() if one is not None}
    assert len(given) > 10
    for name in given:
        close(found[1][name], found[0][name])


def steps_under_autocast(network: Any, features: Tensor, dtype: torch.dtype) -> list[float]:
    """Train for five steps, without dropout, which is drawn on the device; returns the losses."""
    where = next(network.parameters()).device
    labels = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(1)).to(where)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(where.type, enabled=dtype == torch.float16)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast(where.type, dtype, enabled=dtype != torch.float32):
            loss = network(features.to(where), labels=labels).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_training_under_autocast_learns_as_in_float32(
    both: tuple[Any, Any, Tensor], dtype: torch.dtype
) -> None:
    here, there, features = both
    expected = steps_under_autocast(here, features, torch.float32)
    found = steps_under_autocast(there, features, dtype)
    assert found == pytest.approx(expected, rel=0.02)
    assert found[-1] < found[0]
