"""The checkpoints of a job are named together, and those that do not fit are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.registry import further_folders
from corpus_asr.runtime.checkpoints import fetch_checkpoints
from corpus_asr.stages.extract import further_features_of
from corpus_asr.storage.model_files import model_revision
from corpus_asr.storage.run_state.run_files import fingerprint
from tests.support.checkpoints import tiny_whisper
from tests.support.tables import run_config
from tests.support.tokenizers import tiny_tokenizer

SIZES: dict[str, Any] = {"d_model": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_tokenizer(folder / "many")
    tiny_tokenizer(folder / "one", False)
    for seed, name in enumerate(("a", "b", "c")):
        tiny_whisper(folder / name, seed=seed, tokenizer=folder / "many", **SIZES)
    tiny_whisper(folder / "v3", tokenizer=folder / "many", num_mel_bins=128, **SIZES)
    tiny_whisper(folder / "english", tokenizer=folder / "one", **SIZES)
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"model_type": "speech_to_text"}')
    (folder / "other" / "preprocessor_config.json").write_text('{"feature_size": 80}')
    for name, kind, hop in (
        ("parakeet", "parakeet_tdt", 160),
        ("odd", "parakeet_ctc", 200),
        ("unknown", "wav2vec2", 160),
    ):
        (folder / name).mkdir()
        config = {"model_type": kind, "encoder_config": {}}
        (folder / name / "config.json").write_text(json.dumps(config))
        extractor = json.dumps({"hop_length": hop})
        (folder / name / "preprocessor_config.json").write_text(extractor)
    return folder


def job_with(folder: Path, main: str = "a", **others: str) -> RunConfig:
    routed = {code: str(folder / name) for code, name in others.items()}
    model = {"checkpoint": str(folder / main), "by_language": routed}
    return run_config("/nowhere", "/nowhere/output", model=model)


def test_every_checkpoint_is_in_the_name_and_in_the_fingerprint(folder: Path) -> None:
    a, b, c = (model_revision(folder / name) for name in "abc")
    weights = fetch_checkpoints(job_with(folder, fr="c", de="b"))
    assert weights.fingerprint == f"{a},de={b},fr={c}"
    assert weights.models_by_language == {
        "de": (str(folder / "b"), b),
        "fr": (str(folder / "c"), c),
    }
    alone = fetch_checkpoints(job_with(folder))
    assert alone.fingerprint == a
    jobs = [job_with(folder), job_with(folder, de="b"), job_with(folder, de="c")]
    names = {fingerprint(job, fetch_checkpoints(job).fingerprint) for job in jobs}
    assert len(names) == 3
    first, last = (fingerprint(job, alone.fingerprint) for job in (jobs[0], jobs[2]))
    assert first == last  # weights decide


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize(
    ("main", "others", "messages"),
    [
        ("a", {"xx": "b"}, r"by_language: found xx, expected codes .*\bde\b"),
        ("a", {"de": "english"}, r"by_language\.de: .*english is English-only; name a"),
        ("english", {"de": "b"}, r"english as model\.checkpoint, expected a multilingual"),
        (
            "a",
            {"de": "unknown"},
            r"by_language\.de: .*found model_type 'wav2vec2', expected one",
        ),
        ("a", {"de": "odd"}, r"by_language\.de: .*hop_length 200 \(expected 160\)"),
    ],
)
def test_checkpoints_that_do_not_fit_together_are_refused(
    folder: Path, main: str, others: dict[str, str], messages: str, hashed: bool
) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=messages):
        fetch_checkpoints(job_with(folder, main, **others), hashed=hashed)


def test_each_kind_of_features_has_one_folder(folder: Path) -> None:
    names = ("v3", "other", "b", "parakeet", "v3")
    expected = {"whisper-128": "v3", "kaldi-80": "other", "nemo-80-0.97": "parakeet"}
    found = further_folders(folder / "a", [folder / name for name in names])
    assert found == {kind: folder / name for kind, name in expected.items()}
    assert further_features_of(job_with(folder, de="b", fr="v3").model, None) == {
        "whisper-128": folder / "v3"
    }
    assert further_features_of(job_with(folder, de="b").model, None) == {}


def test_a_checkpoint_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        fetch_checkpoints(job_with(folder, de="nowhere"))
