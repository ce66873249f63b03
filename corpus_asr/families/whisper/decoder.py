"""Whisper's decoder over whole token sequences, or over their next tokens."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.families.layers.stack import TokenDecoder, check_encoded, check_tokens
from corpus_asr.families.outputs import BaseModelOutputWithPastAndCrossAttentions
from corpus_asr.families.whisper.config import WhisperConfig


class WhisperDecoder(TokenDecoder):
    """Token and learned position embeddings, pre-norm blocks and a last norm.

    Token embeddings are never scaled: transformers reads `scale_embedding` but does not apply it,
    and every released checkpoint has it false.

    Source: Radford et al. 2022, section 2.2; parameter names of
    transformers/models/whisper/modeling_whisper.py, equal to it within 1e-5 in float32.
    """

    embed_positions: nn.Embedding

    def __init__(self, config: WhisperConfig) -> None:
        positions = nn.Embedding(config.max_target_positions, config.d_model)
        super().__init__(config, positions, key_bias=False)
        self.max_source_positions = config.max_source_positions

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

        Arguments are those of transformers; None asks the configuration. Without
        `encoder_hidden_states` there is no cross-attention; `cache_position` has to follow
        `past_key_values`.
        """
        past = self._past(past_key_values, use_cache)
        embedded = self._embedded(input_ids, inputs_embeds)
        check_encoded(encoder_hidden_states, embedded)
        start = past.get_seq_length() if past else 0
        positions = self._positions(position_ids, cache_position, start, embedded)
        return self._decode(
            embedded + positions,
            attention_mask=attention_mask,
            encoded=encoder_hidden_states,
            past=past,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )

    def embed(self, input_ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        """Embed sequences that start at position 0."""
        length = input_ids.shape[1]
        self._check_length(length)
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded + self.embed_positions.weight[:length]

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

    def _check_length(self, length: int) -> None:
        if length > self.max_target_positions:
            raise ValueError(
                f"decoding {length} tokens: the model has {self.max_target_positions} positions; "
                f"cut the prompt or the sequence"
            )
