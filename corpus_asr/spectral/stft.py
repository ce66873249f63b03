"""Power spectra of overlapping frames, a block at a time.

In: samples, and an `Analysis` whose defaults are Whisper's (16 kHz, 25 ms frames 10 ms apart). Out:
blocks of squared magnitudes, `fft_samples // 2 + 1` bins per frame. Knows nothing of mel bins,
logarithms, windows of 30 s or models.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32

from corpus_asr.units import FFT_SAMPLES, HOP_SAMPLES, SAMPLE_RATE_HZ

FFT_BINS = FFT_SAMPLES // 2 + 1  # 201, from 0 Hz to 8 kHz

# Frames per block: the work arrays (about 1 MB) then stay in a core's second-level cache.
BLOCK_FRAMES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """How samples are cut into frames and transformed.

    Raises:
        ValueError: a size is less than one, or the dither is negative.
    """

    fft_samples: int = FFT_SAMPLES
    hop_samples: int = HOP_SAMPLES
    sample_rate_hz: int = SAMPLE_RATE_HZ
    dither: float = 0.0
    """Standard deviation of the noise added to every frame, from numpy's global generator."""
    dtype: type[np.float32] | type[np.float64] = np.float32
    """What is computed in: float64 takes twice the time for ten more digits."""

    def __post_init__(self) -> None:
        for name in ("fft_samples", "hop_samples", "sample_rate_hz"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"setting up a spectrum: found {name} {value}, expected 1 or more")
        if not self.dither >= 0.0:
            raise ValueError(
                f"setting up a spectrum: found dither {self.dither}, expected 0 (none) or more"
            )

    @property
    def reach_samples(self) -> int:
        """How far a frame sees before its centre."""
        return self.fft_samples // 2

    def num_frames(self, num_samples: int) -> int:
        """Count the frames of an array: one per whole hop, the last centred frame left out."""
        # An odd transform is not mirrored far enough for the sample in its middle.
        return max(0, num_samples - self.fft_samples % 2) // self.hop_samples


WHISPER = Analysis()


@lru_cache(maxsize=8)
def hann(fft_samples: int) -> np.ndarray:
    """Return the periodic Hann window in float64, as torch.hann_window and transformers use it.

    Periodic is one full period in `fft_samples` points.
    """
    window: np.ndarray = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_samples) / fft_samples)
    window.setflags(write=False)
    return window


# The formula is needed in float64; rounding the result once costs 6e-8.
HANN = hann(FFT_SAMPLES).astype(np.float32)


def num_frames(num_samples: int) -> int:
    """Count the frames of an array as Whisper cuts it."""
    return WHISPER.num_frames(num_samples)


def power_spectra(
    samples: Float32[np.ndarray, " sample"], analysis: Analysis = WHISPER
) -> Iterator[Float[np.ndarray, "frame bin"]]:
    """Yield squared STFT magnitudes in blocks of at most `BLOCK_FRAMES` frames.

    Frame k is centred on sample `k * hop_samples`; the array is mirrored at both ends. Memory
    beyond `samples` does not depend on their number.

    Raises:
        ValueError: `samples` is shorter than one hop, so that there is no frame.

    Source: `whisper/audio.py` log_mel_spectrogram (torch.stft with center=True, last frame
    dropped); the dither as in `transformers/audio_utils.py` spectrogram, frame by frame.
    """
    frames = analysis.num_frames(samples.size)
    if frames == 0:
        raise ValueError(
            f"computing power spectra: found {samples.size} samples, expected at least one hop of "
            f"{analysis.hop_samples}; pad the array with zeros"
        )
    window = hann(analysis.fft_samples).astype(analysis.dtype)
    for first in range(0, frames, BLOCK_FRAMES):
        end = min(first + BLOCK_FRAMES, frames)
        stretch = _stretch(samples, first, end, analysis).astype(analysis.dtype, copy=False)
        cut = np.lib.stride_tricks.sliding_window_view(stretch, analysis.fft_samples)
        windows = cut[:: analysis.hop_samples]  # (frame, sample)
        if analysis.dither:
            windows = windows + _noise(len(windows), analysis)
        # rfft keeps float32 (numpy >= 2): half the time of float64, and 1e-7 is precise enough.
        spectra = np.fft.rfft(windows * window, axis=-1)  # (frame, bin)
        yield spectra.real**2 + spectra.imag**2
    if analysis.dither:
        # The frame that is left out takes its share too, so that a seed means the same noise for
        # the next array as in transformers.
        _noise(1, analysis)


def _noise(frames: int, analysis: Analysis) -> Float[np.ndarray, "frame sample"]:
    noise = analysis.dither * np.random.randn(frames, analysis.fft_samples)
    return noise.astype(analysis.dtype, copy=False)


def _stretch(
    samples: Float32[np.ndarray, " sample"], first: int, end: int, analysis: Analysis
) -> Float32[np.ndarray, " seen"]:
    """Return the samples that frames `first` to `end - 1` see, mirrored past the array's ends."""
    hop, reach = analysis.hop_samples, analysis.reach_samples
    start = first * hop - reach
    stop = (end - 1) * hop - reach + analysis.fft_samples
    before, after = max(0, -start), max(0, stop - samples.size)
    if before == after == 0:
        return samples[start:stop]
    if samples.size <= analysis.fft_samples:  # may be mirrored more than once
        return np.pad(samples, reach, mode="reflect")[start + reach : stop + reach]
    # A mirror image needs what lies just inside the end: take that much more, then drop it again.
    inside_start = max(0, min(start, samples.size - after - 1))
    inside = samples[inside_start : max(stop, before + 1)]
    padded = np.pad(inside, (before, after), mode="reflect")
    offset = start + before - inside_start
    return padded[offset : offset + stop - start]
