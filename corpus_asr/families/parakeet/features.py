"""NeMo's log-mel features of one part of a recording, in two steps, without torch.

A CPU worker computes the logarithms of a whole part, which are sent as float16. When a window is
cut from it, each mel bin is normalized over that window, as the checkpoint's own extractor does.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from corpus_asr.array_types import Float16, Float32, Float64
from corpus_asr.families.model_config import CONFIG_NAME, MelBins, Probability
from corpus_asr.families.registry import SETTINGS_FILES, PartFeatures, check_computed
from corpus_asr.families.saved_files import checked, find_saved, read_json_object
from corpus_asr.features.mel import mel_filters
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ

POWER_GUARD = 2.0**-24
"""Added to mel power, so that silence has a finite logarithm: -16.6."""
LOG_OF_SILENCE = float(np.log(POWER_GUARD))
_DEVIATION_GUARD = 1e-5

# Frames per block: the work arrays (about 2 MB in float64) then stay in a core's cache.
_BLOCK_FRAMES = 256
# Logarithms of speech are about -16 to 2: subtracting the center halves the rounding error of
# float16.
OFFSET = np.float32(-8.0)


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
                f"transforms of {self.fft_samples}, one every {self.hop_samples}; expected an even "
                "transform, a window no longer, and one every 1 sample or more"
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


@dataclass(frozen=True, slots=True)
class _Encoder:
    num_mel_bins: MelBins = 80


@dataclass(frozen=True, slots=True)
class _Config:
    encoder_config: _Encoder


class ParakeetPartFeatures:
    """Computes a part's log-mel features, and cuts windows from them."""

    language_window_frames: ClassVar[int | None] = None
    """None: these checkpoints do not detect languages."""

    def __init__(self, *, num_mel_bins: int = 80, preemphasis: float = 0.97) -> None:
        self.num_mel_bins = num_mel_bins
        self.kind = f"nemo-{num_mel_bins}-{preemphasis:g}"
        self._analysis = NemoAnalysis(num_mel_bins=num_mel_bins, preemphasis=preemphasis)

    @classmethod
    def from_folder(cls, folder: Path) -> "ParakeetPartFeatures":
        """Read the feature settings of a checkpoint.

        Raises:
            CheckpointError: config.json or the extractor's settings are missing or unreadable, or
                require features that are not computed here.
        """
        path = folder / CONFIG_NAME
        content: _Config = checked(_Config, read_json_object(path), "", path=path)
        num_mel_bins = content.encoder_config.num_mel_bins
        path, settings = find_saved(folder, SETTINGS_FILES)
        computed = {
            "sampling_rate": SAMPLE_RATE_HZ,
            "feature_size": num_mel_bins,
            "hop_length": HOP_SAMPLES,
            "n_fft": 512,
            "win_length": 400,
        }
        settings = {"feature_size": 80, "preemphasis": 0.97} | settings
        check_computed(settings, computed, path=path, front_end="NeMo's log-mel of 16 kHz")
        preemphasis: float | None = checked(
            Probability | None, settings["preemphasis"], "preemphasis", path=path
        )
        return cls(num_mel_bins=num_mel_bins, preemphasis=preemphasis or 0.0)

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        """Compute the features of one part, one frame per whole hop."""
        # Before the conversion to float16, which is more precise near 0.
        values = log_mel(samples, self._analysis) - OFFSET
        return PartFeatures(
            values=values.astype(np.float16), pad_value=LOG_OF_SILENCE - float(OFFSET)
        )

    def window(
        self, features: Float16[np.ndarray, "frame mel"], start: int, end: int
    ) -> Float32[np.ndarray, "valid mel"]:
        """Cut the frames between two 10 ms hops, normalized over this window.

        Source: equal to `transformers.ParakeetFeatureExtractor` on the same samples within 0.01,
        except for the first and last frame, which include audio around the window, and for a single
        frame, where that divides by zero.
        """
        # The mean includes the offset.
        return normalized(features[start:end].astype(np.float32))

    def loudness(self, features: Float16[np.ndarray, "frame mel"]) -> Float32[np.ndarray, " frame"]:
        """Return the mean of each frame's logarithms."""
        means: Float32[np.ndarray, " frame"] = features.mean(axis=1, dtype=np.float32)
        return means
