"""Padding features that are there already, against transformers' own."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.models.feature_extraction import PADDINGS, padding_word
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor


def assert_equal(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for name in theirs:
        assert type(ours[name]) is type(theirs[name])
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name])


def examples(lengths: list[int]) -> list[dict]:
    return [
        {"input_features": np.random.default_rng(n).random((n, 80)), "labels": n} for n in lengths
    ]


@pytest.mark.parametrize("return_tensors", ["np", "pt", None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "longest", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 12},
        {"padding": "max_length", "max_length": 6, "truncation": True, "pad_to_multiple_of": 4},
        {"return_attention_mask": True},
    ],
)
def test_padding_equals_transformers(options: dict, return_tensors: str | None) -> None:
    ours, theirs = WhisperFeatureExtractor(), transformers.WhisperFeatureExtractor()
    options["return_tensors"] = return_tensors
    assert_equal(*(it.pad(examples([5, 9, 3]), **options) for it in (ours, theirs)))


def test_masks_that_are_there_are_padded_too_and_tensors_stay_tensors() -> None:
    features = {
        "input_features": [torch.ones(3, 80), torch.ones(2, 80)],
        "attention_mask": [torch.tensor([1, 1, 0]), torch.tensor([0, 1])],
    }
    batch = WhisperFeatureExtractor().pad(features)
    assert batch.attention_mask.tolist() == [[1, 1, 0], [0, 1, 0]]
    assert isinstance(batch.input_features, torch.Tensor)
    assert batch.input_features[1, 2].tolist() == [0.0] * 80


def test_padding_nothing_gives_nothing() -> None:
    batch = WhisperFeatureExtractor().pad({"input_features": []}, return_attention_mask=True)
    assert batch == {"input_features": [], "attention_mask": []}


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({"labels": [1]}, {}, "found labels, expected input_features"),
        ({"input_features": [np.ones((2, 80))], "labels": [1, 2]}, {}, "as many of each name"),
        ({"input_features": [np.ones((2, 80))]}, {"padding": "max_length"}, "without max_length"),
        ({"input_features": [np.ones((2, 80))]}, {"truncation": True}, "without max_length"),
    ],
)
def test_padding_that_cannot_be_is_refused(features: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WhisperFeatureExtractor().pad(features, **options)


def test_words_for_padding_are_transformers_own_too() -> None:
    for word, meaning in PADDINGS.items():
        assert padding_word(word) == meaning
    assert padding_word(transformers.utils.generic.PaddingStrategy.MAX_LENGTH) == "max_length"
    for wrong in ("shortest", 1, None, ["longest"]):
        with pytest.raises(ValueError, match="expected True or 'longest'"):
            padding_word(wrong)
