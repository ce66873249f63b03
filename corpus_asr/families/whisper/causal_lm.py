"""Whisper's decoder with its projection alone, as speculative decoding drafts with.

In: token ids, and hidden states that another model's encoder computed. Out: logits and losses.
Knows no audio and no features.
"""

import copy
from typing import Any, ClassVar, NoReturn

from torch import Tensor, nn

from corpus_asr.families.layers.lm_head import token_loss
from corpus_asr.families.outputs import CausalLMOutputWithCrossAttentions, as_encoder_output
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.decoder import WhisperDecoder
from corpus_asr.families.whisper.slot_model import WhisperDecoderSlots, causal_slot_model
from corpus_asr.families.whisper.vocabulary import WhisperWithVocabulary


class _DecoderOnly(nn.Module):
    """Puts the decoder where checkpoints have it: under `model.decoder`."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.decoder = WhisperDecoder(config)


class WhisperForCausalLM(WhisperWithVocabulary):
    """Decoder and projection; loads from a whole checkpoint too, whose encoder it leaves out.

    Keeps a copy of the configuration, in which `is_encoder_decoder` is false.
    """

    main_input_name = "input_ids"
    _left_over: ClassVar[tuple[str, ...]] = ("encoder.",)

    def __init__(self, config: WhisperConfig) -> None:
        config = copy.copy(config)
        config.is_encoder_decoder = False
        super().__init__(config)
        self.model = _DecoderOnly(config)
        self._draw_weights()
        self._add_projection()

    def set_decoder(self, decoder: WhisperDecoder) -> None:
        """Replace the decoder."""
        self.model.decoder = decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Score every token after each given one.

        Args:
            input_ids: (batch, token).
            attention_mask: (batch, token), those of `past_key_values` included; 0 hides a token.
            encoder_outputs: what an encoder returned, or its last hidden state; without it the
                decoder hears nothing.
            past_key_values: what an earlier call returned; these tokens follow.
            inputs_embeds: (batch, token, width), instead of `input_ids`.
            labels: (batch, token), what should follow each token: already one place earlier than
                `input_ids`; the loss leaves out -100.
            use_cache: whether to return `past_key_values`; None asks the configuration, as below.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the states after every layer.
            return_dict: False returns a plain tuple.
            cache_position: (token,), where the tokens go; has to follow `past_key_values`.
            head_mask: (layer, head), what self-attention's weights are multiplied with.
            cross_attn_head_mask: likewise for cross-attention.

        Raises:
            ValueError: an argument is missing, does not go with another, or is of a wrong shape
                or type; on a CPU also if ids are unknown.
        """
        if labels is not None:
            self._check_labels(labels)
        encoded = None
        if encoder_outputs is not None:
            encoded = as_encoder_output(encoder_outputs).last_hidden_state
        decoded = self.model.decoder(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoded,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            cache_position=cache_position,
        )
        logits = self.proj_out(decoded.last_hidden_state)
        output = CausalLMOutputWithCrossAttentions(
            loss=token_loss(logits, labels),
            logits=logits,
            past_key_values=decoded.past_key_values,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def slot_model(self) -> WhisperDecoderSlots:
        """Return the form of this model that search drafts with; see `WhisperDecoderSlots`."""
        return causal_slot_model(self)

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a decoder alone hears nothing.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "generating with WhisperForCausalLM: found a decoder without an encoder, expected a "
            "whole model; call WhisperForConditionalGeneration.generate(..., assistant_model=this)"
        )
