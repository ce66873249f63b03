"""Linear maps in 8-bit integers on x86 CPUs.

In: float hidden states. Out: float hidden states; in between, one product of 8-bit integers by
oneDNN. Weights have a scale per output, inputs a scale per row, or per block of rows. A row's
result depends on its block alone, never on the rest of the batch: the sums are exact integers.
"""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

_ROWS_HINT = 16  # what the packed layout is chosen for
_TINY = 1e-12  # keeps the scale of all-zero numbers above zero
_SMALLEST = 1e-4  # of what is raised to a power
_SPREAD = 3.0  # standard deviations that a normed channel is reckoned to reach
_WEIGHT_STEPS = 127
_ROW_STEPS = 127
_BLOCK_STEPS = 254  # one less than fits, so that rounding the zero point cannot overflow

Fused = Literal["none", "gelu", "relu"]
"""What a product can apply to its outcome by itself."""

_SHIFT = torch.tensor(128.5)


@dataclass(frozen=True, slots=True)
class _Quantised:
    values: UInt8[Tensor, "row width"]
    scale: float
    zero_point: int


class Int8Weights:
    """The weights of one linear map, rounded to 8 bits and packed.

    Args:
        weight: (out, width), of any float type.
        bias: (out,), or None.
    """

    def __init__(
        self, weight: Float[Tensor, "out width"], bias: Float[Tensor, " out"] | None
    ) -> None:
        wide = weight.float()
        self._scales = (wide.abs().amax(dim=1) / _WEIGHT_STEPS).clamp(min=_TINY)
        rounded = (wide / self._scales.unsqueeze(1)).round_().to(torch.int8)
        self._row_scales = self._scales / _ROW_STEPS
        self._packed: Tensor = _onednn().qlinear_prepack(rounded, [_ROWS_HINT, weight.shape[1]])
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        self._bias = None if bias is None else bias.float()

    def by_row(self, hidden: Float[Tensor, "row width"]) -> Float[Tensor, "row out"]:
        """Apply the map with a scale for every row: rows may be of different sequences."""
        product, scale = self._by_row(hidden)
        if self._bias is None:
            return product.mul_(scale).to(hidden.dtype)
        return torch.addcmul(self._bias, product, scale).to(hidden.dtype)

    def add_by_row(
        self, hidden: Float[Tensor, "row width"], target: Float[Tensor, "row out"]
    ) -> None:
        """Apply the map with a scale for every row, and add the outcome to float32 `target`."""
        target.addcmul_(*self._by_row(hidden))
        if self._bias is not None:
            target.add_(self._bias)

    def _by_row(
        self, hidden: Float[Tensor, "row width"]
    ) -> tuple[Float[Tensor, "row out"], Float[Tensor, "row 1"]]:
        """The product without bias, and what it is still to be multiplied with; in float32.

        As few operations as can be: with a row per slot each costs more to call than to compute.
        """
        wide = hidden.float()
        # Anything but 0 will do for rows of zeros.
        largest = wide.abs().amax(dim=1, keepdim=True).clamp_(min=_TINY)
        # Shifted into what 8 bits without a sign hold; the half makes cutting off rounding.
        values = torch.addcdiv(_SHIFT, wide, largest, value=_ROW_STEPS).to(torch.uint8)
        product: Tensor = _onednn().qlinear_pointwise(
            values, 1.0, 128, self._packed, self._row_scales, self._zeros,
            None, 1.0, 0, torch.float32, "none", [], "none",
        )  # fmt: skip
        return product, largest

    def by_block(
        self, hidden: Float[Tensor, "row width"], *, after: Fused = "none"
    ) -> Float[Tensor, "row out"]:
        """Apply the map, and what is fused to it, with one scale for all rows."""
        return self._multiply(_quantise(hidden), self._bias, hidden.dtype, after)

    def _multiply(
        self,
        block: _Quantised,
        bias: Tensor | None,
        dtype: torch.dtype,
        after: Fused = "none",
    ) -> Tensor:
        product: Tensor = _onednn().qlinear_pointwise(
            block.values, block.scale, block.zero_point, self._packed, self._scales, self._zeros,
            bias, 1.0, 0, dtype, after, [], "none",
        )  # fmt: skip
        return product


def smoothed(
    norm: nn.LayerNorm, linears: Sequence[nn.Linear]
) -> tuple[nn.LayerNorm, Float[Tensor, " width"]]:
    """Even out the channels between a norm and the maps that read it, before rounding to 8 bits.

    A few channels are many times as large as the others, and would take most of the steps. How
    large each gets is judged by the norm's own weights: no recordings are needed.

    Returns:
        The norm with every channel divided by a factor, and the factors, with which the maps'
        weights are to be multiplied.

    Source: Xiao et al. 2022, "SmoothQuant", section 4, with exponent 0.7.
    """
    with torch.inference_mode():
        gain, shift = norm.weight.float(), norm.bias.float()
        inputs = (_SPREAD * gain.abs() + shift.abs()).clamp(min=_SMALLEST)
        weights = torch.stack([linear.weight.float().abs().amax(dim=0) for linear in linears])
        factors = inputs.pow(0.7) / weights.amax(dim=0).clamp(min=_SMALLEST).pow(0.3)
        even = nn.LayerNorm(len(gain), eps=norm.eps, device=gain.device, dtype=norm.weight.dtype)
        even.weight.copy_(gain / factors)
        even.bias.copy_(shift / factors)
    return even, factors


def can_use_int8() -> bool:
    """Tell whether this machine multiplies 8-bit integers fast and torch has the operators."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(
        available
        and hasattr(_onednn(), "qlinear_pointwise")
        and hasattr(_onednn(), "qlinear_prepack")
        and torch.cpu._is_vnni_supported()
    )


def _quantise(hidden: Float[Tensor, "row width"]) -> _Quantised:
    low, high = (float(edge) for edge in torch.aminmax(hidden))
    # Zero must be among what the steps can say, or the zero point would not fit.
    low, high = min(low, 0.0), max(high, 0.0)
    if not math.isfinite(high - low):
        # What is not a number must not become one.
        return _Quantised(torch.zeros_like(hidden, dtype=torch.uint8), math.nan, 1)
    scale = max((high - low) / _BLOCK_STEPS, _TINY)
    zero_point = round(-low / scale)
    values = hidden.float().mul(1.0 / scale).add_(zero_point + 0.5).to(torch.uint8)
    return _Quantised(values, scale, zero_point)


def _onednn() -> Any:
    """Return the operators that TorchInductor emits for quantised layers on x86 CPUs."""
    return torch.ops.onednn
