"""Detects modules that differ from those the fast decoder reimplements.

Classes register with `plain`. `first_changed` finds a module that was wrapped, replaced, hooked or
patched. Independent of families.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

Module = TypeVar("Module", bound=type[nn.Module])

_PACKAGE = __name__.partition(".")[0] + "."
# Attributes that affect calling a module before its `forward`.
_CALL = ("__call__", "_call_impl", "__getattr__", "forward")
# Methods of a complete network that `generate` uses; others may be overridden.
_NETWORK = (
    *_CALL,
    "get_encoder",
    "get_decoder",
    "get_output_embeddings",
    "_scored",
)

# The methods of each class when it was defined.
_modules: dict[type, dict[str, Any]] = {}
_networks: dict[type, dict[str, Any]] = {}


def plain(cls: Module) -> Module:
    """Register a class that the fast decoder reimplements, if its methods are unmodified."""
    classes = [base for base in cls.__mro__ if base.__module__.startswith(_PACKAGE)]
    names = {name for base in classes for name, held in vars(base).items() if callable(held)}
    _modules[cls] = _held(cls, *_CALL, *(name for name in names if not name.startswith("__")))
    return cls


def plain_network(cls: Module) -> Module:
    """Register a class of complete networks, of which few methods must be unmodified."""
    _networks[cls] = _held(cls, *_NETWORK)
    return cls


def _held(cls: type, *names: str) -> dict[str, Any]:
    return {name: getattr(cls, name, None) for name in sorted(names)}


_LEAVES = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv1d)
for _leaf in _LEAVES:
    _modules[_leaf] = _held(_leaf, *_CALL, "_conv_forward")
_modules[nn.ModuleList] = _held(nn.ModuleList, "__iter__", "__getitem__", "__len__")


def first_changed(network: Any) -> str | None:
    """Return the name of the first modified module of a network, with a reason."""
    for kind in ("forward_hooks", "forward_pre_hooks"):
        if getattr(torch_module, f"_global_{kind}"):
            return f"every module has hooks (register_module_{kind[:-1]})"
    for name, module in called_modules(network):
        why = _why_class(type(module)) or _why_module(module)
        if why is not None:
            return f"{name or 'the network itself'} {why}"
    return None


def called_modules(network: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules used for generation, with their names in the network."""
    yield "", network
    inner = getattr(network, "model", network)
    yield "model", inner
    for name in ("encoder", "decoder"):
        if (tower := getattr(inner, name, None)) is not None:
            yield from tower.named_modules(prefix=f"model.{name}")
    projection = network.get_output_embeddings()
    if projection is not None:
        yield from projection.named_modules(prefix=network._projection)


def _noted(kind: type) -> dict[str, Any] | None:
    entries = (_networks[base] for base in kind.__mro__ if base in _networks)
    return _modules.get(kind) or next(entries, None)


def _why_class(kind: type) -> str | None:
    noted = _noted(kind)
    shown = f"is a {kind.__module__}.{kind.__qualname__}"
    if noted is None:
        return shown
    changed = [name for name, held in noted.items() if getattr(kind, name, None) is not held]
    return f"{shown} with a {changed[0]} of its own" if changed else None


def _why_module(module: nn.Module) -> str | None:
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks"
    if replaced := (_noted(type(module)) or {}).keys() & vars(module).keys():
        return f"has its {min(replaced)} replaced"
    if isinstance(module, _LEAVES) and module._parameters.get("weight") is None:
        return "has a weight that is no parameter"
    for name, parameter in module._parameters.items():
        if parameter is not None and not _is_dense(parameter):
            return f"has a {name} of type {type(parameter).__name__} on {parameter.device.type}"
    if isinstance(module, nn.Conv1d) and not _is_padded_by_half(module):
        return "has another padding, dilation or number of groups than the family's"
    return None


def _is_dense(parameter: Tensor) -> bool:
    dense = parameter.layout == torch.strided and parameter.is_floating_point()
    return type(parameter) is nn.Parameter and dense and not parameter.is_meta


def _is_padded_by_half(conv: nn.Conv1d) -> bool:
    half = (conv.kernel_size[0] // 2,)
    usual = (conv.groups, conv.dilation, conv.padding_mode) == (1, (1,), "zeros")
    return usual and conv.padding == half and conv.bias is not None
