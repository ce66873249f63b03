"""Augmentation: changed samples and features of the same text.

In: samples at 16 kHz, or features, and a generator of random numbers. Out: changed ones of the same
length. Knows no text; nothing here moves a word in time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from corpus_asr.audio.bands import band_limited
from corpus_asr.families.whisper.spec_augment import mask_spans
from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]

_TELEPHONE_HZ = ((150.0, 400.0), (2_800.0, 4_000.0))  # where the low and the high end may lie
_QUIETEST = 1e-5
_MIN_TIME_MASKS = 2  # the default of mask_time_min_masks
# Of drawn notes
_NOTE_S = (0.1, 2.0)
_OVERTONES_FALL = (0.5, 6.0)  # the last is next to none: a whistle, a signal
_FADING_S = (0.1, 5.0)
_RISING_SAMPLES = 160
_REST_SHARE = 0.2
_STEADY_SHARE = 0.5
_CHORDS_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How often what is done; shares are of windows."""

    noise_probability: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    reverb_probability: float = 0.0
    reverb_rt60_s: tuple[float, float] = (0.1, 0.6)
    """Until sound has decayed by 60 dB."""
    telephone_probability: float = 0.0
    gain_db: tuple[float, float] = (0.0, 0.0)
    mask_time_prob: float = 0.0
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10


def change_samples(
    samples: Samples,
    settings: Augmentation,
    draw: np.random.Generator,
    *,
    noise: Callable[[np.random.Generator], Samples],
) -> Samples:
    """Return samples as another room, microphone and distance would have them.

    Args:
        samples: of a window.
        settings: how often what is done.
        draw: all chance comes from it.
        noise: draws as many samples; called only if noise is added, as drawing is slow.
    """
    if draw.random() < settings.reverb_probability:
        samples = reverberated(samples, draw, decay_s=float(draw.uniform(*settings.reverb_rt60_s)))
    if draw.random() < settings.noise_probability:
        snr_db = float(draw.uniform(*settings.noise_snr_db))
        samples = with_noise(samples, noise(draw), snr_db=snr_db)
    if draw.random() < settings.telephone_probability:
        samples = band_limited(samples, *(float(draw.uniform(*ends)) for ends in _TELEPHONE_HZ))
    gain = np.float32(10 ** (draw.uniform(*settings.gain_db) / 20))
    return np.clip(samples * gain, -1.0, 1.0)


def reverberated(samples: Samples, draw: np.random.Generator, *, decay_s: float) -> Samples:
    """Add a room's echoes: noise that decays by 60 dB in `decay_s` (Moorer 1979)."""
    count = round(decay_s * SAMPLE_RATE_HZ)
    decay = 10.0 ** (-3.0 * np.arange(count) / max(1, count))
    response = 0.05 * draw.standard_normal(count) * decay
    response[0] = 1.0
    size = _fast_size(samples.size + count)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    heard = np.fft.irfft(spectrum, size)[: samples.size]
    return (heard * (_level(samples) / max(_level(heard), _QUIETEST))).astype(np.float32)


def coloured_noise(draw: np.random.Generator, count: int) -> Samples:
    """Draw noise whose power falls with frequency by a drawn slope: white, pink, brown."""
    slope = draw.uniform(0.0, 1.0)
    spectrum = np.fft.rfft(draw.standard_normal(count))
    spectrum /= np.maximum(1.0, np.arange(spectrum.size)) ** slope
    return np.fft.irfft(spectrum, count).astype(np.float32)


def tones(draw: np.random.Generator, count: int) -> Samples:
    """Draw notes as instruments and signals make them: up to four at a time, with overtones.

    Half the time these are chords, whose notes begin and end together.
    """
    heard = np.zeros(count, np.float32)
    together = _notes(draw, count) if draw.random() < _CHORDS_SHARE else None
    for _ in range(int(draw.integers(1, 5))):
        loudness = 1.0 / np.arange(1, int(draw.integers(2, 8))) ** draw.uniform(*_OVERTONES_FALL)
        for note in together or _notes(draw, count):
            here = heard[note]
            here += _note(draw, loudness, here.size)
    return heard


def _notes(draw: np.random.Generator, count: int) -> list[slice]:
    """Draw where notes are that follow one another: of any length, or of one, like a beat's."""
    longest_s = float(draw.uniform(*_NOTE_S))
    shortest = 1.0 if draw.random() < _STEADY_SHARE else 0.2
    found: list[slice] = []
    at = int(draw.integers(0, SAMPLE_RATE_HZ))
    while at < count:
        length = round(draw.uniform(shortest, 1.0) * longest_s * SAMPLE_RATE_HZ)
        found.append(slice(at, at + length))
        at += length + int(draw.random() < _REST_SHARE) * length
    return found


def with_noise(samples: Samples, noise: Samples, *, snr_db: float) -> Samples:
    """Add noise that is `snr_db` weaker than the samples; digital silence gets next to none."""
    wanted = max(_level(samples), _QUIETEST) * 10 ** (-snr_db / 20)
    return samples + noise * np.float32(wanted / max(_level(noise), _QUIETEST))


def faster(samples: Samples, factor: float) -> Float32[np.ndarray, " played"]:
    """Play samples faster: shorter, and higher."""
    if factor == 1.0:
        return samples
    places = np.arange(0, samples.size - 1, factor)
    played: np.ndarray = np.interp(places, np.arange(samples.size), samples).astype(np.float32)
    return played


def mask(
    features: Float32[np.ndarray, "mel frame"], settings: Augmentation, draw: np.random.Generator
) -> None:
    """Set time spans and mel bands to zero in place, as transformers' SpecAugment does."""
    # Whisper's SpecAugment draws from numpy's older generators.
    older = np.random.RandomState(int(draw.integers(2**32)))
    bins, frames = features.shape
    if settings.mask_time_prob > 0:
        [masked] = mask_spans(
            (1, frames),
            probability=settings.mask_time_prob,
            length=settings.mask_time_length,
            min_spans=_MIN_TIME_MASKS,
            draw=older,
        )
        features[:, masked] = 0.0
    if settings.mask_feature_prob > 0:
        [masked] = mask_spans(
            (1, bins),
            probability=settings.mask_feature_prob,
            length=settings.mask_feature_length,
            min_spans=0,
            draw=older,
        )
        features[masked] = 0.0


def _note(draw: np.random.Generator, loudness: np.ndarray, count: int) -> Samples:
    hz = 55.0 * 2.0 ** (draw.integers(0, 61) / 12)  # from A1 on, five octaves of half tones
    turns = np.arange(count) * (2 * np.pi * hz / SAMPLE_RATE_HZ)
    sound = np.zeros(count, np.float32)
    for n, part in enumerate(loudness):
        sound += np.float32(part) * np.sin((n + 1) * turns).astype(np.float32)
    fading = np.exp(-np.arange(count) / (draw.uniform(*_FADING_S) * SAMPLE_RATE_HZ))
    rising = np.minimum(1.0, np.arange(count) / _RISING_SAMPLES)
    return sound * (fading * rising).astype(np.float32)


def _fast_size(count: int) -> int:
    """Return the smallest size from `count` on whose transform is fast: its factors are 2, 3, 5."""
    sizes = [threes * fives for threes in (1, 3, 9, 27) for fives in (1, 5, 25, 125)]
    return min(odd << (max(1, math.ceil(count / odd)) - 1).bit_length() for odd in sizes)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
