"""Whisper's log-mel features, from power spectra computed in blocks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from corpus_asr.array_types import Float, Float32, Float64
from corpus_asr.units import FFT_SAMPLES, HOP_SAMPLES, MOST_MEL_BINS, SAMPLE_RATE_HZ

# Frames per block: the work arrays (about 1 MB) then stay in a core's second-level cache.
BLOCK_FRAMES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Framing and transform of samples."""

    fft_samples: int = FFT_SAMPLES
    hop_samples: int = HOP_SAMPLES
    sample_rate_hz: int = SAMPLE_RATE_HZ
    dither: float = 0.0
    """Standard deviation of the noise added to every frame, from numpy's global generator."""
    dtype: type[np.float32] | type[np.float64] = np.float32
    """Type of the computation: float64 takes twice the time for ten more digits."""

    def __post_init__(self) -> None:
        for name in ("fft_samples", "hop_samples", "sample_rate_hz"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"setting up a spectrum: found {name} {value}, expected 1 or more")
        if not self.dither >= 0.0:
            raise ValueError(
                f"setting up a spectrum: found dither {self.dither}, expected 0 (none) or more"
            )

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames: one per whole hop, without the last centered frame."""
        # With an odd transform, reflection does not reach the sample in its middle.
        return max(0, num_samples - self.fft_samples % 2) // self.hop_samples


WHISPER = Analysis()


@lru_cache(maxsize=8)
def hann(fft_samples: int) -> np.ndarray:
    """Return the periodic Hann window in float64, as torch.hann_window and transformers use it.

    Periodic means one full period in `fft_samples` points.
    """
    window: np.ndarray = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_samples) / fft_samples)
    window.setflags(write=False)
    return window


def power_spectra(
    samples: Float32[np.ndarray, " sample"], analysis: Analysis = WHISPER
) -> Iterator[Float[np.ndarray, "frame bin"]]:
    """Yield squared STFT magnitudes in blocks of at most `BLOCK_FRAMES` frames.

    Frame k is centered on sample `k * hop_samples`; the array is reflected at both ends. Memory
    beyond `samples` does not depend on their number.

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
    reach_samples = analysis.fft_samples // 2  # of a frame before its center
    for first in range(0, frames, BLOCK_FRAMES):
        last = min(first + BLOCK_FRAMES, frames) - 1
        start = first * analysis.hop_samples - reach_samples
        stop = last * analysis.hop_samples - reach_samples + analysis.fft_samples
        block = _mirrored(samples, start, stop).astype(analysis.dtype, copy=False)
        cut = np.lib.stride_tricks.sliding_window_view(block, analysis.fft_samples)
        windows = cut[:: analysis.hop_samples]  # (frame, sample)
        if analysis.dither:
            windows = windows + _noise(len(windows), analysis)
        # rfft keeps float32 (numpy >= 2): half the time of float64, and 1e-7 is precise enough.
        spectra = np.fft.rfft(windows * window, axis=-1)  # (frame, bin)
        yield spectra.real**2 + spectra.imag**2
    if analysis.dither:
        # The dropped frame draws noise too, so that a seed gives the same noise for the next array
        # as in transformers.
        _noise(1, analysis)


def _noise(frames: int, analysis: Analysis) -> Float[np.ndarray, "frame sample"]:
    noise = analysis.dither * np.random.randn(frames, analysis.fft_samples)
    return noise.astype(analysis.dtype, copy=False)


def _mirrored(
    samples: Float32[np.ndarray, " sample"], start: int, stop: int
) -> Float32[np.ndarray, " seen"]:
    if start >= 0 and stop <= samples.size:
        return samples[start:stop]
    # Repeated if the array is shorter than half a transform.
    period = max(1, 2 * (samples.size - 1))
    places = np.abs(np.arange(start, stop)) % period
    seen: Float32[np.ndarray, " seen"] = samples[np.minimum(places, period - places)]
    return seen


# Slaney's mel scale: linear to 1 kHz, then 27 steps per factor of 6.4.
LINEAR_HZ_PER_MEL = 200 / 3
LOG_START_HZ = 1000.0
LOG_START_MEL = LOG_START_HZ / LINEAR_HZ_PER_MEL  # 15
MELS_PER_LOG_HZ = 27 / math.log(6.4)
TOP_HZ = 8000.0  # of the highest filter, at any sample rate
TOP_MEL = LOG_START_MEL + MELS_PER_LOG_HZ * math.log(TOP_HZ / LOG_START_HZ)

POWER_FLOOR = 1e-10
LOG10_FLOOR = -10.0  # log10(POWER_FLOOR)
DYNAMIC_RANGE = 8.0  # decades kept below the maximum: 80 dB
LOG10_E = 1 / math.log(10)
# Whisper's scale: log10 of power from -10 to 4 becomes -1.5 to 2.
OFFSET = SCALE = 4.0


def mel_to_hz(mel: Float64[np.ndarray, " mel"]) -> Float64[np.ndarray, " mel"]:
    """Convert Slaney mels to Hz.

    Source: Slaney 1998, Auditory Toolbox 2; `transformers/audio_utils.py` mel_to_hertz.
    """
    linear = mel * LINEAR_HZ_PER_MEL
    logarithmic = LOG_START_HZ * np.exp((mel - LOG_START_MEL) / MELS_PER_LOG_HZ)
    hz: Float64[np.ndarray, " mel"] = np.where(mel < LOG_START_MEL, linear, logarithmic)
    return hz


@lru_cache(maxsize=8)
def mel_filters(
    num_mel_bins: int, *, fft_samples: int = FFT_SAMPLES, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Float32[np.ndarray, "mel bin"]:
    """Return the weights that sum power spectra into mel bins (shared, read-only).

    Triangles evenly spaced in mels from 0 Hz to `TOP_HZ`, each of unit area.

    Source: Slaney 1998; equal to `transformers.audio_utils.mel_filter_bank(norm="slaney",
    mel_scale="slaney")` and to openai-whisper's `mel_filters.npz` within 1e-7.
    """
    if not 1 <= num_mel_bins <= MOST_MEL_BINS:
        raise ValueError(
            f"building mel filters: found {num_mel_bins} bins, expected 1 to {MOST_MEL_BINS}"
        )
    corners_hz = mel_to_hz(np.linspace(0.0, TOP_MEL, num_mel_bins + 2))
    bins_hz = np.linspace(0.0, sample_rate_hz // 2, fft_samples // 2 + 1)
    lower, centre, upper = (corners_hz[k : k + num_mel_bins, None] for k in range(3))
    rising = (bins_hz - lower) / (centre - lower)
    falling = (upper - bins_hz) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))  # (mel, bin)
    filters: Float32[np.ndarray, "mel bin"] = (triangles * (2.0 / (upper - lower))).astype(
        np.float32
    )
    filters.setflags(write=False)
    return filters


def log10_mel(
    samples: Float32[np.ndarray, " sample"], *, num_mel_bins: int, analysis: Analysis = WHISPER
) -> Float32[np.ndarray, "frame mel"]:
    """Compute log10 mel power, at least `LOG10_FLOOR`, per frame.

    Memory beyond the result is that of one block of frames.
    """
    filters = mel_filters(
        num_mel_bins, fft_samples=analysis.fft_samples, sample_rate_hz=analysis.sample_rate_hz
    )
    weights = filters.T.astype(analysis.dtype, copy=False)  # (bin, mel)
    result = np.empty((analysis.num_frames(samples.size), num_mel_bins), dtype=np.float32)
    first = 0
    for power in power_spectra(samples, analysis):
        energy = np.maximum(power @ weights, POWER_FLOOR)  # (frame, mel)
        # numpy's natural logarithm takes a third of log10's time and is equal within 1e-6.
        np.multiply(np.log(energy, out=energy), LOG10_E, out=result[first : first + len(power)])
        first += len(power)
    return result


def scale_log10_mel(values: Float32[np.ndarray, "frame mel"]) -> float:
    """Scale log10 mel power in place to Whisper's range; return the scaled value of silence.

    Source: Radford et al. 2022, section 2.2; `whisper/audio.py` log_mel_spectrogram.
    """
    peak = float(values.max())
    np.maximum(values, np.float32(peak - DYNAMIC_RANGE), out=values)
    values += np.float32(OFFSET)
    values /= np.float32(SCALE)
    return (max(LOG10_FLOOR, peak - DYNAMIC_RANGE) + OFFSET) / SCALE


def log_mel(
    samples: Float32[np.ndarray, " sample"], *, num_mel_bins: int, analysis: Analysis = WHISPER
) -> Float32[np.ndarray, "mel frame"]:
    """Compute Whisper's log-mel features of mono samples in [-1, 1], reflected at both ends.

    `num_mel_bins` is 80, or 128 for large-v3; the default `analysis` is that of Whisper's training.

    Source: Radford et al. 2022, section 2.2. Equal to openai-whisper's `log_mel_spectrogram` and to
    `transformers.WhisperFeatureExtractor` within 1e-4; in float64 to the latter within 1e-5.
    """
    values = log10_mel(samples, num_mel_bins=num_mel_bins, analysis=analysis)
    scale_log10_mel(values)
    return values.T
