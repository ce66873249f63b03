"""The recordings are what their references say, and speak in voices held out from training."""

import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from corpus_asr.synthesis.corpus import split_voices
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.data import make_spoken
from tests.support.signals import read_clip
from tests.support.spoken import NAMES, REFERENCES, spoken

SPOKEN = spoken()
MOST_BYTES = 1_500_000


def test_the_recordings_are_small() -> None:
    sizes = [path.stat().st_size for path in (REFERENCES.parent / "spoken").iterdir()]
    assert len(sizes) == len(NAMES)
    assert sum(sizes) <= MOST_BYTES


def test_no_voice_was_trained_with() -> None:
    said = [each for one in make_spoken.RECORDINGS for each in one.sentences]
    voices = sorted({voice for voice, _, _ in said}, key=lambda voice: voice.name)
    assert len(voices) >= 4
    assert split_voices(voices, make_spoken.HELD_OUT_SHARE)["train"] == []


@pytest.mark.parametrize("name", NAMES)
def test_references_follow_each_other_within_the_recording(name: str) -> None:
    one = SPOKEN[name]
    assert " ".join(sentence.text for sentence in one.sentences) == one.text
    length_s = len(read_clip(one.path)) / SAMPLE_RATE_HZ
    assert 60 <= length_s <= 180
    assert one.sentences[-1].end_s < length_s
    for before, after in pairwise(one.sentences):
        assert before.start_s < before.end_s < after.start_s
    for word, following in pairwise(one.words):
        assert word["start_s"] < word["end_s"] <= following["start_s"] + 0.001
    said = iter(one.text.split())
    assert all(any(word["word"] == each.strip(".,?") for each in said) for word in one.words)


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("flite")), reason="needs espeak-ng and flite"
)
def test_they_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_spoken, "FOLDER", tmp_path / "spoken")
    monkeypatch.setattr(make_spoken, "REFERENCES", tmp_path / "references.jsonl")
    make_spoken.main()
    assert (tmp_path / "references.jsonl").read_text() == REFERENCES.read_text()
    for name in NAMES:
        assert (tmp_path / "spoken" / name).read_bytes() == SPOKEN[name].path.read_bytes()
