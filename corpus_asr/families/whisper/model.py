"""Whisper networks, complete and decoder-only, and their forms for decoding."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.families.layers.blocks import EncoderBlock
from corpus_asr.families.layers.cached_decoder import DecoderSlots
from corpus_asr.families.layers.kv_cache import TokenCache
from corpus_asr.families.layers.packed import (
    PackedConvolution,
    PackedEncoderBlock,
    copied_layers,
    fused_encoder,
    run_per_sample,
)
from corpus_asr.families.layers.plain import plain, plain_network
from corpus_asr.families.layers.stack import (
    TokenDecoder,
    check_heard,
    check_tokens,
    rows_of,
)
from corpus_asr.families.outputs import (
    CausalLMOutputWithCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    as_encoder_output,
    given_encoding,
    seq2seq_output,
)
from corpus_asr.families.pretrained import TokenTables, Vocabulary, token_loss
from corpus_asr.families.whisper.config import GenerationConfig, WhisperConfig
from corpus_asr.families.whisper.encoder import (
    WhisperEncoder,
    WhisperPreTrainedModel,
    check_windows,
    mask_features,
)
from corpus_asr.units import FRAMES_PER_POSITION, FRAMES_PER_SECOND


@plain
class WhisperDecoder(TokenDecoder, WhisperPreTrainedModel, TokenTables):
    """Token and learned position embeddings, pre-norm blocks and a final norm.

    Token embeddings are never scaled: transformers reads `scale_embedding` but does not apply it,
    and every released checkpoint has it false.

    Source: Radford et al. 2022, section 2.2; parameter names of
    transformers/models/whisper/modeling_whisper.py, equal to it within 1e-5 in float32.
    """

    main_input_name = "input_ids"
    embed_positions: nn.Embedding

    def __init__(self, config: WhisperConfig, *, drawn: bool = True) -> None:
        positions = nn.Embedding(config.max_target_positions, config.d_model)
        # A bias of keys adds a constant to all scores of a query, which the softmax removes.
        super().__init__(config, positions, key_bias=False)
        # Weights are initialized by the enclosing network.
        if drawn:
            self._draw_weights()

    def _placed(
        self,
        embedded: Float[Tensor, "batch token width"],
        input_ids: Tensor | None,
        start: int,
        *,
        position_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
    ) -> Float[Tensor, "batch token width"]:
        tokens, weight = embedded.shape[1], self.embed_positions.weight
        follows = list(range(start, start + tokens))
        if cache_position is not None and cache_position.tolist() != follows:
            raise ValueError(
                f"decoding: found cache_position {cache_position.tolist()}, expected {follows}: "
                f"tokens are added after the {start} of past_key_values"
            )
        if position_ids is None:
            if start + tokens > len(weight):
                raise ValueError(
                    f"decoding {start + tokens} tokens: the model has {len(weight)} positions; "
                    f"cut the prompt or the sequence"
                )
            return embedded + rows_of(self.embed_positions, start, start + tokens)
        # Given positions need not be consecutive, as in batches padded on the left.
        if position_ids.ndim != 2 or position_ids.shape[1] != tokens:
            raise ValueError(
                f"decoding: found decoder_position_ids of shape {tuple(position_ids.shape)}, "
                f"expected (batch, {tokens})"
            )
        check_tokens(position_ids, len(weight), doing="decoding", what="decoder_position_ids")
        placed: Tensor = embedded + self.embed_positions(position_ids)
        return placed


class WhisperWithVocabulary(WhisperPreTrainedModel, Vocabulary):
    """A decoder with output projection, tied to the token embedding."""

    proj_out: nn.Linear

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "proj_out.weight": "model.decoder.embed_tokens.weight"
    }
    _generation: ClassVar[Any] = GenerationConfig
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


@plain_network
class WhisperModel(WhisperPreTrainedModel, TokenTables):
    """Encoder and decoder, without output projection."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config, drawn=False)
        self.decoder = WhisperDecoder(config, drawn=False)
        self._draw_weights()

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
        """Encode whole windows (batch, mel, frame) and decode tokens.

        Arguments are those of transformers; None means the configuration's value. `attention_mask`
        (batch, frame) only limits the masking of features in training; `cache_position` must
        continue `past_key_values`.
        """
        wanted = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": True,
        }
        encoded = given_encoding(input_features, encoder_outputs, running=type(self).__name__)
        if encoded is None:
            assert input_features is not None
            # As in transformers, only features: a given encoding is never masked.
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
        return seq2seq_output(encoded, decoded).as_asked(self.config, return_dict)


@plain_network
class WhisperSeq2SeqLM(WhisperWithVocabulary):
    """Encoder, decoder and output projection, tied to the token embedding."""

    accepts_loss_kwargs = True
    _left_over: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.model = WhisperModel(config)
        self._add_projection()

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
        num_items_in_batch: Tensor | int | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Return the logits after every token, and the loss of `labels`.

        Arguments are those of `WhisperModel.forward`. If only `labels` (batch, token) are given,
        the decoder reads them shifted by one after `decoder_start_token_id`; the loss ignores -100
        and is the mean over the others, or their sum over `num_items_in_batch`.
        """
        outputs = self.model(
            input_features,
            attention_mask,
            self._decoder_inputs(labels, decoder_input_ids, decoder_inputs_embeds),
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
        return self._scored(outputs, labels, return_dict, num_items_in_batch)

    def slot_model(self, *, int8: bool = False, consume: bool = False) -> "WhisperSlotModel":
        """Return the form of this model for decoding; see `WhisperSlotModel`."""
        return WhisperSlotModel(self, int8=int8, consume=consume)


@plain_network
class _DecoderOnly(nn.Module):
    # Checkpoints have the decoder's weights under `model.decoder`.
    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.decoder = WhisperDecoder(config, drawn=False)


@plain_network
class WhisperForCausalLM(WhisperWithVocabulary):
    """Decoder and projection; also loads from a complete checkpoint, ignoring its encoder.

    Has a copy of the configuration, in which `is_encoder_decoder` is false.
    """

    main_input_name = "input_ids"
    _left_over: ClassVar[tuple[str, ...]] = ("encoder.",)

    def __init__(self, config: WhisperConfig) -> None:
        # The caller's configuration is of the complete model and is not modified.
        config = copy.copy(config)
        config.is_encoder_decoder = False
        super().__init__(config)
        self.model = _DecoderOnly(config)
        self._draw_weights()
        self._add_projection()

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
        """Return the logits after every token.

        Arguments are those of transformers; None means the configuration's value. Without
        `encoder_outputs` there is no cross-attention. `labels` (batch, token) are the expected next
        tokens, already shifted relative to `input_ids`; the loss ignores -100.
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

    def slot_model(self) -> "WhisperDecoderSlots":
        """Return the form of this model for drafting; see `WhisperDecoderSlots`."""
        return WhisperDecoderSlots(self.model.decoder, self.proj_out)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: TokenCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the arguments of `forward` for the next tokens."""
        inputs = super().prepare_inputs_for_generation(input_ids, past_key_values, **kwargs)
        return {"input_ids": inputs.pop("decoder_input_ids"), **inputs}

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error: a decoder-only model has no encoder."""
        raise ValueError(
            "generating with WhisperForCausalLM: found a decoder only, expected a whole model; "
            "call WhisperForConditionalGeneration.generate(..., assistant_model=this)"
        )


class PackedWhisperEncoder:
    """A `WhisperEncoder` with packed copies of its linear maps, in 8 bits with `int8`.

    Convolutions are products over neighboring frames, never in 8 bits. Shares the final norm with
    `encoder`. Equal to it within the rounding of its type.
    """

    def __init__(self, encoder: WhisperEncoder, *, int8: bool, consume: bool = False) -> None:
        self._num_mel_bins, self._num_frames = encoder.num_mel_bins, encoder.num_frames
        self._conv1 = PackedConvolution(encoder.conv1, after="gelu")
        self._conv2 = PackedConvolution(encoder.conv2, after="gelu")
        with torch.inference_mode():
            self._positions = encoder.embed_positions.weight.float()
        self._blocks = [
            PackedEncoderBlock(block, int8=int8)
            for block in copied_layers(encoder.layers, consume=consume)
            if isinstance(block, EncoderBlock)
        ]
        self._layer_norm = encoder.layer_norm

    def encode(
        self,
        input_features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        check_windows(input_features, num_mel_bins=self._num_mel_bins, num_frames=self._num_frames)
        windows = list(input_features)
        if num_frames is not None:
            step = FRAMES_PER_POSITION
            check_heard(num_frames, windows=len(windows), whole=self._num_frames, step=step)
            windows = [window[:, :end] for window, end in zip(windows, num_frames, strict=True)]
        encoded = run_per_sample(self._encode, windows, size=lambda window: window.shape[1])
        whole = len(self._positions)
        return torch.stack([F.pad(states, (0, 0, 0, whole - len(states))) for states in encoded])

    def _encode(self, features: Float[Tensor, "mel frame"]) -> Float[Tensor, "pos width"]:
        # Always GELU: `activation_function` is for the blocks.
        hidden = self._conv2(self._conv1(features.t()))
        states = hidden + self._positions[: len(hidden)]  # (pos, width) in float32
        for block in self._blocks:
            block(states)
        normed: Tensor = self._layer_norm(states.to(features.dtype))
        return normed


class WhisperDecoderSlots(DecoderSlots):
    """A decoder-only Whisper model; its windows are encoded by another model."""

    has_encoder = False
    frame_step = FRAMES_PER_SECOND

    def __init__(
        self,
        decoder: WhisperDecoder,
        projection: nn.Linear,
        *,
        int8: bool = False,
        consume: bool = False,
    ) -> None:
        self._weight_bytes = sum(weight.nbytes for weight in decoder.parameters())
        super().__init__(
            decoder,
            projection,
            max_source_positions=decoder.max_source_positions,
            int8=int8,
            consume=consume,
        )
        self._token_positions = decoder.embed_positions

    @property
    def _whole_frames(self) -> int:
        return int(self._config.max_source_positions) * FRAMES_PER_POSITION

    @property
    def window_values(self) -> int:
        return int(self._config.num_mel_bins) * self._whole_frames

    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        step = FRAMES_PER_POSITION
        check_heard(num_frames, windows=windows, whole=self._whole_frames, step=step)
        return [number // step for number in num_frames]

    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        raise ValueError(
            f"encoding {len(features)} windows with a decoder alone: expected encoded windows; "
            "encode them with the model it assists"
        )

    def _embed(
        self, tokens: Int[Tensor, "batch token"], positions: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token width"]:
        embedded = F.embedding(tokens, self._tokens.weight)
        return embedded + F.embedding(positions, self._token_positions.weight)


class WhisperSlotModel(WhisperDecoderSlots):
    """A `WhisperSeq2SeqLM` as a `SlotModel`.

    On CPUs its encoder is a packed copy; on GPUs it shares the encoder of `model`, with fused
    queries, keys and values. With `consume`, each block of `model` is deleted as soon as it is
    copied, and `model` cannot be used afterwards.
    """

    has_encoder = True

    def __init__(
        self, model: WhisperSeq2SeqLM, *, int8: bool = False, consume: bool = False
    ) -> None:
        super().__init__(model.model.decoder, model.proj_out, int8=int8, consume=consume)
        encoder = model.model.encoder
        self._weight_bytes += sum(weight.nbytes for weight in encoder.parameters())
        self._encoder: WhisperEncoder | PackedWhisperEncoder
        if self.device.type != "cpu":
            self._encoder = fused_encoder(encoder)
        else:
            self._encoder = PackedWhisperEncoder(encoder, int8=int8, consume=consume)

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        return self._encoder.encode(features.to(self.device, self.dtype), num_frames=num_frames)
