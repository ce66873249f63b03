"""Multi-head attention and pre-norm transformer blocks, with Hugging Face's parameter names."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Bool, Float
from corpus_asr.decoding import kernels
from corpus_asr.decoding.kernels import Checked
from corpus_asr.families.layers.kv_cache import (
    Heads,
    Held,
    Keys,
    KeysAndValues,
    KeyValues,
    LayerPast,
    Scales,
    from_float8,
)
from corpus_asr.families.layers.plain import plain

Activation = Callable[[Tensor], Tensor]
Hidden = Float[Tensor, "batch token width"]

_gelu_tanh = partial(F.gelu, approximate="tanh")


def _quick_gelu(hidden: Tensor) -> Tensor:
    # The constant best approximates the normal distribution (Hendrycks, Gimpel 2016).
    return hidden * torch.sigmoid(1.702 * hidden)


# By their names in config.json (transformers/activations.py, ACT2CLS).
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
    """Return the activation function with this name in config.json."""
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"choosing activation_function {name!r}, expected one of "
            f"{', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


@plain
class Attention(nn.Module):
    """Self-attention, or cross-attention to a `context`; `eager` always uses plain products."""

    def __init__(
        self, width: int, heads: int, *, key_bias: bool, dropout: float = 0.0, eager: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"attention of width {width}: found {heads} heads, expected a divisor of the width"
            )
        self.heads = heads
        self.head_dim = width // heads
        self.dropout = dropout
        self.eager = eager
        self.k_proj = nn.Linear(width, width, bias=key_bias)  # Whisper's has none
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        hidden: Hidden,
        context: Float[Tensor, "batch pos width"] | None = None,
        *,
        causal: bool = False,
        mask: Float[Tensor, "#batch 1 #token _"] | None = None,
        kept: KeyValues | None = None,
        head_mask: Float[Tensor, " head"] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Hidden:
        """Attend to `context`, or to the tokens themselves.

        `mask` is added to the scores; if given, it must include `causal` itself. Keys and values
        of `hidden` are added to `kept`, those of `context` computed once; `head_mask` multiplies
        each head's weights, which are appended to `weights`, (batch, head, token, pos).
        """
        query = _heads_apart(self.q_proj(hidden), self.heads)
        key, value = self._keys_and_values(hidden, context, kept)
        # Fused kernels do not return or mask the score matrix.
        plain = self.eager or weights is not None or head_mask is not None
        # The fused kernel aligns the first query with the first key, even with cached keys.
        if causal and mask is None and (plain or key.shape[2] > query.shape[2]):
            mask = causal_mask(query.shape[2], key.shape[2], like=query)
        if plain:
            attended = self._attend(query, key, value, mask, head_mask, weights)
        else:
            attended = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=causal and mask is None,
            )
        mixed: Tensor = self.out_proj(merge_heads(attended))
        return mixed

    def _keys_and_values(
        self, hidden: Tensor, context: Tensor | None, kept: KeyValues | None
    ) -> KeysAndValues:
        # A window does not change while its text is decoded.
        if context is not None and kept is not None and kept.pair is not None:
            return kept.pair
        source = hidden if context is None else context
        key = _heads_apart(self.k_proj(source), self.heads)
        value = _heads_apart(self.v_proj(source), self.heads)
        return (key, value) if kept is None else kept.append(key, value)

    def _attend(
        self,
        query: Heads,
        key: Keys,
        value: Keys,
        mask: Float[Tensor, "#batch 1 #token pos"] | None,
        head_mask: Float[Tensor, " head"] | None,
        weights: list[Tensor] | None,
    ) -> Heads:
        # The queries are scaled, not the scores, which are many times as many.
        scores = torch.matmul(query * self.head_dim**-0.5, key.transpose(-1, -2))
        if mask is not None:
            scores = scores + mask
        attention = scores.softmax(dim=-1)
        if head_mask is not None:
            attention = attention * head_mask.to(attention.dtype).view(1, -1, 1, 1)
        if weights is not None:
            weights.append(attention)
        return torch.matmul(F.dropout(attention, self.dropout, self.training), value)


def causal_mask(tokens: int, keys: int, *, like: Tensor) -> Float[Tensor, "1 1 token pos"]:
    """Return the additive mask by which the last `tokens` of `keys` see none after them."""
    # The lowest finite number, not -inf: a fully masked row then stays finite.
    lowest = torch.finfo(like.dtype).min
    mask = torch.full((tokens, keys), lowest, dtype=like.dtype, device=like.device)
    return mask.triu(diagonal=keys - tokens + 1)[None, None]


def _heads_apart(hidden: Hidden, heads: int) -> Heads:
    # Contiguous heads cost a copy and save 3 to 5 % of a window's attention on a CPU. A GPU's fused
    # kernels need no copy.
    split = split_heads(hidden, heads)
    return split.contiguous() if hidden.device.type == "cpu" else split


def bounded(hidden: Hidden) -> Hidden:
    """Clamp an encoder block's output to float16's range, which large checkpoints exceed."""
    if hidden.dtype != torch.float16:
        return hidden
    limit = torch.finfo(torch.float16).max - 1000  # transformers' margin
    return hidden.clamp(-limit, limit)


def split_heads(hidden: Hidden, heads: int) -> Heads:
    """View each hidden state as one vector per head."""
    return hidden.view(*hidden.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(hidden: Heads) -> Hidden:
    """Inverse of `split_heads`."""
    return hidden.transpose(1, 2).flatten(2)


# Up to about this many queries, plain products are faster than the fused kernel: measured on CPUs
# with 1,500 keys, even at 8 queries in float32 and at 128 in bfloat16.
_FEW_QUERIES = 16


def attend_cached(
    query: Heads,
    key: Held,
    value: Held,
    scales: Scales | None = None,
    *,
    unseen: Bool[Tensor, "batch 1 #token pos"] | None = None,
) -> Heads:
    """Attend with queries, scaled by 1 / sqrt(head_dim), to many cached keys.

    With `scales`, keys and values are results of `to_float8`. Keys are contiguous along `pos` and
    `head_dim`; values must be finite at masked keys too, since 0 * nan is nan. If `unseen` is the
    same for all queries, masked keys must be finite too. Every query must see at least one key.
    """
    if query.shape[2] == 1 and query.device.type == "cuda":
        attended: Tensor = _ATTEND_ONE(query, key, value, unseen, scales)
        return attended
    return _attend_plainly(query, key, value, unseen, scales)


def _attend_plainly(
    query: Heads,
    key: Held,
    value: Held,
    unseen: Bool[Tensor, "batch 1 #token pos"] | None,
    scales: Scales | None = None,
) -> Heads:
    if scales is not None:
        key = from_float8(key, scales[0], query.dtype)
        value = from_float8(value, scales[1], query.dtype)
    # With one query over 1,500 keys, two plain batched products take 0.7 ms, the fused kernel 5.6
    # (8 slots of whisper-base, bfloat16, two cores).
    alike = unseen is None or unseen.shape[2] == 1
    if alike and query.shape[2] > _FEW_QUERIES:
        seen = None if unseen is None else ~unseen
        # The fused kernel takes no values that are contiguous along `pos`.
        value = value.contiguous()
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=1.0)
    scores = _scores(query, key)
    if unseen is not None:
        # Filled, not added: a masked key may contain NaN, and nan + -inf is nan.
        scores = scores.masked_fill(unseen, -torch.inf)
    return _mean_value(scores.softmax(dim=-1), value)


# Relative to the largest value: one rounding in half precision, or another summation order.
_ATTENTION_TOLERANCE = 2


def _is_same_attention(found: Tensor, expected: Tensor, arguments: tuple[Any, ...]) -> bool:
    # In float32: in half precision, scores of 8 and more have a resolution of 0.01.
    # Only the first and last row, as copies of all take gigabytes.
    for row in (slice(1), slice(len(found) - 1, None)):
        query, key, value = (argument[row] for argument in arguments[:3])
        unseen, scales = arguments[3], arguments[4]
        if scales is None:
            key, value = key.float(), value.float()
        exact = _attend_plainly(
            query.float(),
            key,
            value,
            None if unseen is None else unseen[row],
            None if scales is None else scales[:, row],
        )
        unit = torch.finfo(found.dtype).eps * float(exact.abs().max())
        limit = _ATTENTION_TOLERANCE * unit + 1e-5
        if not torch.allclose(found[row].float(), exact, rtol=0, atol=limit, equal_nan=True):
            return False
    return True


_ATTEND_ONE = Checked(kernels.attend_one, _attend_plainly, close=_is_same_attention)


def attend_as_beams(
    query: Heads,
    key: Keys,
    value: Keys,
    *,
    unseen: Bool[Tensor, "window beam beam pos"],
) -> Heads:
    """Attend with the queries of a token per beam to the keys of all beams of its window.

    Reads every key and value once; `unseen` masks those that are not part of a beam. Values must be
    finite at masked keys too, and every query must see at least one key.
    """
    (windows, beams), queries = unseen.shape[:2], query.shape[2]

    def by_window(heads: Tensor) -> Float[Tensor, "window beam head token head_dim"]:
        return heads.view(windows, beams, *heads.shape[1:])

    # (window, beam of the key, head, beam of the query and its queries, pos), where pos is the
    # longest.
    together = by_window(query).transpose(1, 2).flatten(2, 3).unsqueeze(1)
    scores = torch.matmul(together, by_window(key).transpose(-1, -2))
    mask = unseen.transpose(1, 2).unsqueeze(3).expand(-1, -1, -1, queries, -1).flatten(2, 3)
    scores = scores.masked_fill(mask.unsqueeze(2), -torch.inf)
    shares = scores.permute(0, 2, 3, 1, 4).flatten(3).softmax(dim=-1)
    weights = shares.view(*shares.shape[:3], beams, -1).permute(0, 3, 1, 2, 4)
    attended = torch.matmul(weights, by_window(value)).sum(dim=1)
    apart = attended.view(windows, -1, beams, queries, attended.shape[3])
    return apart.transpose(1, 2).flatten(0, 1)


def _scores(query: Heads, key: Keys) -> Float[Tensor, "batch head token pos"]:
    if query.device.type != "cpu":
        return torch.matmul(query, key.mT)
    is_single_query = query.shape[2] == 1 and query.dtype == torch.bfloat16
    # With tiles (AMX) oneDNN copies transposed keys of bfloat16 first: for one query and 1,500
    # keys, the transposed product takes 0.3 ms instead of 0.55 (8 slots of whisper-base, two
    # cores). Without AMX it is not vectorized and takes 1.0 ms instead of 0.54.
    # In float32 that of 8 heads takes 119 instead of 152 us, with five queries 241 instead of 357,
    # or 681 where these are not contiguous (one thread).
    if query.dtype == torch.float32 or (is_single_query and torch.cpu._is_amx_tile_supported()):
        return torch.matmul(key, query.contiguous().mT).mT
    if is_single_query:
        # oneDNN copies keys that are part of a longer cache, slowly if transposed: with 128 of 448
        # tokens a step's six products take 1.9 ms, and 0.7 with this copy (one thread).
        key = key.contiguous()
    return torch.matmul(query, key.mT)


def _mean_value(
    shares: Float[Tensor, "batch head token pos"], value: Keys
) -> Float[Tensor, "batch head token head_dim"]:
    # Values of windows are contiguous along `pos` on a CPU: read in order as the first factor, the
    # product of 8 heads takes 127 us instead of 162 in bfloat16, in float32 116 instead of 207.
    # With five queries 126 instead of 169, but in float32 as a second factor 288 instead of 418.
    in_order = value.stride(-1) != 1
    if in_order and (shares.shape[2] == 1 or shares.dtype != torch.float32):
        return torch.matmul(value.mT, shares.mT).mT
    return torch.matmul(shares, value)


@dataclass(frozen=True, slots=True)
class Record:
    """Optional outputs of a call: a tensor per block; None if not requested."""

    states: list[Tensor] | None = None
    """Hidden states before every block and after the final norm."""
    own: list[Tensor] | None = None
    """Weights of self-attention, each (batch, head, token, pos)."""
    cross: list[Tensor] | None = None
    """Weights of cross-attention, each (batch, head, token, pos)."""

    @classmethod
    def asked(cls, config: Any, attentions: bool | None, states: bool | None) -> Self:
        """Create an empty record; None means the configuration's value."""
        attentions = config.output_attentions if attentions is None else attentions
        states = config.output_hidden_states if states is None else states
        return cls(
            states=[] if states else None,
            own=[] if attentions else None,
            cross=[] if attentions else None,
        )


NOTHING = Record()


class _Block(nn.Module):
    """Attention, then two linear layers; each with pre-norm and a residual connection."""

    _tower: ClassVar[str]
    _attentions: ClassVar[tuple[str, ...]]

    def __init__(self, config: Any, *, key_bias: bool) -> None:
        super().__init__()
        width, ffn_dim = config.d_model, getattr(config, f"{self._tower}_ffn_dim")
        self.dropout: float = config.dropout
        self.activation_dropout: float = config.activation_dropout
        # In transformers' order, which determines listing, initialization and optimization.
        for name in self._attentions:
            attention = Attention(
                width,
                getattr(config, f"{self._tower}_attention_heads"),
                key_bias=key_bias,
                dropout=config.attention_dropout,
                eager=config.attn_implementation == "eager",
            )
            self.add_module(name, attention)
            self.add_module(f"{name}_layer_norm", nn.LayerNorm(width))
        self.fc1 = nn.Linear(width, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activate = activation(config.activation_function)

    def _add(self, hidden: Tensor, more: Tensor) -> Tensor:
        return hidden + F.dropout(more, self.dropout, self.training)

    def _feed_forward(self, hidden: Hidden) -> Hidden:
        inner = self.activate(self.fc1(self.final_layer_norm(hidden)))
        inner = self.fc2(F.dropout(inner, self.activation_dropout, self.training))
        return self._add(hidden, inner)


@plain
class EncoderBlock(_Block):
    """Self-attention, then two linear layers."""

    self_attn: Attention
    self_attn_layer_norm: nn.LayerNorm
    _tower = "encoder"
    _attentions = ("self_attn",)

    def forward(
        self,
        hidden: Float[Tensor, "batch pos width"],
        *,
        mask: Float[Tensor, "#batch 1 1 _"] | None = None,
        head_mask: Float[Tensor, " head"] | None = None,
        record: Record = NOTHING,
    ) -> Float[Tensor, "batch pos width"]:
        """Attend to every position, with `mask` added to the scores."""
        attended = self.self_attn(
            self.self_attn_layer_norm(hidden), mask=mask, head_mask=head_mask, weights=record.own
        )
        return bounded(self._feed_forward(self._add(hidden, attended)))


@plain
class DecoderBlock(_Block):
    """Causal self-attention, cross-attention, then two linear layers."""

    self_attn: Attention
    self_attn_layer_norm: nn.LayerNorm
    encoder_attn: Attention
    encoder_attn_layer_norm: nn.LayerNorm
    _tower = "decoder"
    _attentions = ("self_attn", "encoder_attn")

    def forward(
        self,
        hidden: Hidden,
        encoded: Float[Tensor, "batch pos width"] | None = None,
        *,
        mask: Float[Tensor, "#batch 1 token _"] | None = None,
        cross_mask: Float[Tensor, "#batch 1 1 _"] | None = None,
        past: LayerPast | None = None,
        head_mask: Float[Tensor, " head"] | None = None,
        cross_head_mask: Float[Tensor, " head"] | None = None,
        record: Record = NOTHING,
    ) -> Hidden:
        """Attend to each token itself, those before it, and the whole window, if any.

        The masks are those of `Attention.forward`; this call adds to `past` and to `record`.
        """
        attended = self.self_attn(
            self.self_attn_layer_norm(hidden),
            causal=True,
            mask=mask,
            kept=past,
            head_mask=head_mask,
            weights=record.own,
        )
        hidden = self._add(hidden, attended)
        if encoded is not None:
            attended = self.encoder_attn(
                self.encoder_attn_layer_norm(hidden),
                encoded,
                mask=cross_mask,
                kept=past.cross if past else None,
                head_mask=cross_head_mask,
                weights=record.cross,
            )
            hidden = self._add(hidden, attended)
        return self._feed_forward(hidden)
