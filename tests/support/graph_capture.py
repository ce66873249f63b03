"""A recorder for machines without a GPU, as strict as a CUDA graph.

A step goes in; what comes out repeats its tensor operations, on the same tensors and with the same
numbers, and runs none of its Python again. So whatever a step reads of the host's state stays as
it was when it was recorded; and what a GPU could not do without making the host wait is refused.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from corpus_asr.decoding.device import CudaRecorder
from tests.support.device_tensors import tree_leaves

_READS = ("tolist", "item", "numpy", "cpu", "nonzero", "masked_select", "unique", "is_nonzero")
_CASTS = ("__bool__", "__int__", "__float__", "__index__", "__contains__")
_UPLOADS = ("torch.tensor", "torch.as_tensor", "torch.from_numpy")


class TapeRecorder(CudaRecorder):
    """Counts what it is asked for."""

    warm_ups = 1

    def __init__(self) -> None:
        self.warmed = 0
        self.recorded = 0
        self.replayed = 0

    def warm_up(self, step: Callable[[], None]) -> None:
        self.warmed += 1
        step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        tape = _Tape()
        with torch.inference_mode():
            with _NoReading(), tape:
                step()
            tape.undo()

        def replay() -> None:
            self.replayed += 1
            with torch.inference_mode():
                tape.play()

        return replay


class _NoReading(TorchFunctionMode):
    """Refuses what reads the device, or brings it something of the host's."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = resolve_name(func) or getattr(func, "__name__", "")
        if name.split(".")[-1] in (*_READS, *_CASTS) or name in _UPLOADS:
            raise AssertionError(f"a recorded step calls {name}")
        return func(*args, **(kwargs or {}))


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Any, Any, dict[str, Any], list[Tensor]]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "where.Scalar" in str(func) or "lift_fresh" in str(func):
            raise AssertionError(f"a recorded step copies a number of the host's: {func}")
        if any(t.dtype == torch.bool for t in _indices(func, args)):
            raise AssertionError(f"a recorded step selects by flags: {func}")
        for tensor in _written(func, args, kwargs):
            whole = tensor.new_empty(0).set_(tensor.untyped_storage())
            self._before.setdefault(whole.data_ptr(), (whole, whole.clone()))
        result = func(*args, **kwargs)
        held = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        made = [t for t in _tensors(result) if t.untyped_storage().data_ptr() not in held]
        self._steps.append((func, args, kwargs, made))
        return result

    def undo(self) -> None:
        """Take back what recording did."""
        for tensor, before in self._before.values():
            tensor.copy_(before)
        self._before.clear()

    def play(self) -> None:
        for func, args, kwargs, made in self._steps:
            result = func(*args, **kwargs)
            if made:
                for tensor, new in zip(_tensors(result), made, strict=True):
                    new.copy_(tensor)


def _tensors(values: Any) -> list[Tensor]:
    # Weights packed by oneDNN have no storage, and nobody writes to them.
    leaves = tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_mkldnn]


def _indices(func: Any, args: Any) -> list[Tensor]:
    return _tensors(args[1]) if func.__name__.startswith(("index.", "index_put")) else []


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            if isinstance(value, Tensor):
                yield value
