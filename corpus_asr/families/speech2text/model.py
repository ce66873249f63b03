"""Speech2Text as a whole: the networks by the names of the reference, and the form search runs.

In: a checkpoint, features and token ids. Out: hidden states, logits and losses. Knows no audio, no
text and no search; `Speech2TextSlotModel` is what search (`decoding.protocols.SlotModel`) runs.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.families.layers.lm_head import TokenTables, Vocabulary
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.outputs import (
    BaseModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    given_encoding,
    seq2seq_output,
)
from corpus_asr.families.registry import resolve
from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.families.speech2text.decoder import Speech2TextDecoder
from corpus_asr.families.speech2text.encoder import Speech2TextEncoder, heard_positions

_SLOT_MODEL = "corpus_asr.families.speech2text.slot_model:Speech2TextSlotModel"

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
        """Encode features and run tokens over them.

        Args:
            input_features: (batch, frame, mel), of any length.
            attention_mask: (batch, frame), 1 for the frames of a row and 0 for those added behind
                it, which nothing attends to.
            decoder_input_ids: (batch, token); padding takes no position.
            decoder_attention_mask: (batch, token), those of `past_key_values` included; 0 hides a
                token.
            head_mask: (layer, head), what the encoder's attention weights are multiplied with.
            decoder_head_mask: likewise for the decoder's self-attention.
            cross_attn_head_mask: likewise for its cross-attention.
            encoder_outputs: what the encoder returned, instead of `input_features`.
            past_key_values: what an earlier call returned; these tokens follow.
            decoder_inputs_embeds: (batch, token, width), instead of `decoder_input_ids`: scaled
                already, and none of them padding.
            use_cache: whether to return `past_key_values`; None asks the configuration, as below.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the states after every layer.
            return_dict: False returns a plain tuple.

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
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

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
        """Score every token after each given one, and tell how far `labels` are.

        Args:
            input_features: as all others, see `Speech2TextModel.forward`.
            attention_mask: see there.
            decoder_input_ids: left out where `labels` are given, they are those, each one place
                later, after `decoder_start_token_id`.
            decoder_attention_mask: see there.
            head_mask: see there.
            decoder_head_mask: see there.
            cross_attn_head_mask: see there.
            encoder_outputs: see there.
            past_key_values: see there.
            decoder_inputs_embeds: see there.
            labels: (batch, token), the tokens to come; the loss leaves out -100.
            use_cache: see there.
            output_attentions: see there.
            output_hidden_states: see there.
            return_dict: see there.

        Raises:
            ValueError: as there; or labels are no tokens, or not one for each.
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

    def slot_model(self, *, int8: bool = False) -> Any:
        """Return the form of this model that search runs; see `Speech2TextSlotModel`."""
        return resolve(_SLOT_MODEL)(self, int8=int8)
