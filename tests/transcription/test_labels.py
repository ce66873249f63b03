"""Labels are asked of one model in batches, and do not depend on these."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.config.run import ClassificationSettings
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.families.loading import load_classifier
from corpus_asr.families.whisper.classifier import WhisperWindowClassifier
from corpus_asr.segments import PartLabels
from corpus_asr.transcription.labels import label_engine
from corpus_asr.transcription.windows import PartRequest
from tests.support.checkpoints import CLASSES, tiny_classifier
from tests.support.prompt_formats import part

CLASSIFY = ClassificationSettings(task="classify", top_k=3)
noise = partial(part, mels=80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("classifier"))


def labels_of(
    folder: Path, parts: list[PartRequest], *, settings: Any = CLASSIFY
) -> list[PartLabels]:
    with label_engine(folder, classification=settings, device="cpu", dtype="float32") as engine:
        found = [engine.submit(one).result().labels for one in parts]
        together = [future.result().labels for future in [engine.submit(one) for one in parts]]
        assert found == together
    messages = [one for one in found if one is not None]
    assert len(messages) == len(parts)
    return messages


def test_labels_do_not_depend_on_neighbors(folder: Path) -> None:
    labels = labels_of(folder, [noise(75.0), noise(3.0, seed=1), noise(31.0, seed=2)])
    assert [len(found.windows) for found in labels] == [3, 1, 2]
    for found in labels:
        for window in found.windows:
            assert {label for label, _ in window.labels} == set(CLASSES)
            assert sum(share for _, share in window.labels) == pytest.approx(1.0)


def test_a_parts_mean_is_weighted_by_the_speech_in_its_windows(folder: Path) -> None:
    (found,) = labels_of(folder, [noise(60.0, speech=[(1.0, 29.0), (50.0, 57.0)])])
    assert [(one.start_s, one.end_s) for one in found.windows] == [(1.0, 29.0), (50.0, 57.0)]
    assert [one.weight_s for one in found.windows] == pytest.approx([28.0, 7.0])
    assert found.weight_s == pytest.approx(35.0)
    first, second = (dict(one.labels) for one in found.windows)
    for label, mean in found.means:
        assert mean == pytest.approx(0.8 * first[label] + 0.2 * second[label])
    assert [share for _, share in found.means] == sorted(dict(found.means).values(), reverse=True)


def test_first_speech_is_only_where_a_recording_begins_to_speak(folder: Path) -> None:
    settings = ClassificationSettings(task="classify", windows="first_speech")
    elsewhere = np.zeros((3000, 80), np.float16)
    parts = [noise(40.0), noise(40.0, seed=1, part=1, start_s=40.0, language_features=elsewhere)]
    first, later = labels_of(folder, parts, settings=settings)
    assert len(first.windows) == 1
    assert later == PartLabels(windows=(), means=(), weight_s=0)


def test_labels_that_may_be_there_together_have_their_own_probabilities(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path / "model", problem_type="multi_label_classification")
    (found,) = labels_of(folder, [noise(5.0)])
    assert sum(share for _, share in found.means) != pytest.approx(1.0, abs=1e-3)
    assert all(0 < share < 1 for _, share in found.means)


def test_memory_that_does_not_suffice_halves_the_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: a batch of more than one window finds no memory."""
    transcribe: Callable[..., list[torch.Tensor]] = WhisperWindowClassifier.transcribe
    batches: list[int] = []

    def scarce(self: Any, windows: list[np.ndarray], **options: Any) -> list[torch.Tensor]:
        batches.append(len(windows))
        if len(windows) > 1:
            raise torch.OutOfMemoryError("scripted")
        return transcribe(self, windows, **options)

    expected = labels_of(folder, [noise(100.0)])
    monkeypatch.setattr(WhisperWindowClassifier, "transcribe", scarce)
    monkeypatch.setattr("corpus_asr.families.whisper.classifier.encode_batch_on", lambda _: 4)
    assert labels_of(folder, [noise(100.0)]) == expected
    assert len(expected[0].windows) == 4
    assert batches[:3] == [4, 2, 1]


def test_a_window_that_is_no_numbers_fails_its_part_alone(folder: Path, tmp_path: Path) -> None:
    broken = noise(40.0)
    broken.features[3500:] = np.nan
    with label_engine(folder, classification=CLASSIFY, device="cpu", dtype="float32") as engine:
        futures = [engine.submit(one) for one in (broken, noise(5.0))]
        with pytest.raises(ItemError, match="found NaN or infinity in the features"):
            futures[0].result()
        assert futures[1].result().labels is not None
    scores = [torch.tensor([0.5, 1.0]), torch.tensor([0.5, torch.nan])]
    right, wrong = WhisperWindowClassifier.check(scores, [30.0, 30.0])
    assert right is scores[0]
    assert "found scores that are not numbers" in str(wrong)


def test_a_classifier_has_no_8_bit_form(folder: Path) -> None:
    with pytest.raises(ConfigError, match="int8"):
        load_classifier(folder, device="cpu", dtype="int8")
