"""Decoder-only models that read an encoded window as a part of their prompts, in numbered slots.

A prompt has one placeholder token for each encoder position of its window. Prompts are read at
once, on a CPU each alone; texts then advance token by token as those of encoder-decoders do.
"""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float
from corpus_asr.decoding.protocols import ModelSize, Slots
from corpus_asr.families.audio_prompts import sequence_room
from corpus_asr.families.layers.blocks import (
    Hidden,
    activation,
    attend_as_beams,
    attend_cached,
)
from corpus_asr.families.layers.gated import (
    GatedBlock,
    GroupedAttention,
    RotaryPositions,
    TextNetwork,
    rotated,
)
from corpus_asr.families.layers.kv_cache import LayerCache, SlotCache, TokenView, rounded_length
from corpus_asr.families.layers.packed import copied_layers, run_per_sample
from corpus_asr.families.layers.projection import NormedProjection, Projection
from corpus_asr.families.layers.token_slots import Tokens, TokenSlots, check_prompts

Factors = Float[Tensor, "2 batch token 1 head_dim"]


class PrefixCache(SlotCache):
    """The caches of all layers, and the encoded window of each slot."""

    def __init__(self, *, positions: int, width: int, **sizes: Any) -> None:
        super().__init__(positions=0, **sizes)
        shape = self.slots // self.beams, positions, width
        self.encoded = torch.zeros(shape, dtype=sizes["dtype"], device=sizes["device"])

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target`."""
        super().move(source, target)
        self.encoded[target // self.beams].copy_(self.encoded[source // self.beams])


class CachedGatedBlock:
    """A `GatedBlock` that stores the keys and values of many sequences in slots.

    Has fused copies of the block's linear maps, with `int8` rounded to 8 bits.
    """

    def __init__(self, block: GatedBlock, *, activate: Any, int8: bool) -> None:
        attention, layers = block.self_attn, block.mlp
        self._heads, self._key_heads = attention.heads, attention.key_heads
        self._activate = activate
        scale = attention.head_dim**-0.5
        self._head_norms = _head_norms(attention, scale)
        self._eps = block.input_layernorm.eps
        self._qkv = NormedProjection(
            block.input_layernorm,
            [attention.q_proj, attention.k_proj, attention.v_proj],
            scales=[scale] if self._head_norms is None else (),
            int8=int8,
        )
        self._out = Projection([attention.o_proj], int8=int8)
        self._gate_and_up = NormedProjection(
            block.post_attention_layernorm, [layers.gate_proj, layers.up_proj], int8=int8
        )
        self._down = Projection([layers.down_proj], int8=int8)

    def prefill(
        self,
        cache: LayerCache,
        rows: slice | Tensor,
        hidden: Hidden,
        factors: Factors,
        *,
        used: int,
    ) -> Hidden:
        """Read whole prompts into the slots of `rows`, which had `used` tokens before."""
        query, key, value = (heads.transpose(1, 2) for heads in self._project(hidden, factors))
        cache.write_prompts(rows, key, value, used=used)
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=1.0, enable_gqa=True
        )
        return self._feed_forward(hidden, attended.transpose(1, 2))

    def extend(
        self, cache: LayerCache, view: TokenView, hidden: Hidden, factors: Factors
    ) -> Hidden:
        """Read the next tokens of the view's slots."""
        query, key, value = self._project(hidden, factors)
        cache.write(view, torch.stack([key, value], dim=2))
        batch, tokens = hidden.shape[:2]
        # The queries that share a head of keys attend to it together.
        shared = query.view(batch, tokens, self._key_heads, -1, query.shape[3])
        together = shared.transpose(1, 2).flatten(2, 3)
        if view.not_ours is not None:
            attended = attend_as_beams(together, *cache.read(view), unseen=view.not_ours)
        else:
            unseen = view.unseen
            if tokens > 1:
                unseen = unseen.repeat_interleave(self._heads // self._key_heads, dim=2)
            attended = attend_cached(together, *cache.read(view), unseen=unseen)
        apart = attended.view(batch, self._key_heads, tokens, -1, attended.shape[3])
        return self._feed_forward(hidden, apart.transpose(1, 2))

    def _project(
        self, hidden: Hidden, factors: Factors
    ) -> tuple[Tensor, Tensor, Float[Tensor, "batch token head head_dim"]]:
        qkv, apart = self._qkv(hidden), [self._heads, self._key_heads]
        heads = qkv.view(*hidden.shape[:2], sum(apart) + self._key_heads, -1)
        placed, value = torch.split(heads, [sum(apart), self._key_heads], dim=2)
        if self._head_norms is not None:
            placed = F.rms_norm(placed, placed.shape[3:], None, self._eps) * self._head_norms
        query, key = torch.split(rotated(placed, factors), apart, dim=2)
        return query, key, value

    def _feed_forward(self, hidden: Hidden, attended: Tensor) -> Hidden:
        hidden = hidden + self._out(attended.reshape(*hidden.shape[:2], -1))
        gates, values = self._gate_and_up(hidden).chunk(2, dim=2)
        return hidden + self._down(self._activate(gates) * values)


def _head_norms(attention: GroupedAttention, scale: float) -> Float[Tensor, "head head_dim"] | None:
    """Return the weights of all heads' norms, with the scale of queries; None without norms."""
    if attention.q_norm is None or attention.k_norm is None:
        return None
    query = (attention.q_norm.weight.detach() * scale).repeat(attention.heads, 1)
    return torch.cat([query, attention.k_norm.weight.detach().repeat(attention.key_heads, 1)])


class PrefixSlots(TokenSlots):
    """A `decoding.protocols.SlotModel` except for the encoder, which each family adds.

    Linear maps are fused copies, with `int8` rounded to 8 bits.
    """

    frame_step = 1

    def __init__(
        self,
        network: TextNetwork,
        projection: nn.Linear,
        *,
        placeholder: int,
        ends: Sequence[int],
        window_frames: int,
        int8: bool = False,
        consume: bool = False,
    ) -> None:
        """`placeholder` is the token of an encoder position; `ends` are the tokens that end a text.

        Windows have `window_frames`, for which `positions` gives the number of positions.
        """
        config = network.config
        activate = activation(config.hidden_act)
        self._heads = config.num_key_value_heads
        self._head_dim = config.head_dim
        self._inner = config.intermediate_size
        self._query_heads = config.num_attention_heads
        self._blocks = [
            CachedGatedBlock(block, activate=activate, int8=int8)
            for block in copied_layers(network.layers, consume=consume)
            if isinstance(block, GatedBlock)
        ]
        super().__init__(
            network.embed_tokens,
            network.norm,
            projection,
            positions=self.positions(window_frames),
            int8=int8,
        )
        self._placeholder = placeholder
        self._end, *self._other_ends = ends
        self._longest = config.max_position_embeddings
        self._base = config.rope_theta
        self.window_frames = window_frames
        self._set_room()

    @abstractmethod
    def positions(self, num_frames: int) -> int:
        """Return the number of encoder positions for so many frames."""

    @property
    @abstractmethod
    def encoder_values(self) -> int:
        """Return the number of values of a window in the encoder at its peak."""

    def for_windows(self, num_frames: int) -> Self:
        """Return this model for windows of other lengths; all weights are shared."""
        model = copy.copy(self)
        model.window_frames = num_frames
        model._max_source_positions = self.positions(num_frames)
        model._set_room()
        return model

    def _set_room(self) -> None:
        """Set the sequences' length: a window, its prompt and the longest text it can have."""
        self.max_target_positions = min(self._longest, sequence_room(self._max_source_positions))
        self._rotary = RotaryPositions(
            self.max_target_positions,
            self._head_dim,
            base=self._base,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def size(self) -> ModelSize:
        positions, width = self.window_shape
        layers, key_width = len(self._blocks), self._heads * self._head_dim
        queries_and_more = (self._query_heads + 2 * self._heads) * self._head_dim
        return ModelSize(
            width=width,
            vocab_size=self.vocab_size,
            tokens=self.max_target_positions,
            positions=positions,
            token_values=2 * layers * key_width,
            position_values=width,
            fused_values=layers * width * (queries_and_more + 2 * self._inner),
            encoder_values=self.encoder_values,
            element_bytes=self.dtype.itemsize,
            window_element_bytes=self.dtype.itemsize,
            weight_bytes=self._weight_bytes,
        )

    def _new_cache(self, **sizes: Any) -> PrefixCache:
        return PrefixCache(width=self.window_shape[1], head_dim=self._head_dim, **sizes)

    @torch.inference_mode()
    def fill(
        self,
        state: PrefixCache,
        slots: Slots,
        encoded: Float[Tensor, "batch pos width"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        self._check_encoded(slots, encoded)
        state.encoded[state.windows(slots)] = encoded

    @torch.inference_mode()
    def prefill(
        self,
        state: PrefixCache,
        slots: Slots,
        tokens: Tokens,
        lengths: Sequence[int],
    ) -> Hidden:
        check_prompts(tokens, lengths)
        if tokens.shape[1] > self.max_target_positions:
            raise ValueError(
                f"decoding {tokens.shape[1]} tokens: the model has {self.max_target_positions} "
                "positions; cut the prompt"
            )
        if not state.on_cpu:
            hidden = self._read_prompts(state, slots, tokens)
        else:
            hidden = torch.zeros(
                *tokens.shape, self._tokens.embedding_dim, dtype=self.dtype, device=self.device
            )

            def read(row: int) -> None:
                # Each alone, so that no prompt is padded to another's length.
                end = rounded_length(lengths[row], most=tokens.shape[1])
                hidden[row, :end] = self._read_prompts(
                    state, [int(slots[row])], tokens[row : row + 1, :end]
                )[0]

            run_per_sample(read, range(len(lengths)), size=lengths.__getitem__)
        state.note_prompts(slots, tokens.shape[1])
        return hidden

    def _read_prompts(self, state: PrefixCache, slots: Slots, tokens: Tokens) -> Hidden:
        rows, used = state.rows(slots), state.used(slots)
        hidden = self._embed_prompts(tokens, state.encoded[state.windows(slots)])
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        factors = self._rotary.at(positions)
        for block, layer in zip(self._blocks, state.layers, strict=True):
            hidden = block.prefill(layer, rows, hidden, factors, used=used)
        normed: Tensor = self._norm(hidden)
        return normed

    def _embed_prompts(self, tokens: Tokens, encoded: Float[Tensor, "batch pos width"]) -> Hidden:
        """Embed tokens, with the encoded positions in place of their placeholders, in order."""
        embedded = F.embedding(tokens, self._tokens.weight)
        is_position = tokens == self._placeholder
        index = (is_position.cumsum(dim=1) - 1).clamp(0, encoded.shape[1] - 1)
        rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        return torch.where(is_position.unsqueeze(2), encoded[rows, index], embedded)

    def _extend(
        self, state: PrefixCache, view: TokenView, tokens: Tokens, *, sharing: int
    ) -> Hidden:
        hidden = F.embedding(tokens, self._tokens.weight)
        factors = self._rotary.at(view.positions)
        for block, layer in zip(self._blocks, state.layers, strict=True):
            hidden = block.extend(layer, view, hidden, factors)
        state.note_tokens(view)
        normed: Tensor = self._norm(hidden)
        return normed

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        scores = super().logits(hidden)
        # Jobs have one token that ends a text: it has the score of the likeliest of all of them.
        for other in self._other_ends:
            end, more = scores[..., self._end], scores[..., other]
            end.copy_(torch.maximum(end, more))
            more.fill_(-torch.inf)
        return scores

    def align(self, *_: Any) -> Any:
        """Raise: the network has no cross-attention."""
        raise ValueError(
            "aligning tokens with a decoder-only model: found no cross-attention; set align.model "
            "to a CTC checkpoint"
        )
