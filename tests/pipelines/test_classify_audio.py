"""A corpus is classified as it is transcribed, into labels that can be checked by hand."""

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.loading import load_classifier
from corpus_asr.pipelines.driver import run
from corpus_asr.storage.run_state.table_names import LABEL_ROWS
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.audio import read_clip
from tests.support.checkpoints import CLASSES, tiny_classifier, tiny_whisper
from tests.support.corpora import job, outcomes_in
from tests.support.tables import rows_of, stored_segments, with_section
from tests.support.tokenizers import tiny_tokenizer

# Float16 features, and a batch of one against the oracle's own: far below any use of the number.
CLOSE = 2e-3


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer(folder / "tokenizer")
    return tiny_whisper(folder / "model", tokenizer=folder / "tokenizer", max_target_positions=24)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("classifier"))


def labelling(corpus: Path, model: Path, output: Path, **classification: Any) -> RunConfig:
    config = job(corpus, model, output, pipeline="classify_audio", classification=classification)
    return with_section(config, "model", compute_type="float32")


@pytest.fixture(scope="session")
def languages(corpus: Path, whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A job that found languages; its output is not to be changed."""
    config = labelling(corpus, whisper, tmp_path_factory.mktemp("languages") / "out", top_k=1000)
    run(config, local=True, progress=None)
    return config


@pytest.fixture(scope="session")
def classes(corpus: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A job that found classes; its output is not to be changed."""
    output = tmp_path_factory.mktemp("classes") / "out"
    config = undetected(labelling(corpus, classifier, output, task="classify", top_k=2))
    run(config, local=True, progress=None)
    return config


def undetected(config: RunConfig) -> RunConfig:
    """Return the job without speech detection: windows are whole, and so are their weights."""
    return with_section(config, "extract", vad_filter=False)


def labels_in(config: RunConfig) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    """Return the labels rows by file name, part and window."""
    found = defaultdict(list)
    for row in rows_of(stored_segments(OutputStore(config.output.uri), rows=LABEL_ROWS)):
        found[Path(row["uri"]).name, row["part"], row["window"]].append(row)
    return dict(found)


def recordings_in(config: RunConfig) -> dict[str, dict[str, Any]]:
    rows = rows_of(OutputStore(config.output.uri).recordings())
    return {Path(row["uri"]).name: row for row in rows}


@pytest.mark.long
def test_every_window_of_speech_has_its_labels(languages: RunConfig) -> None:
    outcomes = outcomes_in(Path(languages.output.uri))
    assert outcomes["broken.mp3", 0]["status"] == "failed"
    assert outcomes["silence.flac", 0]["status"] == "no_speech"
    windows = labels_in(languages)
    assert {name for name, _, _ in windows} == {"english.wav", "german.opus", "longer.mp3"}
    for rows in windows.values():
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        probabilities = [row["probability"] for row in rows]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-4)  # all languages were kept
        assert 0 < rows[0]["end_s"] - rows[0]["start_s"] <= 30
        assert 0 < rows[0]["weight_s"] <= rows[0]["end_s"] - rows[0]["start_s"]
        assert rows[0]["model"] == languages.model.checkpoint
    for (name, part), row in outcomes.items():
        messages = [rows for key, rows in windows.items() if key[:2] == (name, part)]
        assert row["segments_written"] == sum(map(len, messages))


def test_a_recording_is_the_mean_of_its_windows_weighted_by_speech(languages: RunConfig) -> None:
    windows, recordings = labels_in(languages), recordings_in(languages)
    assert recordings["silence.flac"]["label"] is None
    for name in ("english.wav", "longer.mp3"):
        sums: dict[str, float] = defaultdict(float)
        weight_s = 0.0
        for key, rows in windows.items():
            if key[0] == name:
                weight_s += rows[0]["weight_s"]
                for row in rows:
                    sums[row["label"]] += row["probability"] * row["weight_s"]
        best = max(sums, key=lambda label: sums[label])
        row = recordings[name]
        assert row["status"] == "ok"
        assert row["label"] == best
        assert row["label_probability"] == pytest.approx(sums[best] / weight_s, rel=1e-4)
    assert sum(1 for name, _, _ in windows if name == "longer.mp3") > 1


@pytest.mark.long
def test_classes_are_those_of_transformers(
    classes: RunConfig, corpus: Path, classifier: Path
) -> None:
    samples = read_clip(corpus / "english.wav")
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(classifier)
    oracle = transformers.WhisperForAudioClassification.from_pretrained(classifier).eval()
    (rows,) = (rows for key, rows in labels_in(classes).items() if key[0] == "english.wav")
    assert rows[0]["weight_s"] == pytest.approx(len(samples) / 16_000, abs=0.01)
    decoded = extractor(samples, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = oracle(decoded.input_features).logits.softmax(dim=1)[0]
    best = expected.argsort(descending=True)[:2].tolist()
    assert [row["label"] for row in rows] == [CLASSES[at] for at in best]
    assert [row["probability"] for row in rows] == pytest.approx(expected[best].tolist(), abs=CLOSE)


def test_a_checkpoint_that_cannot_tell_is_refused_before_anything_is_read(
    whisper: Path, classifier: Path, tmp_path: Path
) -> None:
    numbers = tiny_classifier(tmp_path / "model", labels=("loudness",))
    refused: list[tuple[Path, dict[str, Any], str]] = [
        (whisper, {"task": "classify"}, "expected a WhisperForAudioClassification"),
        (classifier, {"task": "language"}, "expected a multilingual Whisper"),
        (whisper, {"languages": ["en", "klingon"]}, "found klingon"),
        (numbers, {"task": "classify"}, "expected two classes or more"),
    ]
    for model, classification, words in refused:
        config = labelling(tmp_path / "nowhere.wav", model, tmp_path / "output", **classification)
        with pytest.raises(ConfigError, match=words):
            run(config, local=True, progress=None)
        assert not (tmp_path / "output").exists()


def test_a_head_that_was_not_saved_is_not_drawn(classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "headless"
    shutil.copytree(classifier, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if not name.startswith("classifier")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(CheckpointError, match=r"2 missing: classifier\.bias"):
        load_classifier(folder, device="cpu", dtype="float32")
