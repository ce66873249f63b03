"""Kaldi's log mel filter bank, the features of Speech2Text."""

import math
from functools import lru_cache

import numpy as np

from corpus_asr.array_types import Float32, Float64
from corpus_asr.units import HOP_SAMPLES, MOST_MEL_BINS, SAMPLE_RATE_HZ

FRAME_SAMPLES = SAMPLE_RATE_HZ // 40  # 400: 25 ms
PADDED_SAMPLES = 512  # the next power of two: Kaldi zero-pads frames
FRAME_BINS = PADDED_SAMPLES // 2 + 1  # 257, from 0 Hz to 8 kHz

FULL_SCALE = 2**15  # Kaldi uses unscaled 16-bit samples
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
ENERGY_FLOOR = float(np.finfo(np.float32).eps)  # 1.19e-7

# Frames per block: the work arrays (about 2 MB in float64) then stay in a core's cache.
_BLOCK_FRAMES = 256


def num_frames(num_samples: int) -> int:
    """Return the number of frames that lie completely within an array."""
    return max(0, 1 + (num_samples - FRAME_SAMPLES) // HOP_SAMPLES)


@lru_cache(maxsize=1)
def povey_window() -> Float64[np.ndarray, " sample"]:
    """Return Kaldi's window: like Hann's raised to 0.85, zero at both ends (shared)."""
    window = np.power(np.hanning(FRAME_SAMPLES), 0.85)
    window.setflags(write=False)
    return window


@lru_cache(maxsize=8)
def kaldi_filters(
    num_mel_bins: int, *, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Float64[np.ndarray, "bin mel"]:
    """Return the weights that sum power spectra into mel bins (shared, read-only).

    Triangles of height 1, evenly spaced and linear in mels, from 20 Hz to half the sample rate.

    Source: Kaldi `feat/mel-computations.cc`; equal to `transformers.audio_utils.mel_filter_bank`
    with `mel_scale="kaldi"` and `triangularize_in_mel_space=True` within 1e-12.
    """
    if not 1 <= num_mel_bins <= MOST_MEL_BINS or sample_rate_hz // 2 <= LOWEST_HZ:
        raise ValueError(
            f"building mel filters: found {num_mel_bins} bins at {sample_rate_hz} Hz, expected 1 "
            f"to {MOST_MEL_BINS} bins and above {2 * LOWEST_HZ:.0f} Hz; correct the sizes"
        )
    corners = np.linspace(_mel(LOWEST_HZ), _mel(sample_rate_hz // 2), num_mel_bins + 2)
    bins = 1127.0 * np.log1p(np.arange(FRAME_BINS) * (sample_rate_hz / PADDED_SAMPLES) / 700.0)
    lower, centre, upper = (corners[k : k + num_mel_bins] for k in range(3))
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    filters: Float64[np.ndarray, "bin mel"] = np.maximum(0.0, np.minimum(rising, falling))
    filters.setflags(write=False)
    return filters


def _mel(hz: float) -> float:
    return 1127.0 * math.log1p(hz / 700.0)


def kaldi_fbank(
    samples: Float32[np.ndarray, " sample"],
    *,
    num_mel_bins: int = 80,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    dither: float = 0.0,
) -> Float32[np.ndarray, "frame mel"]:
    """Compute the natural logarithm of mel energy, at least that of `ENERGY_FLOOR`.

    Samples are mono in [-1, 1]; frames have 400 samples, 160 apart, at any sample rate. `dither`
    is the standard deviation, in 16-bit steps, of the noise added to every frame, from numpy's
    global generator. Memory beyond the samples and the result is that of one block of frames.

    Source: Kaldi `feat/feature-fbank.cc`; equal to `transformers.Speech2TextFeatureExtractor`
    without torchaudio (`transformers/audio_utils.py` spectrogram) within 1e-5.
    """
    frames = num_frames(samples.size)
    if frames == 0:
        raise ValueError(
            f"computing a filter bank: found {samples.size} samples, expected at least a frame of "
            f"{FRAME_SAMPLES}; pad the array with zeros"
        )
    if not dither >= 0.0:
        raise ValueError(f"computing a filter bank: found dither {dither}, expected 0 or more")
    weights = kaldi_filters(num_mel_bins, sample_rate_hz=sample_rate_hz).astype(np.float32)
    result = np.empty((frames, num_mel_bins), dtype=np.float32)
    padded = np.zeros((min(frames, _BLOCK_FRAMES), PADDED_SAMPLES))
    for first in range(0, frames, _BLOCK_FRAMES):
        rows = result[first : first + _BLOCK_FRAMES]
        seen = samples[first * HOP_SAMPLES :][: (len(rows) - 1) * HOP_SAMPLES + FRAME_SAMPLES]
        work = padded[: len(rows)]
        work[:, :FRAME_SAMPLES] = _conditioned(seen, dither)
        # In float32 the transform's rounding affects quiet bins next to loud ones (6e-3 in the
        # logarithm); sums of positive values and their logarithm are accurate.
        spectra = np.fft.rfft(work, axis=-1)  # (frame, bin)
        power = np.square(spectra.real) + np.square(spectra.imag)
        np.matmul(power.astype(np.float32), weights, out=rows)
        np.maximum(rows, np.float32(ENERGY_FLOOR), out=rows)
        np.log(rows, out=rows)
    return result


def _conditioned(
    seen: Float32[np.ndarray, " seen"], dither: float
) -> Float64[np.ndarray, "frame sample"]:
    # In Kaldi a frame's first sample also precedes it. Here it may be any value: the window
    # multiplies it by zero.
    scaled = seen.astype(np.float64) * FULL_SCALE
    frames = _framed(scaled)
    if dither:
        frames = frames + dither * np.random.randn(*frames.shape)  # each frame has its own noise
        raised = frames.copy()
        raised[:, 1:] -= PREEMPHASIS * frames[:, :-1]
    else:
        once = scaled.copy()  # not once per frame: each sample is in two or three of them
        once[1:] -= PREEMPHASIS * scaled[:-1]
        raised = _framed(once)
    # Value of a constant offset after pre-emphasis.
    offsets = (1 - PREEMPHASIS) * frames.mean(axis=1, keepdims=True)
    conditioned: Float64[np.ndarray, "frame sample"] = raised - offsets
    conditioned *= povey_window()
    return conditioned


def _framed(samples: Float64[np.ndarray, " seen"]) -> Float64[np.ndarray, "frame sample"]:
    return np.lib.stride_tricks.sliding_window_view(samples, FRAME_SAMPLES)[::HOP_SAMPLES]


def mean_variance_normalized(
    values: Float32[np.ndarray, "frame mel"], *, means: bool = True, variances: bool = True
) -> Float32[np.ndarray, "frame mel"]:
    """Normalize each mel bin to mean 0 and variance 1, over all frames.

    A constant bin, as in digital silence, becomes 0 where `transformers` divides by zero.

    Source: `transformers` Speech2TextFeatureExtractor.utterance_cmvn.
    """
    # Tested on the values: rounding of the mean leaves a small variance for constant bins.
    constant = values.max(axis=0) == values.min(axis=0)
    if means:
        values = values - values.mean(axis=0)
    if variances:
        values = values / np.where(constant, np.float32(1), values.std(axis=0))
    return values
