"""Kaldi's filter bank against transformers' path without torchaudio."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Speech2TextFeatureExtractor
from transformers.audio_utils import mel_filter_bank, window_function

from corpus_asr.features.fbank import (
    ENERGY_FLOOR,
    kaldi_fbank,
    kaldi_filters,
    mean_variance_normalized,
    num_frames,
    povey_window,
)
from tests.support.audio import made_sounds, read_clip, read_manifest

# The oracle rounds spectra to complex64; ours sums powers in float32.
TOLERANCE = 1e-5
FILTER_TOLERANCE = 1e-12
# The mean of thousands of float32 values.
NORMALIZED_TOLERANCE = 1e-4


def reference(samples: np.ndarray, num_mel_bins: int = 80, dither: float = 0.0) -> np.ndarray:
    extractor = Speech2TextFeatureExtractor(num_mel_bins=num_mel_bins, dither=dither)
    assert hasattr(extractor, "mel_filters"), "with torchaudio the oracle is another"
    return extractor._extract_fbank_features(samples)


def test_filters_and_window_equal_transformers() -> None:
    for bins, rate_hz in ((80, 16_000), (40, 16_000), (24, 8_000), (1, 44_100)):
        theirs = mel_filter_bank(
            257, bins, 20, rate_hz // 2, rate_hz, mel_scale="kaldi", triangularize_in_mel_space=True
        )
        ours = kaldi_filters(bins, sample_rate_hz=rate_hz)
        assert np.abs(ours - theirs).max() < FILTER_TOLERANCE, (bins, rate_hz)
    assert np.array_equal(povey_window(), window_function(400, "povey", periodic=False))


def test_sounds_and_real_speech_equal_transformers(speech: Path) -> None:
    sounds = made_sounds(16_000)
    for clip in read_manifest(speech / "english_short")[::9]:
        sounds[clip["path"]] = read_clip(speech / "english_short" / clip["path"])
    for name, samples in sounds.items():
        for num_mel_bins in (80, 40):
            ours = kaldi_fbank(samples, num_mel_bins=num_mel_bins)
            theirs = reference(samples, num_mel_bins)
            assert ours.shape == theirs.shape, name
            assert np.abs(ours - theirs).max() < TOLERANCE, name


@pytest.mark.parametrize("num_samples", [400, 401, 559, 560, 561, 256 * 160 + 400, 256 * 160 + 399])
def test_frames_are_those_that_lie_within_the_samples(num_samples: int) -> None:
    samples = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32) / 8
    ours, theirs = kaldi_fbank(samples), reference(samples)
    assert len(ours) == len(theirs) == num_frames(num_samples)
    assert np.abs(ours - theirs).max() < TOLERANCE


def test_a_seed_means_the_same_dither_as_in_transformers() -> None:
    samples = np.zeros(300 * 160, dtype=np.float32)
    np.random.seed(3)
    ours = kaldi_fbank(samples, dither=2.0)
    np.random.seed(3)
    assert np.abs(ours - reference(samples, dither=2.0)).max() < TOLERANCE
    assert ours.std() > 0.1


def test_what_cannot_be_computed_is_a_value_error() -> None:
    cases: list[tuple[int, dict[str, Any], str]] = [
        (399, {}, "found 399 samples, expected at least a frame of 400"),
        (0, {}, "found 0 samples"),
        (400, {"num_mel_bins": 0}, "found 0 bins"),
        (400, {"sample_rate_hz": 30}, "at 30 Hz"),
        (400, {"dither": -1.0}, "found dither -1.0"),
    ]
    for num_samples, options, message in cases:
        with pytest.raises(ValueError, match=message):
            kaldi_fbank(np.zeros(num_samples, dtype=np.float32), **options)


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("variances", [True, False])
def test_normalizing_equals_transformers(means: bool, variances: bool) -> None:
    values = np.random.default_rng(1).standard_normal((3000, 80)).astype(np.float32) * 3 + 9
    ours = mean_variance_normalized(values, means=means, variances=variances)
    theirs = Speech2TextFeatureExtractor.utterance_cmvn(values, 3000, means, variances)
    assert np.abs(ours - theirs).max() < NORMALIZED_TOLERANCE
    assert ours.dtype == np.float32


def test_silence_is_the_floor_and_normalized_to_zero_not_to_nan() -> None:
    floor = np.float32(np.log(np.float32(ENERGY_FLOOR)))
    for frames in (1, 2, 2998):
        values = kaldi_fbank(np.zeros(240 + 160 * frames, dtype=np.float32))
        assert (values == floor).all()
        assert np.abs(mean_variance_normalized(values)).max() < NORMALIZED_TOLERANCE
