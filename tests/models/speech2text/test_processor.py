"""Speech2TextProcessor against transformers' own, and against its two halves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.models.speech2text import (
    Speech2TextFeatureExtractor,
    Speech2TextProcessor,
    Speech2TextTokenizer,
)
from tests.support.tokenizers import TARGETS, made_words, tiny_speech2text_tokenizer

TOLERANCE = 1e-4  # see test_feature_extractor.py
TEXT = " ".join(made_words(4, seed=2))
AUDIO = (0.1 * np.random.default_rng(0).standard_normal(9_000)).astype(np.float32)
RATE: dict[str, Any] = {"sampling_rate": 16_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    tiny_speech2text_tokenizer(folder, languages=TARGETS, lang_codes="mustc", tgt_lang="de")
    transformers.Speech2TextFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Speech2TextProcessor:
    return Speech2TextProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.Speech2TextProcessor.from_pretrained(folder)


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_audio_and_text_give_features_and_labels(
    ours: Speech2TextProcessor, theirs: Any, return_tensors: str
) -> None:
    options = {"audio": AUDIO, "text": TEXT, "return_tensors": return_tensors, **RATE}
    found, expected = ours(**options), theirs(**options)
    assert set(found) == set(expected) == {"input_features", "attention_mask", "labels"}
    assert type(found.labels) is type(expected.labels)
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.input_features, expected.input_features, atol=TOLERANCE)


def test_either_alone_is_handed_on(ours: Speech2TextProcessor, theirs: Any) -> None:
    options: dict[str, Any] = {"padding": True, "return_tensors": "np"}
    audio = [AUDIO, AUDIO[:7_000]]
    for arguments in ({"audio": audio}, {"raw_speech": audio}):
        found = ours(**arguments, **options, **RATE)
        expected = theirs(audio, **options, **RATE)
        assert found.attention_mask.tolist() == expected.attention_mask.tolist()
        np.testing.assert_allclose(found.input_features, expected.input_features, atol=TOLERANCE)
    found, expected = ours(text=[TEXT, "x"], **options), theirs(text=[TEXT, "x"], **options)
    assert found.input_ids.tolist() == expected.input_ids.tolist()
    assert ours.model_input_names == ["input_features", "attention_mask", "input_ids"]
    assert set(theirs.model_input_names) <= set(ours.model_input_names)


def test_labels_are_encoded_within_the_older_context(ours: Speech2TextProcessor) -> None:
    with ours.as_target_processor():
        assert ours(TEXT).input_ids == ours.tokenizer(TEXT).input_ids
    with pytest.raises(ValueError, match="of type ndarray"), ours.as_target_processor():
        ours(AUDIO)
    assert "input_features" in ours(AUDIO, **RATE)


def test_ids_are_read_by_the_tokenizer(ours: Speech2TextProcessor, theirs: Any) -> None:
    ids = theirs(text=TEXT)["input_ids"]
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
            ids, skip_special_tokens=skip
        )
        assert ours.batch_decode([ids, ids[:3]], skip) == theirs.batch_decode([ids, ids[:3]], skip)


def test_each_reads_what_the_other_saved(tmp_path: Path, ours: Speech2TextProcessor) -> None:
    names = [Path(path).name for path in ours.save_pretrained(tmp_path / "ours")]
    assert {"preprocessor_config.json", "sentencepiece.bpe.model", "vocab.json"} < set(names)
    theirs = transformers.Speech2TextProcessor.from_pretrained(tmp_path / "ours")
    assert theirs.tokenizer.tgt_lang == "de"
    theirs.save_pretrained(tmp_path / "theirs")
    again = Speech2TextProcessor.from_pretrained(tmp_path / "theirs", tgt_lang="fr", dither=1.5)
    assert (again.tokenizer.tgt_lang, again.feature_extractor.dither) == ("fr", 1.5)
    assert again.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    assert transformers.AutoProcessor.from_pretrained(tmp_path / "ours")(text=TEXT) == dict(
        ours(text=TEXT)
    )
    with_file = tmp_path / "theirs" / "processor_config.json"
    assert json.loads(with_file.read_text())
    assert "Speech2TextFeatureExtractor" in repr(ours)


def test_halves_of_another_class_are_refused(ours: Speech2TextProcessor, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a Speech2TextTokenizer; load one with"):
        Speech2TextProcessor(ours.feature_extractor, "tokenizer")
    with pytest.raises(TypeError, match="expected a Speech2TextFeatureExtractor"):
        Speech2TextProcessor(ours.tokenizer, ours.tokenizer)
    with pytest.raises(ValueError, match="found neither, expected audio=, text= or both"):
        ours()
    with pytest.raises(CheckpointError, match=r"expected processor_config\.json or preproc"):
        Speech2TextProcessor.from_pretrained(tmp_path)
    assert isinstance(ours.feature_extractor, Speech2TextFeatureExtractor)
    assert isinstance(ours.tokenizer, Speech2TextTokenizer)
