"""Speech2Text's networks: the decoder, and encoder and decoder without and with the projection."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from corpus_asr.array_types import Float
from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.families.layers.plain import plain, plain_network
from corpus_asr.families.layers.stack import TokenDecoder
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.outputs import (
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    given_encoding,
    seq2seq_output,
)
from corpus_asr.families.pretrained import TokenTables, Vocabulary
from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.families.speech2text.encoder import (
    Speech2TextEncoder,
    Speech2TextPositions,
    padding_row,
    valid_positions,
)
from corpus_asr.families.speech2text.slots import (
    Speech2TextModuleSlots,
    Speech2TextSlotModel,
)

# Old checkpoints store what is computed here.
_COMPUTED = (
    "encoder.embed_positions.weights",
    "decoder.embed_positions.weights",
    "encoder.version",
    "decoder.version",
)


@plain
class Speech2TextDecoder(TokenDecoder):
    """Scaled token embeddings, sinusoidal positions, pre-norm blocks and a last norm.

    Padding takes no position. Embeddings that are given are scaled already, and none is padding.

    Source: Wang et al. 2020, section 2.1; parameter names of
    transformers/models/speech_to_text/modeling_speech_to_text.py, equal to it within 1e-5 in
    float32.
    """

    embed_positions: Speech2TextPositions

    def __init__(self, config: Speech2TextConfig) -> None:
        positions = Speech2TextPositions(config.d_model, padding_row(config))
        super().__init__(config, positions, key_bias=True)
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0

    def _placed(
        self,
        embedded: Float[Tensor, "batch token width"],
        input_ids: Tensor | None,
        start: int,
    ) -> Float[Tensor, "batch token width"]:
        if input_ids is None:
            # Embeddings do not tell which of them are padding.
            counted = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        else:
            embedded = embedded * self.embed_scale
            counted = input_ids != self.embed_positions.padding_row
        positions: Tensor = self.embed_positions(counted, start=start, like=embedded)
        return embedded + positions


@plain_network
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
        valid = None
        if attention_mask is not None and encoded.last_hidden_state is not None:
            positions = encoded.last_hidden_state.shape[1]
            valid = valid_positions(attention_mask, positions, config=self.config)
        decoded = self.decoder(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=valid,
            head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **wanted,
        )
        return seq2seq_output(encoded, decoded).as_asked(self.config, return_dict)


@plain_network
class Speech2TextSeq2SeqLM(Vocabulary):
    """Encoder, decoder and the projection to the vocabulary, tied to the token embedding or not."""

    config_class: ClassVar[type[ModelConfig]] = Speech2TextConfig
    config: Speech2TextConfig
    lm_head: nn.Linear

    _tied: ClassVar[dict[str, str]] = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    _left_over: ClassVar[tuple[str, ...]] = _COMPUTED
    _projection: ClassVar[str] = "lm_head"
    _generation: ClassVar[Any] = GenerationConfig

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config)
        self.model = Speech2TextModel(config)
        self._add_projection()

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
        outputs = self.model(
            input_features,
            attention_mask,
            self._decoder_inputs(labels, decoder_input_ids, decoder_inputs_embeds),
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

    def slot_model(self, *, int8: bool = False, consume: bool = False) -> Speech2TextSlotModel:
        """Return the form of this model that search runs; see `Speech2TextSlotModel`."""
        return Speech2TextSlotModel(self, int8=int8, consume=consume)

    def module_slots(self) -> Speech2TextModuleSlots:
        """Return the form that calls this model's own modules; see `Speech2TextModuleSlots`."""
        return Speech2TextModuleSlots(self)
