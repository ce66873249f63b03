"""A convolution over time made ready for CPUs: one product over each frame and its neighbours.

In: frames of one window. Out: one row per frame, or per `stride` of them. Knows no model.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.layers.int8 import Fused
from corpus_asr.families.layers.packed_block import blocks_of
from corpus_asr.families.layers.projection import Projection
from corpus_asr.families.layers.side_by_side import run_side_by_side


class PackedConvolution:
    """An `nn.Conv1d` of odd size that is padded by half of it, with packed weights of its own.

    With AMX the two of whisper-base take 5 ms instead of 22 by oneDNN's convolutions (one core);
    without, they were not measured. Never in 8 bits.

    Args:
        conv: with a bias.
        after: what is done to each number.
    """

    def __init__(self, conv: nn.Conv1d, *, after: Fused = "none") -> None:
        channels, self._inputs, self._size = conv.weight.shape
        self._stride = conv.stride[0]
        self._after = after
        assert conv.bias is not None
        # No numbers are drawn: that would change what is sampled after.
        linear = nn.Linear(1, 1, device="meta")
        weight = conv.weight.detach().transpose(1, 2).reshape(channels, -1)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
        self._map = Projection([linear])

    def __call__(self, frames: Float[Tensor, "frame channel"]) -> Float[Tensor, "pos out"]:
        """Apply it to the frames of a window, before and after which are zeros."""
        around = self._size // 2
        padded = F.pad(frames, (0, 0, around, around)).contiguous()
        # Each row of the product reads `size` frames, `stride` after those of the row before.
        positions = -(-len(frames) // self._stride)
        seen = padded.as_strided(
            (positions, self._size * self._inputs), (self._stride * self._inputs, 1)
        )
        return torch.cat(run_side_by_side(self._multiply, blocks_of(seen), size=len))

    def _multiply(self, rows: Float[Tensor, "row seen"]) -> Float[Tensor, "row out"]:
        return self._map.by_block(rows.contiguous(), after=self._after)
