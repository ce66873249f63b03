"""Whisper's decoder over whole token sequences, or over their next tokens.

In: token ids and the encoder's hidden states. Out: hidden states, one per token. Knows no text,
no sampling, and not the projection to the vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.models.layers.attention import causal_mask
from corpus_asr.models.layers.blocks import AttentionWeights, DecoderBlock
from corpus_asr.models.layers.tower import Tower, head_masks
from corpus_asr.models.whisper.config import WhisperConfig
from corpus_asr.models.whisper.encoder import dropouts_of
from corpus_asr.models.whisper.outputs import BaseModelOutputWithPastAndCrossAttentions
from corpus_asr.models.whisper.past import WhisperCache, taken


class WhisperDecoder(Tower):
    """Token and learned position embeddings, pre-norm blocks and a last norm.

    Token embeddings are never scaled: transformers reads `scale_embedding` but does not apply it,
    and every released checkpoint has it false.

    Raises:
        ValueError: the padding token is outside the vocabulary.

    Source: Radford et al. 2022, section 2.2; parameter names of
    transformers/models/whisper/modeling_whisper.py, equal to it within 1e-5 in float32.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config.decoder_layerdrop)
        width = config.d_model
        padding = config.pad_token_id
        if padding is not None and not -config.vocab_size <= padding < config.vocab_size:
            raise ValueError(
                f"making a decoder: pad_token_id is {padding}, but vocab_size is "
                f"{config.vocab_size}; set both, or pad_token_id to None"
            )
        self.config = config
        self.heads = config.decoder_attention_heads
        self.max_target_positions = config.max_target_positions
        self.max_source_positions = config.max_source_positions
        # What comes after padding does not train its embedding.
        self.embed_tokens = nn.Embedding(config.vocab_size, width, padding_idx=padding)
        self.embed_positions = nn.Embedding(config.max_target_positions, width)
        self.layers = nn.ModuleList(
            DecoderBlock(
                width,
                heads=config.decoder_attention_heads,
                ffn_dim=config.decoder_ffn_dim,
                activation_name=config.activation_function,
                key_bias=False,
                dropouts=dropouts_of(config),
                eager=config.attn_implementation == "eager",
            )
            for _ in range(config.decoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Run tokens; each sees itself, those before it and the window.

        Args:
            input_ids: (batch, token).
            attention_mask: (batch, token), those of `past_key_values` included; 0 hides a token.
            encoder_hidden_states: (batch, pos, width); without it there is no cross-attention.
            head_mask: (layer, head), what self-attention's weights are multiplied with.
            cross_attn_head_mask: likewise for cross-attention.
            past_key_values: what an earlier call returned; these tokens follow, and are added.
            inputs_embeds: (batch, token, width), instead of `input_ids`.
            position_ids: (batch, token) or (1, token); None counts on from `past_key_values`.
            use_cache: whether to return `past_key_values`; None asks the configuration, as below.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the states after every layer.
            return_dict: False returns a plain tuple.
            cache_position: (token,), where the tokens go; has to follow `past_key_values`.

        Raises:
            ValueError: an argument is missing, is of a wrong shape, or (on a CPU) holds a token or
                position that the model does not have.
        """
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        # States that are computed twice would be kept twice.
        use_cache = use_cache and not (self.training and self.gradient_checkpointing)
        past = taken(past_key_values, num_layers=len(self.layers))
        if past is None and use_cache:
            past = WhisperCache(len(self.layers))
        start = past.get_seq_length() if past else 0
        embedded = self._embedded(input_ids, inputs_embeds)
        _check_encoded(encoder_hidden_states, embedded)
        positions = self._positions(position_ids, cache_position, start, embedded)
        wants_weights = config.output_attentions if output_attentions is None else output_attentions
        wants_states = (
            config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        weights = AttentionWeights() if wants_weights else None
        states: list[Tensor] | None = [] if wants_states else None
        last = self._run(
            F.dropout(embedded + positions, config.dropout, self.training),
            encoder_hidden_states,
            mask=_mask(attention_mask, start, embedded),
            past=past,
            head_masks=self._head_masks(head_mask, cross_attn_head_mask),
            states=states,
            weights=weights,
        )
        crossed = weights is not None and encoder_hidden_states is not None
        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=last,
            past_key_values=past if use_cache else None,
            hidden_states=None if states is None else tuple(states),
            attentions=None if weights is None else tuple(weights.own),
            cross_attentions=tuple(weights.cross) if weights is not None and crossed else None,
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def embed(self, input_ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        """Embed sequences that start at position 0.

        Raises:
            ValueError: the sequences are longer than `max_target_positions`.
        """
        length = input_ids.shape[1]
        self._check_length(length)
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded + self.embed_positions.weight[:length]

    def _run(
        self,
        hidden: Float[Tensor, "batch token width"],
        encoded: Float[Tensor, "batch pos width"] | None,
        *,
        mask: Tensor | None,
        past: WhisperCache | None,
        head_masks: list[tuple[Tensor | None, Tensor | None]],
        states: list[Tensor] | None,
        weights: AttentionWeights | None,
    ) -> Float[Tensor, "batch token width"]:
        for i, layer in enumerate(self.layers):
            if states is not None:
                states.append(hidden)
            own, cross = head_masks[i]
            hidden = self._through(
                layer,
                hidden,
                encoded,
                mask=mask,
                past=past.layers[i] if past else None,
                head_mask=own,
                cross_head_mask=cross,
                weights=weights,
            )
        normed: Tensor = self.layer_norm(hidden)
        if states is not None:
            states.append(normed)
        return normed

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

    def _positions(
        self,
        position_ids: Tensor | None,
        cache_position: Tensor | None,
        start: int,
        embedded: Float[Tensor, "batch token width"],
    ) -> Float[Tensor, "#batch token width"]:
        """Embed the positions of tokens after `start` kept ones."""
        tokens = embedded.shape[1]
        follows = list(range(start, start + tokens))
        if cache_position is not None and cache_position.tolist() != follows:
            raise ValueError(
                f"decoding: found cache_position {cache_position.tolist()}, expected {follows}: "
                f"tokens are added after the {start} of past_key_values"
            )
        weight = self.embed_positions.weight
        if position_ids is None:
            self._check_length(start + tokens)
            return weight[start : start + tokens][None]
        if position_ids.ndim != 2 or position_ids.shape[1] != tokens:
            raise ValueError(
                f"decoding: found decoder_position_ids of shape {tuple(position_ids.shape)}, "
                f"expected (batch, {tokens})"
            )
        check_tokens(position_ids, len(weight), doing="decoding", what="decoder_position_ids")
        return F.embedding(position_ids, weight)

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

    def _check_length(self, length: int) -> None:
        if length > self.max_target_positions:
            raise ValueError(
                f"decoding {length} tokens: the model has {self.max_target_positions} positions; "
                f"cut the prompt or the sequence"
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


def _check_encoded(encoded: Tensor | None, embedded: Tensor) -> None:
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
