"""Utterances to samples and texts on disk."""

from pathlib import Path

import numpy as np
import pytest

from corpus_asr.config.finetune import DataSettings
from corpus_asr.errors import ConfigError
from corpus_asr.training.audio_cache import AudioCache, joined, prepare
from corpus_asr.training.utterances import Utterance
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, wav_bytes

# The file is rounded to 16 bits, and so is what is kept of it.
ROUNDED = 2 / 32768


def wav(path: Path, seconds: float) -> np.ndarray:
    samples = noise(seconds)
    path.write_bytes(wav_bytes(samples, rate_hz=SAMPLE_RATE_HZ))
    return samples[0]


def prepared(utterances: list[Utterance], folder: Path, max_gap_s: float = 1.0) -> AudioCache:
    return prepare(
        utterances,
        folder,
        DataSettings(train=("manifest.jsonl",), max_gap_s=max_gap_s),
        count_tokens=lambda text: None if "<|" in text else len(text.split()),
        max_tokens=5,
    )


def assert_kept(cache: AudioCache, at: int, samples: np.ndarray) -> None:
    kept = cache.audio[cache.start[at] : cache.end[at]] / 32768
    np.testing.assert_allclose(kept, samples, rtol=0, atol=ROUNDED)


def test_the_samples_of_each_passage_are_kept(tmp_path: Path) -> None:
    samples = wav(tmp_path / "a.wav", 8.0)
    uri = str(tmp_path / "a.wav")
    found = prepared(
        [
            Utterance(uri=uri, text="late one", start_s=6.0),
            Utterance(uri=uri, text="one", start_s=0.5, end_s=1.0, language="en", previous="zero"),
            Utterance(uri=uri, text="two", start_s=1.5, end_s=2.0, language="en"),
            # Shorter than a sample: it disturbs no others.
            Utterance(uri=uri, text="click", start_s=4.0, end_s=4.000001),
        ],
        tmp_path / "cache",
    )
    assert [found.text(i) for i in range(4)] == ["one", "two", "click", "late one"]
    assert found.region.tolist() == [0, 0, 1, 2]  # what lies between the first two is kept
    assert found.tokens.tolist() == [1, 1, 1, 2]
    assert [found.language(i) for i in range(4)] == ["en", "en", None, None]
    said_before = [found.text_before(at, characters=100) for at in range(4)]
    assert said_before == ["zero", "zero one", "", ""]
    assert found.text_before(1, characters=2) == "one"
    for at, (start_s, end_s) in ((0, (0.5, 1.0)), (1, (1.5, 2.0)), (3, (6.0, 8.0))):
        first, last = round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)
        assert_kept(found, at, samples[first:last])
    assert len(found.audio) == pytest.approx(3.5 * SAMPLE_RATE_HZ, abs=1)
    assert found.hours == pytest.approx(3.0 / 3600, abs=1e-6)


def test_what_cannot_be_learnt_is_excluded_and_counted(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 40.0)
    (tmp_path / "broken.wav").write_bytes(b"RIFF no audio at all")
    rows = [
        ("a.wav", "good", 0.0, 2.0),
        ("a.wav", "good", 0.0, 2.0),
        ("a.wav", "one two three four five six", 0.0, 2.0),
        ("a.wav", "<|endoftext|>", 0.0, 2.0),
        ("a.wav", "long", 1.0, 39.0),
        ("a.wav", "long too", 3.0, None),
        ("a.wav", "gone", 50.0, 51.0),
        ("broken.wav", "broken", 0.0, None),
        ("missing.wav", "missing", 0.0, None),
    ]
    found = prepared(
        [
            Utterance(uri=str(tmp_path / name), text=text, start_s=start_s, end_s=end_s)
            for name, text, start_s, end_s in rows
        ],
        tmp_path / "cache",
    )
    assert [found.text(i) for i in range(len(found))] == ["good"]
    excluded = found.summary["excluded"]
    assert sum(excluded.pop(why) for why in list(excluded) if "unreadable" in why) == 2
    assert excluded == {
        "duplicate utterances": 1,
        "texts of more than 5 tokens": 1,
        "texts with control tokens": 1,
        "utterances of more than 30 s": 2,
        "utterances beyond the end of their recording": 1,
    }
    assert found.summary["utterances"] == len(rows)
    assert any("missing.wav" in words for words in found.summary["failures"])


def test_silence_of_any_length_is_cut_into_windows(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 65.0)
    found = prepared([Utterance(uri=str(tmp_path / "a.wav"), text="")], tmp_path / "cache")
    lengths = (found.end - found.start) / SAMPLE_RATE_HZ
    assert lengths.tolist() == [30.0, 30.0, 5.0]
    assert found.silent.tolist() == [0, 1, 2]


@pytest.mark.slow
def test_the_same_material_is_not_decoded_again(tmp_path: Path) -> None:
    samples = wav(tmp_path / "a.wav", 2.0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "audio.i16").write_bytes(b"left half done")
    utterances = [Utterance(uri=str(tmp_path / "a.wav"), text="one")]
    assert_kept(prepared(utterances, tmp_path / "cache"), 0, samples)
    (tmp_path / "a.wav").unlink()
    assert prepared(utterances, tmp_path / "cache").text(0) == "one"
    with pytest.raises(ConfigError, match=r"no usable utterance among 1;.*not_found"):
        prepared(utterances, tmp_path / "cache", max_gap_s=2.0)
    wav(tmp_path / "a.wav", 2.0)
    other = [Utterance(uri=str(tmp_path / "a.wav"), text="two")]
    assert prepared(other, tmp_path / "cache").text(0) == "two"


def test_stretches_that_touch_are_one() -> None:
    for regions, gap, expected in (
        (((0, 5), (5, 9)), 0, ((0, 9),)),
        (((0, 5), (7, 9)), 1, ((0, 5), (7, 9))),
        (((0, 5), (6, 9)), 1, ((0, 9),)),
        (((0, 9), (2, 4), (8, 12)), 0, ((0, 12),)),
        (((0, 5), (6, None)), 1, ((0, None),)),
        (((0, None), (6, 9)), 0, ((0, None),)),
    ):
        assert joined(regions, gap=gap) == expected, regions
