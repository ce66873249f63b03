"""Speech2Text networks, with and without output projection, and their forms for decoding."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.device import to_device
from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.families.layers.blocks import EncoderBlock
from corpus_asr.families.layers.cached_decoder import DecoderSlots
from corpus_asr.families.layers.packed import (
    PackedConvolution,
    PackedEncoderBlock,
    fused_encoder,
    run_per_sample,
)
from corpus_asr.families.layers.plain import plain, plain_network
from corpus_asr.families.layers.stack import TokenDecoder, check_heard, heard_frames, within
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
    Speech2TextPreTrainedModel,
    padding_row,
    shorter,
    valid_positions,
)

# Older checkpoints store values that are computed here.
_COMPUTED = (
    "encoder.embed_positions.weights",
    "decoder.embed_positions.weights",
    "encoder.version",
    "decoder.version",
)


@plain
class Speech2TextDecoder(TokenDecoder, Speech2TextPreTrainedModel, TokenTables):
    """Scaled token embeddings, sinusoidal positions, pre-norm blocks and a final norm.

    Padding has no position. Embeddings passed in must be scaled already and contain no padding.

    Source: Wang et al. 2020, section 2.1; parameter names of
    transformers/models/speech_to_text/modeling_speech_to_text.py, equal to it within 1e-5 in
    float32.
    """

    main_input_name = "input_ids"
    embed_positions: Speech2TextPositions

    def __init__(self, config: Speech2TextConfig, *, drawn: bool = True) -> None:
        positions = Speech2TextPositions(config.d_model, padding_row(config))
        super().__init__(config, positions, key_bias=True)
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        # Weights are initialized by the enclosing network.
        if drawn:
            self._draw_weights()

    def _placed(
        self,
        embedded: Float[Tensor, "batch token width"],
        input_ids: Tensor | None,
        start: int,
    ) -> Float[Tensor, "batch token width"]:
        if input_ids is None:
            # Padding cannot be recognized in embeddings.
            counted = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        else:
            embedded = embedded * self.embed_scale
            counted = input_ids != self.embed_positions.padding_row
        positions: Tensor = self.embed_positions(counted, start=start, like=embedded)
        return embedded + positions


@plain_network
class Speech2TextModel(Speech2TextPreTrainedModel, TokenTables):
    """Encoder and decoder, without output projection."""

    _left_over: ClassVar[tuple[str, ...]] = ("lm_head.", *_COMPUTED)

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config)
        self.encoder = Speech2TextEncoder(config, drawn=False)
        self.decoder = Speech2TextDecoder(config, drawn=False)
        self._draw_weights()

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Encode features (batch, frame, mel) of any length and decode tokens.

        Arguments are those of transformers; None means the configuration's value. Frames masked by
        `attention_mask` are not attended to; `decoder_inputs_embeds` must be scaled already and
        contain no padding.
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
class Speech2TextSeq2SeqLM(Speech2TextPreTrainedModel, Vocabulary):
    """Encoder, decoder and output projection, tied to the token embedding or not."""

    lm_head: nn.Linear

    accepts_loss_kwargs = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "model.decoder.embed_tokens.weight"
    }
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
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Return the logits after every token, and the loss of `labels`.

        Arguments are those of `Speech2TextModel.forward`. If only `labels` (batch, token) are
        given, the decoder reads them shifted by one after `decoder_start_token_id`; the loss
        ignores -100 and is the mean over the others, or their sum over `num_items_in_batch`.
        """
        outputs = self.model(
            input_features,
            attention_mask,
            self._decoder_inputs(labels, decoder_input_ids, decoder_inputs_embeds),
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
            head_mask=head_mask,
            decoder_head_mask=decoder_head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
        )
        return self._scored(outputs, labels, return_dict, num_items_in_batch)

    def slot_model(self, *, int8: bool = False, consume: bool = False) -> "Speech2TextSlotModel":
        """Return the form of this model for decoding; see `Speech2TextSlotModel`."""
        return Speech2TextSlotModel(self, int8=int8, consume=consume)


# Positions are padded to multiples of this: oneDNN compiles its products for every shape and caches
# a thousand of them. Divides the number of rows of a block.
_STEP = 25


class PackedSpeech2TextEncoder:
    """A `Speech2TextEncoder` with packed copies of its linear maps, in 8 bits with `int8`.

    Convolutions are products over overlapping frames, never in 8 bits. Equal to the encoder within
    the rounding of its type.
    """

    def __init__(self, encoder: Speech2TextEncoder, *, int8: bool) -> None:
        self._scale = encoder.embed_scale
        self._dtype = encoder.dtype
        layers = [conv for conv in encoder.conv.conv_layers if isinstance(conv, nn.Conv1d)]
        self._convolutions = [PackedConvolution(conv) for conv in layers]
        width, padding = encoder.embed_positions.width, encoder.embed_positions.padding_row
        # A separate one: in float32, whatever the type of the weights.
        self._embed_positions = Speech2TextPositions(width, padding)
        self._blocks = [
            PackedEncoderBlock(block, int8=int8)
            for block in encoder.layers
            if isinstance(block, EncoderBlock)
        ]
        self._layer_norm = encoder.layer_norm

    def encode(
        self, rows: Sequence[Float[Tensor, "_ mel"]], num_frames: Sequence[int]
    ) -> list[Float[Tensor, "_ width"]]:
        """Encode rows, attending to `num_frames` of each; convolutions see all frames."""
        layers = len(self._convolutions)
        valid = [shorter(number, layers) for number in num_frames]
        counted = torch.ones(1, max(valid), dtype=torch.bool)
        # As in the encoder: 0 marks padding or may be the padding token.
        counted &= self._embed_positions.padding_row != 0
        positions = self._embed_positions(counted, like=torch.empty(0))[0]
        items = [(row, positions[:end]) for row, end in zip(rows, valid, strict=True)]
        return run_per_sample(self._encode, items, size=lambda item: len(item[0]))

    def _encode(
        self, row: tuple[Float[Tensor, "frame mel"], Float[Tensor, "pos width"]]
    ) -> Float[Tensor, "pos width"]:
        # Convolutions see zeros after the features; only `positions` are attended to.
        features, positions = row
        length, valid = len(features), len(positions)
        step = 2 ** len(self._convolutions)
        frames = -(-max(length, valid * step) // (_STEP * step)) * _STEP * step
        hidden = F.pad(features.to(self._dtype), (0, 0, 0, frames - length))
        for convolution in self._convolutions:
            hidden = F.glu(convolution(hidden), dim=1)
            length = (length + 1) // 2
            # A convolution turns the zeros after a row into other values.
            hidden[length:] = 0.0
        states = hidden.float().mul_(self._scale)
        states[:valid] += positions
        for block in self._blocks:
            block(states, valid=valid)
        normed: Tensor = self._layer_norm(states[:valid].to(self._dtype))
        return normed


# Minimum length of rows encoded together on a GPU, as a fraction of the longest, to which the batch
# is padded.
_ALIKE = 0.8


class Speech2TextSlotModel(DecoderSlots):
    """A `Speech2TextSeq2SeqLM` as a `SlotModel`; on CPUs its encoder is a packed copy.

    On GPUs it shares the encoder of `model`, with fused queries, keys and values. Windows have
    `window_frames`, initially `max_source_positions`. With `consume` each decoder block of `model`
    is deleted as soon as it is copied.
    """

    frame_step = 1

    def __init__(
        self, model: Speech2TextSeq2SeqLM, *, int8: bool = False, consume: bool = False
    ) -> None:
        config, encoder, decoder = model.config, model.model.encoder, model.model.decoder
        self._weight_bytes = sum(weight.nbytes for weight in model.model.parameters())
        self.window_frames = config.max_source_positions
        super().__init__(
            decoder,
            model.lm_head,
            max_source_positions=shorter(self.window_frames, config.num_conv_layers),
            int8=int8,
            consume=consume,
        )
        self._embed_scale = decoder.embed_scale
        self._padding_row = decoder.embed_positions.padding_row
        self._token_positions = decoder.embed_positions.rows(
            decoder.max_target_positions + 1, like=decoder.embed_tokens.weight
        )
        on_cpu = self.device.type == "cpu"
        self._encoder: Speech2TextEncoder = encoder if on_cpu else fused_encoder(encoder)
        self._packed = PackedSpeech2TextEncoder(encoder, int8=int8) if on_cpu else None

    def for_windows(self, num_frames: int, *, max_tokens: int | None = None) -> Self:
        """Return this model for shorter windows and sequences; all weights are shared."""
        config = self._config
        max_tokens = self.max_target_positions if max_tokens is None else max_tokens
        for size, name, most in (
            (num_frames, "max_source_positions", config.max_source_positions),
            # The last token has no position: no other is read after it.
            (max_tokens, "max_target_positions + 1", config.max_target_positions + 1),
        ):
            if not 1 <= size <= most:
                raise ValueError(
                    f"making slots for windows of {num_frames} frames and {max_tokens} tokens: "
                    f"expected 1 to {name}, {most}; cut the audio into shorter "
                    "windows, or request fewer tokens"
                )
        # Shallow copy: weights and their packed copies are shared.
        model = copy.copy(self)
        model.window_frames = num_frames
        model._max_source_positions = shorter(num_frames, config.num_conv_layers)
        model.max_target_positions = max_tokens
        return model

    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        check_heard(num_frames, windows=windows, whole=self.window_frames)
        return [shorter(number, self._config.num_conv_layers) for number in num_frames]

    def _lengths(self, features: Tensor, num_frames: Sequence[int] | None) -> list[int]:
        config = self._config
        whole = (config.input_feat_per_channel * config.input_channels, self.window_frames)
        return heard_frames(features, num_frames, whole=whole)

    def _embed(
        self, tokens: Int[Tensor, "batch token"], positions: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token width"]:
        rows = positions + (self._padding_row + 1)
        # Padding has no position.
        rows = rows.masked_fill_(tokens == self._padding_row, self._padding_row)
        embedded = F.embedding(tokens, self._tokens.weight)
        return torch.add(
            F.embedding(rows, self._token_positions), embedded, alpha=self._embed_scale
        )

    def _whole_positions(self, tokens: Int[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
        # Padding is not counted, as in transformers; single padding tokens are, as there.
        return (tokens != self._padding_row).cumsum(dim=1) - 1

    @property
    def window_values(self) -> int:
        return self._encoder.num_mel_bins * self.window_frames

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        return self._encode_windows(features, self._lengths(features, num_frames), reach=0)

    @torch.inference_mode()
    def encode_padded(
        self, features: Float[Tensor, "batch mel frame"], *, num_frames: Sequence[int]
    ) -> Float[Tensor, "batch pos width"]:
        """Encode windows as `transformers` encodes a padded batch: convolutions see the padding.

        Equal to `encode` except for the last positions of each padded window.
        """
        # Positions beyond the reach of the convolutions are unaffected.
        sizes = self._config.conv_kernel_sizes
        reach = sum(size // 2 * 2**layer for layer, size in enumerate(sizes)) + 2 ** len(sizes)
        return self._encode_windows(features, self._lengths(features, num_frames), reach=reach)

    def _encode_windows(
        self, features: Float[Tensor, "batch mel frame"], lengths: Sequence[int], *, reach: int
    ) -> Float[Tensor, "batch pos width"]:
        whole = torch.zeros(len(features), *self.window_shape, dtype=self.dtype, device=self.device)
        if self._packed is not None:
            cut = [row[:, : end + reach].t() for row, end in zip(features, lengths, strict=True)]
            encoded = list(enumerate(self._packed.encode(cut, lengths)))
        else:
            encoded = self._encode_alike(features, lengths, reach=reach)
        for row, states in encoded:
            # Rows extended by the convolutions' reach may give more positions than a window has.
            kept = min(len(states), whole.shape[1])
            whole[row, :kept] = states[:kept]
        return whole

    def _encode_alike(
        self, features: Float[Tensor, "batch mel frame"], lengths: Sequence[int], *, reach: int
    ) -> list[tuple[int, Float[Tensor, "_ width"]]]:
        features = features.to(self.device, self.dtype)
        encoded: list[tuple[int, Tensor]] = []
        for rows in _alike(lengths):
            cut = features[:, :, : lengths[rows[0]] + reach]
            inputs = torch.stack([cut[row] for row in rows]).transpose(1, 2)
            row_lengths = [lengths[row] for row in rows]
            if reach:
                # The mask hides padding from attention, but not from the convolutions.
                frames = to_device(torch.tensor(row_lengths), self.device)
                mask = within(frames, inputs.shape[1]).long()
                states = self._encoder(inputs, mask, return_dict=True).last_hidden_state
                valid = within(shorter(frames, self._config.num_conv_layers), states.shape[1])
                states = states.masked_fill(~valid[:, :, None], 0.0)
            else:
                states = self._encoder.encode(inputs, num_frames=row_lengths)
            encoded += zip(rows, states, strict=True)
        return encoded


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    # Longest first: the others of its batch are padded to it.
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if group and lengths[row] < _ALIKE * lengths[group[0]]:
            yield group
            group = []
        group.append(row)
    yield group
