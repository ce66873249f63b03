"""Attention against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from corpus_asr.families.layers.attention import Attention, attend_cached, merge_heads, split_heads

TOLERANCE = 1e-6


def test_splitting_and_merging_heads_are_inverse() -> None:
    hidden = torch.randn(2, 5, 12)
    split = split_heads(hidden, 3)
    assert split.shape == (2, 3, 5, 4)
    assert torch.equal(split[1, 2, 3], hidden[1, 3, 8:])
    assert torch.equal(merge_heads(split), hidden)


DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.bfloat16, 0.02)], ids=str
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


def test_causal_attention_does_not_look_ahead() -> None:
    attention = Attention(16, 2, key_bias=False)
    hidden = torch.randn(1, 6, 16)
    changed = hidden.clone()
    changed[:, 4:] = 9.0
    before, after = attention(hidden, causal=True), attention(changed, causal=True)
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_cross_attention_asks_the_context() -> None:
    attention = Attention(16, 2, key_bias=True)
    hidden, context = torch.randn(1, 3, 16), torch.randn(1, 9, 16)
    assert attention(hidden, context).shape == (1, 3, 16)
    # One position only: every token gets its value, whatever it asks.
    value = attention.out_proj(attention.v_proj(context[:, :1]))
    found = attention(hidden, context[:, :1])
    torch.testing.assert_close(found, value.expand(1, 3, 16), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_key_bias_exists_only_where_asked_for() -> None:
    assert "k_proj.bias" in Attention(8, 2, key_bias=True).state_dict()
    assert "k_proj.bias" not in Attention(8, 2, key_bias=False).state_dict()


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(ValueError, match="width 10: 3 heads do not divide it"):
        Attention(10, 3, key_bias=False)
