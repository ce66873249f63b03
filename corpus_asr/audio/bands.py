"""Bands of frequencies of samples that are whole in memory."""

import numpy as np
from jaxtyping import Float32

from corpus_asr.units import SAMPLE_RATE_HZ

_ROLL_OFF_HZ = 100.0


def band_limited(
    samples: Float32[np.ndarray, " sample"], low_hz: float, high_hz: float
) -> Float32[np.ndarray, " sample"]:
    """Take away what lies outside a band; within 100 Hz inside its ends it fades.

    Args:
        samples: one at least.
        low_hz: where the band begins; 0 takes nothing away there.
        high_hz: where it ends.
    """
    spectrum = np.fft.rfft(samples)
    frequency = np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE_HZ)
    below = np.clip((frequency - low_hz) / _ROLL_OFF_HZ, 0, 1) if low_hz else 1.0
    above = np.clip((high_hz - frequency) / _ROLL_OFF_HZ, 0, 1)
    return np.fft.irfft(spectrum * below * above, samples.size).astype(np.float32)
