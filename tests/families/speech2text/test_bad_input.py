"""What users of Speech2Text get wrong: each mistake is one error that says what to do.

Mistakes seen from the outside, through the public classes; those of single parts are in the tests
of the parts.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.errors import CheckpointError
from corpus_asr.models.speech2text import (
    AutoProcessor,
    Speech2TextProcessor,
    Speech2TextTokenizer,
)
from tests.support.tokenizers import TARGETS, made_words, tiny_speech2text_tokenizer

SILENCE = np.zeros(16_000, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "model"
    tiny_speech2text_tokenizer(folder, languages=TARGETS, lang_codes="mustc", tgt_lang="fr")
    Speech2TextProcessor.from_pretrained(_with_extractor(folder)).save_pretrained(folder)
    return folder


def _with_extractor(folder: Path) -> Path:
    (folder / "preprocessor_config.json").write_text('{"num_mel_bins": 80}')
    return folder


@pytest.fixture(scope="module")
def here(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(
        processor=Speech2TextProcessor.from_pretrained(folder),
        tokenizer=Speech2TextTokenizer.from_pretrained(folder),
    )


AUDIO: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "another rate": (SILENCE, {"sampling_rate": 8_000}, ValueError, "expected 16000.*resample"),
    "no recordings": ([], {}, ValueError, "empty list.*leave out"),
    "no samples": (SILENCE[:0], {}, ValueError, "no samples.*leave out"),
    "less than a frame": ([SILENCE, SILENCE[:399]], {}, ValueError, "recording 1: found 399 samp"),
    "NaN": (np.array([0.0, np.nan]), {}, ValueError, "found nan at sample 1.*repair"),
    "16-bit samples": (np.array([300, -300]), {}, ValueError, "divide 16-bit samples by 32768"),
    "stereo": (np.zeros((9, 2)), {}, ValueError, "2 channels.*mean over the last axis"),
    "a path": ("speech.wav", {}, TypeError, "found a str.*decode the file first"),
    "nothing": (None, {}, ValueError, "found neither, expected audio=, text= or both"),
    "uneven rows": (
        [SILENCE, SILENCE[:9_000]],
        {"return_tensors": "pt"},
        ValueError,
        "lengths from 54 to 98, expected the same in every row; pass padding=True",
    ),
    "other tensors": (SILENCE, {"return_tensors": "tf"}, ValueError, "return_tensors='tf'.*'pt'"),
    "other padding": (SILENCE, {"padding": "foo"}, ValueError, "padding='foo'.*choose one"),
    "no length to cut to": (SILENCE, {"truncation": True}, ValueError, "without max_length"),
    "no length": (SILENCE, {"padding": "max_length", "max_length": 0}, ValueError, "max_length 0"),
}


@pytest.mark.parametrize("name", AUDIO)
def test_audio_that_cannot_be_heard(here: SimpleNamespace, name: str) -> None:
    audio, options, error, message = AUDIO[name]
    with pytest.raises(error, match=message):
        here.processor(audio, **{"sampling_rate": 16_000, **options})


TEXTS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "no text": (lambda t: t(), ValueError, "found neither text nor text_target"),
    "a number": (lambda t: t(5), ValueError, "found '5' of type int, expected a text or ids"),
    "a number among texts": (lambda t: t(["a", 5]), ValueError, "of type int, expected a text or"),
    "words unsaid": (lambda t: t("a", is_split_into_words=True), ValueError, "a list of words"),
    "half a letter": (lambda t: t("a\ud800"), ValueError, "no valid Unicode"),
    "uneven pairs": (lambda t: t(["a", "b"], ["c"]), ValueError, "found 2 texts and 1 second one"),
    "offsets": (lambda t: t("a", return_offsets_mapping=True), ValueError, "leave it out"),
    "no room": (lambda t: t("a", max_length=1), ValueError, "room for the 2 special tokens"),
    "uneven rows": (
        lambda t: t(["a", " ".join(made_words(5))], return_tensors="np"),
        ValueError,
        "expected the same in every row; pass padding=True",
    ),
    "other tensors": (lambda t: t("a", return_tensors="tf"), ValueError, "return_tensors='tf'"),
    "other padding": (lambda t: t("a", padding="foo"), ValueError, "padding='foo'"),
    "other truncation": (lambda t: t("a", truncation="foo"), ValueError, "truncation='foo'"),
    "an option of nobody": (lambda t: t("a", paddings=True), TypeError, "paddings"),
    "an unknown language": (
        lambda t: setattr(t, "tgt_lang", "xx"),
        ValueError,
        "target language 'xx': expected one of pt, fr",
    ),
    "a role for nothing": (
        lambda t: setattr(t, "pad_token", "<?>"),
        ValueError,
        "found no token '<",
    ),
    "an id of nothing": (lambda t: setattr(t, "pad_token_id", 10**6), ValueError, "no token 1000"),
    "text to decode": (lambda t: t.decode("abc"), TypeError, "expected token ids"),
    "fractions to decode": (lambda t: t.decode(torch.tensor([0.5])), TypeError, "expected token"),
    "no folder": (lambda t: t.save_vocabulary("/nonexistent"), NotADirectoryError, "make it first"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_cannot_be_encoded_or_decoded(folder: Path, name: str) -> None:
    call, error, message = TEXTS[name]
    with pytest.raises(error, match=message):
        call(Speech2TextTokenizer.from_pretrained(folder))


def broken(folder: Path, into: Path, changes: dict[str, Any]) -> Path:
    """Copy a checkpoint, with files changed (text or bytes), updated (a dict) or left out."""
    shutil.copytree(folder, into)
    for name, change in changes.items():
        path = into / name
        if isinstance(change, dict):
            change = json.dumps(json.loads(path.read_text()) | change)
        if change is None:
            path.unlink()
        elif isinstance(change, bytes):
            path.write_bytes(change)
        else:
            path.write_text(change)
    return into


MODEL = "sentencepiece.bpe.model"
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "no vocabulary": ({"vocab.json": None}, r"vocab\.json: found no such file"),
    "a broken vocabulary": ({"vocab.json": "{"}, r"vocab\.json: found no readable JSON"),
    "no ids": ({"vocab.json": '{"a": "b"}'}, r"vocab\.json: found no vocabulary"),
    "ids twice": ({"vocab.json": '{"<unk>": 0, "a": 0}'}, "tokens and their ids, each once"),
    "no unknown token": ({"vocab.json": '{"a": 0}'}, "found no <unk> among 1 tokens"),
    "no pieces": ({MODEL: None}, "found no SentencePiece model"),
    "broken pieces": ({MODEL: b"\x00\x01"}, "found no SentencePiece model.*fetch the checkpoint"),
    "a wrong type": ({"tokenizer_config.json": {"do_lower_case": "yes"}}, "do_lower_case is 'yes'"),
    "unusable tokens": (
        {"tokenizer_config.json": {"added_tokens_decoder": {"x": {}}}},
        "found what cannot be used.*fetch the checkpoint's tokenizer files",
    ),
    "a broken extractor": ({"preprocessor_config.json": "[]"}, "expected an object of keys"),
    "no extractor": (
        {"preprocessor_config.json": None, "processor_config.json": None},
        "expected processor_config.json or preprocessor_config.json",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_checkpoints_that_are_broken(folder: Path, tmp_path: Path, name: str) -> None:
    changes, message = FILES[name]
    with pytest.raises(CheckpointError, match=message):
        Speech2TextProcessor.from_pretrained(broken(folder, tmp_path / "x", changes))


SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "languages of nobody": ({"lang_codes": "foo"}, ValueError, "lang_codes='foo', expected one of"),
    "an unknown language": ({"tgt_lang": "en"}, ValueError, "'en': expected one of pt, fr, ru"),
    "a side": ({"padding_side": "up"}, ValueError, "expected 'left' or 'right'"),
    "pieces' options": ({"sp_model_kwargs": {"foo": 1}}, TypeError, "correct sp_model_kwargs"),
    "a setting of nobody": ({"target": "fr"}, TypeError, "found the settings target, expected"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be(folder: Path, name: str) -> None:
    settings, error, message = SETTINGS[name]
    with pytest.raises(error, match=message):
        Speech2TextTokenizer.from_pretrained(folder, **settings)


def test_a_language_that_the_model_lacks_is_refused_when_it_is_chosen(tmp_path: Path) -> None:
    # With the first one missing the reference forces the unknown token, and says nothing.
    folder = tiny_speech2text_tokenizer(tmp_path, languages=("fr", "de"), lang_codes="mustc")
    tokenizer = Speech2TextTokenizer.from_pretrained(folder, tgt_lang="fr")
    assert tokenizer.tgt_lang == "fr"
    with pytest.raises(ValueError, match="target language 'pt': expected one of fr, de"):
        tokenizer.tgt_lang = "pt"
    plain = Speech2TextTokenizer(folder / "vocab.json", folder / MODEL)
    with pytest.raises(ValueError, match="expected none: this model writes one"):
        plain.tgt_lang = "fr"


def test_a_folder_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    foreign = broken(folder, tmp_path / "x", {"vocab.json": None})
    (foreign / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type 'bert', expected one of: speech_to_text"):
        AutoProcessor.from_pretrained(foreign)
    with pytest.raises(CheckpointError, match="no such folder"):
        AutoProcessor.from_pretrained(tmp_path / "nowhere")
