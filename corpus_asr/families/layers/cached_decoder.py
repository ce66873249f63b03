"""A decoder of pre-norm blocks with caches in numbered slots, used for decoding."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.device import upload
from corpus_asr.decoding.protocols import ModelSize, Slots
from corpus_asr.families.layers.blocks import (
    DecoderBlock,
    Hidden,
    attend_as_beams,
    attend_cached,
    merge_heads,
    split_heads,
)
from corpus_asr.families.layers.kv_cache import (
    LayerCache,
    SlotCache,
    TokenView,
    WindowView,
    from_float8,
)
from corpus_asr.families.layers.packed import blocks_of, copied_layers, run_per_sample
from corpus_asr.families.layers.projection import NormedProjection, Projection
from corpus_asr.families.layers.stack import TokenDecoder, check_heads
from corpus_asr.families.layers.token_slots import Tokens, TokenSlots, check_prompts


class CachedDecoderBlock:
    """A `DecoderBlock` that stores the keys and values of many sequences in slots.

    Equal to the original block within rounding; shares its norms, and has fused copies of its
    linear maps, with `int8` rounded to 8 bits.
    """

    def __init__(self, block: DecoderBlock, *, int8: bool = False) -> None:
        self_attention, cross_attention = block.self_attn, block.encoder_attn
        self._heads = self_attention.heads
        # Not a reference to the block, whose linear maps need not stay in memory.
        self._activate = block.activate
        # A power of two for Whisper's head_dim of 64: folding it in is exact.
        scale = self_attention.head_dim**-0.5
        self._qkv = NormedProjection(
            block.self_attn_layer_norm,
            [self_attention.q_proj, self_attention.k_proj, self_attention.v_proj],
            scales=[scale],
            int8=int8,
        )
        self._out = Projection([self_attention.out_proj], int8=int8)
        self._cross_query = NormedProjection(
            block.encoder_attn_layer_norm, [cross_attention.q_proj], scales=[scale], int8=int8
        )
        # Never in 8 bits: computed once per window and read by every token.
        self._cross_kv = Projection([cross_attention.k_proj, cross_attention.v_proj])
        self._cross_out = Projection([cross_attention.out_proj], int8=int8)
        self._fc1 = NormedProjection(block.final_layer_norm, [block.fc1], int8=int8)
        self._fc2 = Projection([block.fc2], int8=int8)

    def fill(
        self, cache: LayerCache, rows: slice | Tensor, encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        keys, values = self._cross_kv(encoded).chunk(2, dim=-1)
        cache.write_window(rows, split_heads(keys, self._heads), split_heads(values, self._heads))

    def fill_one(self, cache: LayerCache, slot: int, window: Float[Tensor, "pos width"]) -> None:
        # The window may be short; on a CPU only its own positions are read.
        blocks = [self._cross_kv.by_block(rows).chunk(2, dim=-1) for rows in blocks_of(window)]
        keys, values = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        held_keys, held_values = cache.packed_window(slot, len(window))
        held_keys.copy_(split_heads(keys.unsqueeze(0), self._heads))
        # Transposed as one matrix: copied head by head this takes eight times as long.
        held_values.mT.view(-1, len(window)).copy_(values.T)

    def prefill(
        self,
        cache: LayerCache,
        rows: slice | Tensor,
        hidden: Hidden,
        windows: WindowView,
        *,
        used: int,
    ) -> Hidden:
        hidden, key, value = self._attend_causally(hidden)
        cache.write_prompts(rows, key, value, used=used)
        return self._attend_window_and_feed_forward(cache, hidden, windows)

    def extend(
        self,
        cache: LayerCache,
        view: TokenView,
        hidden: Hidden,
        windows: WindowView,
    ) -> Hidden:
        qkv = self._qkv(hidden).view(*hidden.shape[:2], 3, self._heads, -1)
        cache.write(view, qkv[:, :, 1:])
        query = qkv[:, :, 0].transpose(1, 2)  # (batch, head, token, head_dim)
        if view.not_ours is None:
            attended = attend_cached(query, *cache.read(view), unseen=view.unseen)
        else:
            attended = attend_as_beams(query, *cache.read(view), unseen=view.not_ours)
        hidden = hidden + self._out(merge_heads(attended))
        # Slots that share a window are batched, so that it is read once.
        together = hidden.view(len(windows.slots), -1, hidden.shape[2])
        return self._attend_window_and_feed_forward(cache, together, windows).view(hidden.shape)

    def align(
        self,
        cache: LayerCache,
        hidden: Hidden,
        heads: Int[Tensor, " head"] | None,
        windows: WindowView,
    ) -> tuple[Hidden, Float[Tensor, "batch head token pos"] | None]:
        """Read whole texts; also return the cross-attention of `heads`, in float32."""
        # The whole text at once: caches have no queries, which weights require.
        hidden, _, _ = self._attend_causally(hidden)
        weights = None
        if heads is not None:
            if windows.ends:
                keys, _ = cache.packed_window(int(windows.slots[0]), windows.ends[0])
            else:
                keys, _, scales = cache.window(windows.rows)
                if scales is not None:
                    keys = from_float8(keys, scales[0], hidden.dtype)
            query = split_heads(self._cross_query(hidden), self._heads).index_select(1, heads)
            scores = torch.matmul(query, keys.index_select(1, heads).transpose(-1, -2))
            if windows.unseen is not None:
                scores = scores.masked_fill(windows.unseen, -torch.inf)
            # In float32: word times are derived from these weights.
            weights = scores.float().softmax(dim=-1)
        return self._attend_window_and_feed_forward(cache, hidden, windows), weights

    def _attend_causally(self, hidden: Hidden) -> tuple[Hidden, Tensor, Tensor]:
        parts = self._qkv(hidden).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self._heads) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
        return hidden + self._out(merge_heads(attended)), key, value

    def _attend_window_and_feed_forward(
        self, cache: LayerCache, hidden: Hidden, windows: WindowView
    ) -> Hidden:
        query = split_heads(self._cross_query(hidden), self._heads)
        if windows.ends:
            rows = zip(torch.split(query, 1), windows.slots, windows.ends, strict=True)
            attended = torch.cat(
                [attend_cached(part, *cache.packed_window(slot, end)) for part, slot, end in rows]
            )
        else:
            attended = attend_cached(query, *cache.window(windows.rows), unseen=windows.unseen)
        hidden = hidden + self._cross_out(merge_heads(attended))
        return hidden + self._fc2(self._activate(self._fc1(hidden)))


class DecoderSlots(TokenSlots):
    """A `decoding.protocols.SlotModel` except for the encoder, which each family adds.

    Shares the decoder's embeddings and norms; its linear maps are fused copies, with `int8` rounded
    to 8 bits: training the network further, or moving it, requires new slots.
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        projection: nn.Linear,
        *,
        max_source_positions: int,
        int8: bool = False,
        consume: bool = False,
    ) -> None:
        # Not a reference to the decoder, whose linear maps need not stay in memory.
        self._config = decoder.config
        self._heads = decoder.heads
        self._blocks = [
            CachedDecoderBlock(block, int8=int8)
            for block in copied_layers(decoder.layers, consume=consume)
            if isinstance(block, DecoderBlock)
        ]
        super().__init__(
            decoder.embed_tokens,
            decoder.layer_norm,
            projection,
            positions=max_source_positions,
            int8=int8,
        )
        self.max_target_positions = decoder.max_target_positions

    @property
    def size(self) -> ModelSize:
        layers = len(self._blocks)
        positions, width = self.window_shape
        # Hidden states before and after attention, the normalized ones, and the inner ones before
        # and after activation.
        block = positions * (3 * width + 2 * self._config.encoder_ffn_dim)
        return ModelSize(
            width=width,
            vocab_size=self.vocab_size,
            tokens=self.max_target_positions,
            positions=positions,
            token_values=2 * layers * width,
            position_values=2 * layers * width,
            # Queries, keys and values; cross-attention queries, keys and values. With biases.
            fused_values=layers * 6 * width * (width + 1),
            encoder_values=block + self.window_values,
            element_bytes=self.dtype.itemsize,
            window_element_bytes=1 if self.float8_windows else self.dtype.itemsize,
            weight_bytes=self._weight_bytes,
        )

    @property
    @abstractmethod
    def window_values(self) -> int:
        """Number of values of a window's features."""

    @abstractmethod
    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        """Return the number of encoder positions for `num_frames` of each window."""

    @abstractmethod
    def _embed(self, tokens: Tokens, positions: Tokens) -> Hidden:
        """Embed tokens, each at its own position."""

    def _new_cache(self, **sizes: Any) -> SlotCache:
        head_dim = self._tokens.embedding_dim // self._heads
        return SlotCache(head_dim=head_dim, float8_windows=self.float8_windows, **sizes)

    @torch.inference_mode()
    def fill(
        self,
        state: SlotCache,
        slots: Slots,
        encoded: Float[Tensor, "batch pos width"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        self._check_encoded(slots, encoded)
        num_positions: list[int] | None = None
        if num_frames is not None:
            num_positions = self.positions_heard(num_frames, windows=len(encoded))
        state.note_windows(slots, num_positions)
        if not state.on_cpu:
            rows = state.windows(slots)
            for block, layer in zip(self._blocks, state.layers, strict=True):
                block.fill(layer, rows, encoded)
            return
        ends = num_positions or [encoded.shape[1]] * len(slots)
        valid = [window[:end] for window, end in zip(encoded, ends, strict=True)]

        def fill_one(slot_and_window: tuple[int, Tensor]) -> None:
            for block, layer in zip(self._blocks, state.layers, strict=True):
                block.fill_one(layer, *slot_and_window)

        # One by one, since short windows differ in length.
        windows = list(zip(map(int, slots), valid, strict=True))
        run_per_sample(fill_one, windows, size=lambda window: len(window[1]))

    @torch.inference_mode()
    def prefill(
        self,
        state: SlotCache,
        slots: Slots,
        tokens: Tokens,
        lengths: Sequence[int],
    ) -> Hidden:
        check_prompts(tokens, lengths)
        hidden = self._embed_whole(tokens)
        rows, windows, used = state.rows(slots), state.view_windows(slots), state.used(slots)
        for block, layer in zip(self._blocks, state.layers, strict=True):
            hidden = block.prefill(layer, rows, hidden, windows, used=used)
        state.note_prompts(slots, tokens.shape[1])
        normed: Tensor = self._norm(hidden)
        return normed

    def _extend(self, state: SlotCache, view: TokenView, tokens: Tokens, *, sharing: int) -> Hidden:
        hidden = self._embed(tokens, view.positions)
        windows = state.view_windows(view.slots[::sharing])
        for block, layer in zip(self._blocks, state.layers, strict=True):
            hidden = block.extend(layer, view, hidden, windows)
        state.note_tokens(view)
        normed: Tensor = self._norm(hidden)
        return normed

    @torch.inference_mode()
    def align(
        self,
        state: SlotCache,
        slots: Sequence[int],
        tokens: Tokens,
        lengths: Sequence[int],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Float[Tensor, "batch head token pos"], Hidden]:
        check_heads(heads, layers=len(self._blocks), num_heads=self._heads)
        # By layer, and then back into the given order.
        order = sorted(range(len(heads)), key=lambda row: heads[row][0])
        (back,) = upload(tokens.device, sorted(range(len(order)), key=order.__getitem__))
        chosen = [heads[row] for row in order]
        if not state.on_cpu:
            return self._align(state, slots, tokens, chosen, back)
        # One by one: texts are not padded there, and short windows are read up to their ends.
        rows = [
            self._align(state, [slot], tokens[row : row + 1, :length], chosen, back)
            for row, (slot, length) in enumerate(zip(slots, lengths, strict=True))
        ]
        longest, positions = tokens.shape[1], self._max_source_positions
        weights = [F.pad(w, (0, positions - w.shape[3], 0, longest - w.shape[2])) for w, _ in rows]
        hidden = [F.pad(states, (0, 0, 0, longest - states.shape[1])) for _, states in rows]
        return torch.cat(weights), torch.cat(hidden)

    def _align(
        self,
        state: SlotCache,
        slots: Sequence[int],
        tokens: Tokens,
        heads: Sequence[tuple[int, int]],
        back: Int[Tensor, " head"],
    ) -> tuple[Float[Tensor, "batch head token _"], Hidden]:
        windows = state.view_windows(slots)
        hidden = self._embed_whole(tokens)
        (index,) = upload(tokens.device, [head for _, head in heads])
        layer_weights: list[Tensor] = []
        for number, (block, cache) in enumerate(zip(self._blocks, state.layers, strict=True)):
            rows = [row for row, (layer, _) in enumerate(heads) if layer == number]
            chosen = index[rows[0] : rows[-1] + 1] if rows else None
            hidden, weights = block.align(cache, hidden, chosen, windows)
            if weights is not None:
                layer_weights.append(weights)
        normed: Tensor = self._norm(hidden)
        return torch.cat(layer_weights, dim=1).index_select(1, back), normed

    def _embed_whole(self, tokens: Tokens) -> Hidden:
        length = tokens.shape[1]
        if length > self.max_target_positions:
            raise ValueError(
                f"decoding {length} tokens: the model has {self.max_target_positions} positions; "
                "cut the prompt or the sequence"
            )
        return self._embed(tokens, self._whole_positions(tokens))

    def _whole_positions(self, tokens: Tokens) -> Tokens:
        return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
