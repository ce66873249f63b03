"""Seconds per stage, taken inside a worker.

In: the work itself. Out: seconds by stage. On a GPU, where a call returns before its work is done,
the clock waits for the device at both ends of what it times, or reads the device's own marks.
Imports torch only there: an engine that works without it must not have its memory counted.
"""

import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_MIB = 1 << 20


class StageClock:
    """Adds up the time spent in stages; stages must not lie within one another.

    Args:
        cuda: whether the work is queued on a GPU by torch.
    """

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = _torch_cuda() if cuda else None
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what is done inside; on a GPU between two marks in the queue, without waiting."""
        if self._cuda is None:
            started = time.perf_counter()
            yield
            self.add(name, time.perf_counter() - started)
            return
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._marks.append((name, begin, end))

    def watch(self, name: str, function: Callable[..., _T]) -> Callable[..., _T]:
        """Return `function` with its calls counted."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> _T:
            with self.stage(name):
                return function(*args, **kwargs)

        return watched

    def add(self, name: str, seconds: float) -> None:
        """Count time that was taken elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Return the seconds of every stage since the last call."""
        if self._cuda is not None:
            self._cuda.synchronize()
        for name, begin, end in self._marks:
            self.add(name, begin.elapsed_time(end) / 1000)
        found, self._seconds, self._marks = self._seconds, {}, []
        return found


def seconds(work: Callable[[], object], *, cuda: bool) -> float:
    """Time `work` until the device has done it; nothing must be queued on a GPU before."""
    started = time.perf_counter()
    work()
    if cuda:
        _torch_cuda().synchronize()
    return time.perf_counter() - started


def peak_memory() -> dict[str, float | None]:
    """Return the peak memory of this process and its children, and torch's on the GPU, in MiB.

    Each child's peak is its own, so the sum may be a little above what was in use at once.
    """
    # Each thread has children of its own.
    listed = Path("/proc/self/task").glob("*/children")
    processes = ["self", *(pid for children in listed for pid in children.read_text().split())]
    known = [
        kib for pid in processes if (kib := _peak_kib(Path(f"/proc/{pid}/status"))) is not None
    ]
    on_gpu = "torch.cuda" in sys.modules and _torch_cuda().is_initialized()
    gpu = _torch_cuda().max_memory_reserved() / _MIB if on_gpu else 0.0
    return {
        "peak_memory_mib": round(sum(known) / 1024, 1) if known else None,
        # Engines that do not allocate through torch cannot be seen there.
        "peak_gpu_mib": round(gpu, 1) or None,
    }


def _peak_kib(status: Path) -> int | None:
    """Read a process's high-water mark, which unlike `getrusage`'s starts with the program."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def _torch_cuda() -> Any:
    return importlib.import_module("torch.cuda")
