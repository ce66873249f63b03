"""A pretended GPU: inside `pretended_gpu()` the CUDA path of the package runs as it is.

Its tensors are `device_tensors`, what it notes is `device_state`; here are what makes
`torch.cuda` work with them: streams, events and graphs. A captured graph is a tape of
operations at fixed addresses, whose intermediates are overwritten after each replay, as other
graphs of its pool would.

Of kernels, float16, timing, memory and how streams wait for each other it knows nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.device_state import Gpu, Stream, gpu_now
from tests.support.device_tensors import (
    DeviceTensor,
    Host,
    as_gpu,
    spoil,
    tree_leaves,
    written_by,
)


class Tape:
    """Operations at fixed addresses; undone once recorded, as capturing has no effect."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._steps: list[tuple[Any, Any, dict[str, Any], list[Tensor]]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: dict[int, Tensor] = {}

    def save(self, tensor: Tensor) -> None:
        """Keep what a tensor that is about to be written holds."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._before and address not in self._made:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._before[address] = whole, whole.clone()

    def before(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep what an operation is about to write."""
        for number, argument in written_by(func):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            if isinstance(value, Tensor):
                self.save(value)

    def after(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Record an operation that made or wrote something."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        held = {tensor.untyped_storage().data_ptr() for tensor in given}
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        made = [one for one in results if one.untyped_storage().data_ptr() not in held]
        if made or written_by(func):
            self.add(func, args, kwargs, made)

    def add(self, func: Any, args: Any, kwargs: dict[str, Any], made: list[Tensor]) -> None:
        """Record a call and the tensors that it made."""
        for tensor in made:
            self._made[tensor.untyped_storage().data_ptr()] = tensor
        self._steps.append((func, args, kwargs, made))

    def undo(self) -> None:
        """Take back what recording did."""
        for whole, before in self._before.values():
            whole.copy_(before)
        self._before.clear()
        self._overwrite()

    def play(self) -> None:
        """Do it all again, into the same tensors."""
        with torch.inference_mode():
            for func, args, kwargs, made in self._steps:
                result = func(*args, **kwargs)
                if made:
                    results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
                    for target, values in zip(made, results[-len(made) :], strict=True):
                        target.copy_(values)
            self._overwrite()

    def _overwrite(self) -> None:
        if self._shared:
            for tensor in self._made.values():
                spoil(tensor)


class _Graph:
    def __init__(self) -> None:
        self.tape: Tape | None = None

    def replay(self) -> None:
        assert self.tape is not None, "a graph is replayed before it was captured"
        gpu_now().replays += 1
        self.tape.play()


class _Capture:
    """Stands for `torch.cuda.graph`."""

    def __init__(
        self, graph: _Graph, pool: Any = None, stream: Stream | None = None, **_: Any
    ) -> None:
        self._graph = graph
        self._tape = Tape(shared=pool is not None)

    def __enter__(self) -> None:
        gpu = gpu_now()
        gpu.wait("synchronize", "torch.cuda.graph")
        gpu.disturbs("capture")
        _empty_cache()
        with gpu.lock:
            gpu.capturing.add(threading.get_ident())
        gpu.mine.tape = self._tape
        time.sleep(gpu.capture_s)

    def __exit__(self, kind: Any, *_: Any) -> None:
        gpu = gpu_now()
        gpu.mine.tape = None
        with gpu.lock:
            gpu.capturing.discard(threading.get_ident())
        self._tape.undo()
        if kind is None and gpu.refuses_captures:
            raise RuntimeError("operation failed due to a previous error during capture")
        if kind is None:
            self._graph.tape = self._tape
            gpu.captures += 1


class _Event:
    def __init__(self, **_: Any) -> None:
        self._at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        gpu_now().wait("event", "Event.synchronize")

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "_Event") -> float:
        return (other._at - self._at) * 1000


def _index(device: Any) -> int:
    return 0 if device is None else torch.device(device).index or 0


@contextmanager
def _on_stream(stream: Stream) -> Iterator[None]:
    before = gpu_now().choose(stream)
    try:
        yield
    finally:
        gpu_now().choose(before)


def _empty_cache() -> None:
    gpu_now().disturbs("empty_cache")


def _sync_debug_mode(mode: str) -> None:
    gpu_now().forbids_waits = mode == "error"


def _module_to(plain: Callable[..., Any]) -> Callable[..., Any]:
    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        named = [arg for arg in args if isinstance(arg, str | torch.device)]
        device = named[0] if named else kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            moved: torch.nn.Module = plain(self, *args, **kwargs)
            return moved
        for module in self.modules():
            for held in (module._parameters, module._buffers):
                for name, value in list(held.items()):
                    if value is not None and not isinstance(value, DeviceTensor):
                        copied = DeviceTensor(value.data.clone(), torch.device(device).index or 0)
                        held[name] = copied  # type: ignore[assignment]
        return self

    return to


@contextmanager
def pretended_gpu(*, devices: int = 1, capture_s: float = 0.0) -> Iterator[Gpu]:
    """Let CUDA be there, in this thread and in those that are started meanwhile."""
    gpu = Gpu(devices, capture_s)
    run: Callable[..., None] = threading.Thread.run

    def runs(self: threading.Thread) -> None:
        with Host():
            run(self)

    stand_ins: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: devices,
        "get_device_name": lambda device=None: "Pretended",
        "get_device_capability": lambda device=None: (8, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (80 << 30, 80 << 30),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "empty_cache": _empty_cache,
        "synchronize": lambda device=None: gpu.wait("synchronize", "torch.cuda.synchronize"),
        "current_stream": lambda device=None: gpu.current(_index(device)),
        "stream": _on_stream,
        "device": lambda device: nullcontext(),
        "graph_pool_handle": lambda: (0, 1),
        "set_sync_debug_mode": _sync_debug_mode,
        "Stream": Stream,
        "Event": _Event, "CUDAGraph": _Graph, "graph": _Capture,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, as_gpu(gpu):
        for name, stand_in in stand_ins.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch.nn.Module, "to", _module_to(torch.nn.Module.to))
        patch.setattr(threading.Thread, "run", runs)
        yield gpu
