"""Pre-norm transformer blocks with Hugging Face's parameter names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.layers.attention import Attention
from corpus_asr.families.layers.kv_cache import LayerPast

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
    """Return the activation function config.json calls `name`."""
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise ValueError(
            f"choosing activation_function {name!r}: not known; expected one of {known}"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSettings:
    """Sizes and settings of a block."""

    width: int
    heads: int
    ffn_dim: int
    activation: str = "gelu"
    key_bias: bool
    """Whether projections to keys have a bias."""
    dropout: float = 0.0
    """Of what attention and the second linear layer give."""
    attention_dropout: float = 0.0
    """Of attention weights."""
    activation_dropout: float = 0.0
    """Of what the activation gives."""
    eager: bool = False
    """Whether attention is plain products always."""

    @classmethod
    def of(cls, config: Any, *, heads: int, ffn_dim: int, key_bias: bool) -> Self:
        """Take what encoder and decoder share from a configuration."""
        return cls(
            width=config.d_model,
            heads=heads,
            ffn_dim=ffn_dim,
            activation=config.activation_function,
            key_bias=key_bias,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            eager=config.attn_implementation == "eager",
        )

    def attention(self) -> Attention:
        """Make an attention of these sizes."""
        return Attention(
            self.width,
            self.heads,
            key_bias=self.key_bias,
            dropout=self.attention_dropout,
            eager=self.eager,
        )


@dataclass(slots=True)
class AttentionWeights:
    """Where the blocks of a tower put their attention weights, one tensor per block."""

    own: list[Tensor] = field(default_factory=list)
    """Of self-attention, each (batch, head, token, pos)."""
    cross: list[Tensor] = field(default_factory=list)
    """Of cross-attention, each (batch, head, token, pos)."""


class EncoderBlock(nn.Module):
    """Self-attention, then two linear layers; each normed before and added to its input."""

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        width = settings.width
        self.settings = settings
        self.self_attn = settings.attention()
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, settings.ffn_dim)
        self.fc2 = nn.Linear(settings.ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activate = activation(settings.activation)

    def forward(
        self,
        hidden: Float[Tensor, "batch pos width"],
        *,
        mask: Float[Tensor, "#batch 1 1 _"] | None = None,
        head_mask: Float[Tensor, " head"] | None = None,
        weights: AttentionWeights | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Let every position see every other, as far as `mask`, added to the scores, lets it."""
        attended = self.self_attn(
            self.self_attn_layer_norm(hidden),
            mask=mask,
            head_mask=head_mask,
            weights=None if weights is None else weights.own,
        )
        hidden = hidden + F.dropout(attended, self.settings.dropout, self.training)
        return _within_float16(_feed_forward(self, hidden))


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention, then two linear layers."""

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        width = settings.width
        self.settings = settings
        self.self_attn = settings.attention()
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = settings.attention()
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, settings.ffn_dim)
        self.fc2 = nn.Linear(settings.ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activate = activation(settings.activation)

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        encoded: Float[Tensor, "batch pos width"] | None = None,
        *,
        mask: Float[Tensor, "#batch 1 token _"] | None = None,
        cross_mask: Float[Tensor, "#batch 1 1 _"] | None = None,
        past: LayerPast | None = None,
        head_mask: Float[Tensor, " head"] | None = None,
        cross_head_mask: Float[Tensor, " head"] | None = None,
        weights: AttentionWeights | None = None,
    ) -> Float[Tensor, "batch token width"]:
        """Let each token see itself, those before it, and the whole window.

        Args:
            hidden: of the tokens.
            encoded: of the window; without it there is no cross-attention.
            mask: added to the scores of self-attention; None lets a token see all before it.
            cross_mask: added to those of cross-attention; None lets a token see all positions.
            past: what earlier calls kept; this call adds to it.
            head_mask: factor of each head's weights in self-attention.
            cross_head_mask: factor of each head's weights in cross-attention.
            weights: where attention weights are put.
        """
        attended = self.self_attn(
            self.self_attn_layer_norm(hidden),
            causal=True,
            mask=mask,
            kept=None if past is None else past.own,
            head_mask=head_mask,
            weights=None if weights is None else weights.own,
        )
        hidden = hidden + F.dropout(attended, self.settings.dropout, self.training)
        if encoded is not None:
            attended = self.encoder_attn(
                self.encoder_attn_layer_norm(hidden),
                encoded,
                mask=cross_mask,
                kept=None if past is None else past.cross,
                head_mask=cross_head_mask,
                weights=None if weights is None else weights.cross,
            )
            hidden = hidden + F.dropout(attended, self.settings.dropout, self.training)
        return _feed_forward(self, hidden)


def _feed_forward(block: EncoderBlock | DecoderBlock, hidden: Tensor) -> Tensor:
    """Run the linear layers of a block and add what they give."""
    settings, training = block.settings, block.training
    inner = block.activate(block.fc1(block.final_layer_norm(hidden)))
    inner = block.fc2(F.dropout(inner, settings.activation_dropout, training))
    return hidden + F.dropout(inner, settings.dropout, training)


def _within_float16(hidden: Tensor) -> Tensor:
    """Keep float16 states finite: large checkpoints overflow in the last encoder layers."""
    if hidden.dtype != torch.float16:
        return hidden
    limit = torch.finfo(torch.float16).max - 1000
    return hidden.clamp(-limit, limit)
