"""Kept keys and values: what is taken and what is refused. Their numbers: tests/parity."""

import pytest
import torch

from corpus_asr.families.layers.kv_cache import DecoderCache, KeyValues, taken


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


@pytest.mark.parametrize("other", [keys(batch=1), keys(heads=3)])
def test_keys_of_another_batch_or_model_are_an_error(other: torch.Tensor) -> None:
    kept = KeyValues()
    kept.append(keys(), keys())
    with pytest.raises(ValueError, match="found keys of batch 2, 2 heads and head_dim 4"):
        kept.append(other, other)


def test_an_empty_cache_holds_nothing() -> None:
    cache = DecoderCache(2)
    assert (len(cache), cache.get_seq_length(), list(cache)) == (2, 0, [(), ()])
    cache.crop(3)
    cache.reorder_cache(torch.tensor([0]))
    assert DecoderCache(0).get_seq_length() == 0


def test_old_tuples_come_back_as_they_were() -> None:
    old = tuple((keys(), keys(), keys(tokens=9), keys(tokens=9)) for _ in range(2))
    cache = DecoderCache.from_legacy_cache(old)
    assert cache.get_seq_length() == 3
    for found, expected in zip(cache.to_legacy_cache(), old, strict=True):
        assert all(a is b for a, b in zip(found, expected, strict=True))
    assert len(DecoderCache.from_legacy_cache([(keys(), keys())])[0]) == 2
    with pytest.raises(ValueError, match="found 3 tensors for a layer"):
        DecoderCache.from_legacy_cache([(keys(), keys(), keys())])


def test_crop_counts_from_either_end() -> None:
    for crop, left in ((2, 2), (9, 3), (-1, 2), (-9, 0), (0, 0)):
        cache = DecoderCache.from_legacy_cache([(keys(), keys(), keys(tokens=9), keys(tokens=9))])
        cache.crop(crop)
        assert [part.shape[2] for part in cache[0]] == [left, left, 9, 9]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (DecoderCache(3), "a DecoderCache of 3 layers"),
        ("past", "a str"),
        ([(keys(), keys())], "a DecoderCache of 1 layers"),
    ],
)
def test_what_the_model_did_not_return_is_an_error(given: object, found: str) -> None:
    with pytest.raises(ValueError, match=f"found {found}, expected what a model of 2 decoder"):
        taken(given, num_layers=2)
    assert taken(None, num_layers=2) is None
