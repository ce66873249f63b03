"""Acoustic fingerprints: 32 bits per eighth of a second, similar for copies of the same audio.

Based on Haitsma and Kalker, A Highly Robust Audio Fingerprinting System (ISMIR 2002): a bit is the
sign of the change over time of the difference between two adjacent bands. Here energies are
smoothed over a second, so that few words suffice: copies with offset frames, other encodings or
telephone bandwidth have mostly equal bits. 0 stands for silence and stationary sounds, which are
similar everywhere.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from corpus_asr.array_types import Float32, UInt32
from corpus_asr.units import FINGERPRINT_WORDS_PER_SECOND, SAMPLE_RATE_HZ

_FRAME, _HOP = 1_024, 500
_STEP = SAMPLE_RATE_HZ // FINGERPRINT_WORDS_PER_SECOND // _HOP  # frames between words
_SMOOTHED = 32  # frames, one second
_GAPS = (3, 6)  # words between which the change is measured
_BANDS = 17
_LOW_HZ, _HIGH_HZ = 300.0, 3_000.0  # telephone band
_FRAMES_AT_ONCE = 4_096
# Energy of samples between -1 and 1; 16-bit dithered silence has 1e-6.
_SILENCE = 1e-5
_BELOW_LOUD = 1e-4  # 40 dB
# Mean change of the logarithms; 0.1 in stationary noise, 1 in speech.
_UNCHANGED = 0.25


def _band_weights() -> Float32[np.ndarray, "bin band"]:
    hertz = np.fft.rfftfreq(_FRAME, 1 / SAMPLE_RATE_HZ)
    mels = np.log1p(hertz / 700)
    edges = np.linspace(np.log1p(_LOW_HZ / 700), np.log1p(_HIGH_HZ / 700), _BANDS + 1)
    band = np.digitize(mels, edges) - 1
    weights: np.ndarray = (band[:, None] == np.arange(_BANDS)).astype(np.float32)
    return weights


_WEIGHTS = _band_weights()
_WINDOW = np.hanning(_FRAME).astype(np.float32)
_WEIGHTS_OF_TIME = (np.hanning(_SMOOTHED + 2)[1:-1] / np.hanning(_SMOOTHED + 2).sum()).astype("f4")


def fingerprint(samples: Float32[np.ndarray, " sample"]) -> UInt32[np.ndarray, " word"]:
    """Return the words of 16 kHz audio; the first one covers its first `FINGERPRINT_SPAN_S`."""
    num_frames = (len(samples) - _FRAME) // _HOP + 1
    num_words = (num_frames - _SMOOTHED) // _STEP + 1 - max(_GAPS)
    if num_words < 1:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, _FRAME)[::_HOP]
    energies = np.empty((num_frames, _BANDS), np.float32)
    for first in range(0, num_frames, _FRAMES_AT_ONCE):
        block = slice(first, first + _FRAMES_AT_ONCE)
        spectrum = np.fft.rfft(frames[block] * _WINDOW, axis=1)
        energies[block] = (spectrum.real**2 + spectrum.imag**2) @ _WEIGHTS
    windows = np.lib.stride_tricks.sliding_window_view(energies, _SMOOTHED, axis=0)[::_STEP]
    smooth = windows @ _WEIGHTS_OF_TIME  # (word, band)
    loud = smooth.sum(axis=1)
    logs = np.log(smooth + 1e-9)
    differences = logs[:, :-1] - logs[:, 1:]
    last = differences[max(_GAPS) :]
    changes = np.concatenate(
        [last - differences[max(_GAPS) - gap : len(differences) - gap] for gap in _GAPS], axis=1
    )  # (word, bit)
    words = np.packbits(changes > 0, axis=1).view(">u4")[:, 0].astype(np.uint32)
    floor = max(_SILENCE * _FRAME, _BELOW_LOUD * float(np.quantile(loud, 0.9)))
    silent = loud[max(_GAPS) :] < floor
    words[silent | (np.abs(changes).mean(axis=1) < _UNCHANGED)] = 0
    return words


class Fingerprint:
    """The measure `fingerprint` of whole parts."""

    name: ClassVar[str] = "fingerprint"
    columns: ClassVar[Sequence[str]] = ("fingerprint",)

    def measure(
        self, samples: Float32[np.ndarray, " sample"], speech: object = None
    ) -> UInt32[np.ndarray, " word"]:
        """Return the words of a part."""
        return fingerprint(samples)

    @staticmethod
    def over(
        values: UInt32[np.ndarray, " word"], spans: object = (), *, start_s: float = 0.0
    ) -> Mapping[str, bytes]:
        """Return the words as bytes in little-endian order."""
        return {"fingerprint": values.astype("<u4").tobytes()}
