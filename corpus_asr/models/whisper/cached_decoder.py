"""Whisper's decoder, token by token in slots.

In: token ids, positions and slots. Out: hidden states, one per token. Knows no text, no sampling,
and not the projection to the vocabulary.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.models.layers.blocks import DecoderBlock
from corpus_asr.models.layers.cache import SlotCache, StepView
from corpus_asr.models.layers.cached_block import CachedDecoderBlock
from corpus_asr.models.whisper.decoder import WhisperDecoder


class CachedWhisperDecoder:
    """A `WhisperDecoder` that keeps the keys and values of many sequences in slots.

    Shares the decoder's embeddings and norms; its linear maps are fused copies.
    """

    def __init__(self, decoder: WhisperDecoder) -> None:
        self._decoder = decoder
        self._blocks = [
            CachedDecoderBlock(block) for block in decoder.layers if isinstance(block, DecoderBlock)
        ]

    def new_cache(self, slots: int) -> SlotCache:
        """Allocate caches for `slots` sequences, of the weights' dtype, where the weights are."""
        weight = self._decoder.embed_tokens.weight
        return SlotCache(
            layers=len(self._blocks),
            slots=slots,
            heads=self._decoder.heads,
            head_dim=weight.shape[1] // self._decoder.heads,
            tokens=self._decoder.max_target_positions,
            positions=self._decoder.max_source_positions,
            dtype=weight.dtype,
            device=weight.device,
        )

    def fill(
        self, cache: SlotCache, slots: Sequence[int], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Write the cross-attention keys and values of `encoded` into `slots`."""
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            block.fill(layer, slots, encoded)

    def prefill(
        self, cache: SlotCache, slots: Sequence[int], tokens: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token width"]:
        """Run prompts from position 0, starting `slots` anew.

        Raises:
            ValueError: the prompts are longer than the model's positions.
        """
        hidden = self._decoder.embed(tokens)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            hidden = block.prefill(layer, slots, hidden)
        normed: Tensor = self._decoder.layer_norm(hidden)
        return normed

    def step(
        self, cache: SlotCache, tokens: Int[Tensor, " slot"], positions: Int[Tensor, " slot"]
    ) -> Float[Tensor, "slot width"]:
        """Run one token in each of the slots 0, 1, ..., at its own position.

        Raises:
            ValueError: on a CPU, a position is outside the model's.
        """
        view = StepView.at(positions, max_positions=self._decoder.max_target_positions)
        embedded = F.embedding(tokens, self._decoder.embed_tokens.weight)
        embedded = embedded + F.embedding(positions, self._decoder.embed_positions.weight)
        hidden = embedded.unsqueeze(1)  # (slot, 1, width)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            hidden = block.step(layer, view, hidden)
        normed: Tensor = self._decoder.layer_norm(hidden.squeeze(1))
        return normed
