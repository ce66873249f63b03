"""Encoder scheduling: synchronous, on a GPU's second stream, or in a CPU thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from corpus_asr.array_types import Float

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
