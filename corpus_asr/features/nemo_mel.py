"""NeMo's log-mel features, used by Parakeet, and their normalization.

The logarithms of a recording and the normalization of a window are two steps: each window is
normalized separately.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from corpus_asr.array_types import Float32, Float64
from corpus_asr.features.mel import mel_filters
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ

POWER_GUARD = 2.0**-24
"""Added to mel power, so that silence has a finite logarithm: -16.6."""
LOG_OF_SILENCE = float(np.log(POWER_GUARD))
_DEVIATION_GUARD = 1e-5

# Frames per block: the work arrays (about 2 MB in float64) then stay in a core's cache.
_BLOCK_FRAMES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoAnalysis:
    """Framing and transform of samples at 16 kHz."""

    num_mel_bins: int = 80
    fft_samples: int = 512
    window_samples: int = 400
    hop_samples: int = HOP_SAMPLES
    preemphasis: float = 0.97
    """Fraction of a sample that is subtracted from the next one."""

    def __post_init__(self) -> None:
        fits = 1 <= self.window_samples <= self.fft_samples and self.hop_samples >= 1
        if not fits or self.fft_samples % 2:
            raise ValueError(
                f"setting up a spectrum: found a window of {self.window_samples} samples in "
                f"transforms of {self.fft_samples}, one every {self.hop_samples}, expected an "
                "even transform, a window no longer, and one every 1 sample or more"
            )

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a recording: one per whole hop."""
        return num_samples // self.hop_samples


@lru_cache(maxsize=8)
def _window(analysis: NemoAnalysis) -> Float64[np.ndarray, " sample"]:
    # Symmetric, and centered in its transform.
    num_before = (analysis.fft_samples - analysis.window_samples) // 2
    num_after = analysis.fft_samples - analysis.window_samples - num_before
    window = np.pad(np.hanning(analysis.window_samples), (num_before, num_after))
    window.setflags(write=False)
    return window


def log_mel(
    samples: Float32[np.ndarray, " sample"], analysis: NemoAnalysis
) -> Float32[np.ndarray, "frame mel"]:
    """Compute the natural logarithm of the mel power of mono samples in [-1, 1].

    Frame k is centered on sample `k * hop_samples`, with zeros before the first sample and after
    the last. Memory beyond the samples and the result is that of one block of frames.

    Source: NeMo's `FilterbankFeatures`; `transformers.ParakeetFeatureExtractor`.
    """
    frames = analysis.num_frames(samples.size)
    reach, hop = analysis.fft_samples // 2, analysis.hop_samples
    filters = mel_filters(
        analysis.num_mel_bins, fft_samples=analysis.fft_samples, sample_rate_hz=SAMPLE_RATE_HZ
    )
    weights, window = filters.T, _window(analysis)
    result = np.empty((frames, analysis.num_mel_bins), dtype=np.float32)
    for first in range(0, frames, _BLOCK_FRAMES):
        rows = result[first : first + _BLOCK_FRAMES]
        start = first * hop - reach
        block = _emphasized(samples, start, start + (len(rows) - 1) * hop + 2 * reach, analysis)
        cut = np.lib.stride_tricks.sliding_window_view(block, analysis.fft_samples)[::hop]
        # In float32 the transform's rounding affects quiet bins next to loud ones.
        spectra = np.fft.rfft(cut * window, axis=-1)  # (frame, bin)
        power = np.square(spectra.real) + np.square(spectra.imag)
        np.matmul(power.astype(np.float32), weights, out=rows)
        rows += np.float32(POWER_GUARD)
        np.log(rows, out=rows)
    return result


def _emphasized(
    samples: Float32[np.ndarray, " sample"], start: int, stop: int, analysis: NemoAnalysis
) -> Float64[np.ndarray, " seen"]:
    """Return samples `start` to `stop` after pre-emphasis, zero-padded."""
    seen = np.zeros(stop - start)
    first, last = max(0, start), min(stop, samples.size)
    inside = seen[first - start : last - start]
    inside[:] = samples[first:last]
    inside[1:] -= analysis.preemphasis * samples[first : last - 1]
    if first > 0:  # the very first sample has no predecessor
        inside[0] -= analysis.preemphasis * samples[first - 1]
    return seen


def normalized(values: Float32[np.ndarray, "frame mel"]) -> Float32[np.ndarray, "frame mel"]:
    """Normalize each mel bin to mean 0 and variance 1, over all frames.

    The variance is the sample variance: divided by the number of frames minus one. A single frame
    becomes zeros, as in NeMo, where transformers divides by zero.

    Source: NeMo's `normalize_batch`, of `per_feature`.
    """
    if not len(values):
        return values
    centered = values - values.mean(axis=0)
    squares = np.square(centered).sum(axis=0) / np.float32(max(1, len(values) - 1))
    scaled: Float32[np.ndarray, "frame mel"] = centered / (
        np.sqrt(squares) + np.float32(_DEVIATION_GUARD)
    )
    return scaled
