"""What worker processes of the benchmark run in tests instead of an engine.

An `Order` in, made-up seconds out; its `model` names a folder where each turn leaves its mark. Some
fail, die or chatter. Imports no engine, so that a worker starts at once.
"""

import os
import sys
from pathlib import Path
from typing import Any

from corpus_asr.benchmark.orders import Order

TURNS = "turns.txt"


def order(runner: str, folder: Path, *, dtype: str = "float32") -> Order:
    """Return an order for a class of this module."""
    return Order(
        engine="transformers",
        dtype=dtype,
        runner=f"{__name__}:{runner}",
        model=str(folder),
        scratch=str(folder),
        device="cpu",
        threads=1,
        batch=1,
        beams=1,
    )


class Works:
    """Writes down whose turn it was."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.turns = 0

    def run(self) -> dict[str, Any]:
        """Take a turn."""
        self.turns += 1
        with (Path(self._order.model) / TURNS).open("a") as file:
            file.write(f"{self._order.dtype}\n")
        return {
            "total_s": float(self.turns),
            "stages": {"encode": 0.5},
            "pid": os.getpid(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "cores": len(os.sched_getaffinity(0)),
        }


class Chatters(Works):
    """Prints to stdout, as libraries do."""

    def run(self) -> dict[str, Any]:
        """Take a turn, loudly."""
        sys.stdout.write("{not json\n")
        sys.stdout.flush()
        os.write(1, b"written by C\n")
        return super().run()


class CannotLoad(Works):
    """Fails before its first turn."""

    def __init__(self, order: Order) -> None:
        raise ValueError("no such\nweights")


class FailsInRoundTwo(Works):
    """Fails after a turn that does not count and one that does."""

    def run(self) -> dict[str, Any]:
        """Take a turn."""
        if self.turns == 2:
            raise MemoryError("too much")
        return super().run()


class Dies(Works):
    """Is gone at once, as one that ran out of memory."""

    def run(self) -> dict[str, Any]:
        """Leave last words and die."""
        sys.stderr.write("malloc(): corrupted\n")
        sys.stderr.flush()
        os.kill(os.getpid(), 9)
        return {}
