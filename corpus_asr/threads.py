"""Usable CPUs and threads of this process, and thread settings of torch and numpy."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

SPIN_COUNT = "GOMP_SPINCOUNT"
BRIEFLY = "10000"
_WAIT_POLICY = "OMP_WAIT_POLICY"
_ARRAY_THREADS = "OPENBLAS_NUM_THREADS"
_MODEL_THREADS = "OMP_NUM_THREADS"


def spin_briefly() -> None:
    """Make idle torch threads sleep soon instead of spinning."""
    # A decoding step has some hundreds of small operations. If other processes compete for cores,
    # even niced ones, each wait of spinning threads costs a time slice: a step of whisper-base then
    # took 155 to 310 ms on two cores, and 25 to 80 ms with threads that sleep at once. On an idle
    # machine those took 33 ms, spinning threads 23 ms, and this count 26 ms. If the user has set
    # either variable, both are left unchanged.
    if _WAIT_POLICY not in os.environ:
        os.environ.setdefault(SPIN_COUNT, BRIEFLY)


def one_thread_for_arrays() -> None:
    """Limit numpy's matrix products to the calling thread; call before numpy is imported."""
    # Training forks processes that prepare windows. With two threads of OpenBLAS, one of 14 forked
    # processes waited forever for a thread that exists only in its parent, so a value set by the
    # user is replaced. One thread is also faster: 0.40 s instead of 0.54 s per step of 22 s of
    # speech on four cores.
    os.environ[_ARRAY_THREADS] = "1"


def run_apart(function: Callable[[], Result]) -> Result:
    """Run `function` in a temporary thread, and return its result or raise its exception."""
    # The first large product in a thread starts helper threads that live as long as it does. With
    # more helpers in a process than cores, none of them spins any more: after the main thread had
    # loaded a model, every decoding step in the engine's thread took 13 to 19 ms instead of 7 to 13
    # (two layers of whisper-base, two cores).
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as pool:
        return pool.submit(function).result()


def usable_cpus() -> int:
    """Return the number of usable CPUs: from the affinity mask and cgroup quotas."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    num_cpus = num_cpus or os.cpu_count() or 1
    return min(num_cpus, cpu_limit() or num_cpus)


def usable_threads() -> int:
    """Return the number of model threads: one per CPU, at most OMP_NUM_THREADS."""
    # A list is for nested regions, which torch does not use.
    wished = os.environ.get(_MODEL_THREADS, "").partition(",")[0].strip()
    limit = int(wished) if wished.isdecimal() else 0
    return min(usable_cpus(), limit or usable_cpus())


_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def cpu_limit() -> int | None:
    """Return the smallest CPU quota of this process's cgroups, rounded up."""
    quotas = [
        math.ceil(int(quota) / int(period))
        for folder in (*group_folders(""), *group_folders("cpu"))
        for quota, period in (
            (read_limit(folder / "cpu.max").split() or ["", ""])[:2],
            (read_limit(folder / "cpu.cfs_quota_us"), read_limit(folder / "cpu.cfs_period_us")),
        )
        if quota.isdecimal() and period.isdecimal()
    ]
    return min(quotas, default=None)


def group_folders(controller: str) -> list[Path]:
    """Return the folders of this process's cgroup and its ancestors; "" is version 2."""
    for line in read_limit(_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            base = _ROOT / controller
            group = base / path.lstrip("/")
            # Within a container only the top exists, regardless of the path.
            return [base, group, *(parent for parent in group.parents if base in parent.parents)]
    return []


def read_limit(path: Path) -> str:
    """Return the content of a cgroup file; "" if it is missing."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
