"""Extraction ahead of the engine in one process, for a run or a call.

    calling thread -- recordings --> threads with children -- parts, as there is room --> engine
                   <-- wake, whenever a part, a window or a recording is done --

Only the calling thread takes recordings and results, reports, and raises exceptions.
"""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Pipeline(Generic[Item]):
    """Threads that extract recordings, and a limit on extracted parts not yet transcribed.

    Args:
        size: the limit, in bytes or in parts.
        threads: recordings, or packs of them, that are extracted at once.
    """

    def __init__(self, size: int, *, threads: int = 1) -> None:
        self._size, self._used = size, 0
        self._num_threads = threads
        # Reentrant: a collected iterator ends its call, possibly during any allocation.
        self._changed = threading.Condition(threading.RLock())
        self._is_woken = False
        self.extractions: dict[threading.Thread, Item] = {}
        """What is extracted at the moment, by thread."""
        self.is_exhausted = False
        """Whether nothing is left to begin."""
        self.closed = False
        self.error: BaseException | None = None
        """Exception that ended a thread, to be raised in the calling one."""

    def extract(self, item: Item) -> None:
        """Extract a recording, or a pack of them, in a thread of its own."""
        raise NotImplementedError

    def begin(self, items: Iterator[Item]) -> Item | None:
        """Begin to extract the next item, unless none is left or all threads are busy."""
        if self.is_exhausted or len(self.extractions) == self._num_threads:
            return None
        if (item := next(items, None)) is None:
            self.is_exhausted = True
            return None
        thread = self.thread("extract", partial(self._extract, item))
        self.extractions[thread] = item
        thread.start()
        return item

    def _extract(self, item: Item) -> None:
        self.extract(item)
        del self.extractions[threading.current_thread()]

    def thread(self, name: str, work: Callable[[], object]) -> threading.Thread:
        """Return a daemon thread for `work`: Python waits at exit for other kinds of threads."""

        def do() -> None:
            try:
                work()
            except BaseException as error:
                self.error = error
            self.wake()

        return threading.Thread(target=do, name=name, daemon=True)

    def take(self, amount: int) -> bool:
        """Wait for `amount` of room; return False if the pipeline was closed."""
        with self._changed:
            self._changed.wait_for(
                # An amount above the limit is admitted when nothing else is in use.
                lambda: self.closed or not self._used or self._used + amount <= self._size
            )
            self._used += amount
            return not self.closed

    def give_back(self, amount: int) -> None:
        """Release `amount` of room, and wake the calling thread; from any thread."""
        with self._changed:
            self._used -= amount
            self.wake()

    def wake(self) -> None:
        """Wake `wait`; from any thread."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return True once woken since the last return; False after `timeout_s`."""
        with self._changed:
            woken = self._changed.wait_for(lambda: self._is_woken, timeout_s)
            # Reset before the caller looks: later events wake it again.
            self._is_woken = False
            return woken

    def close(self) -> None:
        """Refuse further work and wake all waiting threads; from any thread."""
        self.closed = True
        self.wake()
