"""Speech2Text's decoder over whole token sequences, or over their next tokens."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from corpus_asr.families.layers.stack import TokenDecoder, check_encoded
from corpus_asr.families.outputs import BaseModelOutputWithPastAndCrossAttentions
from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.families.speech2text.encoder import Speech2TextPositions, hiding_mask, padding_row


class Speech2TextDecoder(TokenDecoder):
    """Scaled token embeddings, sinusoidal positions, pre-norm blocks and a last norm.

    Source: Wang et al. 2020, section 2.1; parameter names of
    transformers/models/speech_to_text/modeling_speech_to_text.py, equal to it within 1e-5 in
    float32.
    """

    embed_positions: Speech2TextPositions

    def __init__(self, config: Speech2TextConfig) -> None:
        positions = Speech2TextPositions(config.d_model, padding_row(config))
        super().__init__(config, positions, key_bias=True)
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.max_source_positions = config.max_source_positions

    def forward(
        self,
        input_ids: Tensor | None = None,
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
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Run tokens; each sees itself, those before it and the sound; padding takes no position.

        Arguments are those of transformers; None asks the configuration. Without
        `encoder_hidden_states` there is no cross-attention; `inputs_embeds` are scaled already, and
        none of them is padding.
        """
        past = self._past(past_key_values, use_cache)
        embedded = self._embedded(input_ids, inputs_embeds)
        if input_ids is not None:
            embedded = embedded * self.embed_scale
            counted = input_ids != self.embed_positions.padding_row
        else:
            counted = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        check_encoded(encoder_hidden_states, embedded)
        start = past.get_seq_length() if past else 0
        return self._decode(
            embedded + self.embed_positions(counted, start=start, like=embedded),
            attention_mask=attention_mask,
            encoded=encoder_hidden_states,
            cross_mask=_cross_mask(encoder_attention_mask, encoder_hidden_states),
            past=past,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )


def _cross_mask(
    attention_mask: Tensor | None, encoded: Float[Tensor, "batch pos width"] | None
) -> Float[Tensor, "batch 1 1 pos"] | None:
    if attention_mask is None or encoded is None:
        return None
    if attention_mask.shape != encoded.shape[:2]:
        raise ValueError(
            f"decoding: found an encoder_attention_mask of shape {tuple(attention_mask.shape)}, "
            f"expected {tuple(encoded.shape[:2])}: one value for each position of the encoder"
        )
    return hiding_mask(attention_mask != 0, like=encoded)
