"""Positions, attention and blocks against torch, transformers and whole sequences."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import whisper.model
from transformers.activations import ACT2FN
from transformers.models.whisper import modeling_whisper

from corpus_asr.families.layers.blocks import (
    Attention,
    EncoderBlock,
    activation,
    attend_cached,
)
from corpus_asr.families.layers.stack import sinusoids
from corpus_asr.families.whisper.config import WhisperConfig


def test_positions_equal_both_references() -> None:
    for length, width in ((1500, 384), (7, 4), (1, 64)):
        found = sinusoids(length, width)
        assert torch.equal(found, modeling_whisper.sinusoids(length, width))
        torch.testing.assert_close(found, whisper.model.sinusoids(length, width))


def test_sizes_and_names_that_cannot_be_are_an_error() -> None:
    for width in (2, 5):
        with pytest.raises(ValueError, match="expected an even number above 2"):
            sinusoids(3, width)
    with pytest.raises(ValueError, match="width 10: 3 heads do not divide it"):
        Attention(10, 3, key_bias=False)
    with pytest.raises(ValueError, match="'gelo': not known; expected one of gelu, gelu_new"):
        activation("gelo")


TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 0.02}


def test_cached_keys_are_attended_as_torch_does() -> None:
    for (dtype, near), tokens in itertools.product(TOLERANCES.items(), (1, 4, 40)):
        query = torch.randn(2, 3, tokens, 8).to(dtype)
        key, value = torch.randn(2, 2, 3, 50, 8).to(dtype)
        attended = attend_cached(query * 8**-0.5, key, value)
        expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
        torch.testing.assert_close(attended.float(), expected, atol=near, rtol=near)


def test_unseen_keys_do_not_matter_even_if_they_are_nan() -> None:
    unseen = (torch.arange(50) > torch.tensor([[9], [49]]))[:, None, None, :]
    for dtype, near in TOLERANCES.items():
        query = torch.randn(2, 3, 1, 8).to(dtype)
        key, value = torch.randn(2, 2, 3, 50, 8).to(dtype)
        key[0, :, 10:] = torch.nan
        attended = attend_cached(query, key, value, unseen=unseen)
        expected = attend_cached(query[:1], key[:1, :, :10], value[:1, :, :10])
        torch.testing.assert_close(attended[:1], expected, atol=near, rtol=near)
        assert attended.isfinite().all()


def test_activations_are_those_of_transformers() -> None:
    hidden = torch.linspace(-6, 6, 200)
    for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish"):
        torch.testing.assert_close(activation(name)(hidden), ACT2FN[name](hidden))


def test_float16_states_stay_finite() -> None:
    small = WhisperConfig(d_model=32, encoder_attention_heads=2, decoder_attention_heads=4)
    block = EncoderBlock(small, key_bias=False).half()
    hidden = torch.full((1, 2, 32), torch.finfo(torch.float16).max, dtype=torch.float16)
    with torch.inference_mode():
        block.fc2.bias.fill_(60000.0)
        assert block(hidden).isfinite().all()
