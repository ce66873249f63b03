"""Samples and features that are made different."""

import dataclasses

import numpy as np
import pytest

from corpus_asr.audio.bands import band_limited
from corpus_asr.spectral.mel import log_mel
from corpus_asr.training.augmentation import (
    Augmentation,
    change_samples,
    coloured_noise,
    cut_close,
    equalised,
    faster,
    mask,
    reverberated,
    tones,
    with_formants,
    with_noise,
    with_other_voice,
)
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import level, noise, share_of_tone, tone

DRAW_SEED = 3


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(DRAW_SEED)


def test_nothing_is_changed_by_default(draw: np.random.Generator) -> None:
    samples = tone(1.0)[0]
    assert (
        change_samples(samples, Augmentation(), draw, noise=lambda _: noise(1.0)[0]) == samples
    ).all()


def test_everything_at_once_keeps_length_and_range(draw: np.random.Generator) -> None:
    often = Augmentation(
        noise_share=1.0, reverberation_share=1.0, telephone_share=1.0, gain_db=(6.0, 6.0)
    )
    samples = tone(1.0, amplitude=0.9)[0]
    changed = change_samples(samples, often, draw, noise=lambda _: noise(1.0)[0])
    assert changed.shape == samples.shape
    assert changed.dtype == np.float32
    assert np.abs(changed).max() <= 1.0
    again = change_samples(
        samples, often, np.random.default_rng(DRAW_SEED), noise=lambda _: noise(1.0)[0]
    )
    assert (changed == again).all()


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_is_as_loud_as_asked(snr_db: float) -> None:
    samples, unwanted = tone(1.0)[0], noise(1.0)[0]
    added = with_noise(samples, unwanted, snr_db=snr_db) - samples
    assert 20 * np.log10(level(samples) / level(added)) == pytest.approx(snr_db, abs=0.01)


def test_digital_silence_stays_next_to_silent() -> None:
    silent = np.zeros(SAMPLE_RATE_HZ, np.float32)
    assert np.abs(with_noise(silent, noise(1.0)[0], snr_db=0.0)).max() < 1e-4


def test_a_telephone_loses_what_is_low_and_high() -> None:
    low, mid, high = (tone(1.0, hz=hz)[0] for hz in (60.0, 1000.0, 6000.0))
    heard = band_limited(low + mid + high, 300.0, 3400.0)
    assert share_of_tone(heard, 1000.0) > 0.99
    assert share_of_tone(band_limited(low + high, 0.0, 3400.0), 60.0) > 0.99


def test_echoes_follow_and_keep_the_level(draw: np.random.Generator) -> None:
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[100] = 1.0
    heard = reverberated(click, draw, decay_s=0.3)
    assert np.abs(heard[:99]).max() < 1e-6
    assert level(heard[200:2000]) > 10 * level(heard[5000:7000])
    assert level(heard) == pytest.approx(level(click), rel=1e-3)


def test_faint_ends_of_a_word_are_lost_and_nothing_moves(draw: np.random.Generator) -> None:
    hiss, vowel = noise(0.1)[0], tone(0.2, hz=500.0)[0]
    hiss *= np.abs(vowel).max() / np.abs(hiss).max() * np.float32(10 ** (-30 / 20))
    word = np.concatenate([hiss, vowel, hiss])
    near = slice(hiss.size + 100, hiss.size + vowel.size - 100)
    left = []
    for _ in range(40):
        heard = cut_close(word, draw)
        assert (heard[near] == vowel[100:-100]).all()
        ends = np.concatenate([heard[: hiss.size - 1], heard[hiss.size + vowel.size :]])
        left.append(level(ends) / level(hiss))
    assert max(left) < 0.6
    assert 8 < left.count(0.0) < 24  # the others are faint


def test_a_middle_that_is_faint_is_kept(draw: np.random.Generator) -> None:
    vowel = tone(0.2, hz=500.0)[0]
    two = np.concatenate([vowel, vowel * np.float32(1e-3), vowel])
    heard = cut_close(two, draw)
    assert (heard[100:-100] == two[100:-100]).all()


def test_silence_has_no_ends_to_cut(draw: np.random.Generator) -> None:
    assert not cut_close(np.zeros(100, np.float32), draw).any()
    assert not cut_close(np.zeros(0, np.float32), draw).size


def test_faster_is_shorter_and_higher() -> None:
    played = faster(tone(2.0, hz=500.0)[0], 1.25)
    assert played.size == pytest.approx(1.6 * SAMPLE_RATE_HZ, abs=2)
    assert share_of_tone(played, 625.0) > 0.98


def test_noise_has_a_colour(draw: np.random.Generator) -> None:
    drawn = [coloured_noise(draw, SAMPLE_RATE_HZ) for _ in range(8)]

    def low_share(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float(power[:1000].sum() / power.sum())

    shares = [low_share(samples) for samples in drawn]
    assert min(shares) < 0.4 < 0.9 < max(shares)


def test_notes_are_sounds_at_half_tones_that_start_and_end(draw: np.random.Generator) -> None:
    heard = tones(draw, 10 * SAMPLE_RATE_HZ)
    assert heard.dtype == np.float32
    assert np.isfinite(heard).all()
    assert np.abs(heard).max() > 0.5
    power = np.abs(np.fft.rfft(heard)) ** 2
    strongest = np.sort(power)[-power.size // 100 :].sum()
    assert strongest > 0.5 * power.sum()  # lines, unlike noise
    assert not np.array_equal(heard, tones(draw, heard.size))


def test_formants_move_up_as_far_as_asked() -> None:
    seconds = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    features = {
        hz: log_mel(np.sin(2 * np.pi * hz * seconds).astype(np.float32), num_mel_bins=80)
        for hz in (1000, 1150)
    }
    moved = with_formants(features[1000], 1.15)
    assert moved.shape == features[1000].shape
    assert moved.dtype == np.float32
    peak = {hz: int(heard.mean(axis=1).argmax()) for hz, heard in features.items()}
    assert int(moved.mean(axis=1).argmax()) == peak[1150] > peak[1000]
    back = with_formants(moved, 1 / 1.15)
    assert int(back.mean(axis=1).argmax()) == peak[1000]


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_moved_formants_keep_order_and_the_ends(factor: float) -> None:
    slope = np.repeat(np.arange(80, dtype=np.float32)[:, None], 2, axis=1)
    moved = with_formants(slope, factor)[:, 0]
    assert (np.diff(moved) >= 0).all()
    assert moved[0] >= 0
    assert moved[-1] == pytest.approx(79, abs=1)
    moves = moved[20:50] - slope[20:50, 0]
    assert (moves > 0.5).all() if factor < 1 else (moves < -0.5).all()
    assert with_formants(slope, 1.0) is slope


def test_formants_move_at_each_moment_by_its_own_factor() -> None:
    slope = np.repeat(np.arange(80, dtype=np.float32)[:, None], 10, axis=1)
    moved = with_formants(slope, np.array([0.9, 1.0, 1.1]))  # four frames, four, and two
    for frames, factor in ((slice(0, 4), 0.9), (slice(4, 8), 1.0), (slice(8, 10), 1.1)):
        np.testing.assert_allclose(
            moved[:, frames], with_formants(slope[:, frames], factor), atol=1e-4
        )
    assert moved.shape == slope.shape
    assert moved.dtype == np.float32


def test_voices_wander_from_moment_to_moment(draw: np.random.Generator) -> None:
    slope = np.repeat(np.linspace(-1, 1, 80, dtype=np.float32)[:, None], 3000, axis=1)
    formants = with_other_voice(slope, Augmentation(formants_wander=0.06), draw)
    moves = formants[40] / slope[40] - 1
    assert moves.min() < 0 < moves.max()
    assert np.abs(np.diff(formants, axis=1)).max() < 0.05  # without a jump
    steepest = with_formants(slope, 0.94) - slope
    assert np.abs(formants - slope).max() <= np.abs(steepest).max() * 1.1
    assert np.abs(formants - slope).max() > np.abs(steepest).max() * 0.6

    loud = slope / 2  # all of it can be told
    bands_db = 40 * (with_other_voice(loud, Augmentation(equaliser_wander_db=4.0), draw) - loud)
    assert 2.5 < np.abs(bands_db).max() <= 4.01
    assert np.ptp(bands_db, axis=1).min() > 2  # each band
    assert np.abs(np.diff(bands_db, axis=1)).max() < 2
    still = with_other_voice(slope, Augmentation(), draw)
    assert (still == slope).all()


def test_bands_are_louder_or_fainter_and_silence_stays_silent(draw: np.random.Generator) -> None:
    samples = noise(2.0)[0] * np.float32(0.1)
    samples[: SAMPLE_RATE_HZ // 2] = 0.0
    features = log_mel(samples, num_mel_bins=80)
    changed = equalised(features, draw, most_db=8.0)
    assert changed.shape == features.shape
    assert changed.dtype == np.float32
    moved_db = 40 * (changed - features)[:, 80:]
    bands_db = moved_db.mean(axis=1)
    assert np.abs(moved_db - bands_db[:, None]).max() < 0.01  # alike at all times
    assert 3 < np.ptp(bands_db) <= 16
    assert np.abs(bands_db).max() <= 8.01
    assert np.abs(np.diff(bands_db)).max() < 1.5  # from band to band
    assert (changed[:, :40] == -1.5).all()
    loud = equalised(features + 1, draw, most_db=8.0)
    assert loud.min() == pytest.approx(loud.max() - 2.0)


def test_an_equaliser_at_rest_changes_nothing(draw: np.random.Generator) -> None:
    features = log_mel(noise(1.0)[0], num_mel_bins=80)
    assert equalised(features, draw, most_db=0.0) is features
    silent = np.zeros((80, 100), np.float32)
    assert np.isfinite(equalised(silent, draw, most_db=8.0)).all()


def test_masks_hide_spans_of_the_length_asked(draw: np.random.Generator) -> None:
    features = np.ones((80, 3000), np.float32)
    settings = Augmentation(time_masks=2, time_mask_frames=50, mel_masks=1, mel_mask_bins=8)
    mask(features, settings, draw)
    hidden_frames = (features == 0).all(axis=0).sum()
    hidden_bins = (features == 0).all(axis=1).sum()
    assert 0 < hidden_frames <= 100
    assert 0 < hidden_bins <= 8
    untouched = np.ones((80, 3000), np.float32)
    mask(untouched, dataclasses.replace(settings, time_masks=0, mel_masks=0), draw)
    assert (untouched == 1).all()
