"""Whisper's decoder, token by token in slots.

In: token ids, positions and slots. Out: hidden states, one per token. Knows no text, no sampling,
and not the projection to the vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.models.layers.blocks import DecoderBlock
from corpus_asr.models.layers.cache import SlotCache, SpanView, StepView
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

    def new_cache(self, slots: int, *, beams: int = 1) -> SlotCache:
        """Allocate caches for `slots` sequences, of the weights' dtype, where the weights are.

        Each `beams` adjacent slots share a window.

        Raises:
            ValueError: the slots cannot share windows evenly.
        """
        weight = self._decoder.embed_tokens.weight
        return SlotCache(
            layers=len(self._blocks),
            slots=slots,
            beams=beams,
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
        cache.note_length(slots, tokens.shape[1])
        normed: Tensor = self._decoder.layer_norm(hidden)
        return normed

    def step(
        self, cache: SlotCache, tokens: Int[Tensor, " slot"], positions: Int[Tensor, " slot"]
    ) -> Float[Tensor, "slot width"]:
        """Run one token in each of the slots 0, 1, ..., at its own position.

        Raises:
            ValueError: some slots of a window are left out; on a CPU, a position is outside the
                model's.
        """
        if len(tokens) % cache.beams:
            raise ValueError(
                f"advancing {len(tokens)} slots: each {cache.beams} of them share a window, "
                "expected all of these or none; pass a token for each"
            )
        view = StepView.at(positions, max_positions=self._decoder.max_target_positions)
        embedded = F.embedding(tokens, self._decoder.embed_tokens.weight)
        embedded = embedded + F.embedding(positions, self._decoder.embed_positions.weight)
        hidden = embedded.unsqueeze(1)  # (slot, 1, width)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            hidden = block.step(layer, view, hidden)
        cache.note_length(range(len(tokens)), view.length)
        normed: Tensor = self._decoder.layer_norm(hidden.squeeze(1))
        return normed

    def extend(
        self,
        cache: SlotCache,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch token width"]:
        """Run several tokens of each of `slots`, the first at `positions`.

        Raises:
            ValueError: on a CPU, a position is outside the model's.
        """
        view = SpanView.at(
            slots,
            positions,
            num_tokens=tokens.shape[1],
            max_positions=self._decoder.max_target_positions,
        )
        hidden = F.embedding(tokens, self._decoder.embed_tokens.weight)
        hidden = hidden + F.embedding(view.positions, self._decoder.embed_positions.weight)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            hidden = block.extend(layer, view, hidden)
        cache.note_length(slots, view.length)
        normed: Tensor = self._decoder.layer_norm(hidden)
        return normed

    def align(
        self,
        cache: SlotCache,
        slot: int,
        tokens: Int[Tensor, " token"],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Float[Tensor, "token width"], Float[Tensor, "head token pos"]]:
        """Run a sequence over the window in `slot`, writing nothing to the cache.

        Also returns how these (layer, head) attend to the window, after the softmax, in float32.

        Raises:
            ValueError: the model has no such head, or not as many positions.
        """
        asked = self._heads_by_layer(heads)
        hidden = self._decoder.embed(tokens.unsqueeze(0))
        weights = hidden.new_zeros(
            len(heads), len(tokens), self._decoder.max_source_positions, dtype=torch.float32
        )
        for number, (block, layer) in enumerate(zip(self._blocks, cache.layers, strict=True)):
            rows = [row for row, _ in asked[number]]
            hidden, found = block.align(layer, slot, hidden, [head for _, head in asked[number]])
            weights[rows] = found
        normed: Tensor = self._decoder.layer_norm(hidden[0])
        return normed, weights

    def _heads_by_layer(self, heads: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """List, for every layer, the asked heads with their places among `heads`."""
        asked: list[list[tuple[int, int]]] = [[] for _ in self._blocks]
        for row, (layer, head) in enumerate(heads):
            if not (0 <= layer < len(self._blocks) and 0 <= head < self._decoder.heads):
                raise ValueError(
                    f"aligning with head {head} of decoder layer {layer}: the model has "
                    f"{len(self._blocks)} layers of {self._decoder.heads} heads; correct the "
                    "alignment heads"
                )
            asked[layer].append((row, head))
        return asked
