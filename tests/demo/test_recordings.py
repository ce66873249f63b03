"""The demo's recordings are small, and their references fit them."""

from itertools import pairwise

import pytest

from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip
from tests.support.spoken import NAMES, REFERENCES, spoken

SPOKEN = spoken()
MAX_BYTES = 1_500_000
MAX_BYTES_OF_CLIPS = 8_000_000  # all committed recordings


def test_the_recordings_are_small() -> None:
    data = REFERENCES.parent
    sizes = [path.stat().st_size for path in (data / "spoken").iterdir()]
    assert len(sizes) == len(NAMES)
    assert sum(sizes) <= MAX_BYTES
    folders = (data / name for name in ("spoken", "clips", "speech"))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES_OF_CLIPS


@pytest.mark.parametrize("name", NAMES)
def test_references_follow_each_other_within_the_recording(name: str) -> None:
    one = SPOKEN[name]
    assert " ".join(sentence.text for sentence in one.sentences) == one.text
    length_s = len(read_clip(one.path)) / SAMPLE_RATE_HZ
    assert 10 <= length_s <= 180
    assert one.sentences[-1].end_s < length_s
    assert all(sentence.start_s < sentence.end_s for sentence in one.sentences)
    for before, after in pairwise(one.sentences):
        assert before.end_s < after.start_s
    for word, following in pairwise(one.words):
        assert word["start_s"] <= word["end_s"] <= following["start_s"] + 0.001
    said = one.text.replace("-", " ").split()
    assert [word["word"] for word in one.words] == [each.strip(".,?:;") for each in said]
