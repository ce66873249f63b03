"""The networks against transformers: same keys, same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from corpus_asr.families.whisper.model import WhisperModel
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper

# Sums of a few thousand float32 products in another order.
TOLERANCE = 1e-5
# Logits of the real checkpoint reach 20, so one rounding step is 2e-6.
REAL_TOLERANCE = 1e-4

SHAPES: dict[str, dict[str, Any]] = {
    "multilingual": {},
    "large-v3 bins": {"num_mel_bins": 128, "vocab_size": 1234},
    "odd heads": {"d_model": 72, "heads": 3},
    "towers of two depths": {"encoder_layers": 3, "decoder_layers": 1},
    "towers of two widths inside": {"encoder_ffn_dim": 40, "decoder_attention_heads": 2},
    "scale_embedding": {"scale_embedding": True},
    "gelu_new": {"activation_function": "gelu_new"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "swish": {"activation_function": "swish"},
    "quick_gelu": {"activation_function": "quick_gelu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "short windows and sequences": {"max_source_positions": 250, "max_target_positions": 40},
    "no layers": {"layers": 0},
}


def reference(folder: Path, **kwargs: Any) -> transformers.WhisperForConditionalGeneration:
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder, **kwargs).eval()


def inputs(model: WhisperForConditionalGeneration) -> tuple[torch.Tensor, torch.Tensor]:
    config = model.config
    generator = torch.Generator().manual_seed(1)
    frames = 2 * config.max_source_positions
    features = torch.randn(2, config.num_mel_bins, frames, generator=generator)
    tokens = torch.randint(0, config.vocab_size, (2, 9), generator=generator)
    return features.to(model.dtype), tokens


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_transformers(tmp_path: Path, shape: str) -> None:
    tiny_whisper(tmp_path, **SHAPES[shape])
    ours = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    theirs = reference(tmp_path)
    features, tokens = inputs(ours)
    with torch.inference_mode():
        found = ours(features, decoder_input_ids=tokens)
        expected = theirs(features, decoder_input_ids=tokens)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(found.logits, expected.logits, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(
        found.encoder_last_hidden_state,
        expected.encoder_last_hidden_state,
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


def test_the_bare_model_equals_that_of_transformers(tmp_path: Path) -> None:
    theirs = reference(tiny_whisper(tmp_path / "whole")).model
    theirs.save_pretrained(tmp_path / "bare")  # keys without the prefix `model.`
    ours = WhisperModel.from_pretrained(tmp_path / "bare")
    features, tokens = inputs(WhisperForConditionalGeneration.from_pretrained(tmp_path / "whole"))
    with torch.inference_mode():
        found = ours(features, decoder_input_ids=tokens)
        expected = theirs(features, decoder_input_ids=tokens)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(
        found.last_hidden_state, expected.last_hidden_state, atol=TOLERANCE, rtol=TOLERANCE
    )


def test_transformers_reads_our_state_dict(tmp_path: Path) -> None:
    ours = WhisperForConditionalGeneration.from_pretrained(tiny_whisper(tmp_path))
    fresh = transformers.WhisperForConditionalGeneration(reference(tmp_path).config).eval()
    fresh.load_state_dict(ours.state_dict(), strict=True)
    features, tokens = inputs(ours)
    with torch.inference_mode():
        found = ours(features, decoder_input_ids=tokens).logits
        expected = fresh(features, decoder_input_ids=tokens).logits
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_fresh_weights_are_drawn_like_those_of_transformers(tmp_path: Path) -> None:
    tiny_whisper(tmp_path, d_model=128, vocab_size=4000)
    config = WhisperForConditionalGeneration.from_pretrained(tmp_path).config
    fresh = WhisperForConditionalGeneration(config)
    theirs = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig.from_pretrained(tmp_path)
    )
    for (name, found), expected in zip(
        fresh.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert found.std() == pytest.approx(float(expected.std()), rel=0.1, abs=1e-6), name
        assert found.mean() == pytest.approx(float(expected.mean()), abs=0.01), name
    frozen = fresh.model.encoder.embed_positions.weight
    torch.testing.assert_close(frozen, theirs.model.encoder.embed_positions.weight)
    assert not frozen.requires_grad


def test_the_real_checkpoint_has_the_keys_its_file_has(checkpoint: Path) -> None:
    ours = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    computed = {"proj_out.weight", "model.encoder.embed_positions.weight"}
    assert set(ours.state_dict()) - computed == stored - computed
    assert ours.dtype == torch.float16


def test_the_real_checkpoint_gives_what_transformers_gives(checkpoint: Path) -> None:
    ours = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    features, tokens = inputs(ours)
    with torch.inference_mode():
        found = ours(features[:1], decoder_input_ids=tokens[:1]).logits
        expected = reference(checkpoint, dtype=torch.float32)(
            features[:1], decoder_input_ids=tokens[:1]
        ).logits
    torch.testing.assert_close(found, expected, atol=REAL_TOLERANCE, rtol=TOLERANCE)
