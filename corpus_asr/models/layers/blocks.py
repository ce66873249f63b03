"""Pre-norm transformer blocks with Hugging Face's parameter names.

In: hidden states. Out: hidden states of the same shape. Knows no tokens, no audio and no model;
`CachedDecoderBlock` runs a `DecoderBlock` from caches, as decoding needs it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.models.layers.attention import (
    Attention,
)

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


def _within_float16(hidden: Tensor) -> Tensor:
    """Keep float16 states finite: large checkpoints overflow in the last encoder layers.

    Source: transformers/models/whisper/modeling_whisper.py, WhisperEncoderLayer.
    """
    if hidden.dtype != torch.float16:
        return hidden
    limit = torch.finfo(torch.float16).max - 1000
    return hidden.clamp(-limit, limit)
