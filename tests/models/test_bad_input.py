"""What users get wrong: each mistake is one error that says what was found and what to do."""

import json
import shutil
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
)
from corpus_asr.models.whisper import (
    AutoFeatureExtractor,
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
    WhisperProcessor,
    WhisperTokenizer,
)
from tests.support.checkpoints import tiny_whisper
from tests.support.references import WINDOW, sound
from tests.support.tokenizers import TARGETS, tiny_speech2text_tokenizer, tiny_tokenizer

SIZES: dict[str, Any] = {"d_model": 16, "layers": 1, "heads": 2, "max_target_positions": 40}
SILENCE = np.zeros(16_000, np.float32)
FEATURES = sound(1, WINDOW)
LONG = sound(2, 2 * WINDOW)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for name, multilingual in (("multilingual", True), ("english", False)):
        tiny_tokenizer(root / "tokens" / name, multilingual)
        tokens = root / "tokens" / name
        tiny_whisper(root / name, tokenizer=tokens, max_source_positions=WINDOW // 2, **SIZES)
        WhisperFeatureExtractor(chunk_length=2).save_pretrained(root / name)
    folder = root / "speech2text"
    tiny_speech2text_tokenizer(folder, languages=TARGETS, lang_codes="mustc", tgt_lang="fr")
    (folder / "preprocessor_config.json").write_text('{"num_mel_bins": 80}')
    Speech2TextProcessor.from_pretrained(folder).save_pretrained(folder)
    return root


@pytest.fixture(scope="module")
def here(root: Path) -> SimpleNamespace:
    return SimpleNamespace(
        speech2text=Speech2TextProcessor.from_pretrained(root / "speech2text"),
        processor=WhisperProcessor.from_pretrained(root / "multilingual"),
        tokenizer=WhisperTokenizer.from_pretrained(root / "multilingual"),
        model=WhisperForConditionalGeneration.from_pretrained(root / "multilingual"),
        english=WhisperForConditionalGeneration.from_pretrained(root / "english"),
    )


AUDIO: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "another rate": (SILENCE, {"sampling_rate": 8_000}, ValueError, "expected 16000.*resample"),
    "stereo": (np.zeros((9, 2)), {}, ValueError, "2 channels.*mean over the last axis"),
    "nothing": (None, {}, ValueError, "found neither, expected audio=, text= or both"),
}
SPEECH2TEXT_AUDIO: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "less than a frame": ([SILENCE, SILENCE[:399]], {}, ValueError, "recording 1: found 399 samp"),
    "uneven rows": (
        [SILENCE, SILENCE[:9_000]],
        {"return_tensors": "pt"},
        ValueError,
        "lengths from 54 to 98, expected the same in every row; pass padding=True",
    ),
    "no length to cut to": (SILENCE, {"truncation": True}, ValueError, "without max_length"),
    "no length": (SILENCE, {"padding": "max_length", "max_length": 0}, ValueError, "max_length 0"),
}


@pytest.mark.parametrize("name", [*AUDIO, *SPEECH2TEXT_AUDIO])
def test_audio_that_cannot_be_used(here: SimpleNamespace, name: str) -> None:
    audio, options, error, message = (AUDIO | SPEECH2TEXT_AUDIO)[name]
    for processor in [here.speech2text] + [here.processor] * (name in AUDIO):
        with pytest.raises(error, match=message):
            processor(audio, **{"sampling_rate": 16_000, **options})


ENCODED = torch.zeros(1, 7, 16)
SOUND: list[tuple[Any, str]] = [
    (None, "neither `input_features` nor `encoder_outputs`"),
    (FEATURES[:0], r"shape \(0, 80, 200\).*one row or more"),
    (FEATURES[:, :, :0], r"shape \(1, 80, 0\), expected"),
    (FEATURES * torch.nan, r"NaN or infinity.*rows \[0\].*look at the aud"),
    (FEATURES[:, :40], r"\(1, 40, 200\), expected \(batch, 80"),
    (FEATURES[0], r"shape \(80, 200\), expected \(batch, 80, frames"),
]
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"language": "klingon"}, "klingon.*nearest: ln"),
    ({"language": ["en", "de"]}, "lists 2 languages, expected 1, the ba"),
    ({"task": "sing"}, "task is 'sing', expected one of transcribe, tr"),
    (
        {"prompt_ids": torch.ones(60).long()},
        "positions, which is 40; shorten prompt_ids",
    ),
    ({"prompt_ids": torch.tensor([10**6])}, "found token 1000000, expected 0 to"),
    ({"prompt_ids": torch.tensor([0.5])}, r"type torch\.float32, expected one dimension of token"),
    ({"prompt_ids": torch.zeros(1, 2)}, "expected one dimension"),
    ({"max_new_tokens": 40}, "lower max_new_tokens"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0, expected"),
    ({"num_beams": 0}, "num_beams is 0, expected"),
    ({"num_beams": "5"}, "num_beams is '5', expected"),
    ({"top_p": 2.0}, "top_p is 2.0, expected"),
    ({"repetition_penalty": 0.0}, "penalty is 0.0, expected"),
    ({"temperature": -1.0}, "temperature -1.0, expected 0 or more"),
    ({"temperature": ()}, "empty list"),
    ({"no_speech_threshold": 0.5}, "logprob_threshold is None"),
    ({"eos_token_id": "2"}, "expected a token id, several or None"),
    ({"numbeams": 3}, r"not used by the model: \['numb"),
]
TIMED: dict[str, Any] = {"return_timestamps": True}
MANY_WINDOWS: list[tuple[Any, dict[str, Any], str]] = [
    (LONG, TIMED, "attention_mask.*return_attention_mask=True"),
    (LONG, {**TIMED, "attention_mask": torch.ones(1, 9)}, r"shape \(1, 9\), expected \(2, frames"),
    (LONG[:1], {"return_timestamps": False}, "longer than a window.*return_timestamps=True or"),
    (LONG[:1], {**TIMED, "prompt_condition_type": "some"}, "prompt_condition_type is 'some'"),
    (LONG[:1], {**TIMED, "prompt_condition_type": "all-segments"}, "condition_on_prev_tokens=True"),
    (None, {"encoder_outputs": ()}, "encoder_outputs hold tuple"),
    (None, {"encoder_outputs": ENCODED}, r"found shape \(7, 16\), expected \(100, 16\)"),
]
GENERATE: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(({"input_features": features}, ValueError, message) for features, message in SOUND),
    *(({"input_features": FEATURES, **given}, ValueError, message) for given, message in OPTIONS),
    *(
        ({"input_features": features, **given}, ValueError, message)
        for features, given, message in MANY_WINDOWS
    ),
]


@pytest.mark.parametrize(("given", "error", "message"), GENERATE)
def test_a_call_of_generate_that_cannot_be(
    here: SimpleNamespace, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        here.model.generate(**given)


def test_tokens_the_model_lacks_need_no_suppression(here: SimpleNamespace) -> None:
    plain = here.model.generate(FEATURES, suppress_tokens=[3], begin_suppress_tokens=[4])
    more = {"suppress_tokens": [3, 10**6], "begin_suppress_tokens": [4, 10**6]}
    assert torch.equal(here.model.generate(FEATURES, **more), plain)


LOADERS: list[Any] = [
    AutoProcessor,
    WhisperModel,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    WhisperFeatureExtractor,
    AutoFeatureExtractor,
    GenerationConfig,
]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    for loader in LOADERS:
        with pytest.raises(CheckpointError, match=r"nowhere: found no such folder, expected a fo"):
            loader.from_pretrained(tmp_path / "nowhere")


def load_everything(folder: Path) -> None:
    WhisperProcessor.from_pretrained(folder)
    WhisperForConditionalGeneration.from_pretrained(folder)


NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json")
READ = (*NEEDED, "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", NEEDED)
def test_a_file_that_is_missing_is_named(root: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(root / "multilingual", tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"copy: found .*expected .*{name}"):
        load_everything(folder)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_file_that_is_cut_short_is_named(
    root: Path, tmp_path: Path, name: str, kept: float
) -> None:
    folder = shutil.copytree(root / "multilingual", tmp_path / "copy")
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match=rf"reading \S*{name}: found .*again"):
        load_everything(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("d_model", 32, r"embed_positions.weight is \(40, 16\) in model.safetensors, not \(40, 32"),
        ("num_mel_bins", 128, r"conv1.weight is \(16, 80, 3\) .*, not \(16, 128, 3\)"),
        ("decoder_layers", 2, "decoder.layers.1"),
    ],
)
def test_weights_of_another_shape_are_named(
    root: Path, tmp_path: Path, key: str, value: int, message: str
) -> None:
    folder = shutil.copytree(root / "multilingual", tmp_path / "copy")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=message):
        WhisperForConditionalGeneration.from_pretrained(folder)


def test_settings_of_a_file_that_cannot_be_meant_are_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"num_beams": 0}))
    with pytest.raises(CheckpointError, match=r"generation_config.json: .*num_beams is 0"):
        GenerationConfig.from_pretrained(tmp_path)


def test_nothing_is_saved_over_a_file(here: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    parts = (here.model, here.model.config, here.model.generation_config, here.processor)
    for part in (*parts, here.tokenizer):
        with pytest.raises(CheckpointError, match="expected a folder or nothing; choose another"):
            part.save_pretrained(path)
        with pytest.raises(TypeError, match="found repo_id, expected options of an upload only"):
            part.save_pretrained(tmp_path / "folder", repo_id="lab/x")
    assert path.read_text() == "kept"


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
    "a broken extractor": ({"preprocessor_config.json": "[]"}, "expected an object"),
    "no extractor": (
        {"preprocessor_config.json": None, "processor_config.json": None},
        "expected processor_config.json or preprocessor_config.json",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_checkpoints_that_are_broken(root: Path, tmp_path: Path, name: str) -> None:
    changes, message = FILES[name]
    with pytest.raises(CheckpointError, match=message):
        Speech2TextProcessor.from_pretrained(broken(root / "speech2text", tmp_path / "x", changes))
