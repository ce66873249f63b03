"""Speech2Text's networks: encoder and decoder, without and with the projection."""

from typing import Any, ClassVar

from torch import Tensor, nn

from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.outputs import (
    BaseModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    given_encoding,
    seq2seq_output,
)
from corpus_asr.families.pretrained import TokenTables, Vocabulary
from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.families.speech2text.decoder import Speech2TextDecoder
from corpus_asr.families.speech2text.encoder import Speech2TextEncoder, heard_positions
from corpus_asr.families.speech2text.slots import Speech2TextSlotModel

# Old checkpoints store what is computed here.
_COMPUTED = (
    "encoder.embed_positions.weights",
    "decoder.embed_positions.weights",
    "encoder.version",
    "decoder.version",
)


class Speech2TextModel(TokenTables):
    """Encoder and decoder, without the projection to the vocabulary."""

    config_class: ClassVar[type[ModelConfig]] = Speech2TextConfig
    config: Speech2TextConfig

    _left_over: ClassVar[tuple[str, ...]] = ("lm_head.", *_COMPUTED)

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config)
        self.encoder = Speech2TextEncoder(config)
        self.decoder = Speech2TextDecoder(config)
        self._draw_weights()

    def get_encoder(self) -> Speech2TextEncoder:
        """Return the encoder."""
        return self.encoder

    def get_decoder(self) -> Speech2TextDecoder:
        """Return the decoder."""
        return self.decoder

    def freeze_encoder(self) -> None:
        """Keep training from changing the encoder."""
        self.encoder._freeze_parameters()

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Encode features (batch, frame, mel) of any length and run tokens over them.

        Arguments are those of transformers; None asks the configuration. Nothing attends to frames
        that `attention_mask` hides; `decoder_inputs_embeds` are scaled already, and none of them is
        padding.
        """
        wanted = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": True,
        }
        encoded = given_encoding(input_features, encoder_outputs, running=type(self).__name__)
        if encoded is None:
            assert input_features is not None
            encoded = self.encoder(input_features, attention_mask, head_mask, **wanted)
        decoded = self.decoder(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=self._heard(encoded, attention_mask),
            head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **wanted,
        )
        output = seq2seq_output(encoded, decoded)
        return output.as_asked(self.config, return_dict)

    def _heard(self, encoded: BaseModelOutput, attention_mask: Tensor | None) -> Tensor | None:
        if attention_mask is None or encoded.last_hidden_state is None:
            return None
        positions = encoded.last_hidden_state.shape[1]
        return heard_positions(attention_mask, positions, config=self.config)


class Speech2TextSeq2SeqLM(Vocabulary):
    """Encoder, decoder and the projection to the vocabulary, tied to the token embedding or not."""

    config_class: ClassVar[type[ModelConfig]] = Speech2TextConfig
    config: Speech2TextConfig
    lm_head: nn.Linear

    _tied: ClassVar[dict[str, str]] = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    _left_over: ClassVar[tuple[str, ...]] = _COMPUTED
    _decoder: ClassVar[str] = "model.decoder"
    _projection: ClassVar[str] = "lm_head"
    _generation: ClassVar[Any] = GenerationConfig

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config)
        self.model = Speech2TextModel(config)
        self._add_projection()

    def get_encoder(self) -> Speech2TextEncoder:
        """Return the encoder."""
        return self.model.encoder

    def get_decoder(self) -> Speech2TextDecoder:
        """Return the decoder."""
        return self.model.decoder

    def freeze_encoder(self) -> None:
        """Keep training from changing the encoder."""
        self.model.freeze_encoder()

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Score every token after each given one, and compute the loss of `labels`.

        Arguments are those of `Speech2TextModel.forward`. Where only `labels` (batch, token) are
        given, the decoder reads these, each one place later, after `decoder_start_token_id`; the
        loss leaves out -100.
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
            head_mask,
            decoder_head_mask,
            cross_attn_head_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
        )
        return self._scored(outputs, labels, return_dict)

    def slot_model(self, *, int8: bool = False) -> Speech2TextSlotModel:
        """Return the form of this model that search runs; see `Speech2TextSlotModel`."""
        return Speech2TextSlotModel(self, int8=int8)
