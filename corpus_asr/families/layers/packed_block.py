"""An encoder block made ready for CPUs: one window at a time, a few positions at a time.

In: the hidden states of one window. Out: the same, one layer on, in place. Made from an
`EncoderBlock` of a loaded model, with linear maps of its own; knows no audio and no model.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from corpus_asr.families.layers.blocks import EncoderBlock
from corpus_asr.families.layers.projection import NormedProjection, Projection, fused_activation
from corpus_asr.families.layers.side_by_side import run_side_by_side

# Rows whose inner states stay in a core's own cache. They share a scale where they are rounded to
# 8 bits, so this is part of the result.
_BLOCK_ROWS = 125
# Queries at a time, of one head. Measured with 1,500 keys on two Zen 4 cores, bfloat16, two windows
# side by side: 290 ms for the 6 layers of whisper-base, 355 with 100 queries at a time.
_ATTENTION_ROWS = 500


class PackedEncoderBlock:
    """An `EncoderBlock` for one window at a time.

    Hidden states between the parts are float32; products are in `dtype`, with `int8` in 8-bit
    integers but for attention. Equal to the block it is made from within rounding. Where there are
    several threads, each takes blocks of rows: those that share a product may round otherwise than
    one alone does.
    """

    def __init__(self, block: EncoderBlock, *, int8: bool) -> None:
        attention = block.self_attn
        self._heads = attention.heads
        self._by_head = _is_faster_by_head(attention.q_proj.weight.dtype)
        self._activate = block.activate
        self._after = fused_activation(block.activate)
        self._qkv = NormedProjection(
            block.self_attn_layer_norm,
            [attention.q_proj, attention.k_proj, attention.v_proj],
            scales=[attention.head_dim**-0.5],
            int8=int8,
            wide=True,
        )
        self._out = Projection([attention.out_proj], int8=int8)
        self._fc1 = NormedProjection(block.final_layer_norm, [block.fc1], int8=int8, wide=True)
        self._fc2 = Projection([block.fc2], int8=int8)

    def __call__(self, hidden: Float[Tensor, "pos width"], *, heard: int | None = None) -> None:
        """Let every position see every other; changes `hidden`, which is float32.

        Args:
            hidden: of one window.
            heard: only the first so many positions are seen; None for all.
        """
        attended = self._attend(hidden, len(hidden) if heard is None else heard)
        blocks = list(zip(blocks_of(hidden), blocks_of(attended), strict=True))
        run_side_by_side(self._finish, blocks, size=_rows)

    def _finish(self, block: tuple[Float[Tensor, "row width"], Float[Tensor, "row width"]]) -> None:
        rows, attended = block
        self._out.add_to(rows, attended)
        self._fc2.add_to(rows, self._inner(rows))

    def _inner(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row inner"]:
        inner = self._fc1.by_block(rows, after=self._after)
        return inner if self._after != "none" else self._activate(inner)

    def _attend(self, hidden: Float[Tensor, "pos width"], heard: int) -> Float[Tensor, "pos width"]:
        positions, width = hidden.shape
        qkv = torch.cat(run_side_by_side(self._qkv.by_block, blocks_of(hidden), size=len))
        # (3, head, pos, head_dim)
        query, key, value = qkv.view(positions, 3, self._heads, -1).permute(1, 2, 0, 3).contiguous()
        if not self._by_head:
            # As a batch of one: without a batch the fused kernel is not chosen, 3 times as slow.
            seen = key[:, :heard], value[:, :heard]
            batch = query.unsqueeze(0), seen[0].unsqueeze(0), seen[1].unsqueeze(0)
            attended = F.scaled_dot_product_attention(*batch, scale=1.0).squeeze(0)
        else:
            attended = _attend_by_head(query, key, value, heard)
        return attended.transpose(0, 1).reshape(positions, width)


def _is_faster_by_head(dtype: torch.dtype) -> bool:
    """Return whether plain products beat the fused kernel: in bfloat16, but not with AMX's tiles.

    With them the 8 heads of whisper-base take 13 ms fused and 21 by head (one core).
    """
    tiles: bool = torch.cpu._is_amx_tile_supported()
    return dtype == torch.bfloat16 and not tiles


def _attend_by_head(
    query: Float[Tensor, "head pos head_dim"],
    key: Float[Tensor, "head pos head_dim"],
    value: Float[Tensor, "head pos head_dim"],
    heard: int,
) -> Float[Tensor, "head pos head_dim"]:
    attended = torch.empty_like(query)

    def attend(head: int) -> None:
        keys, values = key[head].t(), value[head]
        for first in range(0, len(keys[0]), _ATTENTION_ROWS):
            rows = slice(first, first + _ATTENTION_ROWS)
            scores = torch.mm(query[head, rows], keys)
            if heard < scores.shape[1]:
                # Hidden, not cut off: oneDNN compiles a product for every shape it meets.
                scores[:, heard:] = -torch.inf
            torch.mm(scores.softmax(dim=1), values, out=attended[head, rows])

    run_side_by_side(attend, range(len(query)), size=lambda head: 1)
    return attended


def _rows(block: tuple[Tensor, Tensor]) -> int:
    return len(block[0])


def blocks_of(rows: Float[Tensor, "pos width"]) -> tuple[Tensor, ...]:
    """Return the positions of a window in blocks that are multiplied together."""
    return torch.split(rows, _BLOCK_ROWS)
