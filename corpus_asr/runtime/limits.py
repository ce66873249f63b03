"""What a container lets its processes use, which may be less than the machine has.

In: the files of Linux's control groups, of either version. Out: bytes and CPUs, or None where there
is no limit. Knows nothing of what they are needed for.
"""

import math
from pathlib import Path

_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def memory_limit_bytes() -> int | None:
    """Return the smallest memory limit of this process's groups."""
    limits = [
        int(text)
        for folder in (*_folders(""), *_folders("memory"))
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)).isdecimal()
    ]
    return min(limits, default=None)


def cpu_limit() -> int | None:
    """Return the smallest quota of CPUs of this process's groups, rounded up."""
    quotas = [
        math.ceil(int(quota) / int(period))
        for folder in (*_folders(""), *_folders("cpu"))
        for quota, period in (
            (_read(folder / "cpu.max").split() or ["", ""])[:2],
            (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")),
        )
        if quota.isdecimal() and period.isdecimal()
    ]
    return min(quotas, default=None)


def _folders(controller: str) -> list[Path]:
    """Return the folders of this process's group and of those above it; "" is version 2."""
    for line in _read(_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            base = _ROOT / controller
            group = base / path.lstrip("/")
            # Within a container only the top is there, whatever the path says.
            return [base, group, *(one for one in group.parents if base in one.parents)]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
