"""Linear maps made ready for decoding one token at a time.

In: the `nn.Linear`s of a loaded model. Out: callables on weights of their own, which no
state_dict lists: several maps of one input stacked into one product, and on x86 CPUs packed in
oneDNN's blocked layout, or rounded to 8 bits. Knows nothing of what the maps are for.
"""

import copy
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.layers.int8 import Fused, Int8Weights, smoothed

# Rows the packed layout is chosen for. Measured from 1 to 256 rows: 16 is never far from the best.
_PACKED_ROWS = 16

_FUSED: dict[Fused, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def fused_activation(function: Callable[[Tensor], Tensor]) -> Fused:
    """Return the name under which a product applies an activation itself; `none` if it cannot."""
    return next((name for name, fused in _FUSED.items() if fused is function), "none")


class Projection:
    """One product for one or several linear maps that read the same input.

    The outputs are concatenated in the order of `linears`. Weights are as they were when it was
    made: training the model later does not change it.

    Args:
        linears: maps with the same input width, dtype and device.
        scales: factor of each map's output, folded into its weights; default 1.
        int8: whether weights and inputs are rounded to 8 bits; see `int8.can_use_int8`.
        input_factors: what the inputs have been divided by; see `int8.smoothed`.
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
        self._int8: Int8Weights | None = None
        self._packed = False
        with torch.inference_mode():
            weight = _stacked([m.weight for m in linears], factors)
            if input_factors is not None:
                weight = weight.float() * input_factors
            self._bias = _stacked_bias(linears, factors)
            if int8:
                self._int8 = Int8Weights(weight, self._bias)
            else:
                self._packed = _can_pack(weight)
                self._weight = _packed(weight) if self._packed else weight

    def __call__(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """Apply the maps to tokens of many sequences: no row's result depends on another row."""
        if self._int8 is not None:
            rows = self._int8.by_row(hidden.reshape(-1, hidden.shape[-1]))
            return rows.view(*hidden.shape[:-1], -1)
        return self._multiply(hidden)

    def by_block(
        self, hidden: Float[Tensor, "row width"], *, after: Fused = "none"
    ) -> Float[Tensor, "row out"]:
        """Apply the maps, and what is fused to them, to neighbouring rows of one window."""
        if self._int8 is not None:
            return self._int8.by_block(hidden, after=after)
        return self._multiply(hidden, after)

    def add_to(self, target: Float[Tensor, "row out"], hidden: Float[Tensor, "row width"]) -> None:
        """Add what the maps make of `hidden` to `target`, in float32."""
        if self._int8 is not None:
            self._int8.add_by_row(hidden, target)
        else:
            target.add_(self._multiply(hidden))

    def _multiply(self, hidden: Tensor, after: Fused = "none") -> Tensor:
        if not self._packed:
            product = F.linear(hidden, self._weight, self._bias)
            return product if after == "none" else _FUSED[after](product)
        if hidden.numel() == hidden.shape[-1]:
            # oneDNN adds up a single row in another order than the rows of a batch, and what a
            # row gives must not depend on the others.
            two = hidden.reshape(1, -1).expand(2, -1)
            return self._multiply(two, after)[:1].view(*hidden.shape[:-1], -1)
        fused: Tensor = _onednn()._linear_pointwise(
            hidden, self._weight, self._bias, after, [], "none"
        )
        return fused


class NormedProjection:
    """A layer norm and the maps that read it.

    Args:
        norm: shared, unless it has to be changed.
        linears, scales, int8: as in `Projection`.
        wide: whether the norm takes float32, whatever the type of the maps.
    """

    def __init__(
        self,
        norm: nn.LayerNorm,
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
        self._norm = copy.deepcopy(norm).float() if wide else norm
        self._maps = Projection(linears, scales=scales, int8=int8, input_factors=factors)

    def __call__(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """Norm and apply the maps; no row's result depends on another row."""
        return self._maps(self._norm(hidden).to(self._dtype))

    def by_block(
        self, hidden: Float[Tensor, "row width"], *, after: Fused = "none"
    ) -> Float[Tensor, "row out"]:
        """Norm and apply the maps to neighbouring rows of one window, as `Projection.by_block`."""
        return self._maps.by_block(self._norm(hidden).to(self._dtype), after=after)


def _stacked(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    scaled = [t if f == 1.0 else t * f for t, f in zip(tensors, factors, strict=True)]
    return torch.cat(scaled) if len(scaled) > 1 else scaled[0].detach()


def _stacked_bias(linears: Sequence[nn.Linear], factors: Sequence[float]) -> Tensor | None:
    biases: list[Tensor | None] = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return None
    filled = [
        linear.weight.new_zeros(linear.out_features) if bias is None else bias
        for linear, bias in zip(linears, biases, strict=True)
    ]
    return _stacked(filled, factors)


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = _onednn()._reorder_linear_weight(weight, _PACKED_ROWS)
    return packed


def _onednn() -> Any:
    """Return the operators that TorchInductor emits for linear layers on CPUs."""
    return torch.ops.mkldnn


def _can_pack(weight: Tensor) -> bool:
    """Tell whether packing pays: with 8 rows it makes the product 2 to 4 times faster.

    Measured on two Zen 4 cores, 51,865 x 512 logits: 15.0 -> 4.2 ms in float32, 3.6 -> 1.9 ms in
    bfloat16. float16 has no fast kernels there, and other processors were not measured.
    """
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(_onednn(), "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(_onednn()._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
