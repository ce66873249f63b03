"""Whisper's networks: encoder and decoder, and with the projection to the vocabulary."""

from typing import Any, ClassVar

from torch import Tensor

from corpus_asr.families.outputs import (
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    given_encoding,
    seq2seq_output,
)
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.decoder import WhisperDecoder
from corpus_asr.families.whisper.encoder import WhisperEncoder
from corpus_asr.families.whisper.slot_model import WhisperSlotModel
from corpus_asr.families.whisper.spec_augment import mask_features
from corpus_asr.families.whisper.vocabulary import WhisperWithTokens, WhisperWithVocabulary


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
        """Mask features in training, if the configuration has `apply_spec_augment`.

        Args:
            input_features: (batch, mel, frame).
            attention_mask: (batch, frame), 1 where there is sound: only that is masked in time.
        """
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
        """Encode whole windows and run tokens over them.

        Args:
            input_features: (batch, mel, frame), whole windows.
            attention_mask: (batch, frame), for the masking of features in training only.
            decoder_input_ids: (batch, token).
            decoder_attention_mask: (batch, token), those of `past_key_values` included; 0 hides a
                token.
            encoder_outputs: what the encoder returned, instead of `input_features`.
            past_key_values: what an earlier call returned; these tokens follow.
            decoder_inputs_embeds: (batch, token, width), instead of `decoder_input_ids`.
            decoder_position_ids: (batch, token); None counts on from `past_key_values`.
            use_cache: whether to return `past_key_values`; None asks the configuration, as below.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the states after every layer.
            return_dict: False returns a plain tuple.
            cache_position: (token,), where the tokens go; has to follow `past_key_values`.
            head_mask: (layer, head), what the encoder's attention weights are multiplied with.
            decoder_head_mask: likewise for the decoder's self-attention.
            cross_attn_head_mask: likewise for its cross-attention.

        Raises:
            ValueError: an argument is missing, does not go with another, or is of a wrong shape
                or type; on a CPU also if features are NaN or infinite, or ids unknown.
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
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


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
        """Score every token after each given one, and tell how far `labels` are.

        Args:
            input_features: as all others, see `WhisperModel.forward`.
            attention_mask: see there.
            decoder_input_ids: left out where `labels` are given, they are those, each one place
                later, after `decoder_start_token_id`.
            decoder_attention_mask: see there.
            encoder_outputs: see there.
            past_key_values: see there.
            decoder_inputs_embeds: see there.
            decoder_position_ids: see there.
            labels: (batch, token), the tokens to come; the loss leaves out -100.
            use_cache: see there.
            output_attentions: see there.
            output_hidden_states: see there.
            return_dict: see there.
            cache_position: see there.
            head_mask: see there.
            decoder_head_mask: see there.
            cross_attn_head_mask: see there.

        Raises:
            ValueError: as there; or there are more labels than positions.
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
