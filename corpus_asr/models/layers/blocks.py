"""Pre-norm transformer blocks with Hugging Face's parameter names.

In: hidden states. Out: hidden states of the same shape. Knows no tokens, no audio and no model;
`CachedDecoderBlock` runs a `DecoderBlock` from caches, as decoding needs it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.models.layers.attention import (
    Attention,
    attend_cached,
    merge_heads,
    split_heads,
)
from corpus_asr.models.layers.cache import LayerCache, StepView
from corpus_asr.models.layers.projection import Projection

Activation = Callable[[Tensor], Tensor]


def _gelu_tanh(hidden: Tensor) -> Tensor:
    return F.gelu(hidden, approximate="tanh")


def _quick_gelu(hidden: Tensor) -> Tensor:
    return hidden * torch.sigmoid(1.702 * hidden)


# By the names config.json uses (transformers/activations.py, ACT2CLS).
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


def activation(name: str) -> Activation:
    """Return the activation function config.json calls `name`.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise ValueError(
            f"choosing activation_function {name!r}: not known; expected one of {known}"
        ) from None


class EncoderBlock(nn.Module):
    """Self-attention, then two linear layers; each normed before and added to its input."""

    def __init__(
        self, width: int, *, heads: int, ffn_dim: int, activation_name: str, key_bias: bool
    ) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, key_bias=key_bias)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activate = activation(activation_name)

    def forward(self, hidden: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Let every position see every other."""
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden))
        hidden = hidden + self.fc2(self.activate(self.fc1(self.final_layer_norm(hidden))))
        return _within_float16(hidden)


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention, then two linear layers."""

    def __init__(
        self, width: int, *, heads: int, ffn_dim: int, activation_name: str, key_bias: bool
    ) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, key_bias=key_bias)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, heads, key_bias=key_bias)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activate = activation(activation_name)

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        encoded: Float[Tensor, "batch pos width"],
    ) -> Float[Tensor, "batch token width"]:
        """Let each token see itself, those before it, and the whole window."""
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), causal=True)
        hidden = hidden + self.encoder_attn(self.encoder_attn_layer_norm(hidden), encoded)
        hidden = hidden + self.fc2(self.activate(self.fc1(self.final_layer_norm(hidden))))
        return hidden


class CachedDecoderBlock:
    """A `DecoderBlock` that keeps the keys and values of many sequences in slots.

    Equal to the block it is made from within rounding; shares its norms, and holds its linear
    maps fused (queries, keys and values are one product, with the query's scale folded in).
    """

    def __init__(self, block: DecoderBlock) -> None:
        own, cross = block.self_attn, block.encoder_attn
        self._heads = own.heads
        self._block = block
        # A power of two for Whisper's head_dim of 64: folding it in rounds nothing.
        scale = own.head_dim**-0.5
        self._qkv = Projection([own.q_proj, own.k_proj, own.v_proj], scales=[scale])
        self._out = Projection([own.out_proj])
        self._cross_query = Projection([cross.q_proj], scales=[scale])
        self._cross_kv = Projection([cross.k_proj, cross.v_proj])
        self._cross_out = Projection([cross.out_proj])
        self._fc1 = Projection([block.fc1])
        self._fc2 = Projection([block.fc2])

    def fill(
        self, cache: LayerCache, slots: Sequence[int], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Write what cross-attention needs of the windows `encoded` into `slots`."""
        keys, values = self._cross_kv(encoded).chunk(2, dim=-1)
        cache.write_window(slots, split_heads(keys, self._heads), split_heads(values, self._heads))

    def prefill(
        self, cache: LayerCache, slots: Sequence[int], hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """Run whole prompts from position 0 and leave their keys and values in `slots`."""
        normed = self._block.self_attn_layer_norm(hidden)
        query, key, value = (
            split_heads(part, self._heads) for part in self._qkv(normed).chunk(3, dim=-1)
        )
        cache.write_prompts(slots, key, value)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
        hidden = hidden + self._out(merge_heads(attended))
        return self._cross_and_feed_forward(hidden, *cache.read_window(slots))

    def step(
        self, cache: LayerCache, view: StepView, hidden: Float[Tensor, "slot 1 width"]
    ) -> Float[Tensor, "slot 1 width"]:
        """Run one token of each of the slots 0, 1, ..."""
        num_slots = len(hidden)
        normed = self._block.self_attn_layer_norm(hidden)
        query, key, value = (
            split_heads(part, self._heads) for part in self._qkv(normed).chunk(3, dim=-1)
        )  # (slot, head, 1, head_dim)
        cache.write_step(view, key.squeeze(2), value.squeeze(2))
        attended = attend_cached(
            query,
            cache.self_keys[:num_slots, :, : view.length],
            cache.self_values[:num_slots, :, : view.length],
            unseen=view.unseen,
        )
        hidden = hidden + self._out(merge_heads(attended))
        return self._cross_and_feed_forward(
            hidden, cache.cross_keys[:num_slots], cache.cross_values[:num_slots]
        )

    def _cross_and_feed_forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        keys: Float[Tensor, "batch head pos head_dim"],
        values: Float[Tensor, "batch head pos head_dim"],
    ) -> Float[Tensor, "batch token width"]:
        normed = self._block.encoder_attn_layer_norm(hidden)
        query = split_heads(self._cross_query(normed), self._heads)
        hidden = hidden + self._cross_out(merge_heads(attend_cached(query, keys, values)))
        normed = self._block.final_layer_norm(hidden)
        return hidden + self._fc2(self._block.activate(self._fc1(normed)))


def _within_float16(hidden: Tensor) -> Tensor:
    """Keep float16 states finite: large checkpoints overflow in the last encoder layers.

    Source: transformers/models/whisper/modeling_whisper.py, WhisperEncoderLayer.
    """
    if hidden.dtype != torch.float16:
        return hidden
    limit = torch.finfo(torch.float16).max - 1000
    return hidden.clamp(-limit, limit)
