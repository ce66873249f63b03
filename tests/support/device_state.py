"""What a pretended GPU notes: captures, launches, and each wait of the host.

Tensors on it are `device_tensors`. The GPU computes at once and in order; which stream waits for
which, and what memory is given to whom, a real one alone shows (tests/gpu).
"""

import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Stream:
    """Stands for `torch.cuda.Stream`: work is done at once and in order, whichever it is on."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = torch.device("cuda", 0) if device is None else torch.device(device)

    def wait_stream(self, other: "Stream") -> None:
        """Wait, on the device, for what is queued on another one."""

    def wait_event(self, event: Any) -> None:
        """Wait, on the device, for an event."""


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


class Gpu:
    """What was noted; one at a time exists, as `pretended_gpu` gives it."""

    def __init__(self, devices: int, capture_s: float) -> None:
        self.devices = devices
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
        self.in_flight: deque[tuple[Tensor, Tensor]] = deque()
        self._defaults: dict[int, Stream] = {}
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

    def wait(self, kind: str, operation: str) -> None:
        """Note that the host waits, and deliver copies."""
        place, trace = _here()
        with self.lock:
            self.waits.append(Wait(kind, operation, place, trace))
        if self.tape is not None and kind in _NOT_IN_A_CAPTURE:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        # Of events torch does not mind, as CUDA does not.
        if self.forbids_waits and kind != "event":
            raise RuntimeError(f"called a synchronizing CUDA operation: {kind} {operation}")
        with self.lock:
            while self.in_flight:
                target, values = self.in_flight.popleft()
                target.copy_(values)

    def current(self, index: int = 0) -> Stream:
        """The stream that this thread queues work on."""
        chosen: dict[int, Stream] = getattr(self.mine, "chosen", {})
        return chosen.get(index) or self.default(index)

    def default(self, index: int = 0) -> Stream:
        """The stream of a device that nobody chose."""
        return self._defaults.setdefault(index, Stream(torch.device("cuda", index)))

    def choose(self, stream: Stream) -> Stream:
        """Queue work on another stream; returns the one before."""
        index = stream.device.index or 0
        before = self.current(index)
        self.mine.chosen = {**getattr(self.mine, "chosen", {}), index: stream}
        return before

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
