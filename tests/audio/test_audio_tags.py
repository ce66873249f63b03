"""Frames of parts and what spans get of them, by tiny networks; and what others are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from corpus_asr.audio import audio_tags
from corpus_asr.audio.audio_tags import CLASS_MAP_NAME, FRAME_SAMPLES, AudioTagger
from corpus_asr.audio.sound_quality import TAG_MEASURES, TaggedFrames
from corpus_asr.errors import CheckpointError
from corpus_asr.schemas import OUTCOMES, SEGMENT_FIELDS, SELECTION
from corpus_asr.stages.extraction import audio_tagger
from tests.speakers.test_embeddings import mean_network

NAMES = ("Speech", "Music", "Silence", "Inside, small room", "Dog")
HOP = 7_680


def write(folder: Path, network: bytes, *names: str) -> Path:
    lines = [f'{at},/m/{at},"{name}"\n' for at, name in enumerate(names)]
    (folder / CLASS_MAP_NAME).write_text("index,mid,display_name\n" + "".join(lines))
    (folder / "tagger.onnx").write_bytes(network)
    return folder / "tagger.onnx"


class Scripted:
    """Scores each frame by its first sample: that is music, half of it a dog, the rest speech."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="waveform", shape=["samples"])]

    def run(self, outputs: None, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
        (samples,) = fed.values()
        self.sizes.append(len(samples))
        frames = 1 + (len(samples) - FRAME_SAMPLES) // HOP
        music = samples[: frames * HOP : HOP]
        scores = np.stack([1 - music, music, 1 - music, 1 - music, music / 2], axis=1)
        return [np.zeros((frames, 1024), np.float32), scores]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AudioTagger:
    monkeypatch.setattr(audio_tags, "session_of", lambda path, what: Scripted())
    return AudioTagger(write(tmp_path, b"", *NAMES))


def test_frames_cover_a_part_of_any_length_and_speech_is_no_other_sound(
    scripted: AudioTagger,
) -> None:
    for num_samples, frames in (
        (1, 1), (FRAME_SAMPLES, 1), (FRAME_SAMPLES + 1, 2), (FRAME_SAMPLES + 40 * HOP, 41),
    ):  # fmt: skip
        samples = np.zeros(num_samples, np.float32)
        samples[::HOP] = np.linspace(0.0, 1.0, len(samples[::HOP]))
        found = scripted(samples)
        assert found.names == ("Music", "Dog")
        expected = samples[: frames * HOP : HOP]
        assert found.values[:, 0] == pytest.approx(expected, abs=1e-3)
        assert found.values[:, 1] == pytest.approx(expected / 2, abs=1e-3)
    broken = np.array([np.nan, np.inf, -np.inf, 7.0] * 4000, np.float32)
    assert np.isfinite(scripted(broken).values).all()


def test_classes_of_speech_that_only_other_networks_have_are_no_other_sounds(
    scripted: AudioTagger, tmp_path: Path
) -> None:
    spoken = "Male speech, man speaking", "Female speech, woman speaking"
    names = (spoken[0], "Music", "Silence", spoken[1], "Dog")
    found = AudioTagger(write(tmp_path, b"", *names))(np.zeros(1, np.float32))
    assert found.names == ("Music", "Dog")


def test_scores_that_are_no_numbers_count_as_none(
    scripted: AudioTagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Scripted.run
    monkeypatch.setattr(
        Scripted, "run", lambda *given: [np.divide(each, 0.0) for each in run(*given)]
    )
    with np.errstate(all="ignore"):
        found = scripted(np.linspace(0.0, 1.0, 3 * FRAME_SAMPLES, dtype=np.float32))
    assert set(found.values.ravel().tolist()) == {0.0, 1.0}


def test_a_span_gets_its_share_of_music_and_the_likeliest_sound(scripted: AudioTagger) -> None:
    values = [[0.9, 0.3], [0.4, 0.3], [0.0, 0.8], [0.0, 0.8]]
    frames = TaggedFrames.flattened(np.ravel(values).tolist(), ("Music", "Dog"))
    whole = frames.over([(0.0, 4 * 0.48 + 0.48)])
    assert whole["music_share"] == pytest.approx(0.25)
    assert whole["other_sound"] == "Dog"
    assert whole["other_sound_score"] == pytest.approx(0.55, abs=1e-3)
    first = frames.over([(0.0, 0.48)])
    assert (first["music_share"], first["other_sound"]) == (1.0, "Music")
    for spans in ([], [(1.0, 1.0)], [(30.0, 31.0)]):
        assert frames.over(spans) == dict.fromkeys(TAG_MEASURES)


def test_a_network_is_read_with_the_names_next_to_it(tmp_path: Path) -> None:
    path = write(tmp_path, mean_network(1, FRAME_SAMPLES, keep=True, times=5), *NAMES)
    # The mean of a frame, which begins half a second after the one before.
    samples = np.repeat(np.array([0.5, 1.0, 0.0, 0.0], np.float32), HOP)
    found = audio_tagger(str(path))(samples)
    assert found.values[:, 0] == pytest.approx([0.738, 0.492, 0.0], abs=2e-3)
    assert audio_tagger(str(tmp_path)).__class__ is AudioTagger


def test_networks_and_names_that_do_not_fit_are_named(tmp_path: Path) -> None:
    fits = mean_network(1, FRAME_SAMPLES, keep=True, times=5)
    for network, names, message in (
        (fits, NAMES[:4], r"expected YAMNet's interface, 1 frames of 4 scores.* for 15600 samples"),
        (mean_network(1, 80, 3, keep=True), NAMES, "expected YAMNet's interface"),
        (b"nothing", NAMES, "expected a network in ONNX"),
        (fits, ("Speech", "a", "b", "c", "d"), "found 5 classes.*Music among them"),
    ):
        with pytest.raises(CheckpointError, match=message):
            AudioTagger(write(tmp_path, network, *names))
    (tmp_path / CLASS_MAP_NAME).write_text("name\nMusic\n")
    with pytest.raises(CheckpointError, match=r"KeyError.*expected index,mid,display_name"):
        AudioTagger(tmp_path / "tagger.onnx")
    (tmp_path / CLASS_MAP_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"FileNotFoundError.*put the file"):
        AudioTagger(tmp_path / "tagger.onnx")
    with pytest.raises(CheckpointError, match=r"found no such file.*correct extract\.audio_tagger"):
        audio_tagger(str(tmp_path / "none.onnx"))


def test_tables_have_a_column_for_each() -> None:
    for names in ({field.name for field in SEGMENT_FIELDS}, set(OUTCOMES.names)):
        assert set(TAG_MEASURES) <= names
    assert set(TAG_MEASURES) <= set(SELECTION.names)
