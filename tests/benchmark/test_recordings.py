"""Which recordings are measured, and what is wrong with those that cannot be."""

import json

import pytest

from corpus_asr.benchmark.recordings import find_recordings
from corpus_asr.errors import ConfigError, DecodeError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_bytes(tone(1.5), rate_hz=SAMPLE_RATE_HZ))
    return path


def manifest_of(folder, *lines):
    path = folder / "lists" / "manifest.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def test_length_and_text_are_known(clip):
    (found,) = find_recordings([clip], None)
    assert found.duration_s == pytest.approx(1.5, abs=0.01)
    assert found.text is None
    clip.with_suffix(".txt").write_text("What is said.", encoding="utf-8")
    (found,) = find_recordings([clip], None)
    assert found.text == "What is said."


@pytest.mark.parametrize("key", ["path", "uri"])
def test_a_manifest_names_files_beside_it_and_their_texts(clip, key):
    clip.with_suffix(".txt").write_text("Only where the manifest says nothing.")
    manifest = manifest_of(
        clip.parent, {key: "../clip.wav", "text": "Hello."}, "", {key: str(clip)}
    )
    named, bare = find_recordings([], manifest)
    assert named.path.resolve() == bare.path.resolve() == clip
    assert named.text == "Hello."
    assert bare.text == "Only where the manifest says nothing."


def test_no_audio_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"found none.*--shape"):
        find_recordings([], None)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.wav: no such file"):
        find_recordings([tmp_path / "nothing.wav"], None)


def test_a_file_without_audio_is_refused(tmp_path):
    path = tmp_path / "page.mp3"
    path.write_text("<html>")
    with pytest.raises(DecodeError, match=r"page\.mp3"):
        find_recordings([path], None)


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"text": "no path"}', '{"path": 3}', '{"path": "a.wav", "text": 3}']
)
def test_a_broken_line_of_a_manifest_is_named(tmp_path, line):
    with pytest.raises(ConfigError, match=r"manifest\.jsonl, line 2: found"):
        find_recordings([], manifest_of(tmp_path, "", line))


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="reading the manifest"):
        find_recordings([], tmp_path / "none.jsonl")


def test_a_text_that_is_not_utf8_is_refused(clip):
    clip.with_suffix(".txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"clip\.txt.*UTF-8"):
        find_recordings([clip], None)
