"""The machine and the software that figures were taken with.

In: nothing but the machine itself. Out: what a reader needs to take the figures again. Figures
without it mean nothing.
"""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from corpus_asr.families.device import device_name

# What fast kernels are chosen by.
_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip
_PACKAGES = (
    "corpus-asr", "torch", "transformers", "faster-whisper", "ctranslate2", "openai-whisper",
    "numpy", "jiwer",
)  # fmt: skip


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe the processor, its cores and memory, and the GPU where one is measured."""
    cpu = _cpu_values()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(_cores())
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": len(allowed),
        "cores_of_machine": _cores(),
        "memory_gib": _memory_gib(),
        "gpu": device_name(device).partition(":")[2] or None,
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str | None]:
    """Return the version of each package that matters; None where it is not installed."""
    return {"python": platform.python_version(), **dict(_versions(_PACKAGES))}


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str | None]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, None


def _cpu_values() -> dict[str, str]:
    """Read the first processor's entries, on Linux."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory_gib() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1)


def _cores() -> int:
    return os.cpu_count() or 1
