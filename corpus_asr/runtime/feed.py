"""Bounded queue between extraction threads and the engine of a run or call.

    calling thread  -- work -->  threads: extracting children -- parts, as there is room -->  engine
                    <-- wake, whenever a part, a window or a recording is done --

Only the calling thread takes results, reports and raises exceptions.
"""

import threading
from collections.abc import Callable


class Feed:
    """Threads of one run or call, and a limit on extracted parts not yet transcribed.

    Args:
        size: the limit, in bytes or in parts.
    """

    def __init__(self, size: int) -> None:
        self._size, self._used = size, 0
        # Reentrant: a collected iterator ends its call, possibly during any allocation.
        self._changed = threading.Condition(threading.RLock())
        self._is_woken = False
        self.closed = False
        self.error: BaseException | None = None
        """Exception that ended a thread, to be raised in the calling one."""

    def start(self, name: str, work: Callable[[], object]) -> threading.Thread:
        """Run `work` in a daemon thread: Python waits at exit for other kinds of threads."""

        def do() -> None:
            try:
                work()
            except BaseException as error:
                self.error = error
            self.wake()

        thread = threading.Thread(target=do, name=name, daemon=True)
        thread.start()
        return thread

    def take(self, amount: int) -> bool:
        """Wait for `amount` of room; return False if the feed was closed."""
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
