"""Which modules the fast decoder stands for, and which change is named."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from corpus_asr.families.layers.blocks import Attention
from corpus_asr.families.layers.plain import first_changed
from corpus_asr.families.whisper.model import WhisperForCausalLM
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text, tiny_whisper


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_whisper(tmp_path_factory.mktemp("whisper"), d_model=16, max_source_positions=20)
    return WhisperForConditionalGeneration.from_pretrained(folder)


def test_networks_as_they_are_loaded_are_plain(tmp_path: Path, network: Any) -> None:
    assert first_changed(network) is None
    assert first_changed(copy.deepcopy(network).train()) is None
    network.save_pretrained(tmp_path / "whisper")
    assert first_changed(WhisperForCausalLM.from_pretrained(tmp_path / "whisper")) is None
    tiny_speech2text(tmp_path / "speech2text", d_model=16)
    other: Any = Speech2TextForConditionalGeneration.from_pretrained(tmp_path / "speech2text")
    assert first_changed(other) is None

    class Trained(WhisperForConditionalGeneration):
        def training_step(self) -> None:
            """Methods that `generate` does not call are free."""

    found = copy.deepcopy(network)
    found.__class__ = Trained
    assert first_changed(found) is None


class Linear(nn.Linear):
    """Torch's own, to look at; it is not looked into."""


def _other(network: Any) -> None:
    network.model.decoder.layers[1].fc1 = Linear(16, 64)


def _hook(network: Any) -> None:
    network.model.encoder.conv2.register_forward_pre_hook(lambda *_: None)


def _patch(network: Any) -> None:
    network.model.decoder.layers[0]._feed_forward = lambda hidden: hidden


def _meta(network: Any) -> None:
    network.model.decoder.embed_positions.to("meta")


def _subclass_of_tensor(network: Any) -> None:
    class Quantized(nn.Parameter):
        pass

    weight = network.model.decoder.layers[0].fc2.weight
    network.model.decoder.layers[0].fc2.weight = Quantized(weight.detach().clone())


def _grouped(network: Any) -> None:
    network.model.encoder.conv2 = nn.Conv1d(16, 16, 3, 2, 1, groups=4)


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "class": (_other, r"model.decoder.layers.1.fc1 is a \S+Linear$"),
    "hook": (_hook, "model.encoder.conv2 has forward hooks"),
    "method": (_patch, "model.decoder.layers.0 has its _feed_forward replaced"),
    "meta": (_meta, "model.decoder.embed_positions has a weight of type Parameter on meta"),
    "tensor": (_subclass_of_tensor, "layers.0.fc2 has a weight of type Quantized"),
    "convolution": (_grouped, "model.encoder.conv2 has another padding, dilation or number"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_named(network: Any, change: Callable[[Any], None], message: str) -> None:
    changed = copy.deepcopy(network)
    change(changed)
    found = first_changed(changed)
    assert found is not None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found)


def test_a_method_that_was_replaced_for_a_whole_class_is_named(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Attention._attend
    monkeypatch.setattr(Attention, "_attend", lambda self, *inputs: original(self, *inputs))
    assert "Attention with a _attend of its own" in str(first_changed(network))
    monkeypatch.undo()
    monkeypatch.setattr(nn.Linear, "forward", lambda self, hidden: torch.zeros_like(hidden))
    assert "Linear with a forward of its own" in str(first_changed(network))
