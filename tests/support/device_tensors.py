"""Tensors that say `cuda:N`, compute on the CPU, and tell what a GPU would mind.

Every wait of the host is noted with its place, tensors of two devices do not meet, and copies to
pinned memory arrive when somebody waits. What makes a host wait is taken
from PyTorch's sources: `copy_to` in ATen/TensorIndexing.h, `_index_put_impl_` in
native/TensorAdvancedIndexing.cpp.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.support.device_state import Gpu, gpu_is, gpu_now

CPU = torch.device("cpu")
_FACTORIES = {
    getattr(torch, name): name
    for name in (
        "zeros", "ones", "empty", "full", "arange", "tensor", "as_tensor", "linspace", "rand",
        "randn", "randint", "eye", "scalar_tensor", "hann_window", "zeros_like", "full_like",
        "empty_like", "ones_like",
    )
}  # fmt: skip
_CASTS = {
    "float": torch.float32, "long": torch.int64, "int": torch.int32, "double": torch.float64,
    "bool": torch.bool, "half": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
_SET_DATA: Any = Tensor.data.__set__  # type: ignore[attr-defined]
_READS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__contains__")
# How many there are depends on the values.
_BY_VALUES = ("nonzero", "masked_select", "_unique", "unique", "repeat_interleave.Tensor")


@contextmanager
def as_gpu(gpu: Gpu) -> Iterator[None]:
    """Let this be the pretended GPU there is, for this thread's tensors."""
    with gpu_is(gpu), Host():
        yield


def tree_map(function: Callable[[Any], Any], value: Any) -> Any:
    """As torch's of this name, of the containers that operations take, in a tenth of the time."""
    if isinstance(value, tuple | list):
        return type(value)([tree_map(function, one) for one in value])
    if isinstance(value, dict):
        return {key: tree_map(function, one) for key, one in value.items()}
    return function(value)


def tree_leaves(value: Any) -> list[Any]:
    """As torch's of this name, see `tree_map`."""
    found: list[Any] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, tuple | list):
            waiting += one[::-1]
        elif isinstance(one, dict):
            waiting += [*one.values()][::-1]
        else:
            found.append(one)
    return found


class DeviceTensor(Tensor):
    """Says that it is on a GPU, and holds a tensor of the CPU."""

    on_host: Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    def __new__(cls, inner: Tensor, index: int = 0) -> "DeviceTensor":
        made: Any = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device("cuda", index), requires_grad=False,
        )  # fmt: skip
        made.on_host = inner
        found: DeviceTensor = made
        return found

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
        _check_one_device(name, ours, leaves)
        if name.startswith("aten.copy_.") and not (
            isinstance(args[0], DeviceTensor) and isinstance(args[1], DeviceTensor)
        ):
            return _copy(*args, **kwargs)
        _note_waits(name, args, leaves, ours)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cpu":
            gpu_now().wait("read", name)
            return func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if device is not None:
            kwargs["device"] = CPU
        inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
        tape = gpu_now().tape
        if tape is not None:
            tape.before(func, inner_args, inner_kwargs)
        result = func(*inner_args, **inner_kwargs)
        index = ours[0].device.index if ours else 0
        changed = _changed(func, args, kwargs)
        if not _is_view(func):
            gpu_now().launched(name)
        if tape is not None:
            tape.after(func, inner_args, inner_kwargs, result)
        if changed and isinstance(result, Tensor):
            return changed[0]
        known = {id(tensor.on_host): tensor for tensor in ours}
        return tree_map(lambda x: known[id(x)] if id(x) in known else _wrapped(x, index), result)


def _inner(value: Any) -> Any:
    return value.on_host if isinstance(value, DeviceTensor) else value


def _wrapped(value: Any, index: int = 0) -> Any:
    plain = isinstance(value, Tensor) and not isinstance(value, DeviceTensor)
    return DeviceTensor(value, index) if plain else value


@cache
def _is_view(func: Any) -> bool:
    aliases = [one.alias_info for one in func._schema.returns]
    return any(one is not None and not one.is_write for one in aliases)


@cache
def written_by(func: Any) -> list[Any]:
    """Return the place and description of each argument that an operation writes into."""
    arguments = enumerate(func._schema.arguments)
    return [(n, a) for n, a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _changed(func: Any, args: Any, kwargs: dict[str, Any]) -> list[DeviceTensor]:
    values = [
        args[number] if number < len(args) else kwargs.get(argument.name)
        for number, argument in written_by(func)
    ]
    return [value for value in values if isinstance(value, DeviceTensor)]


def _check_one_device(name: str, ours: list[DeviceTensor], leaves: list[Tensor]) -> None:
    if len({tensor.device for tensor in ours}) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
    hosts = [leaf for leaf in leaves if not isinstance(leaf, DeviceTensor)]
    others = [tuple(leaf.shape) for leaf in hosts if leaf.dim() > 0]
    if others and not name.startswith("aten.copy_."):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {others}")


def _note_waits(name: str, args: Any, leaves: list[Tensor], ours: list[DeviceTensor]) -> None:
    operation = name.removeprefix("aten.")
    if operation.startswith(("_local_scalar_dense", "equal.", "is_nonzero", "item")):
        gpu_now().wait("read", name)
    if operation.startswith(_BY_VALUES):
        gpu_now().wait("shape", name)
    if operation.startswith(("index.", "index_put", "_index_put")):
        if any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]):
            gpu_now().wait("shape", f"{name} by flags")
        if operation.startswith(("index_put", "_index_put")) and len(ours) < len(leaves):
            gpu_now().wait("upload", f"{name} of a number")


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    gpu = gpu_now()
    if isinstance(target, DeviceTensor):
        if not (non_blocking and gpu.is_pinned(source)):
            gpu.wait("upload", f"copy_ {tuple(source.shape)}")
        target.on_host.copy_(source)
        return target
    values = _inner(source)
    if not (non_blocking and gpu.is_pinned(target)):
        gpu.wait("read", f"copy_ {tuple(source.shape)}")
        return target.copy_(values)
    # Nonsense until somebody waits: what is read too early must show.
    with gpu.lock:
        gpu.in_flight.append((target, values.clone()))
        spoil(target)
    return target


def spoil(tensor: Tensor) -> None:
    if tensor.dtype.is_floating_point:
        tensor.fill_(float("nan"))
    else:
        tensor.fill_(tensor.dtype == torch.bool or 77)


def _to_host(tensor: DeviceTensor, dtype: torch.dtype | None = None) -> Tensor:
    gpu_now().wait("read", f"cpu {tuple(tensor.shape)}")
    copied = tensor.on_host.clone()
    return copied if dtype is None else copied.to(dtype)


class Host(TorchFunctionMode):
    """Catches in one thread what makes, moves, indexes and reads tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _CAUGHT:  # nine in ten, most of them a tensor's shape or device
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        if func in _FACTORIES and not any(isinstance(a, DeviceTensor) for a in args):
            return _make(func, args, kwargs)
        if name == "scaled_dot_product_attention" and isinstance(args[0], DeviceTensor):
            return run_as_one(func, "sdpa", args, kwargs, index=args[0].device.index)
        handler = _HANDLERS.get(name)
        meant = handler is not None and args and isinstance(args[0], Tensor)
        if handler and meant and (name in _OF_THE_HOST or _ours(args, kwargs)):
            found = handler(func, name, args, kwargs)
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs)


def _make(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    device, pinned = kwargs.get("device"), kwargs.pop("pin_memory", False)
    on_gpu = isinstance(device, int) or (device is not None and torch.device(device).type == "cuda")
    if not on_gpu:
        made: Tensor = func(*args, **kwargs)
        return gpu_now().pin(made) if pinned else made
    index = device if isinstance(device, int) else torch.device(str(device)).index or 0
    if func in (torch.tensor, torch.as_tensor):
        gpu_now().wait("upload", f"torch.{_FACTORIES[func]}(device=cuda)")
    return run_as_one(func, _FACTORIES[func], args, kwargs | {"device": CPU}, index=index)


def run_as_one(
    func: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any], *, index: int = 0
) -> Any:
    """Run a function as one operation: its parts would be told one by one otherwise."""
    inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    result = func(*inner_args, **inner_kwargs)
    gpu = gpu_now()
    gpu.launched(name)
    if gpu.tape is not None:
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        gpu.tape.add(func, inner_args, inner_kwargs, made)
    return tree_map(lambda one: DeviceTensor(one, index), result)


def _ours(*values: Any) -> list[DeviceTensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, DeviceTensor)]


def _get(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    tensor, key = args
    if not isinstance(tensor, DeviceTensor):
        raise RuntimeError("a tensor of the CPU is indexed by one of the device")
    if not _by_tensors(key, "getitem"):
        return DeviceTensor(tensor.on_host[tree_map(_inner, key)], tensor.device.index)
    return run_as_one(lambda a, k: a[k], "index", (tensor, key), {}, index=tensor.device.index)


def _set(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    tensor, key, value = args
    if not isinstance(tensor, DeviceTensor):
        raise RuntimeError("a tensor of the CPU is given values of the device")
    by_tensors = _by_tensors(key, "setitem")
    inner_key = tree_map(_inner, key)
    if not isinstance(value, Tensor) and (by_tensors or tensor.on_host[inner_key].dim() == 0):
        gpu_now().wait("upload", "setitem of a number by an index or into one place")
    if isinstance(value, Tensor) and not isinstance(value, DeviceTensor):
        gpu_now().wait("upload", "setitem of a tensor of the host")
    gpu = gpu_now()
    gpu.launched("index_put" if by_tensors else "copy_")
    call: Any = Tensor.__setitem__
    if gpu.tape is not None:
        gpu.tape.save(tensor.on_host)
        gpu.tape.add(call, (tensor.on_host, inner_key, _inner(value)), {}, [])
    tensor.on_host[inner_key] = _inner(value)
    return None


def _by_tensors(key: Any, what: str) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    for tensor in tensors:
        if not isinstance(tensor, DeviceTensor) and tensor.dim() > 0:
            gpu_now().wait("upload", f"{what} by an index of the host")
        if tensor.dtype == torch.bool:
            gpu_now().wait("shape", f"{what} by flags")
    lists = any(isinstance(part, list) for part in parts)
    if lists:
        gpu_now().wait("upload", f"{what} by a Python list")
    return bool(tensors) or lists


def _move(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    tensor, *rest = args
    device = torch.device("cuda", 0) if name == "cuda" else kwargs.get("device")
    dtype = kwargs.get("dtype")
    for value in rest:
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | torch.device):
            device = value
    device = None if device is None else torch.device(device)
    if isinstance(tensor, DeviceTensor):
        if device is not None and device.type == "cpu":
            return _to_host(tensor, dtype)
        same = dtype is None or dtype == tensor.dtype
        return tensor if same else torch.ops.aten._to_copy.default(tensor, dtype=dtype)
    if device is None or device.type != "cuda":
        return NotImplemented
    if not (gpu_now().is_pinned(tensor) and kwargs.get("non_blocking", False)):
        gpu_now().wait("upload", f"to(cuda) {tuple(tensor.shape)}")
    values = tensor if dtype is None else tensor.to(dtype)
    return DeviceTensor(values.detach().clone(), device.index or 0)


def _read(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    if name == "numpy":
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if name == "cpu":
        return _to_host(args[0])
    gpu_now().wait("read", name)
    return getattr(args[0].on_host, name)(*args[1:])


def _pin(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    tensor = args[0]
    if name == "is_pinned":
        return not isinstance(tensor, DeviceTensor) and gpu_now().is_pinned(tensor)
    if isinstance(tensor, DeviceTensor):
        raise RuntimeError("cannot pin a tensor of the device")
    return gpu_now().pin(tensor.clone())


def _place(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    tensor = args[0]
    if name == "__set__":
        if func != _SET_DATA:
            return NotImplemented
        tensor.on_host = args[1].on_host
        return None
    return getattr(tensor.on_host, name)()


def _as_one(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    # Inference mode hands these to the device tensor whole, which it would not know.
    tensor = args[0]
    if name == "copy_":
        return _copied(*args, **kwargs)
    if not isinstance(tensor, DeviceTensor):
        return NotImplemented
    if name == "__invert__":
        return torch.bitwise_not(tensor)
    if name == "detach":
        return DeviceTensor(tensor.on_host.detach(), tensor.device.index)
    if name == "contiguous":
        whole = tensor.on_host.is_contiguous()
        form = torch.contiguous_format
        return tensor if whole else torch.ops.aten.clone.default(tensor, memory_format=form)
    dtype = _CASTS[name]
    same = tensor.dtype == dtype
    return tensor if same else torch.ops.aten._to_copy.default(tensor, dtype=dtype)


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
        return torch.ops.aten.copy_.default(target, source)
    return _copy(target, source, non_blocking)


_OF_THE_HOST = ("to", "cuda", "pin_memory", "is_pinned")
_HANDLERS: dict[str, Callable[..., Any]] = {
    "__getitem__": _get, "__setitem__": _set, "to": _move, "cuda": _move, "numpy": _read,
    "cpu": _read, "pin_memory": _pin, "is_pinned": _pin,
    **dict.fromkeys(_READS, _read),
    **dict.fromkeys(("untyped_storage", "storage_offset", "__set__"), _place),
    **dict.fromkeys(("__invert__", "detach", "contiguous", "copy_", *_CASTS), _as_one),
}  # fmt: skip
_CAUGHT = {*_HANDLERS, *_FACTORIES.values(), "scaled_dot_product_attention"}
