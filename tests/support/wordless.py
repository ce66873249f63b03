"""Sounds without a word, of any length and always the same, and speech alone in noise.

Levels are RMS in dB below full scale (a square wave of amplitude 1 has 0 dBFS).
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Float64

from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]
NOISE_DBFS = -30.0
MUSIC_DBFS = -20.0
MURMUR_DBFS = -40.0
SPEECH_DBFS = -20.0
AROUND_SPEECH_DBFS = -45.0

_VOICES = 24
_REVERBERATION_S = 1.2  # as in a large hall
_NOTE_S = 0.5
_TONE_S = 2.0


def wordless_sounds(seconds: float) -> dict[str, Samples]:
    """Return seven sounds without speech by name; `murmur`, the eighth, needs speech."""
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    makers: dict[str, tuple[Callable[[int], Float64[np.ndarray, " sample"]], float]] = {
        "white noise": (lambda number: colored_noise(number, slope=0.0), NOISE_DBFS),
        "pink noise": (lambda number: colored_noise(number, slope=0.5), NOISE_DBFS),
        "brown noise": (lambda number: colored_noise(number, slope=1.0), NOISE_DBFS),
        "hum": (_hum, NOISE_DBFS),
        "tones": (_tones, MUSIC_DBFS),
        "chords and drums": (_chords_and_drums, MUSIC_DBFS),
    }
    silence = {"silence": np.zeros(num_samples, dtype=np.float32)}
    return silence | {name: at_level(make(num_samples), dbfs) for name, (make, dbfs) in
                      makers.items()}  # fmt: skip


def at_level(samples: np.ndarray, dbfs: float) -> Samples:
    """Scale to a level, unless it is silence; peaks above full scale are clipped."""
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    scaled = samples * (10 ** (dbfs / 20) / (rms or 1.0))
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)


def colored_noise(
    num_samples: int, *, slope: float, seed: int = 0
) -> Float64[np.ndarray, " sample"]:
    """Return Gaussian noise whose amplitude falls with frequency to the power of `slope`."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(num_samples))
    frequencies_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(spectrum / np.maximum(frequencies_hz, 20.0) ** slope, num_samples)


def murmur(clips: Sequence[Samples], seconds: float) -> Samples:
    """Return a crowd whose words nobody can make out.

    24 voices speak at a time, each backwards, at its own level and pace of pauses, in a large hall.
    Every voice goes through all clips in an order of its own.
    """
    draw = np.random.default_rng(2)
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    crowd = np.zeros(num_samples)
    backwards = [at_level(clip[::-1], SPEECH_DBFS) for clip in clips]
    for _ in range(_VOICES):
        at = -round(draw.uniform(0, 10) * SAMPLE_RATE_HZ)
        gain = draw.uniform(0.3, 1.0)
        while at < num_samples:
            clip = backwards[draw.integers(len(backwards))]
            start, end = max(at, 0), min(at + len(clip), num_samples)
            if end > start:
                crowd[start:end] += gain * clip[start - at : end - at]
            at += len(clip) + round(draw.uniform(0, 1) * SAMPLE_RATE_HZ)
    decay_s = np.arange(round(_REVERBERATION_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    hall = draw.standard_normal(len(decay_s)) * 10 ** (-3 * decay_s / _REVERBERATION_S)
    size = num_samples + len(hall)
    return at_level(
        np.fft.irfft(np.fft.rfft(crowd, size) * np.fft.rfft(hall, size), size)[:num_samples],
        MURMUR_DBFS,
    )


def speech_in_noise(clip: Samples, seconds: float) -> Samples:
    """Return pink noise with a clip, 25 dB louder, in its middle."""
    around = colored_noise(round(seconds * SAMPLE_RATE_HZ), slope=0.5, seed=3)
    mixed = at_level(around, AROUND_SPEECH_DBFS)
    start = (len(mixed) - len(clip)) // 2
    mixed[start : start + len(clip)] += at_level(clip, SPEECH_DBFS)
    return mixed


def _hum(num_samples: int) -> Float64[np.ndarray, " sample"]:
    """Mains at 50 Hz with its harmonics, and the hiss of an amplifier."""
    seconds = np.arange(num_samples) / SAMPLE_RATE_HZ
    hum = sum(np.sin(2 * np.pi * 50 * number * seconds) / number for number in range(1, 8))
    hiss = np.random.default_rng(4).standard_normal(num_samples)
    return np.asarray(hum + 0.01 * hiss)


def _tones(num_samples: int) -> Float64[np.ndarray, " sample"]:
    """Single tones of 100 Hz to 4 kHz and the dual tones of telephones, 2 s each."""
    draw = np.random.default_rng(5)
    step = round(_TONE_S * SAMPLE_RATE_HZ)
    seconds = np.arange(step) / SAMPLE_RATE_HZ
    played = np.zeros(num_samples)
    for number, start in enumerate(range(0, num_samples, step)):
        single = (100 * 40 ** draw.uniform(),)
        dual = (draw.choice([697, 770, 852, 941]), draw.choice([1209, 1336, 1477]))
        tone = sum(
            np.sin(2 * np.pi * hertz * seconds) for hertz in (dual if number % 2 else single)
        )
        played[start : start + step] = np.asarray(tone)[: num_samples - start]
    return played


def _chords_and_drums(num_samples: int) -> Float64[np.ndarray, " sample"]:
    """A decaying triad every half second over a bass drum and a snare."""
    draw = np.random.default_rng(6)
    step = round(_NOTE_S * SAMPLE_RATE_HZ)
    seconds = np.arange(step) / SAMPLE_RATE_HZ
    bass_drum = 3 * np.exp(-12 * seconds) * np.sin(2 * np.pi * 60 * seconds)
    played = np.zeros(num_samples)
    for number, start in enumerate(range(0, num_samples, step)):
        root_hz = 110 * 2 ** (draw.integers(0, 24) / 12)
        notes_hz = root_hz * 2 ** (np.array([0, 4 if number % 4 else 3, 7]) / 12)
        chord = sum(
            np.sin(2 * np.pi * note_hz * harmonic * seconds) / harmonic**2
            for note_hz in notes_hz
            for harmonic in range(1, 5)
        )
        snare = 2 * np.exp(-25 * seconds) * draw.standard_normal(step)
        beat = np.exp(-3 * seconds) * chord + (snare if number % 2 else bass_drum)
        played[start : start + step] = beat[: num_samples - start]
    return played
