"""Many channels to rows: shares like libav's, and nothing lost when channels cancel."""

import av
import numpy as np
import pytest

from corpus_asr.audio.channels import EachChannel, MonoMixer, OneChannel, mono_shares
from tests.support.audio import level, noise, tone

S16_STEP = 2 / 32768  # the oracle computes in 16-bit integers


@pytest.mark.parametrize("layout", ["stereo", "3.0", "quad", "5.1", "5.1(side)", "7.1"])
def test_the_shares_are_those_libav_mixes_integers_with(layout):
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    for index, share in enumerate(mono_shares(names)):
        alone = np.zeros((1024, len(names)), dtype=np.int16)
        alone[:, index] = 16384
        frame = av.AudioFrame.from_ndarray(alone.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = 16000
        mixed = av.AudioResampler(format="s16", layout="mono").resample(frame)[0].to_ndarray()
        assert mixed[0, 512] / 16384 == pytest.approx(share, abs=S16_STEP)


def test_unknown_speakers_share_equally():
    assert mono_shares(["NONE"] * 64) == pytest.approx(np.full(64, 1 / 64))
    assert mono_shares(["LFE"]) == pytest.approx([1.0])


@pytest.mark.parametrize("num_channels", [2, 64, 255])
@pytest.mark.parametrize("speaking", [0, -1])
def test_one_speaking_channel_among_silent_ones_stays_audible(num_channels, speaking):
    block = np.zeros((num_channels, 16000), dtype=np.float32)
    block[speaking] = tone(1)[0]
    mixed = MonoMixer(["NONE"] * num_channels)(block)
    np.testing.assert_allclose(mixed[0], block[speaking] / num_channels, atol=1e-7)


def test_unrelated_channels_are_averaged():
    block = noise(1, num_channels=8)
    mixed = MonoMixer(["NONE"] * 8)(block)
    np.testing.assert_allclose(mixed[0], block.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_channels_that_cancel_give_the_louder_one(offset):
    speech = noise(1)[0]
    block = np.stack([speech, -1.01 * speech]) + np.float32(offset)
    mixed = MonoMixer(["FL", "FR"])(block)
    np.testing.assert_array_equal(mixed[0], block[1])


def test_the_channel_stays_chosen_while_the_mix_is_poor():
    speech = noise(1)[0]
    mixer = MonoMixer(["FL", "FR"])
    # The second block cancels to 25 dB only, and the other channel is a little louder in it.
    for right in (-0.99, -1.08):
        block = np.stack([speech, np.float32(right) * speech])
        np.testing.assert_array_equal(mixer(block)[0], block[0])
    in_phase = np.stack([speech, speech])
    np.testing.assert_allclose(mixer(in_phase)[0], speech, atol=1e-7)


def test_the_choice_follows_a_channel_that_falls_silent():
    speech = noise(1)[0]
    mixer = MonoMixer(["FL", "FR", "BL", "BR"])
    first = np.stack([speech, -speech, 0 * speech, 0 * speech])
    later = np.stack([0 * speech, 0 * speech, speech, -speech])
    assert level(mixer(first)) == level(speech)
    assert level(mixer(later)) == level(speech)


def test_silence_and_absurdly_loud_samples_are_mixed_quietly():
    mixer = MonoMixer(["FL", "FR"])
    assert not mixer(np.zeros((2, 100), dtype=np.float32)).any()
    assert mixer(np.zeros((2, 0), dtype=np.float32)).shape == (1, 0)
    loud = np.full((2, 100), 1e30, dtype=np.float32)
    np.testing.assert_allclose(mixer(loud), 1e30, rtol=1e-6)


def test_a_channel_that_a_later_stretch_lacks_is_mixed():
    block = noise(1, num_channels=2)
    np.testing.assert_array_equal(OneChannel(1, ["FL", "FR"])(block), block[1:])
    np.testing.assert_array_equal(OneChannel(1, ["FC"])(block[:1]), block[:1])


def test_each_channel_keeps_its_row_when_the_channels_change():
    block = noise(1, num_channels=3)
    np.testing.assert_array_equal(EachChannel(3, ["FL", "FR", "FC"])(block), block)
    fewer = EachChannel(3, ["FC"])(block[:1])
    np.testing.assert_array_equal(fewer[0], block[0])
    assert not fewer[1:].any()
    more = EachChannel(2, ["NONE"] * 3)(block)
    np.testing.assert_array_equal(more[0], block[0])
    np.testing.assert_allclose(more[1], block[1:].mean(axis=0), atol=1e-7)
