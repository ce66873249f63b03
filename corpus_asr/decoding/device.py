"""What keeps a device busy: work replayed as CUDA graphs, copies that seldom make the host wait.

On a CPU windows are encoded in some threads while others decode. On a GPU a plain copy of pageable
memory waits for everything the device still has to do. Here uploads are pinned, and what comes back
is read after more work is queued.
"""

import ctypes
import logging
import platform
import re
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Int
from corpus_asr.threads import usable_threads

logger = logging.getLogger(__name__)

Step = Callable[[], None]

# Engines work in threads of their own, and CUDA captures one graph at a time in a process: while
# one does, no other thread may wait for the whole device or give back memory.
# Source: the note on `torch.cuda.graph`; CUDA C++ Programming Guide, "Prohibited and Unhandled
# Operations" of stream capture.
_CAPTURING = threading.Lock()


# What cuBLAS, cuDNN and the instantiation of graphs say of it, as plain RuntimeErrors.
_OUT_OF_MEMORY = re.compile(r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|out of memory")


@contextmanager
def out_of_memory_by_name() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` whatever the library that lacks memory calls it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if _OUT_OF_MEMORY.search(str(error)) is None:
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def return_freed_memory() -> None:
    """Return to the system what the C library keeps of freed memory, if it is glibc."""
    # It keeps what lies between others that are in use, at worst all weights that were let go of.
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def free_cached_memory(device: torch.device) -> None:
    """Give back what torch holds of a GPU's memory and nobody uses."""
    if device.type == "cuda":
        with _CAPTURING:
            torch.cuda.empty_cache()


def set_threads(number: int | None = None) -> None:
    """Give torch so many threads; None leaves its choice, but for those without a CPU to run on.

    Torch counts the cores of the machine, and knows nothing of a container's quota.
    """
    wanted = min(torch.get_num_threads(), usable_threads()) if number is None else number
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)


class CudaRecorder:
    """Records CUDA graphs that share one memory pool, as none needs what another left there."""

    # Runs before a step is worth recording, at least one. Capturing waits for the device and gives
    # back cached memory: too much for counts of slots that are passed through at the end of a run.
    # A guess, not measured.
    warm_ups = 8

    failures = 0
    """Captures that failed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, step: Step) -> None:
        """Run the step on the stream it will be recorded on."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                step()
        finally:
            current.wait_stream(self._stream)

    def record(self, step: Step) -> Step:
        """Capture the step without any effect; returns what replays it.

        That must not hold on to `step`, which holds on to the slots' memory. Other threads may use
        the device meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            # A capture that fails leaves its own stream the current one.
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
    """The recordings of one batch, for a few counts of slots.

    The first steps of each key are run as they are, which warms up; the next is recorded, and it
    and later ones are replayed. Where recording fails, every step from then on is run as it is.
    What starts windows is recorded likewise.
    """

    def __init__(self, places: int, recorder: CudaRecorder) -> None:
        self._places = places
        self._recorder = recorder
        self._uses: Counter[Hashable] = Counter()
        self._replays: dict[Hashable, Step] = {}
        self._held: dict[torch.Size, Tensor] = {}
        self._works = True

    def rung(self, active: int) -> int:
        """The count of slots to step with for `active`: a power of two, or all places."""
        # Few counts, as each has to warm up and takes memory for its recording.
        return min(self._places, 1 << (active - 1).bit_length())

    def hold(self, numbers: Int[Tensor, "*shape"], device: torch.device) -> Int[Tensor, "*shape"]:
        """Copy numbers to where recordings look for those of this shape."""
        if numbers.shape not in self._held:
            self._held[numbers.shape] = torch.empty_like(numbers, device=device)
        return self._held[numbers.shape].copy_(numbers.pin_memory(), non_blocking=True)

    def run(self, key: Hashable, step: Step) -> None:
        """Run a step, by a recording where there is one."""
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


# Few lengths, as steps are recorded for each; between them as much is looked at in vain as seen.
_SHORTEST_REACH = 64


def reach_of(length: int, longest: int) -> int:
    """How far to look in caches where the longest text has `length` tokens: a few powers of two."""
    return min(longest, max(_SHORTEST_REACH, 1 << (length - 1).bit_length()))


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; the host goes on at once."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def upload(device: torch.device, *parts: Sequence[int] | Sequence[float] | Tensor) -> list[Tensor]:
    """Copy numbers or tensors to the device; floats arrive as float64."""
    return [to_device(torch.as_tensor(part, dtype=_dtype(part)), device) for part in parts]


def upload_stack(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack tensors of one shape and type on the device; the host goes on at once."""
    if device.type != "cuda":
        return torch.stack(list(rows)).to(device)
    staged = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=True)
    return torch.stack(list(rows), out=staged).to(device, non_blocking=True)


class Download:
    """Copies of tensors of one device, on their way to the host while more work is queued."""

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
        """Wait, once for all of them, and return the copies."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies


class FinishedFlags:
    """Flags on the device, looked at from the host.

    Where the device works behind the host, flags are asked for before the last step is queued and
    read after it: so the device has a step to do while the host reads. What comes true in between
    is seen the next time.
    """

    def __init__(self, flags: Bool[Tensor, " slot"], *, behind: bool) -> None:
        self._flags = flags
        self.behind = behind
        self._asked = False
        on_gpu = flags.device.type == "cuda"
        self._copy = torch.zeros(flags.shape, dtype=torch.bool, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def ask(self) -> None:
        """Ask for the flags as they are when all work queued so far is done."""
        if not self.behind:
            return
        self._copy.copy_(self._flags, non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._flags.device))
        self._asked = True

    def read(self, count: int) -> list[bool]:
        """The first `count` flags; all false where they were not asked for since the last read."""
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
    # As Python has them; what is wanted in float32 is converted on the device.
    return torch.float64 if any(isinstance(value, float) for value in values) else torch.long
