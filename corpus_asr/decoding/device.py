"""Device utilization: encoding beside decoding, CUDA graphs, copies that rarely block the host.

Windows are encoded on a GPU's second stream, or in some of a CPU's threads. On a GPU a plain copy
of pageable memory waits for all queued work. Here uploads use pinned memory, and downloads are read
after more work was queued.
"""

import ctypes
import logging
import platform
import re
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.threads import usable_threads

logger = logging.getLogger(__name__)

Step = Callable[[], None]

# Engines run in threads of their own, and CUDA captures one graph at a time in a process: during a
# capture no other thread may synchronize with the device or free memory. Source: the note on
# `torch.cuda.graph`; CUDA C++ Programming Guide, "Prohibited and Unhandled Operations" of stream
# capture.
_CAPTURING = threading.Lock()


# Messages of plain RuntimeErrors from cuBLAS, cuDNN and graph instantiation when memory runs out.
_OUT_OF_MEMORY = re.compile(r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|out of memory")


@contextmanager
def out_of_memory_by_name() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` for every library's error about missing memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if _OUT_OF_MEMORY.search(str(error)) is None:
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def return_freed_memory() -> None:
    """Return memory that the C library caches to the system, if it is glibc."""
    # It keeps freed blocks between others in use, at worst all released weights.
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def free_cached_memory(device: torch.device) -> None:
    """Release the unused GPU memory that torch caches."""
    if device.type == "cuda":
        with _CAPTURING:
            torch.cuda.empty_cache()


def set_threads(number: int | None = None) -> None:
    """Set the number of torch threads; None keeps its default, limited to the usable CPUs.

    Torch counts the cores of the machine and ignores a container's quota.
    """
    wanted = min(torch.get_num_threads(), usable_threads()) if number is None else number
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)


class CudaRecorder:
    """Records CUDA graphs that share one memory pool, as none needs another's leftovers."""

    # Runs before a step is recorded, at least one. Capturing synchronizes and frees cached memory,
    # too expensive for slot counts that occur only briefly at the end of a run. An estimate, not
    # measured.
    warm_ups = 8

    failures = 0
    """Number of failed captures."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, step: Step) -> None:
        """Run the step on the stream used for recording."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                step()
        finally:
            current.wait_stream(self._stream)

    def record(self, step: Step) -> Step:
        """Capture the step without executing it; returns a function that replays it.

        The function must not reference `step`, which references the slots' memory. Other threads
        may use the device meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            # A failed capture leaves its own stream as the current one.
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",
            ),
        ):
            step()
        return graph.replay


class StepGraphs:
    """The recordings of one batch, for a few slot counts.

    The first steps of each key run directly, as a warm-up; the next is recorded, and it and later
    ones are replayed. If recording fails, all further steps run directly. Window starts are
    recorded in the same way.
    """

    def __init__(self, places: int, recorder: CudaRecorder) -> None:
        self._places = places
        self._recorder = recorder
        self._uses: Counter[Hashable] = Counter()
        self._replays: dict[Hashable, Step] = {}
        self._held: dict[torch.Size, Tensor] = {}
        self._works = True

    def graph_size(self, active: int) -> int:
        """Return the slot count of a step for `active` slots: a power of two, or all places."""
        # Few counts, as each needs a warm-up and memory for its recording.
        return min(self._places, 1 << (active - 1).bit_length())

    def hold(self, numbers: Int[Tensor, "*shape"], device: torch.device) -> Int[Tensor, "*shape"]:
        """Copy numbers to the address that recordings use for this shape."""
        if numbers.shape not in self._held:
            self._held[numbers.shape] = torch.empty_like(numbers, device=device)
        return self._held[numbers.shape].copy_(numbers.pin_memory(), non_blocking=True)

    def run(self, key: Hashable, step: Step) -> None:
        """Run a step, by its recording if there is one."""
        if key in self._replays:
            self._replays[key]()
        elif not self._works:
            step()
        elif self._uses[key] < self._recorder.warm_ups:
            self._uses[key] += 1
            with _CAPTURING:
                self._recorder.warm_up(step)
        else:
            self._record(key, step)

    def _record(self, key: Hashable, step: Step) -> None:
        try:
            with _CAPTURING, out_of_memory_by_name():
                self._replays[key] = self._recorder.record(step)
        except torch.OutOfMemoryError:
            raise  # fewer slots may fit
        except RuntimeError as error:
            self._works = False
            self._recorder.failures += 1
            logger.error("recording a decoding step as a CUDA graph: %s; continuing without", error)
            step()
        else:
            self._replays[key]()


# Few lengths, as steps are recorded for each; at most half of the work is unnecessary.
_SHORTEST_REACH = 64


def reach_of(length: int, longest: int) -> int:
    """Return how far to read in caches for a longest text of `length` tokens: a power of two."""
    return min(longest, max(_SHORTEST_REACH, 1 << (length - 1).bit_length()))


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without blocking the host."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def upload(device: torch.device, *parts: Sequence[int] | Sequence[float] | Tensor) -> list[Tensor]:
    """Copy numbers or tensors to the device; floats become float64."""
    return [to_device(torch.as_tensor(part, dtype=_dtype(part)), device) for part in parts]


def upload_stack(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack tensors of one shape and type on the device without blocking the host."""
    if device.type != "cuda":
        return torch.stack(list(rows)).to(device)
    staged = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=True)
    return torch.stack(list(rows), out=staged).to(device, non_blocking=True)


class Download:
    """Copies of tensors of one device to the host, in progress while more work is queued."""

    def __init__(self, *tensors: Tensor) -> None:
        device = tensors[0].device
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._arrived is None:
            self._copies = [tensor.cpu() for tensor in tensors]
            return
        self._copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for copied, tensor in zip(self._copies, tensors, strict=True):
            copied.copy_(tensor, non_blocking=True)
        self._arrived.record(torch.cuda.current_stream(device))

    def wait(self) -> list[Tensor]:
        """Wait once for all copies, and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies


class FinishedFlags:
    """Flags on the device that the host reads.

    On an asynchronous device, flags are requested before the last step is queued and read after it,
    so that the device has a step to run while the host reads. Flags set in between are seen the
    next time.
    """

    def __init__(self, flags: Bool[Tensor, " slot"], *, behind: bool) -> None:
        self._flags = flags
        self.behind = behind
        self._asked = False
        on_gpu = flags.device.type == "cuda"
        self._copy = torch.zeros(flags.shape, dtype=torch.bool, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def ask(self) -> None:
        """Request the flags as of all work queued so far."""
        if not self.behind:
            return
        self._copy.copy_(self._flags, non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._flags.device))
        self._asked = True

    def read(self, count: int) -> list[bool]:
        """Return the first `count` flags; all false if not requested since the last read."""
        if not self.behind:
            flags: list[bool] = self._flags[:count].tolist()
            return flags
        if not self._asked:
            return [False] * count
        self._asked = False
        if self._copied is not None:
            self._copied.synchronize()
        then: list[bool] = self._copy[:count].tolist()
        return then


def _dtype(values: Sequence[int] | Sequence[float] | Tensor) -> torch.dtype:
    if isinstance(values, Tensor):
        return values.dtype
    # Python types; float32 values are converted on the device.
    return torch.float64 if any(isinstance(value, float) for value in values) else torch.long


Work = Callable[[], list[Tensor]]
"""Encodes a batch of windows; returns the hidden states (pos, width) of each."""


class Encodings:
    """Windows encoded together, possibly still in progress on a stream or thread."""

    def __init__(
        self,
        rows: "list[Tensor] | Future[list[Tensor]]",
        wait: Callable[[], None] | None = None,
    ) -> None:
        """Take the result of some work; `wait` makes work queued later start after it."""
        self._rows = rows
        self._wait = wait

    @property
    def is_there(self) -> bool:
        """Whether the result is available without waiting."""
        return not isinstance(self._rows, Future) or self._rows.done()

    def row(self, index: int) -> Float[Tensor, "pos width"]:
        """Return a window's hidden states, for work that is queued or done next."""
        rows = self._rows.result() if isinstance(self._rows, Future) else self._rows
        if self._wait is not None:
            self._wait()
        return rows[index]


class Encoder:
    """Encodes windows synchronously, and none ahead of time."""

    @property
    def takes_more(self) -> bool:
        """Whether the next waiting window should be left to it instead of encoded now."""
        return False

    def now(self, work: Work) -> Encodings:
        """Encode windows that are needed immediately."""
        return Encodings(work())

    def later(self, work: Work) -> Encodings:
        """Encode windows ahead of time."""
        return self.now(work)

    def num_ahead(self, *, waiting: int, encoded: int, batch: int) -> int:
        """Return how many waiting windows to encode ahead of time, at most a batch."""
        return 0

    def share(self, batch: int) -> int:
        """Reserve its threads; return how many windows of a batch to encode per `now` call."""
        return batch

    def cancel(self) -> None:
        """Drop work that has not started."""


class StreamEncoder(Encoder):
    """Encodes on a GPU's second stream, while slots decode on the first."""

    def __init__(self, device: torch.device, *, whole_batches: bool = False) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._whole_batches = whole_batches

    def now(self, work: Work) -> Encodings:
        """Queue work on this stream, to start after the work queued on the current stream."""
        # Memory that the host frees is reused by the next work here, possibly before the current
        # stream has read it.
        self._stream.wait_stream(self._current())
        with torch.cuda.stream(self._stream):
            rows = work()
        written = torch.cuda.Event()  # type: ignore[no-untyped-call]
        written.record(self._stream)
        return Encodings(rows, lambda: self._current().wait_event(written))

    def num_ahead(self, *, waiting: int, encoded: int, batch: int) -> int:
        """Half of the encoded windows allowed; the other half is consumed meanwhile."""
        # A window that is ready late delays all slots.
        size = batch if self._whole_batches else max(1, batch // 2)
        if encoded + size > batch or (waiting < size and encoded):
            return 0
        return min(size, waiting)

    def _current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)


class ThreadEncoder(Encoder):
    """Encodes in half of a CPU's threads, while slots decode in the others.

    With several threads, each of a decoding step's hundreds of small operations ends with the
    slowest thread. With 8 slots of whisper-base on two cores it takes 17 to 19 ms of both cores, on
    one core 24 ms, also while the other encodes (a window: 0.54 s, two at a time 0.56 s).
    """

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._begun: list[Future[list[Tensor]]] = []

    @property
    def queued(self) -> int:
        """Number of works waiting or in progress."""
        self._begun = [work for work in self._begun if not work.done()]
        return len(self._begun)

    @property
    def takes_more(self) -> bool:
        """Whether it is idle, so that slots can continue while it encodes."""
        return not self.queued

    def later(self, work: Work) -> Encodings:
        """Queue work; called from the decoding thread."""

        def apart() -> list[Tensor]:
            # Initialized here, before the thread's own setting, as the first product would do.
            torch.get_num_threads()
            torch.set_num_threads(self._width)
            return work()

        future = self._pool.submit(apart)
        self._begun.append(future)
        return Encodings(future)

    def num_ahead(self, *, waiting: int, encoded: int, batch: int) -> int:
        """As many as it has threads, one each."""
        # One work is queued behind another, so that the thread need not wait for the next check.
        return min(self._width, waiting) if self.queued < 2 and encoded < 2 * batch else 0

    def share(self, batch: int) -> int:
        """Leave its threads to it while it works; return the calling thread's number."""
        num_threads = self._threads - (self._width if self.queued else 0)
        if num_threads != torch.get_num_threads():
            torch.set_num_threads(num_threads)
        return min(batch, num_threads)

    def cancel(self) -> None:
        """Drop work that has not started."""
        for work in self._begun:
            work.cancel()

    @property
    def _width(self) -> int:
        return self._threads // 2


def encoder_on(device: torch.device, *, beside: bool, whole_batches: bool) -> Encoder:
    """Return the encoder for a device; `beside` lets a CPU encode while it decodes."""
    if device.type == "cuda":
        return StreamEncoder(device, whole_batches=whole_batches)
    if beside and torch.get_num_threads() > 1:
        return ThreadEncoder()
    return Encoder()
