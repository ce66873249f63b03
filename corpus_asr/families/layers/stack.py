"""Stacks of blocks shared by the encoders and decoders of all families."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.families.layers.blocks import DecoderBlock, Hidden, Record, causal_mask
from corpus_asr.families.layers.kv_cache import DecoderCache, TokenCache, as_decoder_cache
from corpus_asr.families.outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

# Wavelengths run from 2 pi to 10,000 * 2 pi positions (Vaswani et al. 2017, section 3.5).
_LONGEST = 10_000.0


def sinusoids(length: int, width: int) -> Float[Tensor, "pos width"]:
    """Return sines in the first half of the width and cosines in the second."""
    if width % 2 or width < 4:
        raise ValueError(f"sinusoidal positions of width {width}: expected an even number above 2")
    # Source: whisper/model.py:62; in this order of operations equal to transformers' to the bit.
    waves = width // 2
    step = math.log(_LONGEST) / (waves - 1)
    rates = torch.exp(-step * torch.arange(waves))
    angles = torch.arange(length).view(-1, 1) * rates.view(1, -1)  # (pos, wave)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Stack(nn.Module):
    """Blocks and a final norm; training may drop blocks, or recompute activations.

    A family subclasses it as a network that can be saved and loaded alone.
    """

    layers: nn.ModuleList
    layer_norm: nn.LayerNorm

    def __init__(self, config: Any, *, layerdrop: float) -> None:
        super().__init__(config)
        self.config = config
        self.layerdrop = layerdrop  # LayerDrop (Fan et al. 2019)
        # also in transformers' configurations of version 4
        self.gradient_checkpointing = bool(getattr(config, "gradient_checkpointing", False))
        self.checkpoint_every = 1
        """One of this many blocks is recomputed if `gradient_checkpointing` is true."""
        self.offload = False
        """Whether the stored states for recomputation are in CPU memory."""

    def _add_blocks(self, block: type[nn.Module], number: int, *, key_bias: bool) -> None:
        # Called last by each family, which determines the order of parameters.
        self.layers = nn.ModuleList(block(self.config, key_bias=key_bias) for _ in range(number))
        self.layer_norm = nn.LayerNorm(self.config.d_model)

    def _run_blocks(
        self,
        hidden: Float[Tensor, "batch pos width"],
        record: Record,
        by_layer: list[dict[str, Any]],
        **options: Any,
    ) -> Float[Tensor, "batch pos width"]:
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        for number, (layer, layer_options) in enumerate(zip(self.layers, by_layer, strict=True)):
            if record.states is not None:
                record.states.append(hidden)
            twice = self.gradient_checkpointing and number % self.checkpoint_every == 0
            hidden = self._through(layer, hidden, twice, record=record, **options, **layer_options)
        last: Tensor = self.layer_norm(hidden)
        if record.states is not None:
            record.states.append(last)
        return last

    def _through(self, block: nn.Module, hidden: Hidden, twice: bool, **options: Any) -> Hidden:
        # Drawn on the CPU, so that the host need not synchronize.
        if self.training and self.layerdrop > 0 and float(torch.rand([])) < self.layerdrop:
            return hidden
        if not (self.training and twice):
            computed: Tensor = block(hidden, **options)
            return computed
        # States that are on a CPU need not be moved.
        away = self.offload and hidden.device.type != "cpu"
        with save_on_cpu(pin_memory=True) if away else nullcontext():
            # The reentrant kind takes no keywords, and requires inputs with gradients.
            computed = checkpoint(block, hidden, use_reentrant=False, **options)
        return computed

    def _head_masks(self, mask: Tensor | None, *, heads: int, name: str) -> list[Tensor | None]:
        layers = len(self.layers)
        if mask is None:
            return [None] * layers
        if tuple(mask.shape) != (layers, heads):
            raise ValueError(
                f"reading {name}: found shape {tuple(mask.shape)}, expected {layers} layers x "
                f"{heads} heads"
            )
        return list(mask.float())


def _tuple(tensors: list[Tensor] | None) -> tuple[Tensor, ...] | None:
    return None if tensors is None else tuple(tensors)


def within(lengths: Int[Tensor, " batch"], longest: int) -> Bool[Tensor, "batch pos"]:
    """Return which of `longest` positions lie within each length."""
    return torch.arange(longest, device=lengths.device)[None] < lengths[:, None]


def hiding_mask(
    valid: Bool[Tensor, "batch pos"], *, like: Tensor
) -> Float[Tensor, "batch 1 1 pos"]:
    """Return the addend of scores that masks all positions except `valid`."""
    mask = torch.zeros(valid.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill(~valid, torch.finfo(like.dtype).min)[:, None, None, :]


class FeatureEncoder(Stack):
    """Pre-norm blocks and a final norm; a family adds the layers before."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, layerdrop=config.encoder_layerdrop)

    def _encode(
        self,
        hidden: Float[Tensor, "batch pos width"],
        record: Record,
        *,
        mask: Float[Tensor, "batch 1 1 pos"] | None = None,
        head_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        heads = self.config.encoder_attention_heads
        masks = self._head_masks(head_mask, heads=heads, name="head_mask")
        return self._run_blocks(hidden, record, [{"head_mask": m} for m in masks], mask=mask)

    def _output(
        self, last: Float[Tensor, "batch pos width"], record: Record, return_dict: bool | None
    ) -> BaseModelOutput | tuple[Any, ...]:
        output = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=_tuple(record.states),
            attentions=_tuple(record.own),
        )
        return output.as_asked(self.config, return_dict)


def check_values(features: Tensor, wanted: torch.dtype) -> None:
    """Raise errors that convolutions would report unclearly or not at all."""
    if features.dtype != wanted and not torch.is_autocast_enabled(features.device.type):
        raise ValueError(
            f"encoding a window: found features of {features.dtype}, expected {wanted} as the "
            f"weights are; convert with features.to(model.dtype)"
        )
    if can_check(features) and not bool(features.isfinite().all()):
        rows = (~features.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"encoding a window: found NaN or infinity in the features of rows {rows}, expected "
            "finite numbers; check the audio"
        )


def rows_of(table: nn.Embedding, start: int, end: int) -> Float[Tensor, "row width"]:
    """Return rows of a table; of one with offloaded weights, by calling it."""
    if not table.weight.is_meta:
        return table.weight[start:end]
    # Hooks of `accelerate.cpu_offload` load weights only when a module is called.
    rows: Tensor = table(torch.arange(start, end))
    return rows


def can_check(values: Tensor) -> bool:
    """Whether values can be read: not on a GPU, nor in a traced graph."""
    # A GPU would synchronize; a graph of torch.compile or torch.export would depend on the traced
    # values.
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_heard(num_frames: Sequence[int], *, windows: int, whole: int, step: int = 1) -> None:
    """Raise ValueError unless `num_frames` of each window are multiples of `step` up to `whole`."""
    fitting = all(step <= number <= whole and not number % step for number in num_frames)
    if len(num_frames) != windows or not fitting:
        raise ValueError(
            f"encoding parts of {windows} windows: found {list(num_frames)} frames, expected for "
            f"each window a multiple of {step}, {step} to {whole}; correct num_frames"
        )


def heard_frames(
    features: Float[Tensor, "batch _ _"],
    num_frames: Sequence[int] | None,
    *,
    whole: tuple[int, int],
) -> list[int]:
    """Return the number of frames of each window, which has `whole` bins and frames.

    Raises:
        ValueError: the features have another shape, or `num_frames` do not fit them.
    """
    if features.ndim != 3 or tuple(features.shape[1:]) != whole or not len(features):
        raise ValueError(
            f"encoding windows: found shape {tuple(features.shape)}, expected one window or "
            f"more of {whole} (mel bins, frames); pad or cut the features, or use for_windows"
        )
    lengths = [whole[1]] * len(features) if num_frames is None else list(num_frames)
    check_heard(lengths, windows=len(features), whole=whole[1])
    return lengths


def check_heads(heads: Sequence[tuple[int, int]], *, layers: int, num_heads: int) -> None:
    """Raise ValueError unless a decoder of this size has these heads, each (layer, head)."""
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < num_heads):
            raise ValueError(
                f"aligning with head {head} of decoder layer {layer}: the model has {layers} "
                f"layers of {num_heads} heads; correct the alignment heads"
            )


class TokenDecoder(Stack):
    """Token embeddings, pre-norm blocks and a final norm; a family adds the positions.

    `positions` is the family's `embed_positions`.
    """

    _placed: Callable[..., Hidden]
    """Adds positions to embedded tokens, given their IDs or None, after a number of tokens."""

    def __init__(self, config: Any, positions: nn.Module, *, key_bias: bool) -> None:
        super().__init__(config, layerdrop=config.decoder_layerdrop)
        padding = config.pad_token_id
        if padding is not None and not -config.vocab_size <= padding < config.vocab_size:
            raise ValueError(
                f"making a decoder: pad_token_id is {padding}, but vocab_size is "
                f"{config.vocab_size}; set both, or pad_token_id to None"
            )
        self.heads: int = config.decoder_attention_heads
        self.max_source_positions: int = config.max_source_positions
        self.max_target_positions: int = config.max_target_positions
        # The gradient of positions after padding does not affect its embedding.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, padding_idx=padding)
        self.embed_positions = positions
        self._add_blocks(DecoderBlock, config.decoder_layers, key_bias=key_bias)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **positions: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Decode tokens; each attends to itself, those before it and the window.

        Arguments are those of transformers; None means the configuration's value. Without
        `encoder_hidden_states` there is no cross-attention.
        """
        past = as_decoder_cache(past_key_values, num_layers=len(self.layers))
        use_cache = self.config.use_cache if use_cache is None else use_cache
        # With recomputation the cache would be filled twice.
        caches = bool(use_cache) and not (self.training and self.gradient_checkpointing)
        if past is None and caches:
            has_windows = encoder_hidden_states is not None or self.config.is_encoder_decoder
            past = (DecoderCache if has_windows else TokenCache)(len(self.layers))
        start = past.get_seq_length() if past else 0
        embedded = self._embedded(input_ids, inputs_embeds)
        if encoder_hidden_states is not None and len(embedded) == 1 < len(encoder_hidden_states):
            # One prompt is used for every window.
            embedded = embedded.expand(len(encoder_hidden_states), -1, -1)
        _check_encoded(encoder_hidden_states, embedded)
        hidden = self._placed(embedded, input_ids, start, **positions)
        self_masks = self._head_masks(head_mask, heads=self.heads, name="decoder_head_mask")
        cross_masks = self._head_masks(
            cross_attn_head_mask, heads=self.heads, name="cross_attn_head_mask"
        )
        pasts = past.layers if past else [None] * len(self.layers)
        by_layer = [
            {"head_mask": own_mask, "cross_head_mask": cross_mask, "past": kept}
            for own_mask, cross_mask, kept in zip(self_masks, cross_masks, pasts, strict=True)
        ]
        record = Record.asked(self.config, output_attentions, output_hidden_states)
        last = self._run_blocks(
            hidden,
            record,
            by_layer,
            encoded=encoder_hidden_states,
            mask=_mask(attention_mask, start, hidden),
            cross_mask=_cross_mask(encoder_attention_mask, encoder_hidden_states),
        )
        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=last,
            past_key_values=past if caches else None,
            hidden_states=_tuple(record.states),
            attentions=_tuple(record.own),
            cross_attentions=None if encoder_hidden_states is None else _tuple(record.cross),
        )
        return output.as_asked(self.config, return_dict)

    def get_decoder(self) -> "TokenDecoder":
        """Return itself, as it is not part of another decoder here."""
        return self

    def _embedded(self, input_ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (embeds is None):
            count = "neither" if input_ids is None else "both"
            raise ValueError(
                f"decoding: found {count} of decoder_input_ids and decoder_inputs_embeds, "
                "expected one of them; pass the prompt of the transcript"
            )
        if embeds is None:
            assert input_ids is not None
            check_tokens(input_ids, self.config.vocab_size, doing="decoding")
            embedded: Tensor = self.embed_tokens(input_ids)
            return embedded
        if embeds.ndim != 3 or embeds.shape[2] != self.config.d_model:
            raise ValueError(
                f"decoding: found decoder_inputs_embeds of shape {tuple(embeds.shape)}, "
                f"expected (batch, token, {self.config.d_model})"
            )
        return embeds


def check_tokens(
    ids: Tensor, size: int, *, doing: str, what: str = "token ids", ignored: int | None = None
) -> None:
    """Raise unless IDs are integers and, on a CPU, below `size` or equal to `ignored`."""
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"{doing}: found {what} of shape {tuple(ids.shape)} and {ids.dtype}, expected "
            "integers (batch, token)"
        )
    if not ids.numel():
        raise ValueError(
            f"{doing}: found no {what}, their shape is {tuple(ids.shape)}; expected one sequence "
            f"or more of one token or more"
        )
    if not can_check(ids):
        return
    wrong = (ids < 0) | (ids >= size)
    wrong = wrong if ignored is None else wrong & (ids != ignored)
    if bool(wrong.any()):
        raise ValueError(
            f"{doing}: found {what} {ids[wrong][:5].tolist()}, expected 0 to {size - 1}; use the "
            "tokenizer of this model"
        )


def _check_encoded(encoded: Tensor | None, embedded: Tensor) -> None:
    batch, _, width = embedded.shape
    if encoded is not None and (
        encoded.ndim != 3 or encoded.shape[0] != batch or encoded.shape[2] != width
    ):
        raise ValueError(
            f"decoding: found encoder hidden states of shape {tuple(encoded.shape)}, expected "
            f"({batch}, pos, {width}): one window per sequence"
        )


def _mask(
    attention_mask: Tensor | None, start: int, embedded: Hidden
) -> Float[Tensor, "#batch 1 token pos"] | None:
    # Without a mask only causality applies, which needs no score tensor.
    if attention_mask is None:
        return None
    batch, tokens, _ = embedded.shape
    if attention_mask.ndim == 4:
        return _whole_mask(attention_mask, (batch, 1, tokens, start + tokens), like=embedded)
    if len(attention_mask) not in (1, batch) or attention_mask.shape[1:] != (start + tokens,):
        raise ValueError(
            f"decoding: found a decoder_attention_mask of shape {tuple(attention_mask.shape)}, "
            f"expected {(batch, start + tokens)}: one value per token, cached ones included"
        )
    mask = causal_mask(tokens, start + tokens, like=embedded)
    hidden = attention_mask.to(embedded.device)[:, None, None, :] == 0
    # Replaced, not added: the sum of two lowest numbers would be -inf, and a row of those NaN.
    return mask.masked_fill(hidden, torch.finfo(embedded.dtype).min)


def _whole_mask(
    mask: Tensor, shape: tuple[int, int, int, int], *, like: Hidden
) -> Float[Tensor, "#batch 1 token pos"]:
    """Return a mask over tokens and positions, boolean or additive, as an additive one."""
    if mask.shape[1:] != shape[1:] or len(mask) not in (1, shape[0]):
        raise ValueError(
            f"decoding: found a decoder_attention_mask of shape {tuple(mask.shape)}, expected "
            f"{shape}: one value per pair of tokens, cached ones included"
        )
    mask = mask.to(like.device)
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    scores = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return scores.masked_fill(~mask, torch.finfo(like.dtype).min)


def _cross_mask(
    attention_mask: Tensor | None, encoded: Float[Tensor, "batch pos width"] | None
) -> Float[Tensor, "batch 1 1 pos"] | None:
    if attention_mask is None or encoded is None:
        return None
    if attention_mask.shape != encoded.shape[:2]:
        raise ValueError(
            f"decoding: found an encoder_attention_mask of shape {tuple(attention_mask.shape)}, "
            f"expected {tuple(encoded.shape[:2])}: one value per encoder position"
        )
    return hiding_mask(attention_mask != 0, like=encoded)
