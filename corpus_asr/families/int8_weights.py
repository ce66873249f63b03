"""INT8 weights with a scale per group, as `corpus-asr convert --dtype int8` stores them.

Layout of model.int8.safetensors: a matrix `NAME` of shape (rows, ...) is stored as int8 under its
own name, and its scales as `NAME_scale` of shape (rows, groups) in float16. The values of a row,
flattened, are cut into groups of equal size; a weight is its integer times the scale of its group.
Everything else is float16. Readers of float weights find no file of theirs in such a folder,
instead of taking integers for weights.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

INT8_NAME = "model.int8.safetensors"
SCALE_SUFFIX = "_scale"

# With whisper-tiny.en, groups of 64 bring the divergence of next-token distributions from float16's
# (mean KL over 24 clips) from 0.0012 with one scale per row to 0.0004, for 3 % more bytes.
_LARGEST_GROUP = 64
_SMALLEST_GROUP = 16  # below it scales take more room than they save: one scale per row instead
_STEPS = 127
_ROUNDED_UP = 1 + 2.0**-11  # float16 rounds normal numbers by at most this factor
_SUBNORMAL_HALF_STEP = 2.0**-25  # and those below 6e-5 by at most this much

# Position tables are added to every state, hold few values and are no factor of a product.
_KEPT = "embed_positions"


def quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quantize every matrix to INT8, rounding to nearest; all other floats become float16.

    Args:
        tensors: a checkpoint's float tensors by name.

    Returns:
        The tensors to store, scales included.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or _KEPT in name:
            stored[name] = tensor.half() if tensor.is_floating_point() else tensor
        else:
            stored[name], stored[name + SCALE_SUFFIX] = _quantize(tensor)
    return stored


def dequantized(values: Tensor, scales: Tensor) -> Tensor:
    """Multiply integers with the scales of their groups.

    Args:
        values: int8, (rows, ...).
        scales: (rows, groups), of a float type; `scales_problem` found nothing wrong with it.

    Returns:
        The weights in the shape of `values` and the type of `scales`.
    """
    grouped = values.reshape(*scales.shape, -1).float()
    return (grouped * scales.float().unsqueeze(-1)).to(scales.dtype).reshape(values.shape)


def scales_problem(shape: tuple[int, ...], scales_shape: tuple[int, ...]) -> str | None:
    """Say why scales of `scales_shape` do not fit integers of `shape`; None if they do."""
    if len(shape) >= 2:
        rows, width = shape[0], math.prod(shape[1:])
        fits = len(scales_shape) == 2 and scales_shape[0] == rows and scales_shape[1] > 0
        if fits and width % scales_shape[1] == 0:
            return None
        wanted = f"({rows}, a divisor of {width})"
    else:
        wanted = "no scales: only matrices are INT8"
    return f"its scales are of shape {scales_shape}, not {wanted}"


def _quantize(tensor: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
    grouped = tensor.float().reshape(rows, -1, _group_size(width))
    # Rounded up to float16: with a smaller scale the largest weight would need more than 127 steps.
    scales = (grouped.abs().amax(dim=-1) / _STEPS * _ROUNDED_UP + _SUBNORMAL_HALF_STEP).half()
    steps = (grouped / scales.float().unsqueeze(-1)).round_().clamp_(-_STEPS, _STEPS)
    return steps.to(torch.int8).reshape(tensor.shape), scales


def _group_size(width: int) -> int:
    sizes = range(_LARGEST_GROUP, _SMALLEST_GROUP - 1, -1)
    return next((size for size in sizes if width % size == 0), width)
