"""How many CPUs and threads this process may use, how torch's wait for one another, and numpy's."""

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


def usable_cpus() -> int:
    """Return the CPUs that this process may use: of its affinity mask and its groups' quotas."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    here = here or os.cpu_count() or 1
    return min(here, cpu_limit() or here)


def usable_threads() -> int:
    """Return the threads that a model may have here: a CPU each, and at most OMP_NUM_THREADS."""
    # A list is for nested regions, of which torch has none.
    wished = os.environ.get(_MODEL_THREADS, "").partition(",")[0].strip()
    limit = int(wished) if wished.isdecimal() else 0
    return min(usable_cpus(), limit or usable_cpus())


_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def cpu_limit() -> int | None:
    """Return the smallest quota of CPUs of this process's groups, rounded up."""
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
    """Return the folders of this process's group and of those above it; "" is version 2."""
    for line in read_limit(_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            base = _ROOT / controller
            group = base / path.lstrip("/")
            # Within a container only the top is there, whatever the path says.
            return [base, group, *(each for each in group.parents if base in each.parents)]
    return []


def read_limit(path: Path) -> str:
    """Return what a file of a group says; nothing where it is missing."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
