"""Stacks of blocks that the encoders and decoders of all families share."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from corpus_asr.families.layers.attention import causal_mask
from corpus_asr.families.layers.blocks import (
    AttentionWeights,
    BlockSettings,
    DecoderBlock,
    EncoderBlock,
)
from corpus_asr.families.layers.kv_cache import DecoderCache, taken
from corpus_asr.families.outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

# Wavelengths run from 2 pi to 10,000 * 2 pi positions (Vaswani et al. 2017, section 3.5).
_LONGEST = 10_000.0


def sinusoids(length: int, width: int) -> Float[Tensor, "pos width"]:
    """Return sines in the first half of the width and cosines in the second.

    Source: whisper/model.py:62; equal to transformers' `sinusoids` exactly.
    """
    if width % 2 or width < 4:
        raise ValueError(f"sinusoidal positions of width {width}: expected an even number above 2")
    waves = width // 2
    step = math.log(_LONGEST) / (waves - 1)
    rates = torch.exp(-step * torch.arange(waves))
    angles = torch.arange(length).view(-1, 1) * rates.view(1, -1)  # (pos, wave)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclass(slots=True, kw_only=True)
class Record:
    """What a call was asked to return beside the last states."""

    states: list[Tensor] | None
    """Before every block and after the last norm; None where nobody asks."""
    weights: AttentionWeights | None
    """Of attention; None where nobody asks."""

    @classmethod
    def asked(cls, config: Any, attentions: bool | None, states: bool | None) -> Self:
        """Make an empty one; None asks the configuration."""
        attentions = config.output_attentions if attentions is None else attentions
        states = config.output_hidden_states if states is None else states
        return cls(
            states=[] if states else None, weights=AttentionWeights() if attentions else None
        )

    def add(self, hidden: Float[Tensor, "batch pos width"]) -> None:
        """Keep states if they are asked for."""
        if self.states is not None:
            self.states.append(hidden)

    @property
    def hidden_states(self) -> tuple[Tensor, ...] | None:
        """All states kept."""
        return None if self.states is None else tuple(self.states)

    @property
    def attentions(self) -> tuple[Tensor, ...] | None:
        """Weights of self-attention."""
        return None if self.weights is None else tuple(self.weights.own)

    @property
    def cross_attentions(self) -> tuple[Tensor, ...] | None:
        """Weights of cross-attention."""
        return None if self.weights is None else tuple(self.weights.cross)


class Stack(nn.Module):
    """A stack of blocks.

    Args:
        layerdrop: probability of leaving out a block in training (Fan et al. 2019).
    """

    def __init__(self, layerdrop: float) -> None:
        super().__init__()
        self.layerdrop = layerdrop
        self.gradient_checkpointing = False
        """Whether training computes the states inside a block twice instead of keeping them."""

    def _through(
        self, block: nn.Module, hidden: Float[Tensor, "batch pos width"], *args: Any, **options: Any
    ) -> Float[Tensor, "batch pos width"]:
        # Drawn on the CPU, so that no host waits for a device to know what to run.
        if self.training and self.layerdrop > 0 and float(torch.rand([])) < self.layerdrop:
            return hidden
        if self.training and self.gradient_checkpointing:
            computed: Tensor = checkpoint(block, hidden, *args, use_reentrant=False, **options)
        else:
            computed = block(hidden, *args, **options)
        return computed

    def _freeze_parameters(self) -> None:
        """Keep training from changing this tower."""
        self.requires_grad_(False)


def head_masks(mask: Tensor | None, *, layers: int, heads: int, name: str) -> list[Tensor | None]:
    """Split a mask of (layer, head) into one per layer; without one there is None for each."""
    if mask is None:
        return [None] * layers
    if tuple(mask.shape) != (layers, heads):
        raise ValueError(
            f"reading {name}: found shape {tuple(mask.shape)}, expected {layers} layers x "
            f"{heads} heads"
        )
    return list(mask.float())


class FeatureEncoder(Stack):
    """Pre-norm blocks and a last norm; a family adds what comes before."""

    layers: nn.ModuleList
    layer_norm: nn.LayerNorm

    def __init__(self, config: Any) -> None:
        super().__init__(config.encoder_layerdrop)
        self.config = config

    def _add_blocks(self, *, key_bias: bool) -> None:
        """Make the blocks: last, since parameters are listed in this order."""
        config = self.config
        settings = BlockSettings.of(
            config,
            heads=config.encoder_attention_heads,
            ffn_dim=config.encoder_ffn_dim,
            key_bias=key_bias,
        )
        self.layers = nn.ModuleList(EncoderBlock(settings) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def _run_blocks(
        self,
        hidden: Float[Tensor, "batch pos width"],
        *,
        mask: Float[Tensor, "batch 1 1 pos"] | None,
        head_mask: Tensor | None,
        record: Record,
    ) -> Float[Tensor, "batch pos width"]:
        """Run embedded positions; put what every layer gives into `record`."""
        config = self.config
        heads = config.encoder_attention_heads
        per_layer = head_masks(head_mask, layers=len(self.layers), heads=heads, name="head_mask")
        hidden = F.dropout(hidden, config.dropout, self.training)
        for layer, heard in zip(self.layers, per_layer, strict=True):
            record.add(hidden)
            hidden = self._through(
                layer, hidden, mask=mask, head_mask=heard, weights=record.weights
            )
        encoded: Tensor = self.layer_norm(hidden)
        record.add(encoded)
        return encoded

    def _output(
        self,
        last: Float[Tensor, "batch pos width"],
        record: Record,
        return_dict: bool | None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        output = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=record.hidden_states,
            attentions=record.attentions,
        )
        return output.as_asked(self.config, return_dict)


def check_values(features: Tensor, wanted: torch.dtype) -> None:
    """Check what convolutions would say badly or not at all."""
    if features.dtype != wanted and not torch.is_autocast_enabled(features.device.type):
        raise ValueError(
            f"encoding a window: found features of {features.dtype}, expected {wanted} as the "
            f"weights are; convert with features.to(model.dtype)"
        )
    # Not on a GPU: the host would have to wait for it.
    if features.device.type == "cpu" and not bool(features.isfinite().all()):
        rows = (~features.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"encoding a window: found NaN or infinity in the features of rows {rows}, "
            f"expected finite numbers; look at the audio they were made of"
        )


class TokenDecoder(Stack):
    """Token embeddings, pre-norm blocks and a last norm; a family adds the positions.

    `positions` is what the family keeps as `embed_positions`.
    """

    def __init__(self, config: Any, positions: nn.Module, *, key_bias: bool) -> None:
        super().__init__(config.decoder_layerdrop)
        width, padding = config.d_model, config.pad_token_id
        if padding is not None and not -config.vocab_size <= padding < config.vocab_size:
            raise ValueError(
                f"making a decoder: pad_token_id is {padding}, but vocab_size is "
                f"{config.vocab_size}; set both, or pad_token_id to None"
            )
        self.config = config
        self.heads: int = config.decoder_attention_heads
        self.max_target_positions: int = config.max_target_positions
        # What comes after padding does not train its embedding.
        self.embed_tokens = nn.Embedding(config.vocab_size, width, padding_idx=padding)
        self.embed_positions = positions
        settings = BlockSettings.of(
            config, heads=self.heads, ffn_dim=config.decoder_ffn_dim, key_bias=key_bias
        )
        self.layers = nn.ModuleList(DecoderBlock(settings) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def _past(self, past_key_values: Any, use_cache: bool | None) -> DecoderCache | None:
        """Return what is continued or begun."""
        past = taken(past_key_values, num_layers=len(self.layers))
        return DecoderCache(len(self.layers)) if past is None and self._caches(use_cache) else past

    def _caches(self, use_cache: bool | None) -> bool:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        # States that are computed twice would be kept twice.
        return bool(use_cache) and not (self.training and self.gradient_checkpointing)

    def _embedded(self, input_ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (embeds is None):
            found = "neither" if input_ids is None else "both"
            raise ValueError(
                f"decoding: found {found} of decoder_input_ids and decoder_inputs_embeds, expected "
                f"one of them; the first tokens of a transcript are its prompt"
            )
        if input_ids is None:
            assert embeds is not None
            if embeds.ndim != 3 or embeds.shape[2] != self.config.d_model:
                raise ValueError(
                    f"decoding: found decoder_inputs_embeds of shape {tuple(embeds.shape)}, "
                    f"expected (batch, token, {self.config.d_model})"
                )
            return embeds
        check_tokens(input_ids, self.config.vocab_size, doing="decoding")
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded

    def _decode(
        self,
        hidden: Float[Tensor, "batch token width"],
        *,
        attention_mask: Tensor | None,
        encoded: Float[Tensor, "batch pos width"] | None,
        cross_mask: Float[Tensor, "batch 1 1 pos"] | None = None,
        past: DecoderCache | None,
        head_mask: Tensor | None,
        cross_attn_head_mask: Tensor | None,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Run embedded tokens, positions included; arguments as of the families' `forward`."""
        config, layers, heads = self.config, len(self.layers), self.heads
        start = past.get_seq_length() if past else 0
        record = Record.asked(config, output_attentions, output_hidden_states)
        mask = _mask(attention_mask, start, hidden)
        own = head_masks(head_mask, layers=layers, heads=heads, name="decoder_head_mask")
        cross = head_masks(
            cross_attn_head_mask, layers=layers, heads=heads, name="cross_attn_head_mask"
        )
        hidden = F.dropout(hidden, config.dropout, self.training)
        for i, layer in enumerate(self.layers):
            record.add(hidden)
            hidden = self._through(
                layer,
                hidden,
                encoded,
                mask=mask,
                cross_mask=cross_mask,
                past=past.layers[i] if past else None,
                head_mask=own[i],
                cross_head_mask=cross[i],
                weights=record.weights,
            )
        last: Tensor = self.layer_norm(hidden)
        record.add(last)
        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=last,
            past_key_values=past if self._caches(use_cache) else None,
            hidden_states=record.hidden_states,
            attentions=record.attentions,
            cross_attentions=None if encoded is None else record.cross_attentions,
        )
        return output.as_asked(config, return_dict)


def check_tokens(
    ids: Tensor, size: int, *, doing: str, what: str = "token ids", ignored: int | None = None
) -> None:
    """Check that ids are integers and, on a CPU, that each is below `size` or is `ignored`."""
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"{doing}: found {what} of shape {tuple(ids.shape)} and {ids.dtype}, expected integers "
            f"(batch, token)"
        )
    if not ids.numel():
        raise ValueError(
            f"{doing}: found no {what}, their shape is {tuple(ids.shape)}; expected one sequence "
            f"or more of one token or more"
        )
    if ids.device.type != "cpu":
        return
    wrong = (ids < 0) | (ids >= size)
    wrong = wrong if ignored is None else wrong & (ids != ignored)
    if bool(wrong.any()):
        raise ValueError(
            f"{doing}: found {what} {ids[wrong][:5].tolist()}, expected 0 to {size - 1}; were they "
            f"made for another model?"
        )


def check_encoded(encoded: Tensor | None, embedded: Tensor) -> None:
    """Check that there is one window for each sequence."""
    batch, _, width = embedded.shape
    if encoded is not None and (
        encoded.ndim != 3 or encoded.shape[0] != batch or encoded.shape[2] != width
    ):
        raise ValueError(
            f"decoding: found encoder hidden states of shape {tuple(encoded.shape)}, expected "
            f"({batch}, pos, {width}): one window for each of the sequences"
        )


def _mask(
    attention_mask: Tensor | None, start: int, embedded: Float[Tensor, "batch token width"]
) -> Float[Tensor, "batch 1 token pos"] | None:
    """Return what is added to the scores, if anything but the tokens' order hides a token."""
    if attention_mask is None:
        return None
    batch, tokens, _ = embedded.shape
    if tuple(attention_mask.shape) != (batch, start + tokens):
        raise ValueError(
            f"decoding: found a decoder_attention_mask of shape {tuple(attention_mask.shape)}, "
            f"expected {(batch, start + tokens)}: one value for each token, those kept included"
        )
    mask = causal_mask(tokens, start + tokens, like=embedded)
    hidden = attention_mask.to(embedded.device)[:, None, None, :] == 0
    # Replaced, not added: two of the lowest numbers would make -inf, and a row of those NaN.
    return mask.masked_fill(hidden, torch.finfo(embedded.dtype).min)
