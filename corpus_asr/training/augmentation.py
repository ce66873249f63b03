"""Samples and features made different, so that a model learns what does not change.

In: samples at 16 kHz, or features, and a generator of random numbers. Out: changed ones of the same
length. Knows no text; nothing here moves a word in time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from corpus_asr.audio.bands import band_limited
from corpus_asr.spectral.mel import TOP_HZ, TOP_MEL, hz_to_mel, mel_to_hz
from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]

_TELEPHONE_HZ = ((150.0, 400.0), (2_800.0, 4_000.0))  # where the low and the high end may lie
_FORMANTS_HZ = 4_800.0  # up to there all moves alike; above, to where it ends
_QUIETEST = 1e-5
_EQUALISER_BANDS = 7
_MOMENT_FRAMES = 4
_WANDERING_FRAMES = ((20, 60), (60, 200), (200, 800))
_ROUNDING = 1e-4
_FEATURE_DB = 40.0  # a step of 1 in features
_FAINTEST, _RANGE = -1.5, 2.0  # features of the faintest sound of all, and beside the loudest
_CUT_DB = (8.0, 24.0)
_SUPPRESSED_DB = (6.0, 40.0)
_SUPPRESSED_SHARE = 0.6
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

    noise_share: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    reverberation_share: float = 0.0
    reverberation_s: tuple[float, float] = (0.1, 0.6)
    """Until sound has decayed by 60 dB."""
    telephone_share: float = 0.0
    cut_close_share: float = 0.0
    """Of short recordings."""
    gain_db: tuple[float, float] = (0.0, 0.0)
    time_masks: int = 0
    time_mask_frames: int = 100
    mel_masks: int = 0
    mel_mask_bins: int = 10
    formants: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest factor of their frequencies."""
    formants_wander: float = 0.0
    """They move back and forth by this share of their frequencies, at most."""
    equaliser_db: float = 0.0
    """Bands are louder or fainter by so much, at most."""
    equaliser_wander_db: float = 0.0
    """Bands grow louder and fainter by so much, at most."""


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
        noise: draws as many samples; asked where they are heard, as drawing takes longest of all.
    """
    if draw.random() < settings.reverberation_share:
        samples = reverberated(
            samples, draw, decay_s=float(draw.uniform(*settings.reverberation_s))
        )
    if draw.random() < settings.noise_share:
        snr_db = float(draw.uniform(*settings.noise_snr_db))
        samples = with_noise(samples, noise(draw), snr_db=snr_db)
    if draw.random() < settings.telephone_share:
        samples = band_limited(samples, *(float(draw.uniform(*ends)) for ends in _TELEPHONE_HZ))
    gain = np.float32(10 ** (draw.uniform(*settings.gain_db) / 20))
    return np.clip(samples * gain, -1.0, 1.0)


def cut_close(samples: Samples, draw: np.random.Generator) -> Samples:
    """Return samples with faint ends or none, as where a program cut single words out.

    They stay where they are. An end is what is fainter than the loudest value by a drawn 8 to 24
    dB, which takes the hiss of `six` and spares its vowel. It is silent, or, as microphones that
    suppress noise have it, fainter than it was.
    """
    least = float(np.abs(samples).max(initial=0.0)) * 10 ** (-draw.uniform(*_CUT_DB) / 20)
    loud = np.flatnonzero(np.abs(samples) > least)
    kept = slice(int(loud[0]), int(loud[-1]) + 1) if loud.size else slice(0)
    left = 10 ** (-draw.uniform(*_SUPPRESSED_DB) / 20) if draw.random() < _SUPPRESSED_SHARE else 0.0
    found: np.ndarray = samples * np.float32(left)
    found[kept] = samples[kept]
    return found


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


def with_other_voice(
    features: Float32[np.ndarray, "mel frame"], settings: Augmentation, draw: np.random.Generator
) -> Float32[np.ndarray, "mel frame"]:
    """Change formants and bands as settings say, all through and from moment to moment.

    What moves from moment to moment is a speaker who says one sound more in front, and another
    further back, than those who were learnt from.
    """
    factor = np.float64(draw.uniform(*settings.formants))
    if settings.formants_wander:
        factor = factor * (1 + settings.formants_wander * _wandering(draw, features.shape[1], 1)[0])
    features = np.ascontiguousarray(with_formants(features, factor))
    return equalised(
        features, draw, most_db=settings.equaliser_db, wander_db=settings.equaliser_wander_db
    )


def with_formants(
    features: Float32[np.ndarray, "mel frame"], factor: float | Float[np.ndarray, " moment"]
) -> Float32[np.ndarray, "mel frame"]:
    """Move formants up by a factor, as a shorter vocal tract does; nothing moves in time.

    Source: Jaitly and Hinton 2013, equation 1, with interpolation between mel bins.

    Args:
        features: log-mel.
        factor: of all frames, or of every four that follow one another.
    """
    if np.ndim(factor) == 0 and factor == 1.0:
        return features
    count, num_frames = features.shape
    mel = np.linspace(0.0, TOP_MEL, count + 2)[1:-1]  # the middle of each filter
    heard_hz = mel_to_hz(mel)[:, None]
    factors = np.atleast_1d(factor)[None]
    bend_hz = _FORMANTS_HZ * np.minimum(factors, 1.0)
    slope = (TOP_HZ - bend_hz / factors) / (TOP_HZ - bend_hz)
    spoken_hz = np.where(
        heard_hz <= bend_hz, heard_hz / factors, TOP_HZ - slope * (TOP_HZ - heard_hz)
    )
    places = np.interp(hz_to_mel(spoken_hz), mel, np.arange(count))
    below = np.minimum(places.astype(np.int64), count - 2)
    share = (places - below).astype(np.float32)
    if np.ndim(factor):
        below, share = _each_frame(below, num_frames), _each_frame(share, num_frames)
    lower = np.take_along_axis(features, below, 0)
    moved: np.ndarray = lower + (np.take_along_axis(features, below + 1, 0) - lower) * share
    return moved


def equalised(
    features: Float32[np.ndarray, "mel frame"],
    draw: np.random.Generator,
    *,
    most_db: float,
    wander_db: float = 0.0,
) -> Float32[np.ndarray, "mel frame"]:
    """Make bands louder or fainter, as other voices and microphones have them.

    What is too faint for features stays so.

    Args:
        features: log-mel, as Whisper's.
        draw: of seven gains at equal distances in mel, with straight lines between.
        most_db: of each.
        wander_db: by so much each grows and shrinks, at most.
    """
    if most_db == wander_db == 0.0:
        return features
    count, num_frames = features.shape
    gains_db = draw.uniform(-most_db, most_db, (_EQUALISER_BANDS, 1))
    if wander_db:
        gains_db = gains_db + wander_db * _wandering(draw, num_frames, _EQUALISER_BANDS)
    places = np.linspace(0.0, _EQUALISER_BANDS - 1, count)[:, None]
    near = np.maximum(0.0, 1.0 - np.abs(places - np.arange(_EQUALISER_BANDS)))
    curve = (near @ gains_db / _FEATURE_DB).astype(np.float32)
    if wander_db:
        curve = _each_frame(curve, num_frames)
    told = features > _floor(features) + _ROUNDING
    changed = np.where(told, features + curve, np.float32(_FAINTEST))
    found: np.ndarray = np.maximum(changed, np.float32(_floor(changed)))
    return found


def _wandering(
    draw: np.random.Generator, num_frames: int, count: int
) -> Float[np.ndarray, "count moment"]:
    """Draw curves from -1 to 1 that turn within a syllable, a word and a sentence."""
    frames = np.arange(0, num_frames, _MOMENT_FRAMES)
    found = np.zeros((count, frames.size))
    for shortest, longest in _WANDERING_FRAMES:
        turns = 2 * np.pi / draw.uniform(shortest, longest, (count, 1))
        found += np.sin(turns * frames + draw.uniform(0, 2 * np.pi, (count, 1)))
    return found / len(_WANDERING_FRAMES)


def _each_frame(moments: np.ndarray, num_frames: int) -> np.ndarray:
    """Return what is told of moments, told of each of their frames."""
    return np.repeat(moments, _MOMENT_FRAMES, axis=1)[:, :num_frames]


def mask(
    features: Float32[np.ndarray, "mel frame"], settings: Augmentation, draw: np.random.Generator
) -> None:
    """Hide spans of time and bands of mel bins in place (Park et al. 2019, section 2)."""
    for axis, count, longest in (
        (1, settings.time_masks, settings.time_mask_frames),
        (0, settings.mel_masks, settings.mel_mask_bins),
    ):
        for _ in range(count):
            width = int(draw.integers(0, longest + 1))
            start = int(draw.integers(0, max(1, features.shape[axis] - width)))
            hidden = slice(start, start + width)
            features[(slice(None), hidden) if axis else hidden] = 0.0


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


def _floor(features: np.ndarray) -> float:
    """Return the feature of all that is too faint to be told."""
    return max(float(features.max()) - _RANGE, _FAINTEST)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
