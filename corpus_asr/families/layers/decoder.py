"""The decoder of all families over whole token sequences, or over their next tokens.

In: token ids and the encoder's hidden states. Out: hidden states, one per token. Knows no text,
no sampling, not the projection to the vocabulary, and not how positions are embedded.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.layers.attention import causal_mask
from corpus_asr.families.layers.blocks import DecoderBlock, Dropouts
from corpus_asr.families.layers.tower import Record, Tower, head_masks
from corpus_asr.families.outputs import BaseModelOutputWithPastAndCrossAttentions
from corpus_asr.families.past import DecoderCache, taken


class TokenDecoder(Tower):
    """Token embeddings, pre-norm blocks and a last norm; a family adds the positions.

    Args:
        config: sizes and settings.
        positions: what the family keeps as `embed_positions`.
        key_bias: whether the projections to keys have a bias.

    Raises:
        ValueError: the padding token is outside the vocabulary.
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
        self.layers = nn.ModuleList(
            DecoderBlock(
                width,
                heads=self.heads,
                ffn_dim=config.decoder_ffn_dim,
                activation_name=config.activation_function,
                key_bias=key_bias,
                dropouts=Dropouts.of(config),
                eager=config.attn_implementation == "eager",
            )
            for _ in range(config.decoder_layers)
        )
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
        config = self.config
        start = past.get_seq_length() if past else 0
        record = Record.asked(config, output_attentions, output_hidden_states)
        last = self._run(
            F.dropout(hidden, config.dropout, self.training),
            encoded,
            mask=_mask(attention_mask, start, hidden),
            cross_mask=cross_mask,
            past=past,
            head_masks=self._head_masks(head_mask, cross_attn_head_mask),
            record=record,
        )
        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=last,
            past_key_values=past if self._caches(use_cache) else None,
            hidden_states=record.hidden_states,
            attentions=record.attentions,
            cross_attentions=None if encoded is None else record.cross_attentions,
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _run(
        self,
        hidden: Float[Tensor, "batch token width"],
        encoded: Float[Tensor, "batch pos width"] | None,
        *,
        mask: Tensor | None,
        cross_mask: Tensor | None,
        past: DecoderCache | None,
        head_masks: list[tuple[Tensor | None, Tensor | None]],
        record: Record,
    ) -> Float[Tensor, "batch token width"]:
        for i, layer in enumerate(self.layers):
            record.add(hidden)
            own, cross = head_masks[i]
            hidden = self._through(
                layer,
                hidden,
                encoded,
                mask=mask,
                cross_mask=cross_mask,
                past=past.layers[i] if past else None,
                head_mask=own,
                cross_head_mask=cross,
                weights=record.weights,
            )
        normed: Tensor = self.layer_norm(hidden)
        record.add(normed)
        return normed

    def _head_masks(
        self, own: Tensor | None, cross: Tensor | None
    ) -> list[tuple[Tensor | None, Tensor | None]]:
        layers = len(self.layers)
        return list(
            zip(
                head_masks(own, layers=layers, heads=self.heads, name="decoder_head_mask"),
                head_masks(cross, layers=layers, heads=self.heads, name="cross_attn_head_mask"),
                strict=True,
            )
        )


def check_tokens(
    ids: Tensor, size: int, *, doing: str, what: str = "token ids", ignored: int | None = None
) -> None:
    """Check that ids are integers and, on a CPU, that each is below `size` or is `ignored`.

    Raises:
        ValueError: they are not. On a GPU values are not looked at: the host would have to wait.
    """
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
    """Check that there is one window for each sequence.

    Raises:
        ValueError: there is not.
    """
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
