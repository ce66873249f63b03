"""What a pretended GPU holds and notes: memory, streams, captures, and each wait of the host.

Tensors on it are `device_tensors`, which queue their operations here.
"""

import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tests.support.device_streams import Clock, Stored, Streams

# Functions of `corpus_asr.decoding` by the name of the budget that their waits count in.
PLACES = {
    "fill": "fill", "admit": "admit", "step": "step", "look": "look", "ended": "ended",
    "collect": "collect", "move": "move", "encode_windows": "encode", "align_windows": "align",
    "align_window": "align",
}  # fmt: skip
# What no capture allows: each of these would wait for the device.
_NOT_IN_A_CAPTURE = ("read", "upload", "shape", "synchronize")


@dataclass(frozen=True, slots=True)
class Wait:
    """The host waits for the device here."""

    kind: str
    """`read` of values, `upload` that is not pinned and asynchronous, `shape` that depends on
    values, `event` or `synchronize`."""
    operation: str
    place: str
    """The name of its budget in `PLACES`, or "" outside of all."""
    trace: tuple[str, ...]
    """Lines of the package, the innermost first."""


@dataclass(slots=True)
class Memory:
    """Bytes of storage on all devices; `fails_at` numbers the allocation that fails."""

    capacity: int
    live: int = 0
    peak: int = 0
    allocations: int = 0
    fails_at: int | None = None
    failures: int = 0
    message: str = "CUDA out of memory (pretended)"
    error: type[RuntimeError] = torch.OutOfMemoryError
    held: dict[int, Stored] = field(default_factory=dict)
    """By address."""

    @property
    def free(self) -> int:
        """Bytes that can still be had."""
        return self.capacity - self.live

    def take(self, inner: Tensor) -> tuple[int, Stored] | None:
        """Count a user of the tensor's storage, perhaps a new one; None for an empty one."""
        storage = inner.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if size == 0:
            return None
        if address not in self.held:
            self.allocations += 1
            if self.allocations == self.fails_at or self.live + size > self.capacity:
                self.failures += 1
                raise self.error(self.message)
            self.held[address] = Stored(size)
            self.live += size
            self.peak = max(self.peak, self.live)
        self.held[address].users += 1
        return address, self.held[address]

    def give(self, address: int) -> Stored | None:
        """Count a user less; gives what nobody uses any more."""
        stored = self.held.get(address)
        if stored is None:
            return None
        stored.users -= 1
        if stored.users:
            return None
        self.live -= stored.size
        return self.held.pop(address)


class Recording(Protocol):
    """What a capture notes operations in."""

    def save(self, tensor: Tensor) -> None:
        """Keep what a tensor that is about to be written holds."""

    def before(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep what an operation is about to write."""

    def after(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Record an operation that made or wrote something."""

    def add(self, func: Any, args: Any, kwargs: dict[str, Any], made: list[Tensor]) -> None:
        """Record a call and the tensors that it made."""


class Gpu:
    """What was noted; one at a time exists, as `pretended_gpu` gives it."""

    def __init__(self, devices: int, capacity_bytes: int, capture_s: float) -> None:
        self.devices = devices
        self.memory = Memory(capacity_bytes)
        self.capture_s = capture_s
        """How long a capture lasts at least, so that threads may get into its way."""
        self.waits: list[Wait] = []
        self.captures = self.replays = 0
        self.emptied = 0
        self.overlaps: list[str] = []
        """What a thread did on the device while another one captured, and must not."""
        self.refuses_captures = False
        self.forbids_waits = False
        self.lock = threading.RLock()
        self.capturing: set[int] = set()
        self.mine = threading.local()
        self.streams = Streams()
        self.in_flight: deque[tuple[Tensor, Tensor, Clock]] = deque()
        self._pinned: dict[int, Tensor] = {}
        self._launches: Counter[str] | None = None

    @contextmanager
    def launches(self) -> Iterator[Counter[str]]:
        """Count what starts kernels, by the name of the operation."""
        counted: Counter[str] = Counter()
        before, self._launches = self._launches, counted
        try:
            yield counted
        finally:
            self._launches = before

    def waits_by_place(self) -> dict[str, int]:
        """How often the host waited, by place."""
        return dict(Counter(wait.place for wait in self.waits))

    def launched(self, name: str) -> None:
        """Count an operation that starts a kernel."""
        if self._launches is not None:
            self._launches[name] += 1

    def wait(self, kind: str, operation: str, clock: Clock | None = None) -> None:
        """Note that the host waits, for all unless a clock says for what; deliver copies."""
        place, trace = _here()
        with self.lock:
            self.waits.append(Wait(kind, operation, place, trace))
        if self.tape is not None and kind in _NOT_IN_A_CAPTURE:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        if self.forbids_waits:
            raise RuntimeError(f"called a synchronizing CUDA operation: {kind} {operation}")
        with self.lock:
            self.streams.wait_on_host(clock)
            while self.in_flight and self.streams.is_done(self.in_flight[0][2]):
                target, values, _ = self.in_flight.popleft()
                target.copy_(values)

    def used(
        self, read: Iterable[Any], written: Iterable[Any] = (), *, index: int | None = None
    ) -> None:
        """Queue an operation on the current stream that reads and writes tensors."""
        if self.tape is not None:
            return
        read, written = list(read), list(written)
        if index is None:
            index = next(one.device.index for one in (*read, *written))
        with self.lock:
            self.streams.use(index, _stored(read), _stored(written))

    def gave(self, address: int) -> None:
        """Count a user of some memory less."""
        with self.lock:
            stored = self.memory.give(address)
            if stored is not None:
                self.streams.free(stored)

    @property
    def tape(self) -> "Recording | None":
        """What this thread captures into."""
        found: Recording | None = getattr(self.mine, "tape", None)
        return found

    def disturbs(self, what: str) -> None:
        """Note what no thread may do while another one captures."""
        with self.lock:
            if self.capturing - {threading.get_ident()}:
                self.overlaps.append(f"{what} in {threading.current_thread().name}")

    def pin(self, tensor: Tensor) -> Tensor:
        """Remember a tensor as pinned."""
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        while len(self._pinned) > 4096:
            del self._pinned[next(iter(self._pinned))]
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor of the host is pinned."""
        return tensor.untyped_storage().data_ptr() in self._pinned


def _stored(tensors: Sequence[Any]) -> list[Stored]:
    return [one.stored for one in tensors if one.stored is not None]


_now: list[Gpu] = []


def gpu_now() -> Gpu:
    """The pretended GPU there is."""
    assert _now, "a device tensor lives longer than its pretended GPU"
    return _now[-1]


@contextmanager
def gpu_is(gpu: Gpu) -> Iterator[None]:
    """Let this be the pretended GPU there is."""
    _now.append(gpu)
    try:
        yield
    finally:
        _now.remove(gpu)


def _here() -> tuple[str, tuple[str, ...]]:
    trace: list[str] = []
    place = ""
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/corpus_asr/" in path:
            name = frame.f_code.co_name
            trace.append(f"{path.rsplit('/corpus_asr/', 1)[1]}:{frame.f_lineno} {name}")
            if not place and "/corpus_asr/decoding/" in path:
                place = PLACES.get(name, "")
        frame = frame.f_back
    return place, tuple(trace[:6])
