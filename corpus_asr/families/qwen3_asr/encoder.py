"""Qwen3-ASR's audio encoder: chunks of a second by convolutions, then blocks over some of them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float
from corpus_asr.decoding.device import upload
from corpus_asr.decoding.slots import encode_batch_on
from corpus_asr.families.layers.blocks import EncoderBlock, activation
from corpus_asr.families.layers.packed import (
    FusedEncoderBlock,
    PackedEncoderBlock,
    run_per_sample,
)
from corpus_asr.families.layers.projection import Projection
from corpus_asr.families.layers.stack import hiding_mask, sinusoids, within
from corpus_asr.families.qwen3_asr.config import STRIDE, Qwen3ASREncoderConfig

# Chunks that a GPU convolves at once: those of all windows would take gigabytes.
_CHUNKS_AT_ONCE = 64


def convolved_values(config: Qwen3ASREncoderConfig) -> int:
    """Return the values of the first convolution, before and after activation, for each window.

    Those of a batch are at most those of the chunks at once.
    """
    halves = config.num_mel_bins // 2 * config.chunk_frames // 2
    chunks = _CHUNKS_AT_ONCE // encode_batch_on("cuda")
    return chunks * 2 * config.downsample_hidden_size * halves


class Qwen3ASREncoder(nn.Module):
    """Weights of the encoder, and what its forms for CPU and GPU share.

    Source: transformers/models/qwen3_asr/modeling_qwen3_asr.py for parameter names; equal to it
    within 1e-4 in float32.
    """

    def __init__(self, config: Qwen3ASREncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.downsample_hidden_size, config.d_model
        self.conv2d1 = nn.Conv2d(1, channels, 3, 2, padding=1)
        self.conv2d2 = nn.Conv2d(channels, channels, 3, 2, padding=1)
        self.conv2d3 = nn.Conv2d(channels, channels, 3, 2, padding=1)
        bins = -(-config.num_mel_bins // STRIDE)
        self.conv_out = nn.Linear(channels * bins, width, bias=False)
        blocks = (EncoderBlock(config, key_bias=True) for _ in range(config.encoder_layers))
        self.layers = nn.ModuleList(blocks)
        self.ln_post = nn.LayerNorm(width)

    def numbers(self) -> Float[Tensor, "pos width"]:
        """Return what is added to the positions of every chunk."""
        weight = self.conv_out.weight
        return sinusoids(self.config.chunk_positions, len(weight)).to(weight.device, weight.dtype)

    def convolved(
        self, chunks: Float[Tensor, "chunk mel frame"]
    ) -> Float[Tensor, "chunk pos width"]:
        """Return the positions of chunks, not numbered."""
        hidden = chunks.unsqueeze(1)
        for convolution in (self.conv2d1, self.conv2d2, self.conv2d3):
            hidden = F.gelu(convolution(hidden))
        states: Tensor = self.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
        return states


class Qwen3ASRProjector(nn.Module):
    """Weights of the two layers that map encoder positions to the text model's width."""

    def __init__(self, config: Qwen3ASREncoderConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.d_model, config.d_model)
        self.linear_2 = nn.Linear(config.d_model, config.output_dim)
        self.activate = activation(config.activation_function)

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """Map positions to embeddings of the text model."""
        mapped: Tensor = self.linear_2(self.activate(self.linear_1(states)))
        return mapped


class PackedQwen3ASREncoder:
    """Encoder and projector with packed copies of their linear maps, for windows on a CPU.

    Convolutions are shared, and never in 8 bits.
    """

    def __init__(
        self, encoder: Qwen3ASREncoder, projector: Qwen3ASRProjector, *, int8: bool
    ) -> None:
        self._encoder, self._numbers = encoder, encoder.numbers()
        self._blocks = [
            PackedEncoderBlock(block, int8=int8)
            for block in encoder.layers
            if isinstance(block, EncoderBlock)
        ]
        self._linear_1 = Projection([projector.linear_1], int8=int8)
        self._linear_2 = Projection([projector.linear_2], int8=int8)
        self._activate = projector.activate

    def encode(
        self, features: Float[Tensor, "batch mel frame"], num_frames: Sequence[int]
    ) -> list[Float[Tensor, "_ out"]]:
        """Encode windows of `num_frames`; spans that attend to one another are independent."""
        step = self._encoder.config.n_window_infer
        spans = [
            row[:, first : min(first + step, end)]
            for row, end in zip(features, num_frames, strict=True)
            for first in range(0, end, step)
        ]
        encoded = iter(run_per_sample(self._encode, spans, size=lambda span: span.shape[1]))
        return [torch.cat([next(encoded) for _ in range(0, end, step)]) for end in num_frames]

    def _encode(self, span: Float[Tensor, "mel frame"]) -> Float[Tensor, "pos out"]:
        encoder, config = self._encoder, self._encoder.config
        valid = config.positions(span.shape[1])
        padded = F.pad(span, (0, -span.shape[1] % config.chunk_frames))
        # One by one: oneDNN compiles a convolution for every number of them.
        chunks = torch.split(padded.unsqueeze(0), config.chunk_frames, dim=2)
        states = torch.cat([encoder.convolved(chunk) for chunk in chunks]) + self._numbers
        hidden = states.flatten(0, 1).float()
        for block in self._blocks:
            block(hidden, valid=valid)
        normed = encoder.ln_post(hidden[:valid].to(states.dtype))
        return self._linear_2(self._activate(self._linear_1(normed)))


class FusedQwen3ASREncoder:
    """Encoder and projector for batches of windows on a GPU, with fused queries, keys and values.

    Shares all weights of the modules it is made of.
    """

    def __init__(self, encoder: Qwen3ASREncoder, projector: Qwen3ASRProjector) -> None:
        self._encoder, self._projector = encoder, projector
        self._numbers = encoder.numbers()
        self._blocks = [
            FusedEncoderBlock(block) for block in encoder.layers if isinstance(block, EncoderBlock)
        ]

    def encode(
        self, features: Float[Tensor, "batch mel frame"], num_frames: Sequence[int]
    ) -> list[Float[Tensor, "_ out"]]:
        """Encode windows of `num_frames` in one batch of the spans that attend to one another."""
        config = self._encoder.config
        step = config.n_window_infer
        lengths = [
            config.positions(min(step, end - first))
            for end in num_frames
            for first in range(0, end, step)
        ]
        ends, positions = upload(features.device, list(num_frames), lengths)
        valid_features = features * within(ends, features.shape[2]).unsqueeze(1)
        padded = F.pad(valid_features, (0, -features.shape[2] % step))
        spans = padded.view(*padded.shape[:2], -1, step)
        counts = [-(-end // step) for end in num_frames]
        taken = torch.cat(
            [spans[row, :, :count].transpose(0, 1) for row, count in enumerate(counts)]
        )  # (span, mel, frame)
        chunks = taken.view(*taken.shape[:2], -1, config.chunk_frames).transpose(1, 2).flatten(0, 1)
        groups = torch.split(chunks, _CHUNKS_AT_ONCE)
        states = torch.cat([self._encoder.convolved(group) for group in groups]) + self._numbers
        hidden = states.view(len(taken), -1, states.shape[2])
        valid = within(positions, hidden.shape[1])
        mask = hiding_mask(valid, like=hidden)
        for block in self._blocks:
            hidden = block(hidden, mask=mask)
        embeddings = self._projector(self._encoder.ln_post(hidden))
        # Only the last span of a window is short.
        rows = [group.flatten(0, 1) for group in torch.split(embeddings, counts)]
        return [row[: config.positions(end)] for row, end in zip(rows, num_frames, strict=True)]
