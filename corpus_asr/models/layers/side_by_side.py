"""Running windows side by side on a CPU, each in a thread of its own.

In: a function and the windows it is to be applied to. Out: its results, in order. Threads that
each compute a whole window never wait for one another, where those that share every product of
one window do so thousands of times: on busy machines the difference is large.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply `function` to each of `items` in inference mode, on torch's number of threads.

    The items are independent, so results are those of a plain loop. Where fewer items than threads
    are left, each gets several threads.
    """
    threads = torch.get_num_threads()
    results: list[Result] = []
    first = 0
    while first < len(items):
        some = items[first : first + threads]
        results += _run(function, some, threads_each=threads // len(some))
        first += len(some)
    return results


def _run(
    function: Callable[[Item], Result], items: Sequence[Item], *, threads_each: int
) -> list[Result]:
    def run(item: Item) -> Result:
        # Of this thread alone; inference mode is a thread's own affair too.
        torch.set_num_threads(threads_each)
        with torch.inference_mode():
            return function(item)

    if len(items) == 1:
        with torch.inference_mode():
            return [function(items[0])]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(len(items), thread_name_prefix="window") as pool:
            return list(pool.map(run, items))
    finally:
        # What threads started later begin with is whatever was set last anywhere.
        torch.set_num_threads(threads)
