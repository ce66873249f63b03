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
    Speech2TextProcessor,
)
from corpus_asr.models.whisper import (
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
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
    tiny_tokenizer(root / "tokens")
    tokens = root / "tokens"
    tiny_whisper(root / "whisper", tokenizer=tokens, max_source_positions=WINDOW // 2, **SIZES)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(root / "whisper")
    folder = root / "speech2text"
    tiny_speech2text_tokenizer(folder, languages=TARGETS, lang_codes="mustc", tgt_lang="fr")
    (folder / "preprocessor_config.json").write_text('{"num_mel_bins": 80}')
    Speech2TextProcessor.from_pretrained(folder).save_pretrained(folder)
    return root


@pytest.fixture(scope="module")
def here(root: Path) -> SimpleNamespace:
    return SimpleNamespace(
        speech2text=Speech2TextProcessor.from_pretrained(root / "speech2text"),
        processor=WhisperProcessor.from_pretrained(root / "whisper"),
        tokenizer=WhisperTokenizer.from_pretrained(root / "whisper"),
        model=WhisperForConditionalGeneration.from_pretrained(root / "whisper"),
    )


AUDIO: dict[str, tuple[Any, dict[str, Any], str]] = {
    "another rate": (SILENCE, {"sampling_rate": 8_000}, "expected 16000"),
    "stereo": (np.zeros((9, 2)), {}, "2 channels"),
    "nothing": (None, {}, "found neither"),
    "less than a frame": ([SILENCE, SILENCE[:399]], {}, "recording 1"),
    "uneven rows": ([SILENCE, SILENCE[:9_000]], {"return_tensors": "pt"}, "padding=True"),
    "no length to cut to": (SILENCE, {"truncation": True}, "max_length"),
}


@pytest.mark.parametrize("name", AUDIO)
def test_audio_that_cannot_be_used(here: SimpleNamespace, name: str) -> None:
    audio, options, message = AUDIO[name]
    # Whisper's windows are all of one length.
    for processor in [here.speech2text] + [here.processor] * ([*AUDIO].index(name) < 3):
        with pytest.raises(ValueError, match=message):
            processor(audio, **{"sampling_rate": 16_000, **options})


TIMED: dict[str, Any] = {"return_timestamps": True}
ENCODED = torch.zeros(1, 7, 16)
# The sound, what else `generate` is given, and what its error names. Settings that no model takes
# are in tests/families/whisper/test_generation_config.py.
GENERATE: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, "encoder_outputs"),
    (FEATURES[:0], {}, r"\(0, 80, 200\)"),
    (FEATURES[:, :, :0], {}, r"\(1, 80, 0\)"),
    (FEATURES * torch.nan, {}, r"NaN or infinity.*rows \[0\]"),
    (FEATURES[:, :40], {}, r"\(1, 40, 200\)"),
    (FEATURES[0], {}, r"\(80, 200\)"),
    (FEATURES, {"language": "klingon"}, "klingon"),
    (FEATURES, {"language": ["en", "de"]}, "2 languages"),
    (FEATURES, {"task": "sing"}, "task"),
    (FEATURES, {"prompt_ids": torch.ones(60).long()}, "prompt_ids"),
    (FEATURES, {"prompt_ids": torch.tensor([10**6])}, "token 1000000"),
    (FEATURES, {"prompt_ids": torch.tensor([0.5])}, "float32"),
    (FEATURES, {"prompt_ids": torch.zeros(1, 2)}, r"expected \(tokens\)"),
    (FEATURES, {"max_new_tokens": 40}, "max_new_tokens"),
    (FEATURES, {"temperature": -1.0}, "temperature"),
    (FEATURES, {"temperature": ()}, "empty list"),
    (FEATURES, {"no_speech_threshold": 0.5}, "logprob_threshold"),
    (FEATURES, {"eos_token_id": "2"}, "token id"),
    (FEATURES, {"numbeams": 3}, "numb"),
    (FEATURES, {"return_token_timestamps": True}, "alignment_heads"),
    (LONG, TIMED, "attention_mask"),
    (LONG, {**TIMED, "attention_mask": torch.ones(1, 9)}, r"\(1, 9\)"),
    (LONG[:1], {"return_timestamps": False}, "return_timestamps"),
    (LONG[:1], {**TIMED, "prompt_condition_type": "some"}, "prompt_condition_type"),
    (LONG[:1], {**TIMED, "prompt_condition_type": "all-segments"}, "condition_on_prev_tokens"),
    (None, {"encoder_outputs": ()}, "encoder_outputs"),
    (None, {"encoder_outputs": ENCODED}, r"\(7, 16\)"),
]


@pytest.mark.parametrize(("features", "given", "message"), GENERATE)
def test_a_call_of_generate_that_cannot_be(
    here: SimpleNamespace, features: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        here.model.generate(features, **given)


def test_tokens_the_model_lacks_need_no_suppression(here: SimpleNamespace) -> None:
    plain = here.model.generate(FEATURES, suppress_tokens=[3], begin_suppress_tokens=[4])
    more = {"suppress_tokens": [3, 10**6], "begin_suppress_tokens": [4, 10**6]}
    assert torch.equal(here.model.generate(FEATURES, **more), plain)


READ = (
    "config.json", "model.safetensors", "preprocessor_config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


def load_everything(folder: Path) -> None:
    WhisperProcessor.from_pretrained(folder)
    WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_missing_or_cut_short_is_named(
    root: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(root / "whisper", tmp_path / "copy")
    path = folder / name
    for kept in (0.5, 0.0, None):
        if kept is not None:
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        elif name in READ[:3]:
            path.unlink()
        with pytest.raises(CheckpointError, match=name):
            load_everything(folder)


def test_nothing_is_saved_over_a_file(here: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    parts = (here.model, here.model.config, here.model.generation_config, here.processor)
    for part in (*parts, here.tokenizer):
        with pytest.raises(CheckpointError, match="expected a writable folder; choose another"):
            part.save_pretrained(path)
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
        "found an unusable added_tokens_decoder",
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
