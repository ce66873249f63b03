"""Weights of a real ONNX file, and files that are none."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from corpus_asr.audio.onnx_weights import read_weights

SPEC = find_spec("silero_vad")
assert SPEC is not None
DATA = Path((SPEC.submodule_search_locations or [""])[0]) / "data"
NETWORK = DATA / "silero_vad_16k_sequence.onnx"


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_convolutions_equal_those_of_the_torch_file():
    kept = torch.jit.load(DATA / "silero_vad.jit").state_dict()
    nodes = read_weights(NETWORK)
    assert [kind for kind, _ in nodes] == ["Conv"] * 5 + ["LSTM", "Conv"]
    for number, (_, (weights, bias)) in enumerate(nodes[1:5]):
        prefix = f"_model.encoder.{number}.reparam_conv"
        assert np.array_equal(weights, kept[f"{prefix}.weight"].numpy())
        assert np.array_equal(bias, kept[f"{prefix}.bias"].numpy())


def test_an_empty_file_holds_no_weights(tmp_path):
    path = tmp_path / "empty.onnx"
    path.touch()
    assert read_weights(path) == []


@pytest.mark.parametrize("content", [b"<html>not found</html>", NETWORK.read_bytes()[:400_000]])
def test_what_is_no_whole_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"reading .*broken\.onnx: .*expected an ONNX file"):
        read_weights(path)
