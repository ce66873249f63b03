"""Parakeet's weights in 8 bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.models.convert import convert
from tests.support.parakeet import KINDS, Pair, features, parakeet_pair


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return parakeet_pair(request.param, tmp_path_factory.mktemp(request.param))


def states(network: Any) -> Tensor:
    values, _ = features(90, 61)
    with torch.no_grad():
        found, counts = network.encoder.encode(values, num_frames=[90, 61])
    return torch.cat([row[:count] for row, count in zip(found, counts.tolist(), strict=True)])


def test_int8_files_are_read_as_floats(pair: Pair, tmp_path: Path) -> None:
    convert(pair.folder, tmp_path / "int8", dtype="int8")
    rounded = type(pair.ours).from_pretrained(tmp_path / "int8", dtype=torch.float32)
    stored = pair.ours.state_dict()
    for name, tensor in rounded.state_dict().items():
        steps = stored[name].abs().max() / 100
        torch.testing.assert_close(tensor, stored[name], rtol=0, atol=float(steps) + 1e-6)
    mean = (states(rounded) - states(pair.ours)).abs().mean()
    assert 0 < mean < 0.1 * states(pair.ours).abs().mean()
