"""Alternating rounds over worker processes (A B C, A B C, ...), and the table of what they ran.

    driver                       worker, `python -m corpus_asr.benchmark.rounds`
    an Order, as a line    ->    loads its engine
                           <-    {"ready": true}
    "run"                  ->    works
                           <-    {"run": {...}}, or {"failed": why} and the end

A worker that fails, or dies, loses its further turns; the others go on. A ratio is taken within a
round, between two runs that stood near each other, and the median is over rounds: a machine that
slows down half-way moves both sides of it.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from corpus_asr.benchmark.engines import peak_memory
from corpus_asr.benchmark.orders import OURS, Case, Order, Recording
from corpus_asr.text.normalize import BasicTextNormalizer, EnglishTextNormalizer
from corpus_asr.threads import BRIEFLY, SPIN_COUNT

# OpenMP threads spin for up to 0.2 s after their last work, and would do so in the next one's run.
SETTLE_S = 0.5
# An engine that does not end after its input has is killed; its figures are known by then.
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

    @property
    def totals_s(self) -> list[float]:
        """Seconds of each run."""
        return [run["total_s"] for run in self.runs]


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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._replies = self._process.stdin, self._process.stdout
        if hasattr(os, "sched_setaffinity") and not order.on_gpu:
            # The same cores for every engine; what runs beside the model's threads shares them.
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(self._process.pid, allowed[: order.threads])
        # It sees no other GPU, so that no library can wait for, or count, a wrong one.
        seen = "cuda:0" if order.on_gpu else order.device
        self._reply = self._ask(replace(order, device=seen).to_json())

    @property
    def failed(self) -> str | None:
        """Why this worker can do nothing more."""
        reason: str | None = self._reply.get("failed")
        return reason

    def run(self) -> dict[str, Any] | None:
        """Do the work once; None if it failed."""
        self._reply = self._ask("run")
        return self._reply.get("run")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):  # it may be dead already
            self._orders.close()
        try:
            self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()
        self._open.close()

    def _ask(self, line: str) -> dict[str, Any]:
        reply = ""
        with suppress(BrokenPipeError):
            self._orders.write(line + "\n")
            self._orders.flush()
            reply = self._replies.readline()
        message: dict[str, Any] = json.loads(reply) if reply else {"failed": self._death()}
        return message

    def _death(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        last = f"; its last words: {lines[-1][:200]}" if lines else ""
        return f"its process ended with {code}{' (out of memory?)' if code == -9 else ''}{last}"


def measure(
    orders: Sequence[Order],
    *,
    runs: int,
    tell: Callable[[str], None],
    settle_s: float = SETTLE_S,
) -> list[Row]:
    """Run every order `runs` times in turns, after one turn of each that does not count."""
    rows = [Row(case=order) for order in orders]
    with ExitStack() as stack:
        workers = []
        for row, order in zip(rows, orders, strict=True):
            tell(f"loading {order.label}")
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
    """Return the environment of a worker: its threads, its GPU if any, no network."""
    paths = [str(_PACKAGES), *filter(None, [inherited.get("PYTHONPATH")])]
    gpu = {}
    if order.on_gpu:
        visible = list(filter(None, inherited.get(_GPUS, "").split(",")))
        gpu = {_GPUS: visible[order.gpu_index] if visible else str(order.gpu_index)}
    # Our threads wait as those of the command do, those of the others as their users have them.
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
    """Answer until `lines` ends or something fails."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A median, with the least and the most of what it was taken from."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Summarize values; None where there are none."""
        if not values:
            return None
        return cls(median=statistics.median(values), min=min(values), max=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the table says of one row; the fields are keys of the JSON."""

    engine: str
    dtype: str
    settings: str
    label: str
    failed: str | None
    times_real_time: Spread | None
    median_total_s: float | None
    median_cpu_s: float | None
    """Of all threads and child processes; None where the network alone is timed."""
    median_stages_s: dict[str, float]
    ours_times_as_fast: dict[str, Spread]
    """How many times as fast as this row ours with the same settings are, by type."""
    peak_memory_mib: float | None
    peak_gpu_mib: float | None
    word_error_rate: float | None
    runs: list[dict[str, Any]]
    """Every single run, the texts left out."""


def summarize(
    rows: Sequence[Row],
    audio_s: float,
    recordings: Sequence[Recording] = (),
    *,
    language: str = "en",
) -> list[Summary]:
    """Summarize every row."""
    ours = [row for row in rows if row.case.engine == OURS]
    summaries = []
    for row in rows:
        first = row.runs[0] if row.runs else {}
        same = [own for own in ours if own.case.settings == row.case.settings]
        spreads = {} if row in ours else {own.case.dtype: ratios(own, row) for own in same}
        peaks = {
            key: max((run[key] for run in row.runs if run.get(key) is not None), default=None)
            for key in ("peak_memory_mib", "peak_gpu_mib")
        }
        summaries.append(
            Summary(
                engine=row.case.engine,
                dtype=row.case.dtype,
                settings=row.case.settings,
                label=row.case.label,
                failed=row.failed,
                times_real_time=Spread.of([audio_s / total_s for total_s in row.totals_s]),
                median_total_s=statistics.median(row.totals_s) if row.runs else None,
                median_cpu_s=(
                    statistics.median(run["cpu_s"] for run in row.runs)
                    if "cpu_s" in first
                    else None
                ),
                median_stages_s={
                    name: statistics.median(run["stages"][name] for run in row.runs)
                    for name in first.get("stages", ())
                },
                ours_times_as_fast={name: spread for name, spread in spreads.items() if spread},
                **peaks,
                word_error_rate=(
                    word_error_rate(first["texts"], recordings, language=language)
                    if "texts" in first
                    else None
                ),
                runs=[{key: run[key] for key in run if key != "texts"} for run in row.runs],
            )
        )
    return summaries


def _median_of(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if key in run]
    return statistics.median(values) if values else None


def ratios(ours: Row, other: Row) -> Spread | None:
    """How many times as fast ours is, over the rounds that both finished; None without any."""
    pairs = zip(ours.totals_s, other.totals_s, strict=False)
    return Spread.of([other_s / own_s for own_s, other_s in pairs])


def word_error_rate(
    texts: Sequence[str], recordings: Sequence[Recording], *, language: str = "en"
) -> float | None:
    """Compare with the references, both normalized; None where there are none, or no jiwer."""
    normalize = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    pairs = [
        (normalize(recording.text).strip(), normalize(text).strip())
        for text, recording in zip(texts, recordings, strict=True)
        if recording.text is not None
    ]
    pairs = [(reference, text) for reference, text in pairs if reference]
    if not pairs or find_spec("jiwer") is None:
        return None
    jiwer = importlib.import_module("jiwer")
    return float(jiwer.wer([pair[0] for pair in pairs], [pair[1] for pair in pairs]))


def render(summaries: Sequence[Summary]) -> str:
    """Draw one table; rows that failed are listed below it with their reasons."""
    # Here: workers, whose memory is measured, run this module, too.
    from corpus_asr.report.text import aligned

    done = [summary for summary in summaries if summary.times_real_time is not None]
    stages = dict.fromkeys(name for row in done for name in row.median_stages_s)
    dtypes = dict.fromkeys(name for row in done for name in row.ours_times_as_fast)
    columns = [
        ["", *(row.label for row in done)],
        ["x real time", *(_spread(row.times_real_time, ".1f") for row in done)],
        *([f"{name.replace('_', ' ')} s",
           *(_number(row.median_stages_s.get(name), ".2f") for row in done)] for name in stages),
        ["total s", *(_number(row.median_total_s, ".2f") for row in done)],
        ["CPU s", *(_number(row.median_cpu_s, ".2f") for row in done)],
        *([f"{name} is x as fast",
           *(_spread(row.ours_times_as_fast.get(name), ".2f") for row in done)] for name in dtypes),
        ["peak MiB", *(_number(row.peak_memory_mib, ".0f") for row in done)],
        ["peak GPU MiB", *(_number(row.peak_gpu_mib, ".0f") for row in done)],
        ["WER %", *(_number(row.word_error_rate, ".2f", scale=100) for row in done)],
    ]  # fmt: skip
    rows = list(zip(*(column for column in columns if any(column[1:])), strict=True))
    lines = ["  ".join(cells).rstrip() for cells in aligned(rows)] if done else []
    failed = [f"{row.label}  failed: {row.failed}" for row in summaries if row.failed is not None]
    return "\n".join([*lines, *failed])


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return ""
    return f"{spread.median:{form}} ({spread.min:{form}}..{spread.max:{form}})"


def _number(value: float | None, form: str, *, scale: int = 1) -> str:
    return "" if value is None else f"{scale * value:{form}}"


if __name__ == "__main__":
    main()
