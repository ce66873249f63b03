"""What may not be asked of training data."""

import json
from pathlib import Path

import pytest

from corpus_asr.config.load import load_config
from corpus_asr.config.run import PseudoLabelConfig
from corpus_asr.errors import ConfigError

MINIMAL = {
    "pipeline": "pseudo_label",
    "source": {"uri": "recordings"},
    "model": {"checkpoint": "some/model"},
    "output": {"uri": "transcripts"},
    "dataset": {"uri": "training"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "job.yaml"
    found.write_text(json.dumps(MINIMAL))
    return found


def test_a_text_and_a_language_may_stand_alone(path: Path) -> None:
    config = load_config(
        path, ["selection.languages=en", "selection.drop_texts=thanks for watching"]
    )
    assert isinstance(config, PseudoLabelConfig)
    assert config.selection.languages == ("en",)
    assert config.selection.drop_texts == ("thanks for watching",)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("selection.max_were=0.1", "did you mean selection.max_wer?"),
        ("selection.min_confidence=7", "selection.min_confidence: found 7, expected"),
        ("selection.max_duration_s=45", "expected a number above 0 and at most 30"),
        ("selection.max_repeats=0", "expected a whole number at least 1"),
        ("dataset.format=tfrecord", "expected huggingface or webdataset or nemo"),
        ("dataset.audio_format=mp3", "expected flac or opus or wav"),
        ("dataset.test_fraction=0.99", "leaves nothing to train on"),
        ("dataset={}", "dataset.uri: missing"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_plain_words(
    path: Path, override: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told.replace(".", r"\.").replace("?", r"\?")):
        load_config(path, [override])


def test_the_sections_belong_to_this_pipeline_alone(path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(path, ["pipeline=transcribe_corpus"])
