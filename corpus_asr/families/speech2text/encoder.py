"""Speech2Text's encoder: sinusoidal positions, gated convolutions and blocks."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.families.layers.blocks import NOTHING, EncoderBlock, Record
from corpus_asr.families.layers.plain import plain
from corpus_asr.families.layers.stack import (
    FeatureEncoder,
    can_check,
    check_heard,
    check_values,
    hiding_mask,
    sinusoids,
    within,
)
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.outputs import BaseModelOutput
from corpus_asr.families.pretrained import PreTrainedModel
from corpus_asr.families.speech2text.config import Speech2TextConfig

_Length = TypeVar("_Length", int, Tensor)


@plain
class Speech2TextPositions(nn.Module):
    """Sinusoids, counted over non-padding positions from `padding_row` + 1; that row is zero.

    An odd width ends with a zero. They are not stored in checkpoints, and any length is possible.

    Source: transformers/models/speech_to_text/modeling_speech_to_text.py, which follows fairseq's
    `SinusoidalPositionalEmbedding`; equal to it exactly.
    """

    def __init__(self, width: int, padding_row: int) -> None:
        super().__init__()
        self.width = width
        self.padding_row = padding_row
        self._table: Tensor | None = None

    def forward(
        self,
        counted: Bool[Tensor, "batch pos"],
        *,
        start: int = 0,
        like: Tensor,
    ) -> Float[Tensor, "batch pos width"]:
        """Return a row per position; only `counted` ones are not padding, after `start` others."""
        places = (counted.cumsum(dim=1) + start) * counted + self.padding_row
        return self.rows(start + counted.shape[1], like=like)[places]

    def rows(self, length: int, *, like: Tensor) -> Float[Tensor, "row width"]:
        """Return the table for at least `length` positions.

        The non-padding position with index i, from 0, has the row `padding_row` + 1 + i.
        """
        needed = self.padding_row + 1 + length
        table = self._table
        alike = table is not None and (table.dtype, table.device) == (like.dtype, like.device)
        if table is None or not alike or len(table) < needed:
            # Doubled each time, as a transcript grows by one token at a time.
            table = self._made(max(needed, 2 * len(table) if table is not None else 0))
            table = table.to(like.device, like.dtype)
            # Tensors of a traced graph have no values and must not be cached.
            if not torch.compiler.is_compiling():
                self._table = table
        return table

    @torch.no_grad()
    def _made(self, rows: int) -> Tensor:
        # Half of the values are sines, half cosines.
        even = self.width - self.width % 2
        table = F.pad(sinusoids(rows, even), (0, self.width - even))
        table[self.padding_row] = 0.0
        return table


@plain
class Conv1dSubsampler(nn.Module):
    """Convolutions over time, each of which halves the frames, with gated channels.

    Source: Synnaeve et al. 2019, for gated linear units; Wang et al. 2020, section 2.1.
    """

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__()
        inputs = config.input_feat_per_channel * config.input_channels
        last = config.num_conv_layers - 1
        self.conv_layers = nn.ModuleList(
            nn.Conv1d(
                config.conv_channels // 2 if i else inputs,
                config.conv_channels if i < last else 2 * config.d_model,
                kernel_size=size,
                stride=2,
                padding=size // 2,
            )
            for i, size in enumerate(config.conv_kernel_sizes)
        )

    def forward(
        self,
        features: Float[Tensor, "batch frame mel"],
        num_frames: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Subsample features; of each row only `num_frames` are used, as if there were no more."""
        hidden = features.transpose(1, 2)
        for conv in self.conv_layers:
            if num_frames is not None:
                # A convolution turns the zeros after a row into other values.
                hidden = hidden.masked_fill(~within(num_frames, hidden.shape[2])[:, None], 0.0)
                num_frames = shorter(num_frames, 1)
            hidden = F.glu(conv(hidden), dim=1)
        return hidden.transpose(1, 2).contiguous()


class Speech2TextPreTrainedModel(PreTrainedModel):
    """Base of the Speech2Text networks."""

    config_class: ClassVar[type[ModelConfig]] = Speech2TextConfig
    config: Speech2TextConfig

    def _get_feat_extract_output_lengths(self, input_lengths: Any) -> Any:
        """Return the positions for a number of frames, as an integer or a tensor."""
        return shorter(input_lengths, self.config.num_conv_layers)


@plain
class Speech2TextEncoder(FeatureEncoder, Speech2TextPreTrainedModel):
    """Gated convolutions, sinusoidal positions, pre-norm blocks and a final norm.

    Source: Wang et al. 2020, section 2.1; parameter names of
    transformers/models/speech_to_text/modeling_speech_to_text.py, equal to it within 1e-5 in
    float32.
    """

    def __init__(self, config: Speech2TextConfig, *, drawn: bool = True) -> None:
        super().__init__(config)
        self.num_mel_bins = config.input_feat_per_channel * config.input_channels
        self.max_source_positions = config.max_source_positions
        self.embed_scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.conv = Conv1dSubsampler(config)
        self.embed_positions = Speech2TextPositions(config.d_model, padding_row(config))
        self._add_blocks(EncoderBlock, config.encoder_layers, key_bias=True)
        # Weights are initialized by the enclosing network.
        if drawn:
            self._draw_weights()

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode features (batch, frame, mel) in the weights' type.

        Arguments are those of transformers; None means the configuration's value. Frames masked by
        `attention_mask` (batch, frame) are not attended to, but the convolutions see them.
        """
        check_features(input_features, num_mel_bins=self.num_mel_bins)
        check_values(input_features, self.dtype)
        hidden = self.conv(input_features)
        valid = None
        if attention_mask is not None:
            valid = valid_positions(attention_mask, hidden.shape[1], config=self.config)
        record = Record.asked(self.config, output_attentions, output_hidden_states)
        last = self._run(hidden, valid, record, head_mask)
        return self._output(last, record, return_dict)

    def encode(
        self,
        input_features: Float[Tensor, "batch frame mel"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode features, and return only the last hidden states.

        Only `num_frames` of each row are encoded, as if there were no more: results equal those of
        the row alone, followed by zeros. None encodes all.
        """
        check_features(input_features, num_mel_bins=self.num_mel_bins)
        if num_frames is None:
            return self._run(self.conv(input_features), None, NOTHING)
        rows, longest, _ = input_features.shape
        check_heard(num_frames, windows=rows, whole=longest)
        frames = torch.tensor(list(num_frames), device=input_features.device)
        hidden = self.conv(input_features, frames)
        valid = within(shorter(frames, len(self.conv.conv_layers)), hidden.shape[1])
        encoded = self._run(hidden, valid, NOTHING)
        return encoded.masked_fill(~valid[:, :, None], 0.0)

    def _run(
        self,
        hidden: Float[Tensor, "batch pos width"],
        valid: Bool[Tensor, "batch pos"] | None,
        record: Record,
        head_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        mask = None if valid is None else hiding_mask(valid, like=hidden)
        if valid is None:
            valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        # transformers uses a mask of 0 and 1 as token IDs, where the padding token is padding.
        counted = (~valid).long() != self.embed_positions.padding_row
        hidden = self.embed_scale * hidden + self.embed_positions(counted, like=hidden)
        return self._encode(hidden, record, mask=mask, head_mask=head_mask)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        weight: Tensor = self.layer_norm.weight
        return weight.dtype


def valid_positions(
    attention_mask: Tensor, positions: int, *, config: Speech2TextConfig
) -> Bool[Tensor, "batch pos"]:
    """Return which positions correspond to unmasked frames.

    Only the number of ones in a row of the mask (batch, frame) counts, as in transformers.
    """
    layers = config.num_conv_layers
    shape = tuple(attention_mask.shape)
    if len(shape) != 2 or shorter(shape[1], layers) != positions:
        raise ValueError(
            f"encoding: found an attention_mask of shape {shape}, expected (batch, frame) for "
            f"{positions} positions: one value per frame of input_features"
        )
    frames = (attention_mask != 0).sum(dim=1)
    if can_check(frames) and not bool(frames.all()):
        rows = (frames == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"encoding: found an attention_mask without frames in rows {rows}, expected one or "
            "more; remove these rows"
        )
    return within(shorter(frames, layers), positions)


def shorter(length: _Length, num_layers: int) -> _Length:
    """Return lengths after this number of convolutions: each halves, rounding up."""
    # Rounding up once is the same as rounding up after each layer.
    return -(-length // (1 << num_layers))


def padding_row(config: Speech2TextConfig) -> int:
    """Return the padding token ID, from which positions are counted."""
    if config.pad_token_id is None or config.pad_token_id < 0:
        raise ValueError(
            f"making a Speech2Text network: pad_token_id is {config.pad_token_id}, expected 0 or "
            "more, where positions start; set it"
        )
    return config.pad_token_id


def check_features(features: Tensor, *, num_mel_bins: int) -> None:
    """Raise ValueError for features of another model."""
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[2] != num_mel_bins:
        raise ValueError(
            f"encoding features: found shape {shape}, expected (batch, frame, {num_mel_bins}); "
            "use this checkpoint's feature extractor"
        )
    if not features.numel():
        raise ValueError(
            f"encoding features: found shape {shape}, expected one row or more of one frame or "
            "more; omit the call"
        )
