"""Clips come back from their files as they went in."""

import numpy as np
import pytest

from corpus_asr.audio.encode import AudioFormat, encode_audio
from tests.support.audio import decode, noise, share_of_tone, tone

ONE_STEP = 2 / 32_767  # of 16 bits, written and read


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
@pytest.mark.parametrize("num_samples", [1, 4096, 4097, 50_001])
def test_lossless_formats_give_back_every_sample(
    audio_format: AudioFormat, num_samples: int
) -> None:
    samples = noise(5.0)[0, :num_samples]
    found = decode(encode_audio(samples, audio_format))
    assert found.shape == (1, num_samples)
    assert np.abs(found[0] - samples).max() < ONE_STEP


def test_opus_sounds_the_same_and_is_as_long() -> None:
    samples = tone(2.0, hz=700)[0]
    found = decode(encode_audio(samples, "opus"))[0]
    assert len(found) == len(samples)
    assert share_of_tone(found, 700) > 0.95


@pytest.mark.parametrize("audio_format", ["flac", "opus", "wav"])
def test_the_same_samples_are_the_same_bytes(audio_format: AudioFormat) -> None:
    samples = noise(1.0)[0]
    assert encode_audio(samples, audio_format) == encode_audio(samples, audio_format)


def test_what_is_too_loud_is_clipped_and_does_not_wrap() -> None:
    found = decode(encode_audio(np.array([2.0, -2.0, 0.0], dtype=np.float32), "flac"))[0]
    np.testing.assert_allclose(found, [1.0, -1.0, 0.0], atol=ONE_STEP)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        encode_audio(np.zeros(0, dtype=np.float32), "flac")
