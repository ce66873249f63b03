"""An encoder made ready for GPUs: queries, keys and values are one product, and nothing is copied.

A block of a batch of windows is three products fewer long; weights take no more memory than before.
"""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float
from corpus_asr.families.layers.blocks import (
    NOTHING,
    EncoderBlock,
    Record,
    bounded,
    merge_heads,
)
from corpus_asr.families.layers.projection import stacked_bias
from corpus_asr.families.layers.stack import FeatureEncoder

Encoder = TypeVar("Encoder", bound=FeatureEncoder)


class FusedEncoderBlock(nn.Module):
    """An `EncoderBlock` for inference, equal to it within rounding; shares all its modules.

    Training the block further needs a new one.
    """

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        attention = block.self_attn
        linears = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._heads = attention.heads
        self._weight = stack_in_place(linears)
        with torch.inference_mode():
            self._bias = stacked_bias(linears, [1.0] * len(linears))
        self._activate = block.activate
        self.self_attn_layer_norm, self.out_proj = block.self_attn_layer_norm, attention.out_proj
        self.final_layer_norm, self.fc1, self.fc2 = block.final_layer_norm, block.fc1, block.fc2

    def forward(
        self,
        hidden: Float[Tensor, "batch pos width"],
        *,
        mask: Float[Tensor, "#batch 1 1 pos"] | None = None,
        head_mask: Tensor | None = None,
        record: Record = NOTHING,
    ) -> Float[Tensor, "batch pos width"]:
        """Let every position see every other, as far as `mask` lets it; changes `hidden`."""
        assert head_mask is None, "fused attention has no weights to mask"
        assert record.own is None, "fused attention has no weights to record"
        qkv = F.linear(self.self_attn_layer_norm(hidden), self._weight, self._bias)
        # Views that skip over one another: fused kernels read them where they are.
        apart = qkv.view(*hidden.shape[:2], 3, self._heads, -1)
        query, key, value = apart.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden += self.out_proj(merge_heads(attended))
        hidden += self.fc2(self._activate(self.fc1(self.final_layer_norm(hidden))))
        return bounded(hidden)


def fused_encoder(encoder: Encoder) -> Encoder:
    """Return an encoder of fused blocks that shares everything else with `encoder`.

    What it is made of keeps its names and values, and becomes views of the fused weights.
    """
    fused = copy.copy(encoder)
    blocks = [FusedEncoderBlock(one) for one in encoder.layers if isinstance(one, EncoderBlock)]
    fused._modules = {**encoder._modules, "layers": nn.ModuleList(blocks)}
    return fused


def stack_in_place(linears: Sequence[nn.Linear]) -> Float[Tensor, "out width"]:
    """Stack the weights of maps of one input, which become views of the stack."""
    weights = [linear.weight for linear in linears]
    sizes = [len(weight) for weight in weights]
    whole = weights[0].detach()
    if not _lie_together(weights):
        with torch.inference_mode(False):  # they may be trained further
            whole = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, torch.split(whole, sizes), strict=True):
            weight.data = part
        return whole
    return whole.as_strided((sum(sizes), whole.shape[1]), whole.stride())


def _lie_together(weights: Sequence[Tensor]) -> bool:
    # What was stacked before needs no second stack.
    offset = weights[0].storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
        if not same or weight.storage_offset() != offset or not weight.is_contiguous():
            return False
        offset += weight.numel()
    return True
