"""What a pretended GPU holds and notes: memory, streams, captures, and each wait of the host.

Tensors on it are `device_tensors`, which queue their operations here. The GPU computes at once and
in order, so values cannot show a wait that is missing: each stream counts what is queued on it, and
events and waits hand on how much of which stream is done by then. What a tensor was last used for
must be among it. Source: Mattern 1989, "Virtual Time and Global States of Distributed Systems"
(vector clocks).
"""

import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Clock = dict["Stream", int]
"""How much of what was queued on each stream is done."""


class Stream:
    """Stands for `torch.cuda.Stream`."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = torch.device("cuda", 0) if device is None else torch.device(device)
        self.queued = 0
        self.known: Clock = {}
        """Of other streams, what was waited for."""

    def clock(self) -> Clock:
        """What is done once all that is queued here now is."""
        return {**self.known, self: self.queued}

    def wait_for(self, clock: Clock) -> None:
        """Let what is queued from here on begin after that."""
        merge(self.known, clock)

    def wait_stream(self, other: "Stream") -> None:
        """Wait, on the device, for what is queued on another one now."""
        self.wait_for(other.clock())

    def wait_event(self, event: Any) -> None:
        """Wait, on the device, for an event."""
        self.wait_for(event.clock)


def merge(clock: Clock, other: Clock) -> None:
    """Add what another clock knows."""
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


class RaceError(RuntimeError):
    """A stream would use memory that another may not be done with."""


@dataclass(slots=True)
class Stored:
    """A piece of memory, who holds it, and what was last done to it."""

    users: int = 0
    pool: Stream | None = None
    """Where it was allocated: to what is allocated there later it is given, once it is free."""
    writer: tuple[Stream, int] | None = None
    readers: Clock = field(default_factory=dict)


class Streams:
    """Streams of all devices."""

    def __init__(self) -> None:
        self.host: Clock = {}
        """What the host has waited for."""
        self._all: list[Stream] = []
        self._defaults: dict[int, Stream] = {}
        self._mine = threading.local()
        self._freed: dict[Stream, list[tuple[Stream, int]]] = {}

    def current(self, index: int) -> Stream:
        """The stream that this thread queues work on."""
        chosen: dict[int, Stream] = getattr(self._mine, "chosen", {})
        return chosen[index] if index in chosen else self.default(index)

    def default(self, index: int) -> Stream:
        """The stream of a device that nobody chose."""
        if index not in self._defaults:
            self._defaults[index] = self.new(torch.device("cuda", index))
        return self._defaults[index]

    def choose(self, index: int, stream: Stream) -> Stream:
        """Queue work on another stream; returns the one before."""
        before = self.current(index)
        self._mine.chosen = {**getattr(self._mine, "chosen", {}), index: stream}
        return before

    def new(self, device: Any = None, priority: int = 0) -> Stream:
        """Make another stream."""
        self._all.append(Stream(device, priority))
        return self._all[-1]

    def wait_on_host(self, clock: Clock | None) -> None:
        """Let the host wait for that, or for what is queued on any stream."""
        clocks = [one.clock() for one in self._all] if clock is None else [clock]
        for known in clocks:
            merge(self.host, known)

    def is_done(self, clock: Clock) -> bool:
        """Whether the host has waited for all that."""
        return all(self.host.get(stream, 0) >= count for stream, count in clock.items())

    def use(self, index: int, read: Iterable[Stored], written: Iterable[Stored]) -> None:
        """Queue an operation on the current stream."""
        stream = self.current(index)
        stream.queued += 1
        for one in read:
            self._check(stream, one.writer, "reads what another wrote")
            one.readers[stream] = stream.queued
        for one in written:
            self._check(stream, one.writer, "overwrites what another wrote")
            for reader in one.readers.items():
                self._check(stream, reader, "overwrites what another reads")
            one.writer, one.readers = (stream, stream.queued), {}

    def allocate(self, index: int, stored: Stored) -> None:
        """Let the current stream make something, perhaps where something else was before."""
        stream = self.current(index)
        for pending in self._freed.pop(stream, ()):
            self._check(stream, pending, "is given memory that another uses")
        stored.pool, stored.writer = stream, (stream, stream.queued)

    def free(self, stored: Stored) -> None:
        """Note what other streams still do with memory that nobody holds any more."""
        pool = stored.pool
        if pool is None:
            return
        uses = [*stored.readers.items(), *([stored.writer] if stored.writer else [])]
        left = [use for use in uses if use[0] is not pool]
        self._freed.setdefault(pool, []).extend(left)

    def _check(self, stream: Stream, done: tuple[Stream, int] | None, what: str) -> None:
        if done is None or done[0] is stream:
            return
        other, count = done
        if max(stream.known.get(other, 0), self.host.get(other, 0)) < count:
            raise RaceError(f"a stream {what}: wait for an event of that first")


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


class Memory:
    """What is stored on all devices, by address."""

    def __init__(self) -> None:
        self.held: dict[int, Stored] = {}

    def take(self, inner: Tensor) -> tuple[int, Stored] | None:
        """Count a user of the tensor's storage, perhaps a new one; None for an empty one."""
        storage = inner.untyped_storage()
        if storage.nbytes() == 0:
            return None
        stored = self.held.setdefault(storage.data_ptr(), Stored())
        stored.users += 1
        return storage.data_ptr(), stored

    def give(self, address: int) -> Stored | None:
        """Count a user less; gives what nobody uses any more."""
        stored = self.held.get(address)
        if stored is None:
            return None
        stored.users -= 1
        return None if stored.users else self.held.pop(address)


class Gpu:
    """What was noted; one at a time exists, as `pretended_gpu` gives it."""

    def __init__(self, devices: int, capture_s: float) -> None:
        self.devices = devices
        self.memory = Memory()
        self.capture_s = capture_s
        """How long a capture lasts at least, so that threads may get into its way."""
        self.waits: list[Wait] = []
        self.captures = self.replays = 0
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
        # Of events torch does not mind, as CUDA does not.
        if self.forbids_waits and kind != "event":
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
    def tape(self) -> Any:
        """What this thread captures into, if it does."""
        return getattr(self.mine, "tape", None)

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
