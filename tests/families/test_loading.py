"""Checkpoints in the form that search runs: in which numbers, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families import device
from corpus_asr.families.device import resolve_dtype
from corpus_asr.families.layers.int8 import can_use_int8
from corpus_asr.families.loading import load_slot_model
from corpus_asr.families.whisper.slot_model import WhisperSlotModel
from tests.support.slots import begin, load, sequences, windows

CPU = torch.device("cpu")

needs_int8 = pytest.mark.skipif(
    not can_use_int8(), reason="this processor or this torch has no fast 8-bit products"
)
# How far logits may be from those of float32, relative to their own size.
TOLERANCES = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.05, "auto": 0.05, "int8": 0.1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    load(folder)
    return folder


def logits(model: SlotModel) -> torch.Tensor:
    assert isinstance(model, WhisperSlotModel)
    tokens = sequences(2, 6)
    return begin(model, model.new_state(2), [0, 1], windows(2), tokens, [6, 6])


@pytest.mark.parametrize(
    "dtype", [*[d for d in TOLERANCES if d != "int8"], pytest.param("int8", marks=needs_int8)]
)
def test_it_says_what_the_network_says_in_any_numbers(checkpoint: Path, dtype: str) -> None:
    model = load_slot_model(checkpoint, device="cpu", dtype=dtype)
    assert model.device == CPU
    assert model.dtype == resolve_dtype("auto" if dtype == "int8" else dtype, CPU)
    expected = logits(load_slot_model(checkpoint, device="cpu", dtype="float32"))
    found = logits(model)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < TOLERANCES[dtype] * expected.norm()


@needs_int8
def test_8_bits_are_8_bits(checkpoint: Path) -> None:
    """Were `int8` passed over, the results would be those of bfloat16 to the bit."""
    low, eight = (
        logits(load_slot_model(checkpoint, device="cpu", dtype=dtype)) for dtype in ("auto", "int8")
    )
    assert not torch.equal(low, eight)


@needs_int8
def test_8_bits_stand_beside_float32_where_there_is_no_bfloat16(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    model = load_slot_model(checkpoint, device="cpu", dtype="int8")
    assert model.dtype == torch.float32
    expected = logits(load_slot_model(checkpoint, device="cpu", dtype="float32"))
    assert (logits(model) - expected).norm() < TOLERANCES["int8"] * expected.norm()


def test_8_bits_are_refused_where_they_would_be_slow(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "can_use_int8", lambda: False)
    with pytest.raises(ConfigError, match="no fast 8-bit products"):
        load_slot_model(checkpoint, device="cpu", dtype="int8")


@pytest.mark.parametrize(
    ("where", "dtype", "message"),
    [("cpu", "float8", "found 'float8', expected auto, int8"), ("gpu", "auto", "found 'gpu'")],
)
def test_unknown_numbers_and_devices_are_refused(
    checkpoint: Path, where: str, dtype: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_slot_model(checkpoint, device=where, dtype=dtype)


@pytest.mark.parametrize("content", [None, {"model_type": "bert"}])
def test_a_folder_that_is_no_checkpoint_is_refused(
    tmp_path: Path, content: dict[str, str] | None
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        load_slot_model(tmp_path, device="cpu", dtype="auto")
