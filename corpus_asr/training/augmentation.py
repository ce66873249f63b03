"""Augmentation of samples at 16 kHz and of features; no word moves in time."""

import math
from collections.abc import Callable

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.audio.resample import band_limited
from corpus_asr.config.finetune import AugmentationSettings
from corpus_asr.families.whisper.encoder import mask_spans
from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]

# Ranges of the cutoff frequencies: telephones pass about 300 to 3,400 Hz.
_TELEPHONE_HZ = ((150.0, 400.0), (2_800.0, 4_000.0))
_MIN_LEVEL = 1e-5  # below 16-bit rounding: keeps ratios of levels finite
_MIN_TIME_MASKS = 2  # the default of transformers' mask_time_min_masks
# Synthetic notes, from a drum's beat to a held chord
_NOTE_S = (0.1, 2.0)
_OVERTONE_DECAY = (0.5, 6.0)  # exponent of 1/n; at 6 next to none are left: a whistle, a signal
_FADE_OUT_S = (0.1, 5.0)
_ATTACK_SAMPLES = 160  # 10 ms, so that notes begin without a click
_REST_PROBABILITY = 0.2
_STEADY_PROBABILITY = 0.5
_CHORD_PROBABILITY = 0.5


def change_samples(
    samples: Samples,
    settings: AugmentationSettings,
    draw: np.random.Generator,
    *,
    noise: Callable[[np.random.Generator], Samples],
) -> Samples:
    """Return samples as another room, microphone and distance would have them.

    `noise` draws as many samples; it is called only if noise is added, as drawing is slow.
    """
    if draw.random() < settings.reverb_probability:
        samples = reverberated(samples, draw, decay_s=float(draw.uniform(*settings.reverb_rt60_s)))
    if draw.random() < settings.noise_probability:
        snr_db = float(draw.uniform(*settings.noise_snr_db))
        samples = with_noise(samples, noise(draw), snr_db=snr_db)
    if draw.random() < settings.telephone_probability:
        samples = band_limited(samples, *(float(draw.uniform(*ends)) for ends in _TELEPHONE_HZ))
    gain = np.float32(10 ** (draw.uniform(*settings.gain_db) / 20))
    # Clipped as by a recorder.
    return np.clip(samples * gain, -1.0, 1.0)


def reverberated(samples: Samples, draw: np.random.Generator, *, decay_s: float) -> Samples:
    """Add a room's echoes: noise that decays by 60 dB in `decay_s` (Moorer 1979)."""
    count = round(decay_s * SAMPLE_RATE_HZ)
    decay = 10.0 ** (-3.0 * np.arange(count) / max(1, count))
    response = 0.05 * draw.standard_normal(count) * decay
    # The direct sound, before all echoes.
    response[0] = 1.0
    # Room for the tail, so that echoes of the end do not wrap around to the start.
    size = _fast_size(samples.size + count)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    reverberant = np.fft.irfft(spectrum, size)[: samples.size]
    # As loud as before: levels are what `gain_db` changes.
    gain = _level(samples) / max(_level(reverberant), _MIN_LEVEL)
    return (reverberant * gain).astype(np.float32)


def colored_noise(draw: np.random.Generator, count: int) -> Samples:
    """Draw noise whose power falls with frequency by a drawn slope: white, pink, brown."""
    slope = draw.uniform(0.0, 1.0)
    spectrum = np.fft.rfft(draw.standard_normal(count))
    # The constant part has no frequency to divide by.
    spectrum /= np.maximum(1.0, np.arange(spectrum.size)) ** slope
    return np.fft.irfft(spectrum, count).astype(np.float32)


def tones(draw: np.random.Generator, count: int) -> Samples:
    """Draw notes as instruments and signals make them: up to four at a time, with overtones.

    Half the time these are chords, whose notes begin and end together.
    """
    mixed = np.zeros(count, np.float32)
    chord = _notes(draw, count) if draw.random() < _CHORD_PROBABILITY else None
    for _ in range(int(draw.integers(1, 5))):
        loudness = 1.0 / np.arange(1, int(draw.integers(2, 8))) ** draw.uniform(*_OVERTONE_DECAY)
        for place in chord or _notes(draw, count):
            note = mixed[place]
            note += _note(draw, loudness, note.size)
    return mixed


def _notes(draw: np.random.Generator, count: int) -> list[slice]:
    """Draw where notes are that follow one another: of any length, or of one, like a beat's."""
    longest_s = float(draw.uniform(*_NOTE_S))
    shortest = 1.0 if draw.random() < _STEADY_PROBABILITY else 0.2
    places: list[slice] = []
    at = int(draw.integers(0, SAMPLE_RATE_HZ))
    while at < count:
        length = round(draw.uniform(shortest, 1.0) * longest_s * SAMPLE_RATE_HZ)
        places.append(slice(at, at + length))
        at += length + int(draw.random() < _REST_PROBABILITY) * length
    return places


def with_noise(samples: Samples, noise: Samples, *, snr_db: float) -> Samples:
    """Add noise that is `snr_db` weaker than the samples; digital silence gets next to none."""
    wanted = max(_level(samples), _MIN_LEVEL) * 10 ** (-snr_db / 20)
    return samples + noise * np.float32(wanted / max(_level(noise), _MIN_LEVEL))


def faster(samples: Samples, factor: float) -> Float32[np.ndarray, " played"]:
    """Play samples faster: shorter, and higher."""
    if factor == 1.0:
        return samples
    places = np.arange(0, samples.size - 1, factor)
    played: np.ndarray = np.interp(places, np.arange(samples.size), samples).astype(np.float32)
    return played


def mask(
    features: Float32[np.ndarray, "mel frame"],
    settings: AugmentationSettings,
    draw: np.random.Generator,
) -> None:
    """Set time spans and mel bands to zero in place, as transformers' SpecAugment does."""
    # Whisper's SpecAugment draws from numpy's older generators.
    older = np.random.RandomState(int(draw.integers(2**32)))
    for axis, probability, length, min_spans in (
        (features.T, settings.mask_time_prob, settings.mask_time_length, _MIN_TIME_MASKS),
        (features, settings.mask_feature_prob, settings.mask_feature_length, 0),
    ):
        if probability > 0:
            [masked] = mask_spans(
                (1, len(axis)),
                probability=probability,
                length=length,
                min_spans=min_spans,
                draw=older,
            )
            axis[masked] = 0.0


def _note(draw: np.random.Generator, loudness: np.ndarray, count: int) -> Samples:
    hz = 55.0 * 2.0 ** (draw.integers(0, 61) / 12)  # from A1 on, five octaves of half tones
    phase = np.arange(count) * (2 * np.pi * hz / SAMPLE_RATE_HZ)
    sound = np.zeros(count, np.float32)
    for n, amplitude in enumerate(loudness):
        sound += np.float32(amplitude) * np.sin((n + 1) * phase).astype(np.float32)
    fade_out = np.exp(-np.arange(count) / (draw.uniform(*_FADE_OUT_S) * SAMPLE_RATE_HZ))
    attack = np.minimum(1.0, np.arange(count) / _ATTACK_SAMPLES)
    return sound * (fade_out * attack).astype(np.float32)


def _fast_size(count: int) -> int:
    """Return the smallest size from `count` on whose transform is fast: its factors are 2, 3, 5."""
    sizes = [threes * fives for threes in (1, 3, 9, 27) for fives in (1, 5, 25, 125)]
    return min(odd << (max(1, math.ceil(count / odd)) - 1).bit_length() for odd in sizes)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
