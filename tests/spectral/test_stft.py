"""Blocks of power spectra against a plain float64 transform of the whole array."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.spectral.stft import (
    BLOCK_FRAMES,
    FFT_BINS,
    HANN,
    Analysis,
    num_frames,
    power_spectra,
)
from corpus_asr.units import FFT_SAMPLES, HOP_SAMPLES

# float32 transforms against float64: relative to the loudest bin of the array.
FLOAT32_TOLERANCE = 1e-5


def reference_power(samples: np.ndarray) -> np.ndarray:
    """One frame at a time in float64, from a mirrored copy of the whole array."""
    mirrored = np.pad(samples.astype(np.float64), FFT_SAMPLES // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)
    frames = [
        np.abs(np.fft.rfft(mirrored[k * HOP_SAMPLES : k * HOP_SAMPLES + FFT_SAMPLES] * window)) ** 2
        for k in range(samples.size // HOP_SAMPLES)
    ]
    return np.stack(frames)


@given(num_samples=st.integers(HOP_SAMPLES, 3 * BLOCK_FRAMES * HOP_SAMPLES), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_blocks_equal_the_whole_array_at_once(num_samples: int, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32)
    blocks = list(power_spectra(samples))
    assert all(len(block) <= BLOCK_FRAMES for block in blocks)
    power = np.concatenate(blocks)
    assert power.dtype == np.float32
    expected = reference_power(samples)
    assert power.shape == expected.shape == (num_frames(num_samples), FFT_BINS)
    assert np.abs(power - expected).max() <= FLOAT32_TOLERANCE * expected.max()


@pytest.mark.parametrize("num_samples", [160, 199, 200, 201, 399, 400, 401, 560, 40_960, 41_119])
def test_arrays_around_the_edges_of_frames_and_blocks(num_samples: int) -> None:
    samples = np.random.default_rng(1).standard_normal(num_samples).astype(np.float32)
    expected = reference_power(samples)
    power = np.concatenate(list(power_spectra(samples)))
    assert np.abs(power - expected).max() <= FLOAT32_TOLERANCE * expected.max()


def test_the_window_is_torchs_periodic_hann() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(HANN, torch.hann_window(FFT_SAMPLES).numpy(), atol=1e-6)


@pytest.mark.parametrize("num_samples", [0, 1, HOP_SAMPLES - 1])
def test_less_than_one_hop_is_refused(num_samples: int) -> None:
    with pytest.raises(ValueError, match=f"found {num_samples} samples, expected at least one hop"):
        next(power_spectra(np.zeros(num_samples, dtype=np.float32)))


@given(
    fft_samples=st.integers(1, 60),
    hop_samples=st.integers(1, 40),
    num_samples=st.integers(1, 9000),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
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
    power = np.concatenate(list(power_spectra(samples, analysis)))
    np.testing.assert_allclose(power, expected, atol=1e-12 * expected.max())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fft_samples": 0}, "fft_samples 0, expected 1 or more"),
        ({"hop_samples": -1}, "hop_samples -1"),
        ({"sample_rate_hz": 0}, "sample_rate_hz 0"),
        ({"dither": -0.1}, "dither -0.1, expected 0"),
        ({"dither": float("nan")}, "dither nan"),
    ],
)
def test_impossible_analyses_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Analysis(**settings)
