"""Sound quality of a part: level, noise, bandwidth and clipping per half second.

Measured once per part, on the samples from which features are computed (16 kHz mono). Values of a
segment or part are aggregated from its blocks.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from corpus_asr.array_types import Float, Float16, Float32, Int64
from corpus_asr.units import SAMPLE_RATE_HZ

# 32 ms: speech is stationary for this long, and a power of two. A block has 16 of them.
_FRAME = 512
_BLOCK = 16 * _FRAME
BLOCK_S = _BLOCK / SAMPLE_RATE_HZ
# Below 16-bit quantization noise: replaces digital silence.
_FLOOR_DBFS = -96.0
# Above any level; squares of much larger values would overflow float32.
_MOST = 1e4
# Noise is the quietest tenth of frames within about 20 s: between words, or in pauses.
_NOISE_BLOCKS, _NOISE_SHARE = 41, 10
# Bands of 250 Hz. One is used if it is at most this much below the part's strongest bands.
_BINS, _USED_DB = 8, 60.0
# Clipped waves stay within 2 % of the maximum for several consecutive samples, others for few.
_NEAR_PEAK, _RUN = 0.98, 3
_BAND_HZ = _BINS * SAMPLE_RATE_HZ / _FRAME
# One of four frames is used for the bands, with a window whose overlaps sum to constant power. This
# many samples are processed together: 2 MiB, which fit the cache.
_EVERY, _TOGETHER = 4, 64 * _BLOCK
_WINDOW = np.hanning(_FRAME).astype(np.float32)
_WINDOW /= np.sqrt(np.sum(_WINDOW**2) * _FRAME / 2)

_KEPT = 4


class SoundQuality:
    """The measure `sound`: power, noise, bandwidth and clipped samples per block of a part."""

    name: ClassVar[str] = "sound"
    columns: ClassVar[Sequence[str]] = ("level_dbfs", "snr_db", "bandwidth_hz", "clipped_share")

    def measure(
        self, samples: Float32[np.ndarray, " sample"], speech: object = None
    ) -> Float16[np.ndarray, "block kept"]:
        """Return level and noise in dBFS, number of used 250 Hz bands, and clipped fraction.

        Samples are between -1 and 1; NaN counts as silence.
        """
        if not len(samples):
            return np.empty((0, _KEPT), dtype=np.float16)
        if not np.isfinite(samples.sum()):
            samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
        if samples.max() > _MOST or samples.min() < -_MOST:
            samples = samples.clip(-_MOST, _MOST)
        whole, rest = divmod(len(samples), _BLOCK)
        groups = [
            samples[first : min(first + _TOGETHER, whole * _BLOCK)].reshape(-1, _BLOCK)
            for first in range(0, whole * _BLOCK, _TOGETHER)
        ]
        share = np.ones(whole + (rest > 0))
        if rest:
            # Padded with its last value: a step to zero would be a sound.
            last = np.full((1, _BLOCK), samples[-1], dtype=np.float32)
            last[0, :rest] = samples[-rest:]
            groups.append(last)
            share[-1] = rest / _BLOCK
        measured = [_measured(blocks) for blocks in groups]
        power, bands, loudest = (np.concatenate(arrays) for arrays in zip(*measured, strict=True))
        least = _NEAR_PEAK * min(float(loudest.max()), 1.0)
        clipped = np.zeros(len(share))
        for number in np.flatnonzero(loudest >= max(least, np.finfo(np.float32).tiny)):
            first = number * _BLOCK
            clipped[number] = _num_clipped(samples[first : first + _BLOCK], least)
        values = np.empty((len(share), _KEPT), dtype=np.float16)
        values[:, 0] = _db(power.reshape(len(share), -1).mean(axis=1) / share)
        values[:, 1] = _noise_db(power[: max(1, len(samples) // _FRAME)], len(share))
        values[:, 2] = _bands_used(bands)
        values[:, 3] = np.minimum(clipped / (_BLOCK * share), 1.0)
        values[values[:, 0] <= _FLOOR_DBFS, 3] = 0.0
        return values

    @staticmethod
    def over(
        values: Float16[np.ndarray, "block kept"],
        spans: Iterable[tuple[float, float]],
        *,
        start_s: float = 0.0,
    ) -> dict[str, float | None]:
        """Return the columns of spans in seconds from the part's start; None without any.

        `snr_db` compares the power above the noise with the noise; its minimum is -20 dB.
        """
        level, noise, bands, clipped = values.astype(np.float64).T
        weights = _seconds_in(spans, np.arange(len(values)) * BLOCK_S, BLOCK_S)
        if not weights.any():
            return dict.fromkeys(SoundQuality.columns)
        mean = np.average(10 ** (level / 10), weights=weights)
        quiet = np.average(10 ** (noise / 10), weights=weights)
        return {
            "level_dbfs": float(_db(mean)),
            "snr_db": float(10 * np.log10(max(mean - quiet, quiet / 100) / quiet)),
            "bandwidth_hz": float(bands[weights > 0].max()) * _BAND_HZ,
            "clipped_share": float(np.average(clipped, weights=weights)),
        }


def _seconds_in(
    spans: Iterable[tuple[float, float]], starts: np.ndarray, length_s: float
) -> np.ndarray:
    """Return the seconds of the spans within each window in `starts`."""
    seconds = np.zeros(len(starts))
    for start_s, end_s in spans:
        inside = np.minimum(end_s, starts + length_s) - np.maximum(start_s, starts)
        seconds += inside.clip(0.0)
    return seconds


def _db(power: np.ndarray | float) -> np.ndarray:
    decibels: np.ndarray = 10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DBFS / 10)))
    return decibels


# Of 32 bits; of 64 where numpy 1 makes spectra and percentiles.
def _noise_db(power: Float[np.ndarray, " frame"], blocks: int) -> Float[np.ndarray, " block"]:
    """Return the level of the quietest frames around each block.

    Source: Martin 2001, "Noise power spectral density estimation based on optimal smoothing and
    minimum statistics", here of the whole band.
    """
    per_block = _BLOCK // _FRAME
    around = min(_NOISE_BLOCKS, blocks)
    size = min(len(power), around * per_block)
    windows = sliding_window_view(power, size)[::per_block]
    quiet = _db(np.percentile(windows, _NOISE_SHARE, axis=1))
    # The first window also applies to the first half of its blocks, the last to the last half.
    places = (np.arange(blocks) - around // 2).clip(0, len(quiet) - 1)
    noise_db: np.ndarray = quiet[places]
    return noise_db


def _measured(blocks: Float32[np.ndarray, "block sample"]) -> tuple[np.ndarray, ...]:
    """Return the power of frames, the maximum power of blocks' bands, and the peak."""
    frames = blocks.reshape(-1, _FRAME)
    # Without its mean: a constant offset is not sound.
    power = np.einsum("ij,ij->i", frames, frames) / _FRAME - frames.mean(axis=1) ** 2
    spectra = np.fft.rfft(frames[_EVERY // 2 :: _EVERY] * _WINDOW, axis=1)[:, :-1]
    spectra[:, :2] = 0.0  # remainder of an offset
    bands = (spectra.real**2 + spectra.imag**2).reshape(len(spectra), -1, _BINS).sum(axis=2)
    strongest = bands.reshape(len(blocks), -1, bands.shape[1]).max(axis=1)
    return power, strongest, np.maximum(blocks.max(axis=1), -blocks.min(axis=1))


def _bands_used(strongest: Float[np.ndarray, "block band"]) -> Int64[np.ndarray, " block"]:
    """Return the number of bands used by each block, up to the highest; 0 in silence."""
    bands = _db(strongest)
    # Not relative to the loudest block, which may be a click.
    reference = np.percentile(bands.max(axis=1), 90)
    used = bands > max(reference - _USED_DB, _FLOOR_DBFS)
    top: np.ndarray = bands.shape[1] - np.argmax(used[:, ::-1], axis=1)
    return np.where(used.any(axis=1), top, 0)


def _num_clipped(samples: Float32[np.ndarray, " sample"], least: float) -> int:
    """Return the number of clipped samples: at least `least`, several consecutive ones."""
    places = np.flatnonzero(np.abs(samples) >= least)
    runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
    return sum(len(run) for run in runs if len(run) >= _RUN)
