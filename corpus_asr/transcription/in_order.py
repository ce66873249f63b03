"""What the tasks of one part find, put in the part's order.

In: each task's result, whenever it comes. Out: all of them at once, or the first error.
"""

from collections.abc import Callable

from corpus_asr.decoding.slots import Done
from corpus_asr.segments import Segment


class InOrder:
    """Waits for a number of tasks and tells once.

    Args:
        count: of tasks, at least one.
        done: told all segments, task by task; or none and the error that one task ended with.
    """

    def __init__(self, count: int, done: Callable[[list[Segment], Exception | None], None]) -> None:
        self._found: list[list[Segment]] = [[] for _ in range(count)]
        self._left = count
        self._done = done

    def collector(self, index: int) -> Done:
        """Return what the scheduler is to tell about one task."""

        def collect(segments: list[Segment] | None, error: Exception | None) -> None:
            if self._left <= 0:
                return  # another task's error has ended it all
            if error is not None:
                self._left = 0
                self._done([], error)
                return
            self._found[index] = segments or []
            self._left -= 1
            if self._left == 0:
                self._done([segment for found in self._found for segment in found], None)

        return collect
