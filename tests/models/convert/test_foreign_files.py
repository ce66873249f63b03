"""Flax and TensorFlow files give the weights of the PyTorch classes."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.errors import CheckpointError
from corpus_asr.families.foreign_weights import (
    FLAX_NAME,
    TENSORFLOW_NAME,
    read_flax,
    read_tensorflow,
)
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper
from tests.support.weight_formats import write_flax, write_tensorflow

Write = Callable[[Path, dict[str, Tensor]], None]
KINDS: dict[str, tuple[str, Any, Any]] = {
    "flax": (FLAX_NAME, read_flax, write_flax),
    "tensorflow": (TENSORFLOW_NAME, read_tensorflow, write_tensorflow),
}


def weights(folder: Path) -> dict[str, Tensor]:
    # Sizes that all differ: a transposition in the wrong place cannot fit.
    tiny_whisper(folder, d_model=24, heads=2, encoder_ffn_dim=40, decoder_ffn_dim=56)
    return WhisperForConditionalGeneration.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_as_it_was_and_a_folder_needs_nothing_else(
    tmp_path: Path, kind: str
) -> None:
    name, read, write = KINDS[kind]
    state = weights(tmp_path)
    write(tmp_path / name, state)
    found = read(tmp_path / name)
    assert found.keys() == state.keys() - {"proj_out.weight"}
    (tmp_path / "model.safetensors").unlink()
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    for key, tensor in found.items():
        assert torch.equal(tensor, state[key]), key
        assert torch.equal(loaded[key], state[key]), key
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=f"{name}: found no readable"):
        read(tmp_path / name)


def test_arrays_that_flax_cut_into_chunks_are_joined(tmp_path: Path) -> None:
    state = weights(tmp_path)
    cut = "model.decoder.embed_tokens.weight"
    write_flax(tmp_path / FLAX_NAME, state, chunked=cut)
    assert torch.equal(read_flax(tmp_path / FLAX_NAME)[cut], state[cut])


@pytest.mark.parametrize(("kind", "package"), [("flax", "msgpack"), ("tensorflow", "h5py")])
def test_a_missing_package_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    name, read, _ = KINDS[kind]
    (tmp_path / name).write_bytes(b"")

    def refuse(wanted: str) -> Any:
        raise ImportError(wanted)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(CheckpointError, match=rf"{package} is not installed; pip install"):
        read(tmp_path / name)
