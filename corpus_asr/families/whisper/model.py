"""Whisper's networks: encoder and decoder, with the projection, and the decoder alone."""

import copy
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from corpus_asr.families.layers.stack import sinusoids
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.outputs import (
    CausalLMOutputWithCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    as_encoder_output,
    given_encoding,
    seq2seq_output,
)
from corpus_asr.families.pretrained import PreTrainedModel, TokenTables, Vocabulary, token_loss
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.decoder import WhisperDecoder
from corpus_asr.families.whisper.encoder import WhisperEncoder, mask_features
from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.families.whisper.slots import (
    WhisperDecoderSlots,
    WhisperSlotModel,
)

_POSITIONS = "encoder.embed_positions.weight"


class WhisperPreTrainedModel(PreTrainedModel):
    """Base of the Whisper networks; the positions of their encoder are fixed sinusoids."""

    config_class: ClassVar[type[ModelConfig]] = WhisperConfig
    config: WhisperConfig

    _left_over: ClassVar[tuple[str, ...]] = ("proj_out.weight",)
    _fixed: ClassVar[tuple[str, ...]] = (_POSITIONS, f"model.{_POSITIONS}")

    @torch.no_grad()
    def _draw(self, name: str, parameter: Tensor) -> None:
        if name.endswith(_POSITIONS):
            parameter.requires_grad_(False).copy_(sinusoids(*parameter.shape))
        else:
            super()._draw(name, parameter)


class WhisperWithTokens(WhisperPreTrainedModel, TokenTables):
    """A decoder with its table of token embeddings."""

    def get_decoder(self) -> WhisperDecoder:
        """Return the decoder."""
        decoder = super().get_decoder()
        assert isinstance(decoder, WhisperDecoder)
        return decoder


class WhisperWithVocabulary(WhisperWithTokens, Vocabulary):
    """A decoder, and the projection to the vocabulary, tied to the token embedding."""

    proj_out: nn.Linear

    _tied: ClassVar[dict[str, str]] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
    _generation: ClassVar[Any] = GenerationConfig
    _decoder: ClassVar[str] = "model.decoder"
    _projection: ClassVar[str] = "proj_out"

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.max_target_positions = config.max_target_positions

    def _check_labels(self, labels: Tensor) -> None:
        super()._check_labels(labels)
        if labels.shape[1] > self.max_target_positions:
            raise ValueError(
                f"training: found labels of {labels.shape[1]} tokens, expected at most the "
                f"model's {self.max_target_positions} positions; cut or drop the example"
            )


class WhisperModel(WhisperWithTokens):
    """Encoder and decoder, without the projection to the vocabulary."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        self.decoder = WhisperDecoder(config)
        self._draw_weights()

    def get_encoder(self) -> WhisperEncoder:
        """Return the encoder."""
        return self.encoder

    def freeze_encoder(self) -> None:
        """Keep training from changing the encoder."""
        self.encoder._freeze_parameters()

    def _mask_input_features(
        self, input_features: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Mask features in training, if the configuration has `apply_spec_augment`."""
        if not (self.config.apply_spec_augment and self.training):
            return input_features
        return mask_features(input_features, self.config, attention_mask)

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Encode whole windows (batch, mel, frame) and run tokens over them.

        Arguments are those of transformers; None asks the configuration. `attention_mask` (batch,
        frame) only limits the masking of features in training; `cache_position` has to follow
        `past_key_values`.
        """
        wanted = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": True,
        }
        encoded = given_encoding(input_features, encoder_outputs, running=type(self).__name__)
        if encoded is None:
            assert input_features is not None
            masked = self._mask_input_features(input_features, attention_mask)
            encoded = self.encoder(masked, head_mask=head_mask, **wanted)
        decoded = self.decoder(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            position_ids=decoder_position_ids,
            use_cache=use_cache,
            cache_position=cache_position,
            **wanted,
        )
        output = seq2seq_output(encoded, decoded)
        return output.as_asked(self.config, return_dict)


class WhisperSeq2SeqLM(WhisperWithVocabulary):
    """Encoder, decoder and the projection to the vocabulary, tied to the token embedding."""

    _left_over: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.model = WhisperModel(config)
        self._add_projection()

    def get_encoder(self) -> WhisperEncoder:
        """Return the encoder."""
        return self.model.encoder

    def freeze_encoder(self) -> None:
        """Keep training from changing the encoder."""
        self.model.freeze_encoder()

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Score every token after each given one, and compute the loss of `labels`.

        Arguments are those of `WhisperModel.forward`. Where only `labels` (batch, token) are given,
        the decoder reads these, each one place later, after `decoder_start_token_id`; the loss
        leaves out -100.
        """
        if labels is not None:
            self._check_labels(labels)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self._shifted(labels)
        outputs = self.model(
            input_features,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            decoder_position_ids,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
            cache_position,
            head_mask=head_mask,
            decoder_head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
        )
        return self._scored(outputs, labels, return_dict)

    def slot_model(self, *, int8: bool = False) -> WhisperSlotModel:
        """Return the form of this model that search runs; see `WhisperSlotModel`."""
        return WhisperSlotModel(self, int8=int8)


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

        Arguments are those of transformers; None asks the configuration. Without `encoder_outputs`
        there is no cross-attention. `labels` (batch, token) are what should follow each token:
        already one place earlier than `input_ids`; the loss leaves out -100.
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
        return output.as_asked(self.config, return_dict)

    def slot_model(self) -> WhisperDecoderSlots:
        """Return the form of this model that search drafts with; see `WhisperDecoderSlots`."""
        return WhisperDecoderSlots(self.config, self.model.decoder, self.proj_out)

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a decoder alone hears nothing."""
        raise ValueError(
            "generating with WhisperForCausalLM: found a decoder without an encoder, expected a "
            "whole model; call WhisperForConditionalGeneration.generate(..., assistant_model=this)"
        )
