"""Positions, attention, blocks and caches against torch, transformers and whole sequences."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import whisper.model
from transformers.activations import ACT2FN
from transformers.models.whisper import modeling_whisper

from corpus_asr.families.layers.blocks import (
    EncoderBlock,
    activation,
    attend_cached,
)
from corpus_asr.families.layers.kv_cache import (
    DecoderCache,
    KeyValues,
    SlotCache,
    TokenView,
    from_float8,
    to_float8,
)
from corpus_asr.families.layers.stack import sinusoids
from corpus_asr.families.whisper.config import WhisperConfig


def test_positions_equal_both_references() -> None:
    for length, width in ((1500, 384), (7, 4), (1, 64)):
        found = sinusoids(length, width)
        assert torch.equal(found, modeling_whisper.sinusoids(length, width))
        torch.testing.assert_close(found, whisper.model.sinusoids(length, width))


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


def keys(batch: int = 2, tokens: int = 3, heads: int = 2) -> torch.Tensor:
    return torch.randn(batch, heads, tokens, 4)


def test_keys_grow_in_order() -> None:
    kept = KeyValues()
    assert kept.length == 0
    first, second = keys(), keys(tokens=1)
    kept.append(first, first)
    found, _ = kept.append(second, second)
    assert torch.equal(found, torch.cat([first, second], dim=2))
    assert kept.length == 4
    for other in (keys(batch=1), keys(heads=3)):
        with pytest.raises(ValueError, match="found keys of batch 2, 2 heads and head_dim 4"):
            kept.append(other, other)


def test_crop_counts_from_either_end() -> None:
    for crop, left in ((2, 2), (9, 3), (-1, 2), (-9, 0), (0, 0)):
        cache = DecoderCache(1)
        cache.layers[0].append(keys(), keys())
        cache.layers[0].cross.append(keys(tokens=9), keys(tokens=9))
        cache.crop(crop)
        assert [part.shape[2] for part in cache[0]] == [left, left, 9, 9]


def test_rows_of_a_cache_are_chosen_and_repeated() -> None:
    cache: Any = DecoderCache(1)
    first = keys()
    cache.layers[0].append(first, first)
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.self_attention_cache.layers[0].keys, first.repeat_interleave(2, dim=0))
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert torch.equal(cache.self_attention_cache.layers[0].keys, first.flip(0))


def new_cache(slots: int = 4, *, beams: int = 1) -> SlotCache:
    sizes: dict[str, Any] = {"layers": 2, "heads": 3, "head_dim": 5, "tokens": 7, "positions": 11}
    where: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    return SlotCache(slots=slots, beams=beams, **sizes, **where)


def filled_cache(*, beams: int = 1) -> SlotCache:
    cache = new_cache(beams=beams)
    for layer in cache.layers:
        for tensor in (layer.text, layer.cross_keys, layer.cross_values):
            tensor.copy_(torch.randn_like(tensor))
    return cache


def test_beams_reordered_again_and_again_hold_what_whole_copies_would() -> None:
    torch.manual_seed(0)
    cache = new_cache(6, beams=3)
    text = cache.layers[0].text
    whole = text.clone()
    for start in range(3):  # later texts in the same slots, the last one shorter
        new = torch.randn(2, 6, 3, 2, 5)
        text[:, :, :, :2] = whole[:, :, :, :2] = new
        cache.note_prompts(range(6), 2)
        for position in range(2, 7 - start):
            view = TokenView.at(range(6), torch.full((6, 1), position), max_positions=7)
            step = torch.randn(6, 1, 2, 3, 5)
            cache.layers[0].write(view, step)
            cache.note_tokens(view)
            whole[:, :, :, position] = step[:, 0].transpose(0, 1)
            sources = torch.cat([torch.randint(3, (3,)), torch.randint(3, 6, (3,))])
            cache.reorder(range(6), sources)
            whole = whole[:, sources]
            seen = slice(position + 1)
            assert torch.equal(text[:, :, :, seen], whole[:, :, :, seen])


def test_reordering_copies_no_more_than_what_differs() -> None:
    cache = filled_cache(beams=2)
    cache.note_prompts([0], 3)
    cache.reorder([1], torch.tensor([0]))
    view = TokenView.at([0, 1], torch.tensor([[3], [3]]), max_positions=7)
    cache.layers[0].write(view, torch.randn(2, 1, 2, 3, 5))
    cache.note_tokens(view)
    for layer in cache.layers:
        layer.text[:, 0, :, :3] = torch.nan
    cache.reorder([0, 1], torch.tensor([0, 0]))
    text = cache.layers[0].text
    assert torch.equal(text[:, 1, :, 3], text[:, 0, :, 3])
    assert text[:, 1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_8_bits_keep_three_digits_of_each_head_s_numbers(dtype: torch.dtype) -> None:
    given = torch.randn(2, 3, 50, 4, generator=torch.Generator().manual_seed(0))
    given[0, 1] *= 3000.0
    given[1, 2] = 0.0
    given = given.to(dtype)
    held, scales = to_float8(given)
    assert held.dtype == torch.uint8
    found = from_float8(held, scales, dtype)
    most = given.abs().amax(dim=(2, 3), keepdim=True)
    # Three bits behind the first, or for small numbers a fixed step.
    assert ((found - given).abs() <= given.abs() / 15 + most / 100_000).all()
    assert torch.equal(found[1, 2], given[1, 2])
    given[0, 0, 7, 1] = torch.nan
    assert from_float8(*to_float8(given), dtype).isnan().any()
