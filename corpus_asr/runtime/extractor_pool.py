"""Extracting child processes for the calls of one `Transcriber`, from any number of threads.

    calls' threads  -- take -->  a child that nobody uses, in the order in which they asked
                    <-- give back --

A call has a child while one recording is extracted, which goes on whether or not its caller takes
results: whoever waits for a child gets one, also in a thread whose own iterators stand still.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from corpus_asr.errors import ClosedError, check_same_process
from corpus_asr.stages.isolation import IsolatedGenerator

MAX_CHILDREN = 4  # of some 150 MiB each, and a core while they decode
# Another child starts in a second or two. Short recordings are sooner extracted by the first.
PATIENCE_S = 1.0


class Call(Protocol):
    """What is ended when the pool is closed."""

    def stop(self) -> None:
        """Start nothing more, and wake who waits."""


class ExtractorPool:
    """Lends children to calls, first come, first served; starts more where they are long in use."""

    def __init__(self, make: Callable[[], IsolatedGenerator]) -> None:
        self._make = make
        self._made_in = os.getpid()
        self._closed = False
        self._idle: list[IsolatedGenerator] = []
        self._num_lent = 0
        self._queue: deque[object] = deque()
        self._calls: set[Call] = set()
        # Reentrant: an iterator may be collected, and so end its call, wherever Python allocates.
        self._changed = threading.Condition(threading.RLock())

    def start(self) -> None:
        """Start the first child without waiting for it."""
        child = self._make()
        child.start()
        self._idle.append(child)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made it, and no fork."""
        return os.getpid() == self._made_in

    @property
    def closed(self) -> bool:
        """Whether no call can use it any more."""
        return self._closed

    def check(self) -> None:
        """Refuse a call that would wait forever.

        Raises:
            ForkedError: this is a fork of the process that made the pool.
            ClosedError: it is closed.
        """
        check_same_process("transcribing", "Transcriber", made_in=self._made_in)
        if self._closed:
            raise self.closed_error()

    def closed_error(self) -> ClosedError:
        """Return what a call ends with that a closed pool keeps from going on."""
        return ClosedError(
            "transcribing: this Transcriber is closed, perhaps by another thread while this call "
            "was at work; make a new one, and close it after the last call"
        )

    def enter(self, call: Call) -> None:
        """Count a call among those that `close` ends.

        Raises:
            EngineError: as of `check`.
        """
        with self._changed:
            self.check()
            self._calls.add(call)

    def leave(self, call: Call) -> None:
        """Forget a call that has ended, and let it no longer wait for a child."""
        with self._changed:
            self._calls.discard(call)
            self._changed.notify_all()

    def take(self, wanted: Callable[[], bool]) -> IsolatedGenerator | None:
        """Wait for a child that nobody uses; None once it is not wanted any more."""
        turn, since_s = object(), time.monotonic()
        with self._changed:
            self._queue.append(turn)
            try:
                while wanted():
                    left_s: float | None = None
                    if self._queue[0] is turn:
                        left_s = PATIENCE_S - (time.monotonic() - since_s)
                        if (child := self._free(impatient=left_s <= 0)) is not None:
                            self._num_lent += 1
                            return child
                        left_s = left_s if left_s > 0 else None
                    self._changed.wait(left_s)
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()
        return None

    def give_back(self, child: IsolatedGenerator) -> None:
        """Let others use a child; in a closed pool it ends."""
        with self._changed:
            self._num_lent -= 1
            if not self._closed:
                self._idle.append(child)
            self._changed.notify_all()
        if self._closed:
            child.close()

    def close(self) -> None:
        """End all calls and children. Does nothing in a fork, which has neither."""
        if not self.is_here:
            return
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            calls = [*self._calls]
        for call in calls:
            call.stop()
        for child in idle:
            child.close()

    def _free(self, *, impatient: bool) -> IsolatedGenerator | None:
        if self._idle:
            return self._idle.pop()
        if not self._num_lent or (impatient and self._num_lent < MAX_CHILDREN):
            return self._make()
        return None
