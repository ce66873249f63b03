"""Validate a GPU, then measure it: `python -m benchmarks.gpu.validate`, or `make gpu-check`.

Needs a clone and torch, numpy, tokenizers, safetensors and transformers; no network, no checkpoint.
Each figure is a line, `stage key value unit`; all of them are the JSON on the last line, and in the
file that --json names, which is written after every stage. A stage that fails says why, and the
next one goes on; the exit code is then 1. docs/how-to/gpu.md says what the figures mean.
"""

import argparse
import gc
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch

from benchmarks.gpu import correctness, speed
from benchmarks.gpu.figures import Figures, Options, Value
from benchmarks.networks import SHAPES

Stage = Callable[[Options, Figures], None]

# In this order: if time runs out, the last ones are missed least.
STAGES: dict[str, Stage] = {
    "validation": correctness.validation,
    "ceilings": speed.ceilings,
    "waits": correctness.waits,
    "attention": speed.attention,
    "step": speed.step,
    "encode": speed.encode,
    "offline": speed.offline,
    "memory": speed.memory,
    "transformers": speed.beside_transformers,
    "profile": speed.profile,
    "compiled": speed.beside_compiled,
}

EXIT_FAILED = 1
EXIT_UNUSABLE = 2
_STAGE_MINUTES = 6.0
_TRACE_LINES = 6


@dataclass(slots=True)
class Report:
    """What was found, as lines while it is found and as JSON."""

    path: Path | None
    about: dict[str, Any]
    stages: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)

    def say(self, stage: str, key: str, value: Value, unit: str) -> None:
        """Print and keep a figure."""
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        self.figures.append({"stage": stage, "key": key, "value": value, "unit": unit})
        print(f"{stage:12s} {key:44s} {value} {unit}".rstrip(), flush=True)

    def ended(self, stage: str, status: str, seconds: float, reason: str) -> None:
        """Note how a stage ended, and write all there is so far."""
        self.stages.append(
            {"stage": stage, "status": status, "seconds": round(seconds, 1), "reason": reason}
        )
        why = f": {reason}" if reason else ""
        print(f"{stage:12s} {'status':44s} {status} after {seconds:.1f} s{why}", flush=True)
        if self.path is not None:
            self.path.write_text(f"{self.json(indent=1)}\n", encoding="utf-8")

    def json(self, *, indent: int | None = None) -> str:
        """Return everything."""
        whole = {"about": self.about, "stages": self.stages, "figures": self.figures}
        return json.dumps(whole, indent=indent, ensure_ascii=False)

    @property
    def failed(self) -> bool:
        """Whether a stage failed."""
        return any(stage["status"] == "failed" for stage in self.stages)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError once the block has taken so long, as far as Python gets a turn."""

    def over(signum: int, frame: object) -> None:
        raise TimeoutError(f"it took more than {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, over)
    earlier_s, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, earlier_s)  # of whoever runs this, if anybody
        signal.signal(signal.SIGALRM, handler)


def run_stage(name: str, stage: Stage, options: Options, report: Report, *, limit_s: float) -> None:
    """Run a stage to its end, whatever that is."""
    started_s = time.perf_counter()
    status, reason = "passed", ""
    try:
        with limited(limit_s):
            stage(options, Figures(lambda *figure: report.say(name, *figure)))
    except SkipTest as skipped:
        status, reason = "skipped", str(skipped)
    except Exception as error:  # the stage failed, and the others are to run
        status, reason = "failed", f"{type(error).__name__}: {error}"[:500]
        traceback.print_exc(limit=-_TRACE_LINES)
    report.ended(name, status, time.perf_counter() - started_s, reason)
    gc.collect()
    if options.device.type == "cuda":
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages that are asked for; returns the exit code."""
    asked = _parser().parse_args(arguments)
    unknown = [name for name in asked.stages if name not in STAGES]
    if unknown or asked.shape not in SHAPES:
        sys.stderr.write(
            f"reading the command line: found {', '.join(unknown) or asked.shape}, expected stages "
            f"among {', '.join(STAGES)} and a shape among {', '.join(SHAPES)}\n"
        )
        return EXIT_UNUSABLE
    if asked.device != "cpu" and not torch.cuda.is_available():
        sys.stderr.write(
            f"looking for {asked.device}: torch {torch.__version__} (CUDA "
            f"{torch.version.cuda or 'none'}) sees no CUDA device; check nvidia-smi, or pass "
            "--device cpu --shape tiny to see that this script works\n"
        )
        return EXIT_UNUSABLE
    options = Options.of(asked)
    report = Report(asked.json, _about(options))
    for key, value in report.about.items():
        print(f"{'about':12s} {key:44s} {value}", flush=True)
    ends_s = time.perf_counter() + 60 * asked.minutes
    for name, stage in STAGES.items():
        if asked.stages and name not in asked.stages:
            continue
        left_s = ends_s - time.perf_counter()
        if left_s <= 0:
            report.ended(name, "skipped", 0.0, f"{asked.minutes:g} minutes are over")
            continue
        run_stage(name, stage, options, report, limit_s=min(left_s, 60 * _STAGE_MINUTES))
    print(report.json(), flush=True)
    return EXIT_FAILED if report.failed else 0


def _about(options: Options) -> dict[str, Any]:
    about: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": options.device_name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "shape": options.shape.name,
        "dtype": str(options.dtype).removeprefix("torch."),
        "tokens_per_window": options.tokens,
    }
    if options.device.type == "cuda":
        memory_bytes = torch.cuda.get_device_properties(options.device).total_memory
        about["memory_gb"] = round(memory_bytes / 1e9, 1)
    return about


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.validate", description="Validate a GPU, then measure it."
    )
    add = parser.add_argument
    add("stages", nargs="*", metavar="STAGE", help=f"some of {', '.join(STAGES)}; default: all")
    add("--shape", default="large-v3", help="sizes of the measured network, of random weights")
    add("--device", default="cuda", help="cuda, cuda:N, or cpu to see that the script works")
    add("--dtype", default="auto", help="auto (float16 on CUDA, else float32) or another type")
    add("--slots", type=int, nargs="+", help="windows decoded at once")
    add("--windows", type=int, help="windows of the stage offline")
    add("--tokens", type=int, help="tokens per window; on a GPU 63")
    add("--minutes", type=float, default=25.0, help="start no stage after so long")
    add("--quick", action="store_true", help="the least of everything: shows only that it works")
    add("--json", type=Path, metavar="FILE", help="write everything there after each stage")
    return parser


if __name__ == "__main__":
    sys.exit(main())
