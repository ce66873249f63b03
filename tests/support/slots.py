"""Tiny networks in slots, with windows and token sequences to feed them."""

from pathlib import Path

import torch
from torch import Tensor

from corpus_asr.families.layers.kv_cache import SlotCache
from corpus_asr.families.whisper.slots import WhisperSlotModel
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper

# A step's products are sums in another order than the whole sequence's.
STEP_TOLERANCE = 1e-4

POSITIONS = 60
SOURCE_POSITIONS = 100


def load(folder: Path, dtype: torch.dtype = torch.float32) -> WhisperForConditionalGeneration:
    tiny_whisper(
        folder,
        vocab_size=500,
        max_target_positions=POSITIONS,
        max_source_positions=SOURCE_POSITIONS,
        spread=0.15,
    )
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def windows(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 80, 2 * SOURCE_POSITIONS, generator=generator)


def sequences(count: int, length: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randint(0, 500, (count, length), generator=generator)


def whole(network: WhisperForConditionalGeneration, features: Tensor, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(features, decoder_input_ids=tokens).logits.float()


def begin(
    model: WhisperSlotModel,
    state: SlotCache,
    slots: list[int],
    features: Tensor,
    tokens: Tensor,
    lengths: list[int],
) -> Tensor:
    """Fill slots and run their prompts; returns logits (batch, token, vocab)."""
    model.fill(state, slots, model.encode(features))
    return model.logits(model.prefill(state, slots, tokens, lengths))
