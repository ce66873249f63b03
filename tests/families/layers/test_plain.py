"""Which modules the fast decoder stands for, and the fused encoder of GPUs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from corpus_asr.families.layers.blocks import Attention
from corpus_asr.families.layers.packed import FusedEncoderBlock, fused_encoder
from corpus_asr.families.layers.plain import first_changed
from corpus_asr.families.whisper.model import WhisperForCausalLM
from corpus_asr.models.speech2text import Speech2TextForConditionalGeneration
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.searches import small_whisper


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_whisper(tmp_path_factory.mktemp("whisper"), d_model=16, max_source_positions=20)
    return WhisperForConditionalGeneration.from_pretrained(folder)


def test_networks_as_they_are_loaded_are_plain(tmp_path: Path, untouched: Any) -> None:
    assert first_changed(untouched) is None
    assert first_changed(copy.deepcopy(untouched).train()) is None
    untouched.save_pretrained(tmp_path / "whisper")
    assert first_changed(WhisperForCausalLM.from_pretrained(tmp_path / "whisper")) is None
    tiny_speech2text(tmp_path / "speech2text", d_model=16)
    other: Any = Speech2TextForConditionalGeneration.from_pretrained(tmp_path / "speech2text")
    assert first_changed(other) is None

    class Trained(WhisperForConditionalGeneration):
        def training_step(self) -> None:
            """Methods that `generate` does not call are free."""

    found = copy.deepcopy(untouched)
    found.__class__ = Trained
    assert first_changed(found) is None


class Linear(nn.Linear):
    """Torch's own, to look at; it is not looked into."""


def _other(untouched: Any) -> None:
    untouched.model.decoder.layers[1].fc1 = Linear(16, 64)


def _hook(untouched: Any) -> None:
    untouched.model.encoder.conv2.register_forward_pre_hook(lambda *_: None)


def _patch(untouched: Any) -> None:
    untouched.model.decoder.layers[0]._feed_forward = lambda hidden: hidden


def _meta(untouched: Any) -> None:
    untouched.model.decoder.embed_positions.to("meta")


def _subclass_of_tensor(untouched: Any) -> None:
    class Quantized(nn.Parameter):
        pass

    weight = untouched.model.decoder.layers[0].fc2.weight
    untouched.model.decoder.layers[0].fc2.weight = Quantized(weight.detach().clone())


def _grouped(untouched: Any) -> None:
    untouched.model.encoder.conv2 = nn.Conv1d(16, 16, 3, 2, 1, groups=4)


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "class": (_other, r"model.decoder.layers.1.fc1 is a \S+Linear$"),
    "hook": (_hook, "model.encoder.conv2 has forward hooks"),
    "method": (_patch, "model.decoder.layers.0 has its _feed_forward replaced"),
    "meta": (_meta, "model.decoder.embed_positions has a weight of type Parameter on meta"),
    "tensor": (_subclass_of_tensor, "layers.0.fc2 has a weight of type Quantized"),
    "convolution": (_grouped, "model.encoder.conv2 has another padding, dilation or number"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_named(untouched: Any, change: Callable[[Any], None], message: str) -> None:
    changed = copy.deepcopy(untouched)
    change(changed)
    found = first_changed(changed)
    assert found is not None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found)


def test_a_method_that_was_replaced_for_a_whole_class_is_named(
    untouched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Attention._attend
    monkeypatch.setattr(Attention, "_attend", lambda self, *inputs: original(self, *inputs))
    assert "Attention with a _attend of its own" in str(first_changed(untouched))
    monkeypatch.undo()
    monkeypatch.setattr(nn.Linear, "forward", lambda self, hidden: torch.zeros_like(hidden))
    assert "Linear with a forward of its own" in str(first_changed(untouched))


# One product sums in another order than three do.
TOLERANCE = 1e-5


@pytest.fixture(params=["whisper", "speech2text"])
def fusible(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "whisper":
        return small_whisper(tmp_path)
    tiny_speech2text(tmp_path, d_model=16, heads=2)
    return Speech2TextForConditionalGeneration.from_pretrained(tmp_path)


def encode(encoder: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 80, 40, generator=generator)
    with torch.inference_mode():
        if hasattr(encoder, "num_frames"):
            return encoder.encode(features)
        # The second row is padded, which no position may attend to.
        return encoder.encode(features.transpose(1, 2), num_frames=[40, 24])


def test_a_fused_encoder_gives_what_the_network_s_gives(fusible: Any) -> None:
    encoder = fusible.model.encoder
    expected = encode(encoder)
    before = {name: weight.clone() for name, weight in fusible.state_dict().items()}
    fused = fused_encoder(encoder)
    assert all(isinstance(block, FusedEncoderBlock) for block in fused.layers)
    for found in (encode(fused), encode(encoder)):
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    after = fusible.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_network_s_weights_are_the_fused_ones_and_can_be_trained_and_saved(
    fusible: Any, tmp_path: Path
) -> None:
    encoder = fusible.model.encoder
    with torch.inference_mode():  # in which a caller may be
        first, second = fused_encoder(encoder), fused_encoder(encoder)
    for block, ours, again in zip(encoder.layers, first.layers, second.layers, strict=True):
        attention = block.self_attn
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        whole = ours._weight.untyped_storage().data_ptr()
        assert again._weight.data_ptr() == ours._weight.data_ptr()
        assert {one.weight.untyped_storage().data_ptr() for one in maps} == {whole}
    fusible.save_pretrained(tmp_path / "saved")
    copied = type(fusible).from_pretrained(tmp_path / "saved").model.encoder
    assert torch.equal(encode(copied), encode(encoder))
    fusible.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    hidden = torch.randn(1, 5, 16, requires_grad=True)
    encoder.layers[0](hidden).square().sum().backward()
    optimizer.step()
    assert torch.equal(first.layers[0]._weight[:16], encoder.layers[0].self_attn.q_proj.weight)
    assert not torch.equal(
        encoder.layers[0].self_attn.q_proj.weight, copied.layers[0].self_attn.q_proj.weight
    )
