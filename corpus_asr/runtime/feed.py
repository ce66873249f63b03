"""What a run or a call feeds its engine with: extracted in threads, and bounded until transcribed.

    calling thread  -- work -->  threads: extracting children -- parts, as there is room -->  engine
                    <-- wake, whenever a part, a window or a recording is done --

Only the calling thread takes results, reports and raises.
"""

import threading
from collections.abc import Callable


class Feed:
    """Threads of one run or call, and room for what is extracted and not yet transcribed.

    Args:
        size: the room, in bytes or in parts.
    """

    def __init__(self, size: int) -> None:
        self._size, self._used = size, 0
        # Reentrant: an iterator may be collected, and so end its call, wherever Python allocates.
        self._changed = threading.Condition(threading.RLock())
        self._is_woken = False
        self.closed = False
        self.error: BaseException | None = None
        """What ended a thread, to be raised in the calling one."""

    def start(self, name: str, work: Callable[[], object]) -> threading.Thread:
        """Do work in a daemon thread: Python waits at its end for others, and for executors'."""

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
        """Wait until there is room for so much, and return whether it is wanted at all."""
        with self._changed:
            self._changed.wait_for(
                # Something larger than all there is gets it once nobody else has any.
                lambda: self.closed or not self._used or self._used + amount <= self._size
            )
            self._used += amount
            return not self.closed

    def give_back(self, amount: int) -> None:
        """Make room, and wake the calling thread; from any thread."""
        with self._changed:
            self._used -= amount
            self.wake()

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return once it was woken since the last return; False after `timeout_s` without that."""
        with self._changed:
            woken = self._changed.wait_for(lambda: self._is_woken, timeout_s)
            # Before the caller looks: what is done from here on wakes it again.
            self._is_woken = False
            return woken

    def close(self) -> None:
        """Let nobody wait: nothing more is wanted; from any thread."""
        self.closed = True
        self.wake()
