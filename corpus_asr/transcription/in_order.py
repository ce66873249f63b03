"""What the tasks of one part find, put in the part's order.

In: each task's result, whenever it comes. Out: all of them at once, or the first error.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from corpus_asr.decoding.slots import Done

Found = TypeVar("Found")
"""A segment, say."""


class InOrder(Generic[Found]):
    """Waits for a number of tasks and tells once.

    Args:
        count: of tasks, at least one.
        done: told all that they found, task by task; or nothing and the error that one ended with.
    """

    def __init__(self, count: int, done: Callable[[list[Found], Exception | None], None]) -> None:
        self._found: list[list[Found]] = [[] for _ in range(count)]
        self._left = count
        self._done = done

    def collector(self, index: int) -> Done:
        """Return what the scheduler is to tell about one task."""

        def collect(found: list[Found] | None, error: Exception | None) -> None:
            if self._left <= 0:
                return  # another task's error has ended it all
            if error is not None:
                self._left = 0
                self._done([], error)
                return
            self._found[index] = found or []
            self._left -= 1
            if self._left == 0:
                self._done([one for some in self._found for one in some], None)

        return collect
