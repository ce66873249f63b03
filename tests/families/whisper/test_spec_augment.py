"""Masked features: the draws of transformers, and what every mask must be."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.modeling_whisper import _compute_mask_indices

from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.encoder import mask_features, mask_spans
from corpus_asr.families.whisper.model import WhisperModel


@given(
    rows=st.integers(1, 4),
    places=st.integers(1, 60),
    length=st.integers(1, 60),
    probability=st.floats(0.0, 1.0),
    min_spans=st.integers(0, 5),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_masks_are_those_of_transformers(
    rows: int,
    places: int,
    length: int,
    probability: float,
    min_spans: int,
    seed: int,
    data: st.DataObject,
) -> None:
    length = min(length, places)
    lengths = data.draw(
        st.none() | st.lists(st.integers(length, places), min_size=rows, max_size=rows)
    )
    mask: Any = None
    if lengths is not None:
        mask = (torch.arange(places) < torch.tensor(lengths)[:, None]).long()
    np.random.seed(seed)
    expected = _compute_mask_indices(
        (rows, places), probability, length, attention_mask=mask, min_masks=min_spans
    )
    next_draw = np.random.rand()
    np.random.seed(seed)
    found = mask_spans(
        (rows, places),
        probability=probability,
        length=length,
        min_spans=min_spans,
        lengths=lengths,
    )
    assert np.array_equal(found, expected)
    assert np.random.rand() == next_draw


def test_a_row_shorter_than_a_span_is_masked_in_its_padding_only() -> None:
    masked = mask_spans((2, 20), probability=0.5, length=5, min_spans=1, lengths=[3, 20])
    assert masked[0].nonzero()[0].tolist() == [19]
    for length in (0, 21):
        with pytest.raises(ValueError, match=f"spans of {length} in rows of 20, expected 1 to 20"):
            mask_spans((1, 20), probability=0.5, length=length, min_spans=1)


def augmenting(**settings: Any) -> WhisperConfig:
    return WhisperConfig(
        apply_spec_augment=True,
        d_model=12,
        encoder_layers=0,
        decoder_layers=0,
        vocab_size=9,
        pad_token_id=8,
        max_source_positions=50,
        **settings,
    )


def test_masked_features_are_zero_and_others_as_before() -> None:
    config = augmenting(mask_time_prob=0.2, mask_feature_prob=0.2, mask_feature_length=4)
    features = torch.rand(3, 80, 100) + 1.0
    before = features.clone()
    masked = mask_features(features, config)
    assert torch.equal(features, before)
    zero = masked == 0
    assert torch.equal(masked[~zero], before[~zero])
    rows, columns = zero.all(dim=2, keepdim=True), zero.all(dim=1, keepdim=True)
    assert torch.equal(zero, rows | columns)
    assert 0 < float(zero.float().mean()) < 0.7


def test_only_sound_is_masked_in_time() -> None:
    config = augmenting(mask_time_prob=0.9)
    mask = (torch.arange(100) < 40).long().expand(2, -1)
    masked = mask_features(torch.ones(2, 80, 100), config, mask)
    assert (masked[:, :, 40:] == 1).all()
    assert (masked[:, :, :40] == 0).any()
    with pytest.raises(ValueError, match=r"attention_mask of shape \(2, 40\), expected \(2, 100\)"):
        mask_features(torch.ones(2, 80, 100), config, mask[:, :40])


def test_features_are_masked_in_training_and_only_if_asked() -> None:
    model = WhisperModel(augmenting())
    features = torch.ones(1, 80, 100)
    assert (model._mask_input_features(features) == 0).any()
    assert model.eval()._mask_input_features(features) is features
    model.train().config.apply_spec_augment = False
    assert model._mask_input_features(features) is features
