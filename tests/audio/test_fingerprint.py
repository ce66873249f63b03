"""Copies keep most bits, other speech about half of them, silence and steady sounds say nothing."""

import numpy as np
import pytest

from corpus_asr.audio.fingerprint import fingerprint
from corpus_asr.units import FINGERPRINT_SPAN_S as SPAN_S
from corpus_asr.units import FINGERPRINT_WORDS_PER_SECOND as WORDS_PER_SECOND
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import MonoSamples, decode, encode, noise, read_clip, tone
from tests.support.corpora import CLIPS


@pytest.fixture(scope="module")
def speech() -> MonoSamples:
    return read_clip(CLIPS / "longer.mp3")


def different(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of different bits, at the shift of a word or so that has fewest."""
    shares = []
    for shift in (-1, 0, 1):
        ours, theirs = one[max(0, shift) :], other[max(0, -shift) :]
        number = min(len(ours), len(theirs))
        bits = (ours[:number] ^ theirs[:number]).astype("<u4").view(np.uint8)
        shares.append(float(np.unpackbits(bits).mean()))
    return min(shares)


def test_a_word_is_made_of_its_span_and_shorter_audio_has_none() -> None:
    span = round(SPAN_S * SAMPLE_RATE_HZ)
    for samples, words in ((0, 0), (1, 0), (span - 1, 0), (span, 1), (span + 2_000, 2)):
        assert len(fingerprint(np.zeros(samples, np.float32))) == words, samples
    half_a_minute = fingerprint(np.zeros(30 * SAMPLE_RATE_HZ, np.float32))
    assert half_a_minute.nbytes < 30 * WORDS_PER_SECOND * 4


def test_copies_are_alike_and_other_speech_is_not(speech: MonoSamples) -> None:
    ours = fingerprint(speech)
    hiss = np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    loudness = float(np.sqrt(np.square(speech).mean()))
    opus = decode(
        encode(speech[None], rate_hz=SAMPLE_RATE_HZ, container="ogg", codec="libopus",
               sample_format="flt", b="24k")
    )[0]  # fmt: skip
    copies = {
        "quieter": 0.1 * speech,
        "noise": speech + 0.1 * loudness * hiss,
        "opus": opus,
        "later": np.concatenate([np.zeros(1_000, np.float32), speech]),
    }
    found = {name: different(ours, fingerprint(copy)) for name, copy in copies.items()}
    assert max(found.values()) < 0.15, found
    assert different(ours, ours[80:]) > 0.4


def test_silence_and_what_does_not_change_have_no_words(speech: MonoSamples) -> None:
    seconds = 10.0
    steady = (0.0 * tone(seconds)[0], tone(seconds)[0], noise(seconds)[0])
    for samples in steady:
        assert not fingerprint(samples.astype(np.float32)).any()
    assert (fingerprint(speech) != 0).mean() > 0.8


def test_it_does_not_matter_how_frames_are_grouped(
    speech: MonoSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fingerprint(speech)
    monkeypatch.setattr("corpus_asr.audio.fingerprint._FRAMES_AT_ONCE", 97)
    assert (fingerprint(speech) == whole).mean() > 0.99
