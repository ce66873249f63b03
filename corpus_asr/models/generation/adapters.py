"""Plain LoRA adapters of PEFT, folded into the weights that a text is generated with.

In: a network some of whose linear layers PEFT has wrapped. Out: the network as it would be merged,
which shares all other weights with it; nothing of the network itself changes. PEFT is not imported:
who has no adapters needs none.

Source: Hu et al. 2021, section 4.1; folded in the types in which PEFT's `merge_and_unload` does it.
"""

import copy
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LAYERS = "peft.tuners.lora.layer"


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """A linear layer that PEFT has wrapped, and where it is in the copy of the network."""

    parent: nn.Module
    name: str
    layer: Any

    @property
    def active(self) -> tuple[str, ...]:
        """The adapters that a call of the layer would add; none where they are merged already."""
        layer = self.layer
        if layer.disable_adapters or layer.merged:
            return ()
        return tuple(name for name in layer.active_adapters if name in layer.lora_A)

    @property
    def state(self) -> tuple[tuple[str, float], ...]:
        """What makes another text where it changes, beside the weights."""
        return tuple((name, float(self.layer.scaling[name])) for name in self.active)

    @torch.no_grad()
    def fold(self) -> None:
        """Let the copy of the network have the weights with the adapters in them."""
        base = self.layer.base_layer
        weight: Tensor = base.weight.detach()
        for name in self.active:
            # Added in the wider of both types and rounded once, as PEFT merges.
            weight = (weight + self.layer.get_delta_weight(name)).to(base.weight.dtype)
        # No numbers are drawn: that would change what is sampled after.
        folded = nn.Linear(1, 1, device="meta")
        folded.in_features, folded.out_features = base.in_features, base.out_features
        folded.weight = nn.Parameter(weight, requires_grad=False)
        folded.bias = base.bias
        self.parent._modules[self.name] = folded


def without_adapters(network: Any) -> tuple[Any, list[AdaptedLayer]]:
    """Return a copy of a network that has the layers without their adapters, and these layers.

    It shares all weights, and is the network itself where no layer has plain LoRA adapters.
    """
    kind = getattr(sys.modules.get(_LAYERS), "Linear", None)
    adapted: list[AdaptedLayer] = []
    return (network if kind is None else _copied(network, kind, adapted)), adapted


def _copied(module: nn.Module, kind: type, adapted: list[AdaptedLayer]) -> nn.Module:
    replaced: dict[str, nn.Module] = {}
    layers: dict[str, Any] = {}
    for name, child in module._modules.items():
        if child is None:
            continue
        if type(child) is kind and _is_plain_lora(child):
            layers[name] = child
            replaced[name] = layers[name].base_layer
        elif (copied := _copied(child, kind, adapted)) is not child:
            replaced[name] = copied
    if not replaced:
        return module
    other = copy.copy(module)
    other._modules = {**module._modules, **replaced}
    adapted += [AdaptedLayer(other, name, layer) for name, layer in layers.items()]
    return other


def _is_plain_lora(layer: Any) -> bool:
    # What PEFT adds to a product of two matrices (DoRA and others) is in `lora_variant`. Merged
    # layers whose adapters are switched off are merged back by their next call, not here.
    if layer.lora_variant or layer.fan_in_fan_out or (layer.disable_adapters and layer.merged):
        return False
    if "forward" in vars(layer) or type(layer.base_layer) is not nn.Linear:
        return False
    if any(one._forward_hooks or one._forward_pre_hooks for one in layer.modules()):
        return False
    matrices = [*layer.lora_A.values(), *layer.lora_B.values()]
    return all(type(one) is nn.Linear and one.bias is None for one in matrices)
