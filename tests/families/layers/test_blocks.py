"""Positions, attention and blocks against torch, transformers and whole sequences."""

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


NEAR = 1e-6
SMALL = WhisperConfig(
    d_model=32,
    encoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_attention_heads=4,
    decoder_ffn_dim=48,
)
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, NEAR), (torch.bfloat16, 0.02)], ids=str
)


@DTYPES
@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_cached_keys_are_attended_as_torch_does(
    tokens: int, dtype: torch.dtype, tolerance: float
) -> None:
    query = torch.randn(2, 3, tokens, 8).to(dtype)
    key, value = torch.randn(2, 2, 3, 50, 8).to(dtype)
    found = attend_cached(query * 8**-0.5, key, value)
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


@DTYPES
def test_unseen_keys_do_not_matter_even_if_they_are_nan(
    dtype: torch.dtype, tolerance: float
) -> None:
    query = torch.randn(2, 3, 1, 8).to(dtype)
    key, value = torch.randn(2, 2, 3, 50, 8).to(dtype)
    unseen = (torch.arange(50) > torch.tensor([[9], [49]]))[:, None, None, :]
    key[0, :, 10:] = torch.nan
    found = attend_cached(query, key, value, unseen=unseen)
    expected = attend_cached(query[:1], key[:1, :, :10], value[:1, :, :10])
    torch.testing.assert_close(found[:1], expected, atol=tolerance, rtol=tolerance)
    assert found.isfinite().all()


def test_activations_are_those_of_transformers() -> None:
    hidden = torch.linspace(-6, 6, 200)
    for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish"):
        torch.testing.assert_close(activation(name)(hidden), ACT2FN[name](hidden))


def test_float16_states_stay_finite() -> None:
    block = EncoderBlock(SMALL, key_bias=False).half()
    hidden = torch.full((1, 2, 32), torch.finfo(torch.float16).max, dtype=torch.float16)
    with torch.inference_mode():
        block.fc2.bias.fill_(60000.0)
        assert block(hidden).isfinite().all()
