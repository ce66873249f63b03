"""Running windows side by side on a CPU, each in a thread of its own.

In: a function and the windows it is to be applied to. Out: its results, in order. Threads that
each compute a whole window never wait for one another, where those that share every product of
one window do so thousands of times: on busy machines the difference is large.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
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
    if len(items) == 1:
        with torch.inference_mode():
            return [function(items[0])]
    threads = torch.get_num_threads()
    begun = Semaphore(0)

    def run(item: Item) -> Result:
        # Asked for once, as the first product would: after that, what is set here stays.
        torch.get_num_threads()
        torch.set_num_threads(threads_each)
        begun.release()
        # Inference mode is a thread's own affair too.
        with torch.inference_mode():
            return function(item)

    with ThreadPoolExecutor(len(items), thread_name_prefix="window") as pool:
        results = pool.map(run, items)
        for _ in items:
            begun.acquire()
        # Threads that others start begin with what was set last anywhere: not with a share.
        torch.set_num_threads(threads)
        return list(results)
