"""What comes with the package as demo-en: small, in 16 bits, with words and a card of its own."""

import json
from pathlib import Path

import pytest
import torch

from corpus_asr.models.stored_weights import stored_tensors
from corpus_asr.models.whisper import WhisperTokenizer
from corpus_asr.storage.model_files import PACKAGED, fetch_checkpoint
from corpus_asr.units import MEBIBYTE


def test_it_is_found_by_its_name_alone(demo_model: Path) -> None:
    assert "demo-en" in PACKAGED
    assert fetch_checkpoint("demo-en") == demo_model


def test_it_is_small(demo_model: Path) -> None:
    stored = [each.read() for each in stored_tensors(demo_model).values()]
    assert {each.dtype for each in stored} == {torch.float16}
    assert all(each.isfinite().all() for each in stored)
    assert (demo_model / "model.safetensors").stat().st_size <= 16e6
    assert sum(each.stat().st_size for each in demo_model.iterdir()) < 16.5 * MEBIBYTE


@pytest.mark.parametrize(
    "text",
    ["Call me at half past ten, Mr. Weaver!", "naïve — 20 % of ünïcödé 語", "  two  spaces\n"],
)
def test_its_vocabulary_writes_any_text(demo_model: Path, text: str) -> None:
    tokenizer = WhisperTokenizer.from_pretrained(demo_model)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_its_special_tokens_are_whispers(demo_model: Path) -> None:
    tokenizer = WhisperTokenizer.from_pretrained(demo_model)
    tokens = ("<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>")
    for token in (*tokens, "<|nospeech|>", "<|0.00|>", "<|30.00|>"):
        assert tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(token)) == token
    generation = json.loads((demo_model / "generation_config.json").read_text())
    assert generation["no_timestamps_token_id"] == tokenizer.convert_tokens_to_ids(tokens[-1])


def test_its_card_says_what_it_is_and_what_it_is_not(demo_model: Path) -> None:
    card = (demo_model / "README.md").read_text(encoding="utf-8")
    for said in ("configs/demo_model.yaml", "openai/whisper-", "CC BY-SA 4.0", "Limits"):
        assert said in card
