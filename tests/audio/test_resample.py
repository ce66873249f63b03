"""Frames of every sample format to 16 kHz rows, equal to libav's own conversion."""

import av
import numpy as np
import pytest

from corpus_asr.audio.resample import (
    EachChannel,
    FrameSpan,
    MonoMixer,
    mono_shares,
    row_maker,
)
from tests.support.audio import frame_of, level, noise

# libswresample works in float32 either way; the oracle converts and resamples in one call.
SAME_MATHS = 2e-6
# Reading n bits, the last bit is all that may differ.
LAST_BIT = {"u8": 2**-7, "s16": 2**-15, "s32": 1e-7, "s64": 1e-7, "flt": 1e-7, "dbl": 1e-7}


def converted(frames, *, channels="each", num_rows=None) -> np.ndarray:
    run = FrameSpan(frames[0], channels=channels, num_rows=num_rows or frames[0].layout.nb_channels)
    pieces = []
    for frame in frames:
        assert run.fits(frame)
        run.feed(frame)
        pieces += list(run.full_blocks())
    return np.concatenate([*pieces, *run.finish()], axis=1)


@pytest.mark.parametrize("planar", ["", "p"])
@pytest.mark.parametrize("sample_format", ["u8", "s16", "s32", "s64", "flt", "dbl"])
@pytest.mark.parametrize(("layout", "num_channels"), [("mono", 1), ("stereo", 2), ("7.1", 8)])
def test_every_sample_format_keeps_its_values(sample_format, planar, layout, num_channels):
    # Where the format can hold them, loud samples are not clipped.
    gain = 40 if sample_format in ("flt", "dbl") else 1
    samples = gain * noise(0.1, num_channels=num_channels)
    frame = frame_of(samples, rate_hz=16000, layout=layout, sample_format=sample_format + planar)
    np.testing.assert_allclose(converted([frame]), samples, atol=LAST_BIT[sample_format])


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
def test_resampling_equals_libav(rate_hz):
    samples = noise(2.5, rate_hz=rate_hz)
    oracle = av.AudioResampler(format="flt", layout="mono", rate=16000)
    whole = frame_of(samples, rate_hz=rate_hz, layout="mono")
    expected = np.concatenate(
        [f.to_ndarray()[0] for f in [*oracle.resample(whole), *oracle.resample(None)]]
    )
    found = converted([frame_of(samples, rate_hz=rate_hz, layout="mono")])
    assert found.shape == (1, len(expected))
    assert len(expected) == pytest.approx(2.5 * 16000, abs=2)
    np.testing.assert_allclose(found[0], expected, atol=SAME_MATHS)


@pytest.mark.parametrize("size", [1, 160, 1152, 44101])
def test_the_result_does_not_depend_on_the_frames_sizes(size):
    # Cancelling for its second half: which blocks are mixed must not depend on the frames either.
    speech = noise(2.2, rate_hz=44100)[0, : 20 * 4410 + 3]
    speech = speech if size > 1 else speech[:2000]
    other = np.where(np.arange(len(speech)) < len(speech) // 2, speech, -speech)
    samples = np.stack([speech, other])
    whole = frame_of(samples, rate_hz=44100, layout="stereo")
    frames = [
        frame_of(samples[:, start : start + size], rate_hz=44100, layout="stereo")
        for start in range(0, len(speech), size)
    ]
    expected = converted([whole], channels="mix", num_rows=1)
    np.testing.assert_array_equal(converted(frames, channels="mix", num_rows=1), expected)


def test_other_rates_formats_and_channels_do_not_fit():
    samples = noise(0.1, num_channels=2)
    frame = frame_of(samples, rate_hz=16000, layout="stereo")
    run = FrameSpan(frame, channels="mix", num_rows=1)
    assert run.fits(frame_of(samples, rate_hz=16000, layout="stereo"))
    assert not run.fits(frame_of(samples, rate_hz=8000, layout="stereo"))
    assert not run.fits(frame_of(samples[:1], rate_hz=16000, layout="mono"))
    assert not run.fits(frame_of(samples, rate_hz=16000, layout="stereo", sample_format="s16"))


@pytest.mark.parametrize("sample_format", ["flt", "fltp", "dbl"])
def test_samples_that_are_no_numbers_become_silence_and_spread_nowhere(sample_format):
    samples = noise(0.1, num_channels=2).astype(np.float64)
    bad = samples.copy()
    bad[0, 7], bad[1, 9], bad[1, 11] = np.nan, np.inf, -np.inf
    expected = np.where(np.isfinite(bad), samples, 0)
    with np.errstate(all="ignore"):
        frame = frame_of(bad.astype(np.float32), rate_hz=16000, layout="stereo",
                         sample_format=sample_format)  # fmt: skip
    np.testing.assert_allclose(converted([frame]), expected, atol=1e-7)


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


@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_channels_that_cancel_give_the_louder_one(offset):
    speech = noise(1)[0]
    block = np.stack([speech, -1.01 * speech]) + np.float32(offset)
    mixed = MonoMixer(["FL", "FR"])(block)
    np.testing.assert_array_equal(mixed[0], block[1])


def test_the_channel_stays_chosen_while_the_mix_is_poor_and_until_it_falls_silent():
    speech = noise(1)[0]
    mixer = MonoMixer(["FL", "FR", "BL", "BR"])
    silent = np.zeros_like(speech)
    # The second block cancels to 25 dB only, and the other channel is a little louder in it.
    for right in (-0.99, -1.08):
        block = np.stack([speech, np.float32(right) * speech, silent, silent])
        np.testing.assert_array_equal(mixer(block)[0], block[0])
    later = np.stack([silent, silent, speech, -speech])
    assert level(mixer(later)) == level(speech)
    in_phase = np.stack([speech] * 4)
    np.testing.assert_allclose(mixer(in_phase)[0], speech, atol=1e-7)


def test_silence_and_absurdly_loud_samples_are_mixed_quietly():
    mixer = MonoMixer(["FL", "FR"])
    assert not mixer(np.zeros((2, 100), dtype=np.float32)).any()
    assert mixer(np.zeros((2, 0), dtype=np.float32)).shape == (1, 0)
    loud = np.full((2, 100), 1e30, dtype=np.float32)
    np.testing.assert_allclose(mixer(loud), 1e30, rtol=1e-6)


def test_a_channel_that_a_later_stretch_lacks_is_mixed():
    block = noise(1, num_channels=2)
    second, only = (row_maker(1, names, num_rows=1) for names in (["FL", "FR"], ["FC"]))
    np.testing.assert_array_equal(second(block), block[1:])
    np.testing.assert_array_equal(only(block[:1]), block[:1])


def test_each_channel_keeps_its_row_when_the_channels_change():
    block = noise(1, num_channels=3)
    np.testing.assert_array_equal(EachChannel(3, ["FL", "FR", "FC"])(block), block)
    fewer = EachChannel(3, ["FC"])(block[:1])
    np.testing.assert_array_equal(fewer[0], block[0])
    assert not fewer[1:].any()
    more = EachChannel(2, ["NONE"] * 3)(block)
    np.testing.assert_array_equal(more[0], block[0])
    np.testing.assert_allclose(more[1], block[1:].mean(axis=0), atol=1e-7)
