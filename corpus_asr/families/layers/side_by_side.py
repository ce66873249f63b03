"""Running windows side by side on a CPU, each in a thread of its own.

In: a function and the windows it is to be applied to. Out: its results, in order. Threads that
each compute a whole window never wait for one another, where those that share every product of
one window do so thousands of times: on busy machines the difference is large.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

# Frames or positions of a window below which several threads round otherwise than one (seen with
# three and more on AVX2, up to 50), while they gain nothing.
WORTH_SEVERAL_THREADS = 400

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    size: Callable[[Item], int] | None = None,
    inference: bool = True,
) -> list[Result]:
    """Apply `function` to each of `items`, on torch's number of threads.

    The items are independent, so results are those of a plain loop. A thread that is done with one
    takes the next. Where fewer items than threads are left, each gets several threads, if it is
    worth them.

    Args:
        function: of one item.
        items: as many as there are.
        size: frames or positions of an item; the largest are begun first, so that threads end
            together.
        inference: whether torch's inference mode is on meanwhile, in which nothing is learnt.

    Raises:
        Exception: the one of the first item that has any, once all threads are done.
    """
    threads = torch.get_num_threads()
    numbers = list(range(len(items)))
    if size is not None:
        numbers.sort(key=lambda number: -size(items[number]))
    alone = len(items) // threads * threads
    found: dict[int, Result] = {}
    for some, workers in ((numbers[:alone], threads), (numbers[alone:], len(numbers) - alone)):
        if some:
            small = size is not None and size(items[some[-1]]) < WORTH_SEVERAL_THREADS
            each = 1 if small else threads // workers
            crew = _Crew(function, items, some, found, inference=inference)
            crew.run(workers, threads_each=each)
    return [found[number] for number in range(len(items))]


class _Crew:
    """Threads that take items off one list."""

    def __init__(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        numbers: Sequence[int],
        found: dict[int, Result],
        *,
        inference: bool,
    ) -> None:
        self._function = function
        self._items = items
        self._left = iter(numbers)
        self._found = found
        self._inference = inference
        self._errors: dict[int, Exception] = {}
        self._lock = threading.Lock()
        self._begun = threading.Semaphore(0)

    def run(self, workers: int, *, threads_each: int) -> None:
        """Compute everything on the list."""
        threads = torch.get_num_threads()
        if workers == 1 and threads_each == threads:
            self._work()
        else:
            with ThreadPoolExecutor(workers, thread_name_prefix="window") as pool:
                for _ in range(workers):
                    pool.submit(self._begin, threads_each)
                for _ in range(workers):
                    self._begun.acquire()
                # Threads that others start begin with what was set last anywhere: not with a share.
                torch.set_num_threads(threads)
            torch.set_num_threads(threads)  # an item may have run others side by side
        if self._errors:
            raise self._errors[min(self._errors)]

    def _begin(self, threads: int) -> None:
        # Asked for once, as the first product would: after that, what is set here stays.
        torch.get_num_threads()
        torch.set_num_threads(threads)
        self._begun.release()
        self._work()

    def _work(self) -> None:
        # Inference mode is a thread's own affair too.
        with torch.inference_mode(self._inference):
            while (number := self._next()) is not None:
                try:
                    self._found[number] = self._function(self._items[number])
                except Exception as error:  # it is the caller's, who waits in another thread
                    self._errors[number] = error

    def _next(self) -> int | None:
        with self._lock:
            return None if self._errors else next(self._left, None)
