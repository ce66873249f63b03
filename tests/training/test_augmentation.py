"""Samples and features that are made different."""

import numpy as np
import pytest

from corpus_asr.audio.resample import band_limited
from corpus_asr.config.finetune import AugmentationSettings
from corpus_asr.training.augmentation import (
    change_samples,
    colored_noise,
    faster,
    mask,
    reverberated,
    tones,
    with_noise,
)
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import level, noise, share_of_tone, tone

DRAW_SEED = 3


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(DRAW_SEED)


def hiss(_: object) -> np.ndarray:
    return noise(1.0)[0]


def test_nothing_is_changed_by_default(draw: np.random.Generator) -> None:
    samples = tone(1.0)[0]
    assert (change_samples(samples, AugmentationSettings(), draw, noise=hiss) == samples).all()
    features = np.ones((80, 3000), np.float32)
    mask(features, AugmentationSettings(), draw)
    assert (features == 1).all()


def test_everything_at_once_keeps_length_and_range() -> None:
    often = AugmentationSettings(
        noise_probability=1.0, reverb_probability=1.0, telephone_probability=1.0, gain_db=(6.0, 6.0)
    )
    samples = tone(1.0, amplitude=0.9)[0]
    changed, again = (
        change_samples(samples, often, np.random.default_rng(DRAW_SEED), noise=hiss)
        for _ in range(2)
    )
    assert changed.shape == samples.shape
    assert changed.dtype == np.float32
    assert np.abs(changed).max() <= 1.0
    assert (changed == again).all()


def test_noise_is_as_loud_as_asked() -> None:
    samples, unwanted = tone(1.0)[0], noise(1.0)[0]
    for snr_db in (0.0, 20.0):
        added = with_noise(samples, unwanted, snr_db=snr_db) - samples
        found_db = 20 * np.log10(level(samples) / level(added))
        assert found_db == pytest.approx(snr_db, abs=0.01)
    silent = np.zeros(SAMPLE_RATE_HZ, np.float32)
    assert np.abs(with_noise(silent, unwanted, snr_db=0.0)).max() < 1e-4


def test_a_telephone_loses_what_is_low_and_high() -> None:
    low, mid, high = (tone(1.0, hz=hz)[0] for hz in (60.0, 1000.0, 6000.0))
    transcribed = band_limited(low + mid + high, 300.0, 3400.0)
    assert share_of_tone(transcribed, 1000.0) > 0.99
    assert share_of_tone(band_limited(low + high, 0.0, 3400.0), 60.0) > 0.99


def test_echoes_follow_and_keep_the_level(draw: np.random.Generator) -> None:
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[100] = 1.0
    transcribed = reverberated(click, draw, decay_s=0.3)
    assert np.abs(transcribed[:99]).max() < 1e-6
    assert level(transcribed[200:2000]) > 10 * level(transcribed[5000:7000])
    assert level(transcribed) == pytest.approx(level(click), rel=1e-3)


def test_faster_is_shorter_and_higher() -> None:
    played = faster(tone(2.0, hz=500.0)[0], 1.25)
    assert played.size == pytest.approx(1.6 * SAMPLE_RATE_HZ, abs=2)
    assert share_of_tone(played, 625.0) > 0.98


def test_noise_has_a_color(draw: np.random.Generator) -> None:
    drawn = [colored_noise(draw, SAMPLE_RATE_HZ) for _ in range(8)]

    def low_share(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float(power[:1000].sum() / power.sum())

    shares = [low_share(samples) for samples in drawn]
    assert min(shares) < 0.4 < 0.9 < max(shares)


def test_notes_are_sounds_at_half_tones_that_start_and_end(draw: np.random.Generator) -> None:
    transcribed = tones(draw, 10 * SAMPLE_RATE_HZ)
    assert transcribed.dtype == np.float32
    assert np.isfinite(transcribed).all()
    assert np.abs(transcribed).max() > 0.5
    power = np.abs(np.fft.rfft(transcribed)) ** 2
    strongest = np.sort(power)[-power.size // 100 :].sum()
    assert strongest > 0.5 * power.sum()  # lines, unlike noise
    assert not np.array_equal(transcribed, tones(draw, transcribed.size))


def test_masks_hide_spans_of_the_length_asked(draw: np.random.Generator) -> None:
    features = np.ones((80, 3000), np.float32)
    settings = AugmentationSettings(
        mask_time_prob=0.03, mask_time_length=50, mask_feature_prob=0.1, mask_feature_length=8
    )
    mask(features, settings, draw)
    hidden_frames = (features == 0).all(axis=0).sum()
    hidden_bins = (features == 0).all(axis=1).sum()
    assert 50 <= hidden_frames <= 100
    assert hidden_bins == 8
