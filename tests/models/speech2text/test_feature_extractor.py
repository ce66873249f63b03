"""Speech2TextFeatureExtractor against transformers' path without torchaudio."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.models.speech2text.processor import Speech2TextFeatureExtractor

# The oracle rounds spectra to complex64, and normalizing divides by deviations of about one.
TOLERANCE = 1e-4
RATE: dict[str, Any] = {"sampling_rate": 16_000}

DRAW = np.random.default_rng(0)
SHORT, LONG, MIDDLE = (
    (0.1 * DRAW.standard_normal(size)).astype(np.float32) for size in (6_000, 9_000, 7_321)
)


def agree(ours: Any, theirs: Any) -> None:
    """Check that two results hold the same names, lengths, types and values."""
    assert set(ours) == set(theirs)
    for name in theirs:
        assert len(ours[name]) == len(theirs[name])
        if isinstance(theirs[name], np.ndarray | torch.Tensor) and name == "attention_mask":
            assert ours[name].dtype == theirs[name].dtype
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, atol=TOLERANCE)


def both(settings: dict[str, Any], *args: Any, **options: Any) -> tuple[Any, Any]:
    found = []
    for extractor in (Speech2TextFeatureExtractor, transformers.Speech2TextFeatureExtractor):
        np.random.seed(5)  # of the dither
        found.append(extractor(**settings)(*args, **{**RATE, **options}))
    return found[0], found[1]


CALLS: list[dict[str, Any]] = [
    {},
    {"padding": True},
    {"padding": "longest", "return_tensors": "np"},
    {"padding": "longest", "pad_to_multiple_of": 16, "return_tensors": "pt"},
    {"padding": "max_length", "max_length": 60, "return_tensors": "np"},
    {"padding": "max_length", "max_length": 30, "truncation": True, "return_tensors": "np"},
    {"max_length": 31, "truncation": True, "pad_to_multiple_of": 8},
    {"padding": True, "max_length": 40, "truncation": True, "return_tensors": "pt"},
    {"padding": "do_not_pad", "return_attention_mask": False},
]


@pytest.mark.parametrize("options", CALLS)
def test_any_call_equals_transformers(options: dict[str, Any]) -> None:
    for speech in ([SHORT, LONG, MIDDLE], SHORT, SHORT.tolist(), LONG.astype(np.float64)):
        agree(*both({}, speech, **options))


SETTINGS: list[dict[str, Any]] = [
    {"num_mel_bins": 40, "feature_size": 40},
    {"padding_value": -3.5},
    {"dither": 3.0},
    {"do_ceptral_normalize": False, "padding_value": 1.0},
    {"normalize_means": False},
    {"normalize_vars": False},
    {"sampling_rate": 8_000},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_any_settings_equal_transformers(settings: dict[str, Any]) -> None:
    options = {"padding": True, "sampling_rate": settings.get("sampling_rate", 16_000)}
    agree(*both(settings, [SHORT, LONG], return_tensors="np", **options))


def test_silence_becomes_zeros_where_transformers_divides_by_zero() -> None:
    silence = np.zeros(16_000, dtype=np.float32)
    found = Speech2TextFeatureExtractor()(silence, return_tensors="np", **RATE)
    assert np.abs(found.input_features).max() < TOLERANCE
