"""WhisperProcessor against transformers' own, and against its two halves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor, WhisperProcessor
from tests.support.tokenizers import tiny_tokenizer

# The reference computes features in float32 where it finds torch.
TOLERANCE = 1e-4

TEXT = "And so my fellow Americans"
AUDIO = (0.1 * np.random.default_rng(0).standard_normal(9_000)).astype(np.float32)
RATE: dict[str, Any] = {"sampling_rate": 16_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    tiny_tokenizer(folder)
    transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.WhisperProcessor.from_pretrained(folder)


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_audio_and_text_give_features_and_labels(
    ours: WhisperProcessor, theirs: Any, return_tensors: str
) -> None:
    options = {"audio": AUDIO, "text": TEXT, "return_tensors": return_tensors, **RATE}
    found, expected = ours(**options), theirs(**options)
    assert set(found) == set(expected) == {"input_features", "labels"}
    assert type(found.labels) is type(expected.labels)
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.input_features, expected.input_features, atol=TOLERANCE)


def test_audio_alone_gives_features(ours: WhisperProcessor, theirs: Any) -> None:
    options = {"return_attention_mask": True, "return_tensors": "np", **RATE}
    for arguments in ((AUDIO,), ([AUDIO, AUDIO[:700]],)):
        found, expected = ours(*arguments, **options), theirs(*arguments, **options)
        assert set(found) == set(expected) == {"input_features", "attention_mask"}
        assert found.attention_mask.tolist() == expected.attention_mask.tolist()
        np.testing.assert_allclose(found.input_features, expected.input_features, atol=TOLERANCE)
    by_name = ours(audio=AUDIO, **options)
    np.testing.assert_array_equal(
        by_name.input_features, ours.feature_extractor(AUDIO, **options).input_features
    )


def test_text_alone_gives_ids(ours: WhisperProcessor, theirs: Any) -> None:
    for options in ({}, {"return_tensors": "np"}, {"add_special_tokens": False}):
        found, expected = ours(text=TEXT, **options), theirs(text=TEXT, **options)
        assert set(found) == set(expected)
        assert np.asarray(found.input_ids).tolist() == np.asarray(expected.input_ids).tolist()


def test_what_is_meant_for_audio_does_not_reach_the_text(ours: WhisperProcessor) -> None:
    both = ours(AUDIO, text=TEXT, do_normalize=True, device="cpu", **RATE)
    assert both.labels == ours.tokenizer(TEXT)["input_ids"]


def test_ids_are_read_by_the_tokenizer(ours: WhisperProcessor, theirs: Any) -> None:
    ids = theirs.tokenizer(TEXT).input_ids
    for options in ({}, {"skip_special_tokens": True}):
        assert ours.decode(ids, **options) == theirs.decode(ids, **options)
        expected = theirs.batch_decode([ids, ids[:3]], **options)
        assert ours.batch_decode([ids, ids[:3]], **options) == expected


def test_prompts_come_from_the_tokenizer(ours: WhisperProcessor, theirs: Any) -> None:
    german: dict[str, Any] = {"task": "translate", "language": "de", "no_timestamps": False}
    for options in ({}, german):
        assert ours.get_decoder_prompt_ids(**options) == theirs.get_decoder_prompt_ids(**options)
    for kind in ("np", "pt"):
        expected = theirs.get_prompt_ids("Mr. Quilter", return_tensors=kind)
        found = ours.get_prompt_ids("Mr. Quilter", return_tensors=kind)
        assert type(found) is type(expected)
        assert found.tolist() == expected.tolist()
    assert ours.get_prompt_ids("a").tolist() == theirs.get_prompt_ids("a").tolist()


def test_names_of_inputs_are_transformers(ours: WhisperProcessor, theirs: Any) -> None:
    assert ours.model_input_names == theirs.model_input_names


def test_each_reads_what_the_other_saved(
    ours: WhisperProcessor, theirs: Any, tmp_path: Path
) -> None:
    written = ours.save_pretrained(tmp_path / "a")
    assert {Path(path).name for path in written} >= {"preprocessor_config.json", "vocab.json"}
    theirs.save_pretrained(tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        for reader in (
            WhisperProcessor,
            transformers.WhisperProcessor,
            transformers.AutoProcessor,
        ):
            loaded: Any = reader.from_pretrained(folder)
            assert loaded.feature_extractor.chunk_length == 1
            assert loaded.tokenizer(TEXT).input_ids == theirs.tokenizer(TEXT).input_ids
    content = json.loads((tmp_path / "a" / "preprocessor_config.json").read_text())
    assert content.pop("processor_class") == "WhisperProcessor"
    assert content == theirs.feature_extractor.to_dict()


def test_settings_go_to_whom_they_belong(folder: Path) -> None:
    loaded = WhisperProcessor.from_pretrained(
        str(folder.parent), subfolder=folder.name, dither=0.25, language="de", task="translate"
    )
    assert loaded.feature_extractor.dither == 0.25
    start = loaded.tokenizer.decode(loaded.tokenizer("x").input_ids)
    assert start.startswith("<|startoftranscript|><|de|><|translate|>")
    beside = WhisperProcessor.from_pretrained(folder / "preprocessor_config.json")
    assert beside.feature_extractor.chunk_length == 1
    assert beside.to_dict()["feature_extractor"] == beside.feature_extractor.to_dict()
    assert "WhisperProcessor:\n- feature_extractor: WhisperFeatureExtractor" in repr(beside)


def test_neither_audio_nor_text_is_refused(ours: WhisperProcessor) -> None:
    with pytest.raises(ValueError, match="found neither"):
        ours(return_tensors="pt")
    with pytest.raises(TypeError, match="first argument and as audio="):
        ours(AUDIO, audio=AUDIO)
    with pytest.raises(ValueError, match="found sampling_rate 8000"):
        ours(AUDIO, sampling_rate=8_000)


def test_halves_of_other_classes_are_refused(ours: WhisperProcessor) -> None:
    extractor, tokenizer = ours.feature_extractor, ours.tokenizer
    checked: Any = WhisperProcessor.__init__
    plain = getattr(checked, "__wrapped__", checked)
    for pair, message in (
        ((tokenizer, extractor), "found a WhisperTokenizer as feature_extractor"),
        ((extractor, None), "found a NoneType as tokenizer, expected a WhisperTokenizer"),
    ):
        with pytest.raises(TypeError, match=message):
            plain(WhisperProcessor.__new__(WhisperProcessor), *pair)


def test_a_half_that_is_missing_is_a_checkpoint_error(folder: Path, tmp_path: Path) -> None:
    WhisperFeatureExtractor().save_pretrained(tmp_path / "audio")
    WhisperTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "text")
    for half in ("audio", "text"):
        with pytest.raises(CheckpointError):
            WhisperProcessor.from_pretrained(tmp_path / half)


def test_files_are_uploaded_when_asked(
    ours: WhisperProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        "corpus_asr.families.saved_files.upload_files",
        lambda folder, names, **options: sent.append((folder, names, options)),
    )
    ours.save_pretrained(tmp_path / "mine", push_to_hub=True, private=True)
    ours.feature_extractor.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="lab/x")
    (folder, names, options), (_, extractor_names, others) = sent
    assert folder == tmp_path / "mine"
    assert {"preprocessor_config.json", "processor_config.json", "vocab.json"} <= set(names)
    assert options == {"repo_id": "mine", "private": True}
    assert (extractor_names, others) == (["preprocessor_config.json"], {"repo_id": "lab/x"})
