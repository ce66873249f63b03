"""Adapters: what they add, that merging changes nothing, and PEFT's layout of files."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.config.finetune import LoraSettings
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.weights import stored_tensors
from corpus_asr.models.convert import convert
from corpus_asr.models.lora import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    LoraAdapters,
    merge_adapter,
)
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper

CONFIG = LoraSettings(rank=4, alpha=8.0, dropout=0.0, target_modules=("q_proj", "fc1"))
LAYER = "model.decoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # windows of 1 s are enough here
    return tiny_whisper(tmp_path_factory.mktemp("base") / "model", max_source_positions=50)


def network(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder)


def adapted(folder: Path) -> tuple[WhisperForConditionalGeneration, LoraAdapters]:
    """A network whose adapters are no longer zero."""
    model = network(folder)
    adapters = LoraAdapters(model, CONFIG, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.normal_(std=0.2, generator=draw)
    return model, adapters


def logits(model: WhisperForConditionalGeneration) -> Tensor:
    features = torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(2))
    found: Tensor = model(features, decoder_input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]])).logits
    return found


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    """The folder of an adapter that is no longer zero."""
    _, adapters = adapted(base)
    adapters.save_pretrained(tmp_path / "adapter", base="base")
    return tmp_path / "adapter"


def test_one_layer_adds_the_scaled_product(base: Path) -> None:
    model, adapters = adapted(base)
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, nn.Linear)
    hidden = torch.randn(3, layer.in_features)
    down, up = (adapters.parameters[f"{LAYER}.lora_{part}.weight"] for part in "AB")
    plain = torch.nn.functional.linear(hidden, layer.weight, layer.bias)
    torch.testing.assert_close(layer(hidden), plain + 2.0 * (hidden @ down.T) @ up.T)


def test_the_network_keeps_its_names_and_is_frozen(base: Path) -> None:
    model = network(base)
    before = logits(model)
    adapters = LoraAdapters(model, CONFIG, seed=0)
    assert torch.equal(logits(model), before)  # nothing is added at first
    assert model.state_dict().keys() == network(base).state_dict().keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    logits(model).sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters.values())


def test_merged_weights_compute_the_same_and_are_taken_back(base: Path) -> None:
    model, adapters = adapted(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model)
    assert not torch.allclose(expected, logits(network(base)), atol=1e-2)
    with adapters.merged():
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
        merged = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.endswith(("q_proj.weight", "fc1.weight")) for name in changed)
    with pytest.raises(KeyError), adapters.merged():
        raise KeyError
    assert torch.equal(logits(model), expected)


def test_dropout_is_of_training_alone(base: Path) -> None:
    model = network(base)
    config = LoraSettings(rank=2, alpha=2.0, dropout=0.5, target_modules=("q_proj",))
    adapters = LoraAdapters(model, config, seed=0)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.fill_(0.1)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_files_are_laid_out_as_peft_does(saved: Path, base: Path) -> None:
    config = json.loads((saved / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    assert config["target_modules"] == ["fc1", "q_proj"]
    assert config["base_model_name_or_path"] == "base"
    stored = load_file(saved / ADAPTER_WEIGHTS_NAME)
    width = network(base).config.d_model
    assert stored[f"base_model.model.{LAYER}.lora_A.weight"].shape == (4, width)
    assert stored[f"base_model.model.{LAYER}.lora_B.weight"].shape == (width, 4)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_convert_merges_an_adapter(saved: Path, base: Path, tmp_path: Path) -> None:
    command = ["convert", str(base), str(tmp_path / "merged"), "--adapter", str(saved)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    model, _ = adapted(base)
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
    rounded, _ = adapted(tmp_path / "int8")
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


@pytest.mark.parametrize("target", ["gate_proj", "conv1", "proj_out", "self_attn", "_proj"])
def test_targets_have_to_be_linear_layers_of_their_own(base: Path, target: str) -> None:
    config = LoraSettings(rank=2, alpha=2.0, dropout=0.0, target_modules=(target,))
    with pytest.raises(ConfigError, match=r"correct lora\.target_modules"):
        LoraAdapters(network(base), config, seed=0)
