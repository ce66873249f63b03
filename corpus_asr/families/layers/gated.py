"""Decoder-only text networks: parameters of pre-norm blocks as in transformers' Qwen3 and Llama.

Modules hold weights under the names of checkpoints; `prefix_slots` computes with them.
"""

import torch
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.families.text_config import TextConfig


class GroupedAttention(nn.Module):
    """Weights of causal attention in which several query heads share a head of keys and values."""

    def __init__(self, config: TextConfig, *, head_norms: bool) -> None:
        super().__init__()
        width, bias, head_dim = config.hidden_size, config.attention_bias, config.head_dim
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, self.heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.key_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.key_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * head_dim, width, bias=bias)
        # Of each head's queries and keys; Llama has none.
        self.q_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps) if head_norms else None
        self.k_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps) if head_norms else None


class GatedLayers(nn.Module):
    """Weights of a feed-forward layer whose inner values are multiplied by activated gates."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)


class GatedBlock(nn.Module):
    """Weights of grouped-query attention and gated layers, each with a norm before it."""

    def __init__(self, config: TextConfig, *, head_norms: bool) -> None:
        super().__init__()
        self.self_attn = GroupedAttention(config, head_norms=head_norms)
        self.mlp = GatedLayers(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class TextNetwork(nn.Module):
    """Weights of token embeddings, gated blocks and a final norm."""

    def __init__(self, config: TextConfig, *, head_norms: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = (
            GatedBlock(config, head_norms=head_norms) for _ in range(config.num_hidden_layers)
        )
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class RotaryPositions:
    """Rotations of pairs of values by angles that grow with the position.

    Source: Su et al. 2021, "RoFormer", section 3.2.2; pairs are the halves of a head, as in Llama.
    """

    def __init__(
        self,
        positions: int,
        head_dim: int,
        *,
        base: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        rates = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.arange(positions).float().unsqueeze(1) * rates  # (position, pair)
        cosines, sines = angles.cos(), angles.sin()
        # The first half takes the second one times the negative sine.
        tables = torch.stack([torch.cat([cosines, cosines], 1), torch.cat([-sines, sines], 1)])
        self._tables = tables.to(device, dtype)  # (2, position, head_dim)

    def at(
        self, positions: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "2 batch token 1 head_dim"]:
        """Return the factors of values at `positions`, for any head."""
        return self._tables[:, positions].unsqueeze(3)


def rotated(
    heads: Float[Tensor, "batch token head head_dim"],
    factors: Float[Tensor, "2 batch token 1 head_dim"],
) -> Float[Tensor, "batch token head head_dim"]:
    """Rotate the heads of tokens by the factors of their positions."""
    swapped = heads.roll(heads.shape[3] // 2, dims=3)
    return torch.addcmul(heads * factors[0], swapped, factors[1])
