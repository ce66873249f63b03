"""How the threads of torch wait for one another, and how many numpy has."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

SPIN_COUNT = "GOMP_SPINCOUNT"
BRIEFLY = "10000"
_WAIT_POLICY = "OMP_WAIT_POLICY"
_ARRAY_THREADS = "OPENBLAS_NUM_THREADS"


def spin_briefly() -> None:
    """Let torch's threads soon sleep while they wait for the others to end an operation."""
    # A decoding step has some hundreds of small operations. Where several other processes want the
    # cores, niced ones too, threads that spin make each of them wait for a turn: a step of
    # whisper-base then took 155 to 310 ms on two cores, and 25 to 80 ms with threads that sleep at
    # once. On an idle machine those took 33 ms where spinning threads took 23; this count took 26.
    # A user who has set either variable has measured something else: both are left as they are.
    if _WAIT_POLICY not in os.environ:
        os.environ.setdefault(SPIN_COUNT, BRIEFLY)


def one_thread_for_arrays() -> None:
    """Limit numpy's matrix products to the calling thread; call this before numpy is imported."""
    # A training forks processes that prepare its windows. With two threads of OpenBLAS, one of 14
    # forked processes waited forever for a thread that only its parent has, so a value that the
    # user has set is replaced. One thread is also faster: 0.40 s instead of 0.54 s per step of 22 s
    # of speech on four cores.
    os.environ[_ARRAY_THREADS] = "1"


def run_apart(function: Callable[[], Result]) -> Result:
    """Run `function` in a thread that ends with it, and return or raise what it does."""
    # The first large product in a thread gives it helpers of its own that stay as long as it does.
    # With more helpers in a process than cores, none of them spins any more: once the main thread
    # had loaded a model, every decoding step in the engine's thread took 13 to 19 ms where it takes
    # 7 to 13 (two layers of whisper-base, two cores).
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as pool:
        return pool.submit(function).result()
