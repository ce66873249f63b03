"""Processors of both families against transformers' own, and against their two halves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from corpus_asr.models.speech2text import Speech2TextProcessor
from corpus_asr.models.whisper.processor import WhisperProcessor
from tests.support.tokenizers import (
    TARGETS,
    made_words,
    tiny_speech2text_tokenizer,
    tiny_tokenizer,
)

# Whisper's reference computes features in float32 where it finds torch; that of Speech2Text rounds
# spectra to complex64.
TOLERANCE = 1e-4
AUDIO = (0.1 * np.random.default_rng(0).standard_normal(9_000)).astype(np.float32)
RATE: dict[str, Any] = {"sampling_rate": 16_000}
TEXTS = {
    "whisper": "And so my fellow Americans",
    "speech2text": " ".join(made_words(4, seed=2)),
}


class Family:
    """A folder of a family, and the processors that both load from it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder, self.text = folder, TEXTS[name]
        ours: Any
        if name == "whisper":
            ours, self.reference = WhisperProcessor, transformers.WhisperProcessor
            tiny_tokenizer(folder)
            transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
        else:
            ours, self.reference = Speech2TextProcessor, transformers.Speech2TextProcessor
            tiny_speech2text_tokenizer(folder, languages=TARGETS, lang_codes="mustc", tgt_lang="de")
            transformers.Speech2TextFeatureExtractor().save_pretrained(folder)
        self.own, self.ours = ours, ours.from_pretrained(folder)
        self.theirs = self.reference.from_pretrained(folder)

    def __repr__(self) -> str:
        return self.own.__name__


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {name: Family(name, tmp_path_factory.mktemp(name)) for name in TEXTS}


@pytest.fixture(params=TEXTS)
def family(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    return families[request.param]


@pytest.fixture
def whisper(families: dict[str, Family]) -> Family:
    return families["whisper"]


@pytest.fixture
def speech2text(families: dict[str, Family]) -> Family:
    return families["speech2text"]


def assert_same_features(found: Any, expected: Any) -> None:
    assert set(found) == set(expected)
    np.testing.assert_allclose(found.input_features, expected.input_features, atol=TOLERANCE)
    for name in set(expected) - {"input_features"}:
        assert type(found[name]) is type(expected[name])
        assert found[name].tolist() == expected[name].tolist()


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_audio_and_text_give_features_and_labels(family: Family, return_tensors: str) -> None:
    options = {"audio": AUDIO, "text": family.text, "return_tensors": return_tensors, **RATE}
    found = family.ours(**options)
    assert {"input_features", "labels"} <= set(found)
    assert_same_features(found, family.theirs(**options))


def test_ids_are_read_by_the_tokenizer(family: Family) -> None:
    ids = family.theirs(text=family.text)["input_ids"]
    for options in ({}, {"skip_special_tokens": True}):
        assert family.ours.decode(ids, **options) == family.theirs.decode(ids, **options)
        expected = family.theirs.batch_decode([ids, ids[:3]], **options)
        assert family.ours.batch_decode([ids, ids[:3]], **options) == expected


def test_each_reads_what_the_other_saved(family: Family, tmp_path: Path) -> None:
    written = {Path(path).name for path in family.ours.save_pretrained(tmp_path / "a")}
    assert written >= {"preprocessor_config.json", "processor_config.json", "vocab.json"}
    family.theirs.save_pretrained(tmp_path / "b")
    ids = family.theirs.tokenizer(family.text).input_ids
    extractor = family.theirs.feature_extractor.to_dict()
    for folder in (tmp_path / "a", tmp_path / "b"):
        for reader in (family.own, family.reference, transformers.AutoProcessor):
            loaded: Any = reader.from_pretrained(folder)
            found = loaded.feature_extractor.to_dict()
            assert {k: found[k] for k in extractor.keys() & found.keys()} == extractor
            assert loaded.tokenizer(family.text).input_ids == ids
    content = json.loads((tmp_path / "a" / "preprocessor_config.json").read_text())
    assert content.pop("processor_class") == repr(family)
    assert f"{family}:\n- feature_extractor: " in repr(family.ours)
    assert set(family.theirs.model_input_names) <= set(family.ours.model_input_names)


def test_what_is_meant_for_audio_does_not_reach_the_text(whisper: Family) -> None:
    both = whisper.ours(AUDIO, text=whisper.text, do_normalize=True, device="cpu", **RATE)
    assert both.labels == whisper.ours.tokenizer(whisper.text)["input_ids"]


def test_prompts_come_from_the_tokenizer(whisper: Family) -> None:
    german: dict[str, Any] = {"task": "translate", "language": "de", "no_timestamps": False}
    expected = whisper.theirs.get_decoder_prompt_ids(**german)
    assert whisper.ours.get_decoder_prompt_ids(**german) == expected
    expected = whisper.theirs.get_prompt_ids("Mr. Quilter", return_tensors="pt")
    assert whisper.ours.get_prompt_ids("Mr. Quilter", return_tensors="pt").equal(expected)


def test_labels_are_encoded_within_the_older_context(speech2text: Family) -> None:
    ours, text = speech2text.ours, speech2text.text
    with ours.as_target_processor():
        assert ours(text).input_ids == ours.tokenizer(text).input_ids
    with pytest.raises(ValueError, match="of type ndarray"), ours.as_target_processor():
        ours(AUDIO)
    np.testing.assert_array_equal(
        ours(raw_speech=AUDIO, **RATE).input_features[0], ours(AUDIO, **RATE).input_features[0]
    )
