"""Where windows are encoded: at once, on a GPU's second stream, or in one of a CPU's threads."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from corpus_asr.array_types import Float

Work = Callable[[], list[Tensor]]
"""Encodes some windows; returns the hidden states (pos, width) of each."""


class Encodings:
    """Windows encoded together, which a stream or thread may still work on."""

    def __init__(
        self,
        rows: "list[Tensor] | Future[list[Tensor]]",
        wait: Callable[[], None] | None = None,
    ) -> None:
        """Take what comes of some work; `wait` lets what is queued next begin after it."""
        self._rows = rows
        self._wait = wait

    @property
    def is_there(self) -> bool:
        """Whether the host need not wait for it."""
        return not isinstance(self._rows, Future) or self._rows.done()

    def row(self, index: int) -> Float[Tensor, "pos width"]:
        """Return a window's hidden states, for work that is queued or done next."""
        rows = self._rows.result() if isinstance(self._rows, Future) else self._rows
        if self._wait is not None:
            self._wait()
        return rows[index]


class Encoder:
    """Encodes windows at once, and none ahead of need."""

    @property
    def takes_more(self) -> bool:
        """Whether the next window that waits is better left to it than encoded at once."""
        return False

    def now(self, work: Work) -> Encodings:
        """Encode windows that are needed."""
        return Encodings(work())

    def later(self, work: Work) -> Encodings:
        """Encode windows ahead of need."""
        return self.now(work)

    def num_ahead(self, *, waiting: int, encoded: int, batch: int) -> int:
        """How many of the waiting windows to encode ahead of need now, of at most a batch."""
        return 0

    def share(self, batch: int) -> int:
        """Leave it what it works with; returns how many of a batch to encode `now` at once."""
        return batch

    def cancel(self) -> None:
        """Drop what has not begun: nobody wants it any more."""


class StreamEncoder(Encoder):
    """Encodes on a GPU's second stream, while slots decode on the first."""

    def __init__(self, device: torch.device, *, whole_batches: bool = False) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._whole_batches = whole_batches

    def now(self, work: Work) -> Encodings:
        """Queue work here, to begin after what is queued on the current stream by now."""
        # What the host lets go of is given to the next work here, though the current stream, which
        # was to read it, may not have come so far.
        self._stream.wait_stream(self._current())
        with torch.cuda.stream(self._stream):
            rows = work()
        written = torch.cuda.Event()  # type: ignore[no-untyped-call]
        written.record(self._stream)
        return Encodings(rows, lambda: self._current().wait_event(written))

    def num_ahead(self, *, waiting: int, encoded: int, batch: int) -> int:
        """Half of what may lie encoded; the other half is used up meanwhile."""
        # A window that is ready late holds up all slots.
        size = batch if self._whole_batches else max(1, batch // 2)
        if encoded + size > batch or (waiting < size and encoded):
            return 0
        return min(size, waiting)

    def _current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)


class ThreadEncoder(Encoder):
    """Encodes in half of a CPU's threads, while slots decode in the others.

    A decoding step on several threads ends each of its hundreds of small operations when the last
    thread does. With 8 slots of whisper-base on two cores it takes 17 to 19 ms of both cores, on
    one alone 24 ms, also while the other encodes (a window: 0.54 s, two at a time 0.56 s).
    """

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._begun: list[Future[list[Tensor]]] = []

    @property
    def queued(self) -> int:
        """How many works wait here or go on."""
        self._begun = [work for work in self._begun if not work.done()]
        return len(self._begun)

    @property
    def takes_more(self) -> bool:
        """Whether it has nothing to do: the slots go on while it encodes."""
        return not self.queued

    def later(self, work: Work) -> Encodings:
        """Queue work; to be called from the thread that goes on."""

        def apart() -> list[Tensor]:
            # Asked for once, as the first product would: after that, what is set here stays.
            torch.get_num_threads()
            torch.set_num_threads(self._width)
            return work()

        future = self._pool.submit(apart)
        self._begun.append(future)
        return Encodings(future)

    def num_ahead(self, *, waiting: int, encoded: int, batch: int) -> int:
        """As many as it has threads, one each."""
        # One work waits for another to end: the thread must not wait for the next look.
        return min(self._width, waiting) if self.queued < 2 and encoded < 2 * batch else 0

    def share(self, batch: int) -> int:
        """Leave it its threads while it works; returns how many the calling thread has now."""
        num_threads = self._threads - (self._width if self.queued else 0)
        if num_threads != torch.get_num_threads():
            torch.set_num_threads(num_threads)
        return min(batch, num_threads)

    def cancel(self) -> None:
        """Drop what has not begun."""
        for work in self._begun:
            work.cancel()

    @property
    def _width(self) -> int:
        return self._threads // 2


def encoder_on(device: torch.device, *, beside: bool, whole_batches: bool) -> Encoder:
    """Return what encodes on a device; `beside` lets a CPU encode while it decodes."""
    if device.type == "cuda":
        return StreamEncoder(device, whole_batches=whole_batches)
    if beside and torch.get_num_threads() > 1:
        return ThreadEncoder()
    return Encoder()
