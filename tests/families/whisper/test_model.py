"""What the networks refuse, and what loading promises. Their numbers: tests/parity."""

import json
from pathlib import Path

import pytest
import torch

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.model import WhisperModel
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WhisperForConditionalGeneration:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_whisper(folder, max_source_positions=50, max_target_positions=20, vocab_size=300)
    return WhisperForConditionalGeneration.from_pretrained(folder)


def test_a_loaded_model_is_ready_for_inference(model: WhisperForConditionalGeneration) -> None:
    assert not model.training
    assert model.device == torch.device("cpu")
    assert model.config.vocab_size == 300


def test_a_loaded_model_can_be_trained_but_for_its_encoder_positions(
    model: WhisperForConditionalGeneration,
) -> None:
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"model.encoder.embed_positions.weight"}


def test_outputs_hold_logits_and_the_encoding(model: WhisperForConditionalGeneration) -> None:
    outputs = model(torch.randn(2, 80, 100), decoder_input_ids=torch.ones(2, 3, dtype=torch.long))
    assert outputs.logits.shape == (2, 3, 300)
    assert outputs.encoder_last_hidden_state.shape == (2, 50, 64)


def test_the_bare_model_gives_hidden_states(model: WhisperForConditionalGeneration) -> None:
    outputs = model.model(
        torch.randn(2, 80, 100), decoder_input_ids=torch.ones(2, 3, dtype=torch.long)
    )
    assert outputs.last_hidden_state.shape == (2, 3, 64)


@pytest.mark.parametrize("shape", [(1, 80, 99), (1, 80, 3000), (1, 128, 100)])
def test_features_that_are_no_whole_window_are_an_error(
    model: WhisperForConditionalGeneration, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=f"{shape[1]} mel bins x {shape[2]} frames, expected 80 x"):
        model(torch.zeros(shape), decoder_input_ids=torch.ones(1, 3, dtype=torch.long))


def test_too_many_tokens_are_an_error(model: WhisperForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="decoding 21 tokens: the model has 20 positions"):
        model(torch.zeros(1, 80, 100), decoder_input_ids=torch.ones(1, 21, dtype=torch.long))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("decoder_attention_heads", 3, "3 heads do not divide it"),
        ("activation_function", "gelo", "expected one of gelu"),
    ],
)
def test_a_configuration_no_network_can_have_names_its_file(
    tmp_path: Path, key: str, value: object, reason: str
) -> None:
    folder = tiny_whisper(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(CheckpointError, match=reason) as caught:
        WhisperModel.from_pretrained(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_a_fresh_model_ties_its_output_projection() -> None:
    config = WhisperConfig(encoder_layers=1, decoder_layers=1, vocab_size=50, pad_token_id=49)
    config.d_model = 16
    with pytest.raises(ValueError, match="6 heads do not divide it"):
        WhisperForConditionalGeneration(config)
    config.d_model = 24
    fresh = WhisperForConditionalGeneration(config)
    assert fresh.proj_out.weight is fresh.model.decoder.embed_tokens.weight
