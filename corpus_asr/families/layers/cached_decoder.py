"""A decoder of pre-norm blocks, token by token in slots.

In: token ids, positions and slots. Out: hidden states, one per token. How tokens and positions are
embedded is the family's affair. Knows no text, no sampling, and not the projection to the
vocabulary.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.families.layers.blocks import DecoderBlock
from corpus_asr.families.layers.cache import SlotCache, SpanView, StepView
from corpus_asr.families.layers.cached_block import CachedDecoderBlock
from corpus_asr.families.layers.side_by_side import run_side_by_side


class TokenEmbedding(Protocol):
    """Embeds tokens at their positions."""

    @property
    def weight(self) -> Float[Tensor, "vocab width"]:
        """Of the tokens; its type and device are those of the decoder."""

    def start(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        """Embed sequences that start at position 0."""

    def at(
        self, tokens: Int[Tensor, "*batch"], positions: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch width"]:
        """Embed tokens, each at its own position."""


class CachedDecoder:
    """A stack of `DecoderBlock`s that keeps the keys and values of many sequences in slots.

    Shares the decoder's embeddings and norms; its linear maps are fused copies, with `int8`
    rounded to 8 bits.

    Args:
        embedding: of the tokens.
        layers: the decoder's blocks.
        layer_norm: comes after them.
        heads: attention heads.
        max_source_positions: encoder positions of a window.
        max_target_positions: longest sequence a slot can hold.
        int8: whether linear maps are rounded to 8 bits.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        layers: nn.ModuleList,
        layer_norm: nn.LayerNorm,
        *,
        heads: int,
        max_source_positions: int,
        max_target_positions: int,
        int8: bool = False,
    ) -> None:
        # Not the decoder itself: its linear maps need not stay in memory beside their copies.
        self._embedding = embedding
        self._layer_norm = layer_norm
        self._heads = heads
        self._max_source_positions = max_source_positions
        self._max_target_positions = max_target_positions
        self._blocks = [
            CachedDecoderBlock(block, int8=int8)
            for block in layers
            if isinstance(block, DecoderBlock)
        ]

    @property
    def weight(self) -> Float[Tensor, "vocab width"]:
        """Of the token embedding; its type and device are those of the decoder."""
        return self._embedding.weight

    @property
    def max_source_positions(self) -> int:
        """Encoder positions of a window."""
        return self._max_source_positions

    @property
    def max_target_positions(self) -> int:
        """Longest sequence a slot can hold."""
        return self._max_target_positions

    def resized(self, *, source_positions: int, target_positions: int) -> Self:
        """Return this decoder for caches of another size; it shares all weights."""
        other = copy.copy(self)
        other._max_source_positions = source_positions
        other._max_target_positions = target_positions
        return other

    def new_cache(self, slots: int, *, beams: int = 1) -> SlotCache:
        """Allocate caches for `slots` sequences, of the weights' dtype, where the weights are.

        Each `beams` adjacent slots share a window.

        Raises:
            ValueError: the slots cannot share windows evenly.
        """
        weight = self._embedding.weight
        return SlotCache(
            layers=len(self._blocks),
            slots=slots,
            beams=beams,
            heads=self._heads,
            head_dim=weight.shape[1] // self._heads,
            tokens=self._max_target_positions,
            positions=self._max_source_positions,
            dtype=weight.dtype,
            device=weight.device,
        )

    def fill(
        self,
        cache: SlotCache,
        slots: Sequence[int],
        encoded: Float[Tensor, "batch pos width"],
        *,
        num_positions: Sequence[int] | None = None,
    ) -> None:
        """Write the cross-attention keys and values of `encoded` into `slots`.

        Of each window only its `num_positions` are looked at from then on; None means all.
        """
        cache.note_windows(slots, num_positions)
        if cache.on_cpu:
            ends = num_positions or [encoded.shape[1]] * len(slots)
            heard = [window[:end] for window, end in zip(encoded, ends, strict=True)]
            windows = list(zip(slots, heard, strict=True))
            run_side_by_side(partial(self._fill_one, cache), windows, size=lambda one: len(one[1]))
            return
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            block.fill(layer, slots, encoded)

    def _fill_one(
        self, cache: SlotCache, slot_and_window: tuple[int, Float[Tensor, "pos width"]]
    ) -> None:
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            block.fill_one(layer, *slot_and_window)

    def prefill(
        self, cache: SlotCache, slots: Sequence[int], tokens: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token width"]:
        """Run prompts from position 0, starting `slots` anew.

        Raises:
            ValueError: the prompts are longer than the model's positions.
        """
        hidden = self._embed(tokens)
        windows = cache.view_windows(slots)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            hidden = block.prefill(layer, slots, hidden, windows)
        cache.note_prompts(slots, tokens.shape[1])
        normed: Tensor = self._layer_norm(hidden)
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
        view = StepView.at(positions, max_positions=self._max_target_positions)
        windows = cache.view_windows(range(0, len(tokens), cache.beams))
        hidden = self._embedding.at(tokens, positions).unsqueeze(1)  # (slot, 1, width)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            hidden = block.step(layer, view, hidden, windows)
        cache.note_tokens(view.rows, positions)
        normed: Tensor = self._layer_norm(hidden.squeeze(1))
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
            max_positions=self._max_target_positions,
        )
        windows = cache.view_windows(slots)
        hidden = self._embedding.at(tokens, view.positions)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            hidden = block.extend(layer, view, hidden, windows)
        cache.note_tokens(view.slot, view.positions)
        normed: Tensor = self._layer_norm(hidden)
        return normed

    def align(
        self,
        cache: SlotCache,
        slot: int,
        tokens: Int[Tensor, " token"],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Float[Tensor, "token width"], Float[Tensor, "head token pos"]]:
        """Run a sequence over the window in `slot`, writing nothing to the cache.

        Also returns how these (layer, head) attend to the window, after the softmax, in float32;
        not at all past its end.

        Raises:
            ValueError: the model has no such head, or not as many positions.
        """
        asked = self._heads_by_layer(heads)
        windows = cache.view_windows([slot])
        hidden = self._embed(tokens.unsqueeze(0))
        weights = hidden.new_zeros(
            len(heads), len(tokens), self._max_source_positions, dtype=torch.float32
        )
        for number, (block, layer) in enumerate(zip(self._blocks, cache.layers, strict=True)):
            rows = [row for row, _ in asked[number]]
            own = [head for _, head in asked[number]]
            hidden, found = block.align(layer, slot, hidden, own, windows)
            weights[rows, :, : found.shape[2]] = found
        normed: Tensor = self._layer_norm(hidden[0])
        return normed, weights

    def _embed(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        """Embed sequences that start at position 0."""
        length = tokens.shape[1]
        if length > self._max_target_positions:
            raise ValueError(
                f"decoding {length} tokens: the model has {self._max_target_positions} positions; "
                "cut the prompt or the sequence"
            )
        return self._embedding.start(tokens)

    def _heads_by_layer(self, heads: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """List, for every layer, the asked heads with their places among `heads`."""
        asked: list[list[tuple[int, int]]] = [[] for _ in self._blocks]
        for row, (layer, head) in enumerate(heads):
            if not (0 <= layer < len(self._blocks) and 0 <= head < self._heads):
                raise ValueError(
                    f"aligning with head {head} of decoder layer {layer}: the model has "
                    f"{len(self._blocks)} layers of {self._heads} heads; correct the "
                    "alignment heads"
                )
            asked[layer].append((row, head))
        return asked
