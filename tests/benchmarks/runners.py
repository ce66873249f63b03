"""Engines that workers of the benchmark load in tests; they start at once."""

import os
import subprocess
import sys
from typing import Any

from benchmarks.worker import Engine

BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"


def works(threads: int, name: str, turns: str = os.devnull) -> Engine:
    """Write down whose turn it is, and print as libraries do."""

    def work(paths: Any) -> dict[str, Any]:
        sys.stdout.write("{not json\n")
        sys.stdout.flush()
        os.write(1, b"written by C\n")
        with open(turns, "a") as file:
            file.write(f"{name}{len(paths)} ")
        cores = len(os.sched_getaffinity(0))
        about = {"pid": os.getpid(), "cores": cores, "threads": os.environ["OMP_NUM_THREADS"]}
        return {"texts": ["Four score, and seven!"] * len(paths), "wall_s": 2.0, **about}

    return work


def cannot_load(threads: int) -> Engine:
    raise ValueError("no such weights")


def dies(threads: int) -> Engine:
    sys.stderr.write("malloc(): corrupted\n")
    sys.stderr.flush()
    os.kill(os.getpid(), 9)
    return works(threads, "dead")


def burns(threads: int) -> Engine:
    """Spend CPU seconds in a child that lives on."""

    def work(paths: Any) -> dict[str, Any]:
        child = subprocess.Popen(
            [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        return {}

    return work
