"""Linear maps for decoding: fused, packed in oneDNN's blocked layout, or in 8-bit integers.

In 8 bits weights have a scale per output, inputs a scale per row or per block of rows. A row's
result depends only on its block, not on the rest of the batch, since integer sums are exact.
Processors with AVX-512 VNNI use oneDNN, others FBGEMM, with weights that fit its 16-bit sums.
"""

import copy
import math
import platform
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int8, UInt8

# Number of rows that packed layouts are optimized for: near the best for all of 1 to 256.
_PACKED_ROWS = 16
_TINY = 1e-12  # keeps the scale of all-zero rows positive
_SMALLEST = 1e-4  # lower bound of values raised to a power
_SPREAD = 3.0  # assumed range of a normalized channel in standard deviations
_WEIGHT_STEPS = 127
_ROUNDED_ROWS = 4096
_ROW_STEPS = 127
_BLOCK_STEPS = 254  # one less than the maximum, so that rounding the zero point cannot overflow

Fused = Literal["none", "gelu", "relu"]
"""Activations that a product can apply to its result."""

_FUSED: dict[Fused, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}

# Operators used by TorchInductor on x86 CPUs, for quantized and for linear layers.
_ONEDNN: Any = torch.ops.onednn
_MKLDNN: Any = torch.ops.mkldnn
_FBGEMM: Any = torch.ops.quantized
_SHIFT = torch.tensor(128.5)


def fused_activation(function: Callable[[Tensor], Tensor]) -> Fused:
    """Return the name of an activation that can be fused into a product; `none` otherwise."""
    return next((name for name, fused in _FUSED.items() if fused is function), "none")


class Int8Weights:
    """The weights (out, width) of one linear map and its bias, rounded to 8 bits and packed."""

    def __init__(
        self,
        weight: Float[Tensor, "out width"],
        bias: Float[Tensor, " out"] | None,
        *,
        input_factors: Float[Tensor, " width"] | None = None,
    ) -> None:
        scales, values = [], []
        # In groups of rows: a vocabulary in float32 is the largest tensor while a model loads.
        for part in torch.split(weight, _ROUNDED_ROWS):
            wide = part.float() if input_factors is None else part.float() * input_factors
            scales.append((self._largest(wide) / _WEIGHT_STEPS).clamp(min=_TINY))
            values.append((wide / scales[-1].unsqueeze(1)).round_().to(torch.int8))
        self._scales, rounded = torch.cat(scales), torch.cat(values)
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        self._bias = None if bias is None else bias.float()
        self._pack(rounded)

    def _largest(self, weight: Float[Tensor, "out width"]) -> Float[Tensor, " out"]:
        # What the last step of 8 bits stands for.
        return weight.abs().amax(dim=1)

    def _pack(self, rounded: Int8[Tensor, "out width"]) -> None:
        self._row_scales = self._scales / _ROW_STEPS
        self._packed: Any = _ONEDNN.qlinear_prepack(rounded, [_PACKED_ROWS, rounded.shape[1]])

    def by_row(self, hidden: Float[Tensor, "row width"]) -> Float[Tensor, "row out"]:
        """Apply the map with a scale per row: rows may be of different sequences."""
        product, scale = self._by_row(hidden)
        if self._bias is None:
            return product.mul_(scale).to(hidden.dtype)
        return torch.addcmul(self._bias, product, scale).to(hidden.dtype)

    def add_by_row(
        self, hidden: Float[Tensor, "row width"], target: Float[Tensor, "row out"]
    ) -> None:
        """Apply the map with a scale per row, and add the result to float32 `target`."""
        target.addcmul_(*self._by_row(hidden))
        if self._bias is not None:
            target.add_(self._bias)

    def _by_row(
        self, hidden: Float[Tensor, "row width"]
    ) -> tuple[Float[Tensor, "row out"], Float[Tensor, "row 1"]]:
        # The product without bias, and its factor, in float32. With a row per slot each operation
        # costs more to call than to compute, so there are few.
        wide = hidden.float()
        # Any value but 0 works for rows of zeros.
        largest = wide.abs().amax(dim=1, keepdim=True).clamp_(min=_TINY)
        # Shifted to the range of unsigned 8 bits; the half makes truncation round.
        values = torch.addcdiv(_SHIFT, wide, largest, value=_ROW_STEPS).to(torch.uint8)
        product: Tensor = _ONEDNN.qlinear_pointwise(
            values, 1.0, 128, self._packed, self._row_scales, self._zeros,
            None, 1.0, 0, torch.float32, "none", [], "none",
        )  # fmt: skip
        return product, largest

    def by_block(
        self, hidden: Float[Tensor, "row width"], *, after: Fused = "none"
    ) -> Float[Tensor, "row out"]:
        """Apply the map and the fused activation, with one scale for all rows."""
        values, scale, zero_point = _quantized(hidden)
        product: Tensor = _ONEDNN.qlinear_pointwise(
            values, scale, zero_point, self._packed, self._scales, self._zeros,
            self._bias, 1.0, 0, hidden.dtype, after, [], "none",
        )  # fmt: skip
        return product


class PairedInt8Weights(Int8Weights):
    """`Int8Weights` for processors that add up the products of two neighbors in 16 bits."""

    def _largest(self, weight: Float[Tensor, "out width"]) -> Float[Tensor, " out"]:
        # Two weights of the same sign, times 255, must fit 16 bits: 255 * (127 + 1 of rounding)
        # does. A bound of 63 for every weight would too, with 1.6 times the error of rounding
        # (whisper-base: 1.85 % of a product of queries, keys and values; 1.14 with this one, 0.91
        # without any).
        pairs = F.pad(weight, (0, weight.shape[1] % 2)).view(len(weight), -1, 2)
        sums = torch.maximum(pairs.clamp(min=0).sum(dim=2), -pairs.clamp(max=0).sum(dim=2))
        return sums.amax(dim=1)

    def _pack(self, rounded: Int8[Tensor, "out width"]) -> None:
        # The engine matters only here: packed weights record the one they are for.
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            with warnings.catch_warnings():
                # Quantized tensors are deprecated, but FBGEMM has no other interface with a scale
                # per output: `can_use_int8` checks that they exist.
                warnings.simplefilter("ignore")
                weight = torch._make_per_channel_quantized_tensor(
                    rounded, self._scales, self._zeros, 0
                )
            self._packed = _FBGEMM.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = engine

    def _by_row(
        self, hidden: Float[Tensor, "row width"]
    ) -> tuple[Float[Tensor, "row out"], Float[Tensor, "row 1"]]:
        wide = hidden.float()
        largest = wide.abs().amax(dim=1, keepdim=True).clamp_(min=_TINY)
        product: Tensor = _FBGEMM.linear_with_input_q_dq_qweight_dq_output_fp32(
            wide / largest, 1 / _ROW_STEPS, 128, self._packed
        )
        return product, largest

    def by_block(
        self, hidden: Float[Tensor, "row width"], *, after: Fused = "none"
    ) -> Float[Tensor, "row out"]:
        """Apply the map with a scale per row, and `after` in a separate pass."""
        product = self.by_row(hidden)
        return product if after == "none" else _FUSED[after](product)


def _quantized(
    hidden: Float[Tensor, "row width"],
) -> tuple[UInt8[Tensor, "row width"], float, int]:
    low, high = (float(edge) for edge in torch.aminmax(hidden))
    # Zero must be representable, or the zero point would not fit.
    low, high = min(low, 0.0), max(high, 0.0)
    if not math.isfinite(high - low):
        # NaN must remain NaN.
        return torch.zeros_like(hidden, dtype=torch.uint8), math.nan, 1
    scale = max((high - low) / _BLOCK_STEPS, _TINY)
    zero_point = round(-low / scale)
    values = hidden.float().mul(1.0 / scale).add_(zero_point + 0.5).to(torch.uint8)
    return values, scale, zero_point


Norm = nn.LayerNorm | nn.RMSNorm


def smoothed(norm: Norm, linears: Sequence[nn.Linear]) -> tuple[Norm, Float[Tensor, " width"]]:
    """Equalize the channels between a norm and the maps that read it, before rounding to 8 bits.

    Returns the norm with every channel divided by a factor, and the factors, by which the maps'
    weights must be multiplied. Source: Xiao et al. 2022, "SmoothQuant", section 4.
    """
    # A few channels are many times larger than the others, and would use most of the range. Their
    # sizes are estimated from the norm's own weights, without recordings.
    with torch.inference_mode():
        even = copy.deepcopy(norm)
        inputs = _SPREAD * norm.weight.float().abs()
        if isinstance(norm, nn.LayerNorm):
            inputs += norm.bias.float().abs()
        inputs.clamp_(min=_SMALLEST)
        # Without a copy: one of the maps is a vocabulary.
        edges = [linear.weight.aminmax(dim=0) for linear in linears]
        weights = torch.stack([torch.maximum(high, -low).float() for low, high in edges])
        # The paper uses 0.5, and 0.75 for GLM-130B, which has more outlier channels.
        factors = inputs.pow(0.7) / weights.amax(dim=0).clamp(min=_SMALLEST).pow(0.3)
        for parameter in even.parameters():
            parameter.copy_(parameter.float() / factors)
    return even, factors


def _has_onednn() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return platform.machine() in ("x86_64", "AMD64") and bool(available)


def has_vnni() -> bool:
    """Whether oneDNN multiplies 8-bit integers here without 16-bit sums."""
    return _has_onednn() and bool(torch.cpu._is_vnni_supported())


def can_use_int8() -> bool:
    """Whether this machine multiplies 8-bit integers fast: with VNNI, or by FBGEMM."""
    return has_vnni() or has_fbgemm()


def has_fbgemm() -> bool:
    """Whether FBGEMM multiplies 8-bit integers here; it needs AVX2."""
    needed = (
        (torch, "_make_per_channel_quantized_tensor"),
        (_FBGEMM, "linear_with_input_q_dq_qweight_dq_output_fp32"),
    )
    return "fbgemm" in torch.backends.quantized.supported_engines and all(
        hasattr(where, name) for where, name in needed
    )


class Projection:
    """One product for one or several linear maps with the same input.

    The outputs are concatenated in the order of `linears`, each times its scale (default 1), with
    `int8` for inputs that were divided by `input_factors`. Later training of the model has no
    effect on it.
    """

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        *,
        scales: Sequence[float] = (),
        int8: bool = False,
        input_factors: Float[Tensor, " width"] | None = None,
    ) -> None:
        factors = [*scales, *[1.0] * (len(linears) - len(scales))]
        with torch.inference_mode():
            weight = _stacked([m.weight for m in linears], factors)
            self._bias = stacked_bias(linears, factors)
            self._int8: Int8Weights | None = None
            if int8:
                kernel = Int8Weights if has_vnni() else PairedInt8Weights
                self._int8 = kernel(weight, self._bias, input_factors=input_factors)
            self._packed = not int8 and _can_pack(weight)
            # oneDNN's GELU without AVX-512 takes four times as long as a pass of its own.
            self._fuses = self._packed and (
                weight.dtype == torch.bfloat16 or torch.cpu._is_avx512_supported()
            )
            if self._packed:
                weight = _MKLDNN._reorder_linear_weight(weight, _PACKED_ROWS)
            # Not in addition to the integers, which are meant to save memory.
            self._weight = torch.empty(0) if int8 else weight

    def __call__(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """Apply the maps to tokens of many sequences: rows are independent."""
        if self._int8 is not None:
            rows = self._int8.by_row(hidden.reshape(-1, hidden.shape[-1]))
            return rows.view(*hidden.shape[:-1], -1)
        return self._multiply(hidden)

    def by_block(
        self, hidden: Float[Tensor, "row width"], *, after: Fused = "none"
    ) -> Float[Tensor, "row out"]:
        """Apply the maps and the fused activation to neighboring rows of one window."""
        if self._int8 is not None:
            return self._int8.by_block(hidden, after=after)
        return self._multiply(hidden, after)

    def add_to(self, target: Float[Tensor, "row out"], hidden: Float[Tensor, "row width"]) -> None:
        """Add the result of the maps for `hidden` to `target`, in float32."""
        if self._int8 is not None:
            self._int8.add_by_row(hidden, target)
        else:
            target.add_(self._multiply(hidden))

    def _multiply(self, hidden: Tensor, after: Fused = "none") -> Tensor:
        if after != "none" and not self._fuses:
            return _FUSED[after](self._multiply(hidden))
        if not self._packed:
            return F.linear(hidden, self._weight, self._bias)
        if hidden.numel() == hidden.shape[-1]:
            # oneDNN adds up a single row in another order than the rows of a batch, but a row's
            # result must not depend on the others.
            two = hidden.reshape(1, -1).expand(2, -1)
            return self._multiply(two, after)[:1].view(*hidden.shape[:-1], -1)
        fused: Tensor = _MKLDNN._linear_pointwise(
            hidden, self._weight, self._bias, after, [], "none"
        )
        return fused


class NormedProjection:
    """A norm followed by a `Projection`; with `wide` the norm is in float32."""

    def __init__(
        self,
        norm: Norm,
        linears: Sequence[nn.Linear],
        *,
        scales: Sequence[float] = (),
        int8: bool = False,
        wide: bool = False,
    ) -> None:
        self._dtype = linears[0].weight.dtype
        factors: Tensor | None = None
        if int8:
            norm, factors = smoothed(norm, linears)
        # Shared with the network, unless it must be modified.
        self._norm = copy.deepcopy(norm).float() if wide else norm
        self._maps = Projection(linears, scales=scales, int8=int8, input_factors=factors)

    def __call__(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """Apply norm and maps; rows are independent."""
        return self._maps(self._norm(hidden).to(self._dtype))

    def by_block(
        self, hidden: Float[Tensor, "row width"], *, after: Fused = "none"
    ) -> Float[Tensor, "row out"]:
        """Apply norm and maps to neighboring rows of one window, as `Projection.by_block`."""
        return self._maps.by_block(self._norm(hidden).to(self._dtype), after=after)


def _stacked(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    scaled = [t if f == 1.0 else t * f for t, f in zip(tensors, factors, strict=True)]
    return torch.cat(scaled) if len(scaled) > 1 else scaled[0].detach()


def stacked_bias(linears: Sequence[nn.Linear], factors: Sequence[float]) -> Tensor | None:
    """Return the concatenated biases of maps, each times its factor; None if none has one."""
    biases: list[Tensor | None] = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return None
    # Whisper's keys have no bias, the fused queries and values have one.
    zeros = [linear.weight.new_zeros(linear.out_features) for linear in linears]
    return _stacked([z if b is None else b for z, b in zip(zeros, biases, strict=True)], factors)


def _can_pack(weight: Tensor) -> bool:
    # Packing makes products of 8 rows 2 to 4 times faster. Two Zen 4 cores, 51,865 x 512 logits:
    # 15.0 -> 4.2 ms in float32, 3.6 -> 1.9 ms in bfloat16. float16 has no fast kernels there, and
    # other processors were not measured.
    if weight.device.type != "cpu" or not _has_onednn():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(_MKLDNN._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
