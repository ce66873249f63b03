"""A decoder block that keeps the keys and values of many sequences in slots.

In: hidden states of a few tokens per slot. Out: the same, one layer on. Made from a `DecoderBlock`
of a loaded model, with linear maps of its own; knows nothing of tokens or of the order of slots.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from corpus_asr.families.layers.attention import attend_cached, merge_heads, split_heads
from corpus_asr.families.layers.blocks import DecoderBlock
from corpus_asr.families.layers.cache import LayerCache, SpanView, StepView, WindowView
from corpus_asr.families.layers.packed_block import blocks_of
from corpus_asr.families.layers.projection import NormedProjection, Projection


class CachedDecoderBlock:
    """A `DecoderBlock` that keeps the keys and values of many sequences in slots.

    Equal to the block it is made from within rounding; shares its norms, and holds its linear
    maps fused (queries, keys and values are one product, with the query's scale folded in), with
    `int8` rounded to 8 bits.
    """

    def __init__(self, block: DecoderBlock, *, int8: bool = False) -> None:
        own, cross = block.self_attn, block.encoder_attn
        self._heads = own.heads
        # Not the block itself: its linear maps need not stay in memory beside their copies.
        self._activate = block.activate
        # A power of two for Whisper's head_dim of 64: folding it in rounds nothing.
        scale = own.head_dim**-0.5
        self._qkv = NormedProjection(
            block.self_attn_layer_norm,
            [own.q_proj, own.k_proj, own.v_proj],
            scales=[scale],
            int8=int8,
        )
        self._out = Projection([own.out_proj], int8=int8)
        self._cross_query = NormedProjection(
            block.encoder_attn_layer_norm, [cross.q_proj], scales=[scale], int8=int8
        )
        # Never in 8 bits: once per window, and every token reads what it gives.
        self._cross_kv = Projection([cross.k_proj, cross.v_proj])
        self._cross_out = Projection([cross.out_proj], int8=int8)
        self._fc1 = NormedProjection(block.final_layer_norm, [block.fc1], int8=int8)
        self._fc2 = Projection([block.fc2], int8=int8)

    def fill(
        self, cache: LayerCache, slots: Sequence[int], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Write what cross-attention needs of the windows `encoded` into `slots`."""
        keys, values = self._cross_kv(encoded).chunk(2, dim=-1)
        cache.write_window(slots, split_heads(keys, self._heads), split_heads(values, self._heads))

    def fill_one(self, cache: LayerCache, slot: int, window: Float[Tensor, "pos width"]) -> None:
        """Write what cross-attention needs of one window, a few positions at a time.

        The window may be short; on a CPU it is then looked at no further.
        """
        blocks = [self._cross_kv.by_block(rows) for rows in blocks_of(window)]
        found = torch.cat(blocks).unsqueeze(0).chunk(2, dim=-1)
        held = cache.packed_window(slot, len(window))
        for there, here in zip(held, found, strict=True):
            there.copy_(split_heads(here, self._heads))

    def prefill(
        self,
        cache: LayerCache,
        slots: Sequence[int],
        hidden: Float[Tensor, "batch token width"],
        windows: WindowView | None = None,
    ) -> Float[Tensor, "batch token width"]:
        """Run whole prompts from position 0 and leave their keys and values in `slots`."""
        query, key, value = (
            split_heads(part, self._heads) for part in self._qkv(hidden).chunk(3, dim=-1)
        )
        cache.write_prompts(slots, key, value)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
        hidden = hidden + self._out(merge_heads(attended))
        return self._hear_and_feed_forward(cache, slots, hidden, windows)

    def step(
        self,
        cache: LayerCache,
        view: StepView,
        hidden: Float[Tensor, "slot 1 width"],
        windows: WindowView | None = None,
    ) -> Float[Tensor, "slot 1 width"]:
        """Run one token of each of the slots 0, 1, ..."""
        num_slots = len(hidden)
        qkv = self._qkv(hidden).view(num_slots, 3, self._heads, -1)
        cache.write_step(view, qkv[:, 1:])
        attended = attend_cached(
            qkv[:, 0].unsqueeze(2),  # (slot, head, 1, head_dim)
            cache.self_keys[:num_slots, :, : view.length],
            cache.self_values[:num_slots, :, : view.length],
            unseen=view.unseen,
        )
        hidden = hidden + self._out(merge_heads(attended))
        # Slots that share a window ask it together: that reads it once.
        together = hidden.view(-1, cache.beams, hidden.shape[2])
        firsts = range(0, num_slots, cache.beams)
        together = self._hear_and_feed_forward(cache, firsts, together, windows)
        return together.view(num_slots, 1, -1)

    def extend(
        self,
        cache: LayerCache,
        view: SpanView,
        hidden: Float[Tensor, "batch token width"],
        windows: WindowView | None = None,
    ) -> Float[Tensor, "batch token width"]:
        """Run several more tokens of each of the view's slots."""
        query, key, value = (
            split_heads(part, self._heads) for part in self._qkv(hidden).chunk(3, dim=-1)
        )
        cache.write_span(view, key, value)
        attended = attend_cached(query, *cache.read_span(view), unseen=view.unseen)
        hidden = hidden + self._out(merge_heads(attended))
        return self._hear_and_feed_forward(cache, view.slots, hidden, windows)

    def align(
        self,
        cache: LayerCache,
        slot: int,
        hidden: Float[Tensor, "1 token width"],
        heads: Sequence[int],
        windows: WindowView | None = None,
    ) -> tuple[Float[Tensor, "1 token width"], Float[Tensor, "head token pos"]]:
        """Run a whole sequence over the window in `slot`, writing nothing to the cache.

        Also returns how `heads` attend to the window, after the softmax, in float32.
        """
        query, key, value = (
            split_heads(part, self._heads) for part in self._qkv(hidden).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
        hidden = hidden + self._out(merge_heads(attended))
        ends = windows.ends if windows is not None else ()
        keys, _ = cache.packed_window(slot, ends[0]) if ends else cache.read_window([slot])
        query = self._ask_window(hidden)
        scores = torch.matmul(query[0, list(heads)], keys[0, list(heads)].transpose(-1, -2))
        if windows is not None and windows.unseen is not None:
            scores = scores.masked_fill(windows.unseen[0], -torch.inf)
        weights = scores.float().softmax(dim=-1)  # (head, token, pos)
        return self._hear_and_feed_forward(cache, [slot], hidden, windows), weights

    def _ask_window(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch head token head_dim"]:
        return split_heads(self._cross_query(hidden), self._heads)

    def _hear_and_feed_forward(
        self,
        cache: LayerCache,
        slots: Sequence[int],
        hidden: Float[Tensor, "batch token width"],
        windows: WindowView | None,
    ) -> Float[Tensor, "batch token width"]:
        query = self._ask_window(hidden)
        if windows is None:
            attended = attend_cached(query, *cache.read_window(slots))
        elif windows.unseen is not None:
            attended = attend_cached(query, *cache.read_window(slots), unseen=windows.unseen)
        else:
            each = zip(torch.split(query, 1), slots, windows.ends, strict=True)
            parts = [attend_cached(one, *cache.packed_window(slot, end)) for one, slot, end in each]
            attended = torch.cat(parts)
        hidden = hidden + self._cross_out(merge_heads(attended))
        return hidden + self._fc2(self._activate(self._fc1(hidden)))
