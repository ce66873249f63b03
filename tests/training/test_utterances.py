"""Manifests to utterances."""

import json
from pathlib import Path

import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.training.utterances import Utterance, read_utterances


def manifest(folder: Path, *rows: dict) -> str:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_row_is_a_recording_or_a_stretch_of_one(tmp_path: Path) -> None:
    rows = (
        {"uri": "a.wav", "text": "all of it"},
        {"path": "b.wav", "text": "some", "start_s": 2.5, "end_s": 4, "language": "German"},
        {"audio_filepath": "c.wav", "text": "nemo", "offset": 1.0, "duration": 2.0},
    )
    found = list(read_utterances(manifest(tmp_path, *rows), language="en"))
    assert [(p.text, p.start_s, p.end_s, p.language) for p in found] == [
        ("all of it", 0.0, None, "en"),
        ("some", 2.5, 4.0, "de"),
        ("nemo", 1.0, 3.0, "en"),
    ]
    assert [Path(p.uri) for p in found] == [tmp_path / f"{name}.wav" for name in "abc"]


def test_segments_are_utterances(tmp_path: Path) -> None:
    segments = [{"start_s": 0, "end_s": 1.5, "text": "one"}, {"start": 2, "end": 3, "text": ""}]
    found = list(read_utterances(manifest(tmp_path, {"uri": "a.wav", "segments": segments})))
    uri = str(tmp_path / "a.wav")
    assert found == [
        Utterance(uri=uri, text="one", start_s=0.0, end_s=1.5),
        Utterance(uri=uri, text="", start_s=2.0, end_s=3.0),
    ]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"uri": "a.wav"}, "'text'"),
        ({"uri": "a.wav", "text": 3}, "text 3"),
        ({"uri": "a.wav", "text": "x", "start_s": 3, "end_s": 2}, "times 3.0 to 2.0"),
        ({"uri": "a.wav", "text": "x", "start_s": -1}, "times -1.0"),
        ({"uri": "a.wav", "text": "x", "end_s": "soon"}, "soon"),
        ({"uri": "a.wav", "text": "x", "language": "klingon"}, "klingon"),
        ({"uri": "a.wav", "segments": "[{"}, "a.wav"),
    ],
)
def test_a_wrong_row_is_told(tmp_path: Path, row: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=r"reading the manifest .*m\.jsonl") as error:
        list(read_utterances(manifest(tmp_path, row)))
    assert told in str(error.value)
    assert "correct the manifest" in str(error.value)
