"""Speech2Text's encoder made ready for CPUs.

In: filter bank features, each row with as many frames as it has. Out: one hidden state per four
frames. Runs rows side by side, one per thread, each no longer than it is; what a row gives does
not depend on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.layers.blocks import EncoderBlock
from corpus_asr.families.layers.packed_block import PackedEncoderBlock
from corpus_asr.families.layers.packed_convolution import PackedConvolution
from corpus_asr.families.layers.side_by_side import run_side_by_side
from corpus_asr.families.speech2text.encoder import Speech2TextEncoder, shorter
from corpus_asr.families.speech2text.positions import Speech2TextPositions

# Positions that rows are filled up to multiples of: oneDNN compiles its products for every shape
# it meets and keeps a thousand of them. Divides the rows of a block.
_STEP = 25


@dataclass(frozen=True, slots=True)
class _Row:
    """One row to encode."""

    features: Float[Tensor, "frame mel"]
    """What the convolutions see; behind it they see zeros."""
    positions: Float[Tensor, "pos width"]
    """Of what is heard, which is what it gives."""


class PackedSpeech2TextEncoder:
    """A `Speech2TextEncoder` that holds packed copies of its linear maps, with `int8` in 8 bits.

    Convolutions are products over overlapping frames, never in 8 bits. Equal to the encoder within
    the rounding of its type.
    """

    def __init__(self, encoder: Speech2TextEncoder, *, int8: bool) -> None:
        self._scale = encoder.embed_scale
        self._dtype = encoder.dtype
        layers = [conv for conv in encoder.conv.conv_layers if isinstance(conv, nn.Conv1d)]
        self._convolutions = [PackedConvolution(conv) for conv in layers]
        width, padding = encoder.embed_positions.width, encoder.embed_positions.padding_row
        # Of its own: in float32, whatever the type of the weights.
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
        """Encode rows.

        Args:
            rows: features; the convolutions see all that a row holds.
            num_frames: of each row, the frames whose positions are wanted and attended to.
        """
        layers = len(self._convolutions)
        heard = [shorter(number, layers) for number in num_frames]
        counted = torch.ones(1, max(heard), dtype=torch.bool)
        # As the encoder does: 0 stands for what is no padding, and may be the padding token.
        counted &= self._embed_positions.padding_row != 0
        positions = self._embed_positions(counted, like=torch.empty(0))[0]
        items = [_Row(row, positions[:end]) for row, end in zip(rows, heard, strict=True)]
        return run_side_by_side(self._encode, items, size=lambda row: len(row.features))

    def _encode(self, row: _Row) -> Float[Tensor, "pos width"]:
        heard = len(row.positions)
        step = _STEP * 2 ** len(self._convolutions)
        frames = -(-max(len(row.features), heard * step // _STEP) // step) * step
        hidden = F.pad(row.features.to(self._dtype), (0, 0, 0, frames - len(row.features)))
        length = len(row.features)
        for convolution in self._convolutions:
            hidden = F.glu(convolution(hidden), dim=1)
            length = (length + 1) // 2
            # What a convolution makes of the zeros behind a row is no zero to the next one.
            hidden[length:] = 0.0
        states = hidden.float().mul_(self._scale)
        states[:heard] += row.positions
        for block in self._blocks:
            block(states, heard=heard)
        normed: Tensor = self._layer_norm(states[:heard].to(self._dtype))
        return normed
