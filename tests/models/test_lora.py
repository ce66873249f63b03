"""Adapters of PEFT: merged into a checkpoint they add what they add in its own models."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.errors import CheckpointError
from corpus_asr.families.weights import stored_tensors
from corpus_asr.models.convert import convert
from corpus_asr.models.lora import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    merge_adapter,
)
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper

LAYER = "model.decoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # windows of 1 s are enough here
    return tiny_whisper(tmp_path_factory.mktemp("base") / "model", max_source_positions=50)


def network(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder)


def logits(model: Any) -> Tensor:
    features = torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(2))
    found: Tensor = model(features, decoder_input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]])).logits
    return found


def adapted(folder: Path) -> Any:
    """A network whose adapters are no longer zero."""
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "fc1"])
    model = peft.get_peft_model(network(folder), lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return model


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    """The folder of an adapter that is no longer zero."""
    adapted(base).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_convert_merges_an_adapter(saved: Path, base: Path, tmp_path: Path) -> None:
    command = ["convert", str(base), str(tmp_path / "merged"), "--adapter", str(saved)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    model = adapted(base)
    torch.testing.assert_close(
        logits(network(tmp_path / "merged")), logits(model), atol=1e-4, rtol=1e-4
    )
    convert(base, tmp_path / "half", dtype="float16", adapter=saved)
    convert(tmp_path / "half", tmp_path / "half-again", adapter=saved)
    for name in ("half", "half-again"):
        stored = stored_tensors(tmp_path / name)
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    convert(base, tmp_path / "int8", dtype="int8")
    convert(tmp_path / "int8", tmp_path / "float", dtype="float32", adapter=saved)
    rounded = adapted(tmp_path / "int8")
    torch.testing.assert_close(
        logits(network(tmp_path / "float")), logits(rounded.float()), atol=1e-4, rtol=1e-4
    )


def test_rslora_scales_by_the_root_of_the_rank(saved: Path, base: Path) -> None:
    weights = network(base).state_dict()
    plain = merge_adapter(weights, saved)[f"{LAYER}.weight"] - weights[f"{LAYER}.weight"]
    rewrite(saved, use_rslora=True)
    found = merge_adapter(weights, saved)[f"{LAYER}.weight"] - weights[f"{LAYER}.weight"]
    torch.testing.assert_close(found, math.sqrt(4) * plain, atol=1e-5, rtol=1e-5)


def rewrite(saved: Path, **changes: Any) -> None:
    path = saved / ADAPTER_CONFIG_NAME
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def change_weights(saved: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    stored = load_file(saved / ADAPTER_WEIGHTS_NAME)
    change(stored)
    save_file(stored, saved / ADAPTER_WEIGHTS_NAME)


def first(stored: dict[str, Tensor]) -> str:
    return f"base_model.model.{LAYER}.lora_A.weight"


@pytest.mark.parametrize(
    ("broken", "messages"),
    [
        (lambda folder: (folder / ADAPTER_CONFIG_NAME).unlink(), "adapter_config.json: found no"),
        (lambda folder: (folder / ADAPTER_CONFIG_NAME).write_text("{"), "found no usable file"),
        (lambda folder: (folder / ADAPTER_CONFIG_NAME).write_text("[]"), "found no usable file"),
        (lambda folder: (folder / ADAPTER_WEIGHTS_NAME).unlink(), "safetensors: found no usable"),
        (lambda folder: (folder / ADAPTER_WEIGHTS_NAME).write_bytes(b"x" * 9), "copy the adapter"),
        (lambda folder: rewrite(folder, r=0), "r 0, expected plain LORA of rank 1 or more"),
        (lambda folder: rewrite(folder, r=None), "found no usable file"),
        (lambda folder: rewrite(folder, peft_type="IA3"), "peft_type IA3"),
        (lambda folder: rewrite(folder, use_dora=True), "use_dora: True"),
        (
            lambda folder: change_weights(folder, lambda stored: stored.pop(first(stored))),
            f"no matching pair lora_A and lora_B for {LAYER}",
        ),
        (
            lambda folder: change_weights(folder, lambda s: s[first(s)].fill_(math.nan)),
            "found NaN, infinity",
        ),
        (
            lambda folder: change_weights(folder, lambda s: s.update(extra=torch.zeros(1))),
            "found the tensor extra",
        ),
    ],
)
def test_a_broken_adapter_is_refused(
    saved: Path, base: Path, tmp_path: Path, broken: Callable[[Path], object], messages: str
) -> None:
    broken(saved)
    with pytest.raises(CheckpointError) as error:
        convert(base, tmp_path / "merged", adapter=saved)
    assert messages in str(error.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("sizes", [{"d_model": 96}, {"layers": 1}])
def test_an_adapter_of_another_checkpoint_is_refused(
    saved: Path, tmp_path: Path, sizes: dict[str, Any]
) -> None:
    other = tiny_whisper(tmp_path / "other", max_source_positions=50, **sizes)
    with pytest.raises(CheckpointError, match="give the checkpoint that the adapter was trained"):
        convert(other, tmp_path / "merged", adapter=saved)
