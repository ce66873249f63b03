"""Alternating rounds over worker processes (A B C, A B C, ...), seen from both ends of their pipes.

    driver                       worker, `python -m corpus_asr.benchmark.rounds`
    an Order, as a line    ->    loads its engine
                           <-    {"ready": true}
    "run"                  ->    works
                           <-    {"run": {...}}, or {"failed": why} and the end

A worker that fails, or dies, loses its further turns; the others go on.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from corpus_asr.benchmark.engines import peak_memory
from corpus_asr.benchmark.orders import OURS, Case, Order
from corpus_asr.threads import BRIEFLY, SPIN_COUNT

# OpenMP threads spin for up to 0.2 s after their last work, and would do so in the next one's run.
SETTLE_S = 0.5
_EXIT_TIMEOUT_S = 10.0
_PACKAGES = Path(__file__).resolve().parents[2]
_GPUS = "CUDA_VISIBLE_DEVICES"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(slots=True, kw_only=True)
class Row:
    """What came of one case."""

    case: Case
    runs: list[dict[str, Any]] = field(default_factory=list)
    """One per round, the warm-up left out."""
    failed: str | None = None
    """Why it has no runs, or no more of them."""


class Worker:
    """A worker process. Use as a context manager."""

    def __init__(self, order: Order) -> None:
        self._open = ExitStack()
        self._log = self._open.enter_context(
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        )
        self._process = subprocess.Popen(
            # -P: a file in the current folder must not be taken for a library.
            [sys.executable, "-P", "-m", "corpus_asr.benchmark.rounds"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(order, os.environ),
            text=True,
            encoding="utf-8",
        )
        self._pin(order)
        # It sees no other GPU, so that no library can wait for, or count, a wrong one.
        seen = order.device if order.device == "cpu" else "cuda:0"
        self._reply = self._ask(replace(order, device=seen).to_json())

    @property
    def failed(self) -> str | None:
        """Why this worker can do nothing more."""
        reason = self._reply.get("failed")
        return None if reason is None else str(reason)

    def run(self) -> dict[str, Any] | None:
        """Do the work once; None if it failed."""
        self._reply = self._ask("run")
        return self._reply.get("run")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it may be dead already
            self._process.stdin.close()
        try:
            self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._open.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            return {"failed": self._death()}
        said: dict[str, Any] = json.loads(reply)
        return said

    def _death(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        last = f"; its last words: {lines[-1][:200]}" if lines else ""
        return f"its process ended with {code}{' (out of memory?)' if code == -9 else ''}{last}"

    def _pin(self, order: Order) -> None:
        """Give every engine the same cores; what runs beside the model's threads shares them."""
        if hasattr(os, "sched_setaffinity") and order.device == "cpu":
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(self._process.pid, allowed[: order.threads])


def measure(
    orders: Sequence[tuple[Case, Order]],
    *,
    runs: int,
    tell: Callable[[str], None],
    settle_s: float = SETTLE_S,
) -> list[Row]:
    """Run every order `runs` times in turns, after one turn of each that does not count."""
    rows = [Row(case=case) for case, _ in orders]
    with ExitStack() as stack:
        workers = []
        for row, (case, order) in zip(rows, orders, strict=True):
            tell(f"loading {case.label}")
            workers.append(stack.enter_context(Worker(order)))
            row.failed = workers[-1].failed
        for turn in range(runs + 1):
            tell(f"round {turn} of {runs}" if turn else "warming up")
            for row, worker in zip(rows, workers, strict=True):
                if row.failed is not None:
                    continue
                time.sleep(settle_s)
                run = worker.run()
                row.failed = worker.failed
                if turn and run is not None:
                    row.runs.append(run)
        for row in rows:
            if row.failed is not None:
                tell(f"{row.case.label} failed: {row.failed}")
    return rows


def environment(order: Order, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: its threads, its GPU if any, no network.

    Our threads wait as those of the command do; the other engines wait as they do by themselves.
    """
    paths = [str(_PACKAGES), *filter(None, [inherited.get("PYTHONPATH")])]
    gpu = {}
    if order.device != "cpu":
        index = int(order.device.partition(":")[2] or 0)
        visible = list(filter(None, inherited.get(_GPUS, "").split(",")))
        gpu = {_GPUS: visible[index] if visible else str(index)}
    kept = {name: value for name, value in inherited.items() if name != SPIN_COUNT}
    if order.engine == OURS:
        kept[SPIN_COUNT] = inherited.get(SPIN_COUNT, BRIEFLY)
    return {
        **kept,
        **gpu,
        **dict.fromkeys(_THREADS, str(order.threads)),
        "PYTHONPATH": os.pathsep.join(paths),
        "TOKENIZERS_PARALLELISM": "false",
        # Everything is on this machine; nobody shall look for more.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def serve(lines: Iterator[str], reply: Callable[[dict[str, Any]], None]) -> None:
    """Answer until `lines` ends or something fails.

    What the runner has started ends with this process.
    """
    try:
        order = Order.from_json(next(lines))
        module, _, name = order.runner.partition(":")
        runner = getattr(importlib.import_module(module), name)(order)
        reply({"ready": True})
        for _ in lines:
            run: dict[str, Any] = runner.run()
            reply({"run": run | peak_memory()})
    except Exception as error:
        # Whatever an engine fails with becomes its row; the others go on.
        traceback.print_exc()
        words = " ".join(str(error).split()) or "no message"
        reply({"failed": f"{type(error).__name__}: {words}"})


def main() -> None:
    """Keep stdout for replies, and let everybody else's prints go to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)

        def reply(message: dict[str, Any]) -> None:
            replies.write(json.dumps(message) + "\n")
            replies.flush()

        serve(sys.stdin, reply)


if __name__ == "__main__":
    main()
