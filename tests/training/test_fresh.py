"""Checkpoints that know nothing yet, and who can load them."""

from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import gelu

from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.models.whisper.processor import WhisperProcessor
from corpus_asr.training.fresh import Sizes, make_checkpoint

TEXTS = ("The north wind and the sun were disputing.", "Ask what you can do for your country!")
SIZES = Sizes(
    text_tokens=300, width=32, feed_forward=64, heads=2, encoder_layers=1, decoder_layers=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(TEXTS, tmp_path_factory.mktemp("fresh") / "model", SIZES, seed=0)


def test_the_vocabulary_spells_any_text(folder: Path) -> None:
    tokenizer = WhisperProcessor.from_pretrained(folder).tokenizer
    assert not tokenizer.is_multilingual
    for text in (*TEXTS, "naïve 東京 <|x|>"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert max(ids) < tokenizer.eot
        assert tokenizer.decode(ids) == text
    assert tokenizer.prompt(None, "transcribe", timestamps=False) == (
        tokenizer.sot,
        tokenizer.no_timestamps,
    )
    assert len(tokenizer) == tokenizer.timestamp_begin + 1501


def test_transformers_reads_it_alike(folder: Path) -> None:
    ours, theirs = (
        family.from_pretrained(folder)
        for family in (WhisperProcessor, transformers.WhisperProcessor)
    )
    for text in TEXTS:
        assert ours.tokenizer(text).input_ids == theirs.tokenizer(text).input_ids
    _, told = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_seed_decides_the_weights(folder: Path, tmp_path: Path) -> None:
    again = make_checkpoint(TEXTS, tmp_path / "again", SIZES, seed=0)
    other = make_checkpoint(TEXTS, tmp_path / "other", SIZES, seed=1)
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, again, other)]
    assert weights[0] == weights[1] != weights[2]
    network = WhisperForConditionalGeneration.from_pretrained(folder)
    assert network.config.d_model == 32


def test_what_is_heard_counts_as_much_as_where(folder: Path) -> None:
    network = WhisperForConditionalGeneration.from_pretrained(folder)
    encoder = network.model.encoder
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heard = gelu(encoder.conv2(gelu(encoder.conv1(features))))
    assert heard.std() > 0.3 * encoder.embed_positions.weight.std()
    assert network.model.decoder.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
