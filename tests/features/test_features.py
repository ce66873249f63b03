"""Filters and features of both families against transformers and openai-whisper."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.features.fbank import (
    ENERGY_FLOOR,
    kaldi_fbank,
    mean_variance_normalized,
)
from corpus_asr.features.mel import (
    BLOCK_FRAMES,
    Analysis,
    log_mel,
    mel_filters,
    power_spectra,
)
from corpus_asr.units import HOP_SAMPLES, MEBIBYTE, SAMPLE_RATE_HZ


def test_no_bins_less_than_one_hop_and_writing_are_refused() -> None:
    with pytest.raises(ValueError, match="read-only"):
        mel_filters(80)[0, 0] = 1.0
    for num_mel_bins in (0, -1):
        with pytest.raises(ValueError, match=f"found {num_mel_bins} bins"):
            mel_filters(num_mel_bins)
    for num_samples in (0, 1, HOP_SAMPLES - 1):
        with pytest.raises(ValueError, match=f"found {num_samples} samples, expected at least one"):
            next(power_spectra(np.zeros(num_samples, dtype=np.float32)))


def test_ten_minutes_need_little_more_memory_than_their_features() -> None:
    samples = np.zeros(600 * SAMPLE_RATE_HZ, dtype=np.float32)
    tracemalloc.start()
    features = log_mel(samples, num_mel_bins=80)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes - features.nbytes < 8 * MEBIBYTE


@given(
    fft_samples=st.integers(1, 60),
    hop_samples=st.integers(1, 40),
    num_samples=st.integers(1, 9000),
    seed=st.integers(0, 9),
)
def test_any_sizes_equal_the_whole_array_at_once(
    fft_samples: int, hop_samples: int, num_samples: int, seed: int
) -> None:
    analysis = Analysis(fft_samples=fft_samples, hop_samples=hop_samples, dtype=np.float64)
    samples = np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32)
    mirrored = np.pad(samples, fft_samples // 2, mode="reflect").astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_samples) / fft_samples)
    starts = range(0, mirrored.size - fft_samples + 1, hop_samples)[:-1]
    assert analysis.num_frames(num_samples) == len(starts)
    if not starts:
        with pytest.raises(ValueError, match="expected at least one hop"):
            next(power_spectra(samples, analysis))
        return
    cut = np.stack([mirrored[start : start + fft_samples] for start in starts])
    expected = np.abs(np.fft.rfft(cut * window, axis=-1)) ** 2
    blocks = list(power_spectra(samples, analysis))
    assert all(len(block) <= BLOCK_FRAMES for block in blocks)
    power = np.concatenate(blocks)
    np.testing.assert_allclose(power, expected, atol=1e-12 * expected.max())


def test_impossible_analyses_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"fft_samples": 0}, "fft_samples 0, expected 1 or more"),
        ({"hop_samples": -1}, "hop_samples -1"),
        ({"sample_rate_hz": 0}, "sample_rate_hz 0"),
        ({"dither": -0.1}, "dither -0.1, expected 0"),
        ({"dither": float("nan")}, "dither nan"),
    ]
    for settings_given, message in wrong:
        with pytest.raises(ValueError, match=message):
            Analysis(**settings_given)


# The mean of thousands of float32 values.
NORMALIZED_TOLERANCE = 1e-4


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


def test_silence_is_the_floor_and_normalized_to_zero_not_to_nan() -> None:
    floor = np.float32(np.log(np.float32(ENERGY_FLOOR)))
    for frames in (1, 2, 2998):
        values = kaldi_fbank(np.zeros(240 + 160 * frames, dtype=np.float32))
        assert (values == floor).all()
        assert np.abs(mean_variance_normalized(values)).max() < NORMALIZED_TOLERANCE
