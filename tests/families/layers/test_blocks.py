"""Blocks: activations by transformers' names, float16 kept finite, caches as whole sequences."""

import pytest
import torch
from transformers.activations import ACT2FN

from corpus_asr.families.layers.blocks import (
    BlockSettings,
    DecoderBlock,
    EncoderBlock,
    activation,
)
from corpus_asr.families.layers.cached_decoder import CachedDecoderBlock
from corpus_asr.families.layers.kv_cache import SlotCache, StepView

TOLERANCE = 1e-5
NAMES = ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish"]


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_those_of_transformers(name: str) -> None:
    hidden = torch.linspace(-6, 6, 200)
    torch.testing.assert_close(activation(name)(hidden), ACT2FN[name](hidden))


def test_an_unknown_activation_is_an_error() -> None:
    with pytest.raises(ValueError, match="'gelo': not known; expected one of gelu, gelu_new"):
        activation("gelo")


def test_float16_states_stay_finite() -> None:
    block = EncoderBlock(BlockSettings(width=8, heads=2, ffn_dim=16, key_bias=False)).half()
    hidden = torch.full((1, 2, 8), torch.finfo(torch.float16).max, dtype=torch.float16)
    with torch.inference_mode():
        block.fc2.bias.fill_(60000.0)
        assert block(hidden).isfinite().all()


@pytest.mark.parametrize("key_bias", [False, True])
def test_a_cached_block_gives_what_the_block_gives(key_bias: bool) -> None:
    block = DecoderBlock(BlockSettings(width=32, heads=4, ffn_dim=48, key_bias=key_bias))
    cached = CachedDecoderBlock(block)
    cache = SlotCache(
        layers=1,
        slots=2,
        heads=4,
        head_dim=8,
        tokens=10,
        positions=20,
        dtype=torch.float32,
        device=torch.device("cpu"),
    ).layers[0]
    hidden, encoded = torch.randn(2, 10, 32), torch.randn(2, 20, 32)
    with torch.inference_mode():
        expected = block(hidden, encoded)
        cached.fill(cache, [0, 1], encoded)
        found = [cached.prefill(cache, [0, 1], hidden[:, :4])]
        for position in range(4, 10):
            view = StepView.at(torch.full((2,), position), max_positions=10)
            found.append(cached.step(cache, view, hidden[:, position : position + 1]))
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=TOLERANCE, rtol=TOLERANCE)
