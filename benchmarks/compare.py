"""Measure engines in alternating rounds, within a limit of time.

    python -m benchmarks.compare OUT --audio FOLDER --models FOLDER --peers PYTHON

In: recordings of `benchmarks.audio`, models of `benchmarks/models.sh`, and the Python that has the
peers. Out: OUT/rounds.jsonl, a line for each run of a row as soon as it ends, and OUT/results.json.
The same command continues where it was interrupted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from benchmarks.rows import ROWS, SETS, Row, Set
from corpus_asr.benchmark.command import hardware
from corpus_asr.benchmark.engines import tree_cpu_s
from corpus_asr.benchmark.orders import Recording
from corpus_asr.benchmark.rounds import SETTLE_S, word_error_rate

Run = dict[str, Any]
# Loading, warming up and waiting, of a row.
START_S = 12.0
_WORKER = Path(__file__).with_name("engines.py")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "rounds.jsonl"
    deadline_s = time.monotonic() + 60 * options.limit_min
    sets = [each.smaller(minutes=options.only_min, rounds=options.rounds) for each in SETS]
    for each in sets:
        if options.sets and each.name not in options.sets:
            continue
        rows = {key: ROWS[key] for key in each.rows if not options.rows or key in options.rows}
        recordings = selected(options.audio / each.folder, each.minutes)
        needed_s = estimate_s(each, rows, recordings, read_runs(log))
        left_s = deadline_s - time.monotonic()
        say(f"{each.name}: takes about {needed_s / 60:.0f} min, {left_s / 60:.0f} min are left")
        if needed_s > left_s:
            say(f"{each.name} is skipped; run the command again to measure it")
            continue
        measure(each, rows, recordings, log, options)
        results = options.out / "results.json"
        results.write_text(
            f"{json.dumps(summary(sets, options.audio, read_runs(log)), indent=1)}\n"
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("out", type=Path)
    add("--audio", type=Path, required=True, help="folder of benchmarks.audio")
    add("--models", type=Path, required=True, help="folder of benchmarks/models.sh")
    add("--peers", default=sys.executable, help="Python that has OpenVINO and whisper.cpp")
    add("--limit-min", type=float, default=45.0, help="minutes after which no set starts")
    add("--sets", nargs="+", choices=[each.name for each in SETS], help="instead of all")
    add("--rows", nargs="+", choices=list(ROWS), help="instead of all")
    add("--only-min", type=float, help="minutes of audio instead of those of the sets")
    add("--rounds", type=int, help="rounds instead of those of the sets")
    return parser.parse_args(arguments)


def say(line: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {line}\n")
    sys.stderr.flush()


def selected(folder: Path, minutes: float | None) -> list[Recording]:
    """Return the first recordings of a manifest that have so many minutes together."""
    found: list[Recording] = []
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        if minutes is not None and sum(each.duration_s for each in found) >= 60 * minutes:
            break
        path = (folder / row["path"]).resolve()
        found.append(Recording(path=path, duration_s=row["duration_s"], text=row["text"]))
    return found


def audio_s(recordings: Iterable[Recording]) -> float:
    return round(sum(each.duration_s for each in recordings), 1)


def read_runs(log: Path) -> list[Run]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def runs_of(each: Set, key: str, recordings: Sequence[Recording], runs: Iterable[Run]) -> list[Run]:
    """Return the runs of a row on these recordings, failed ones left out."""
    wanted = (each.name, key, audio_s(recordings))
    found = [run for run in runs if (run["set"], run["row"], run["audio_s"]) == wanted]
    return [run for run in found if "failed" not in run]


def estimate_s(
    each: Set, rows: dict[str, Row], recordings: Sequence[Recording], runs: Sequence[Run]
) -> float:
    """Return how long what is not measured yet takes, by speeds measured in other sets if any."""
    threads = {known.name: known.threads * known.faster for known in SETS}
    total_s = 0.0
    for key, row in rows.items():
        missing = each.rounds - len(runs_of(each, key, recordings, runs))
        if missing > 0:
            measured = [
                run["audio_s"] / run["wall_s"] / threads[run["set"]]
                for run in runs
                if run["row"] == key and "failed" not in run
            ]
            speed = (_median(measured) or row.speed) * each.threads * each.faster
            total_s += START_S + missing * (audio_s(recordings) / speed + SETTLE_S)
    return total_s


class Worker:
    """A process with one engine, on as many cores as it has threads. Use as a context manager."""

    def __init__(self, request: dict[str, Any], python: str) -> None:
        threads = request["threads"] * request["workers"]
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            # -P: a module next to it must not be taken for a library.
            [python, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                **dict.fromkeys(_THREADS, str(request["threads"])),
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
            },
            text=True,
            encoding="utf-8",
        )
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self._process.pid, cores[:threads])
        self.reply = self.ask(json.dumps(request))

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and return the reply; `failed` is in it where there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if reply:
            answer: dict[str, Any] = json.loads(reply)
            return answer
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or ["no message"])[-1]
        return {"failed": f"its process ended with {self._process.wait()}: {last}"}

    def run(self) -> dict[str, Any]:
        """Transcribe everything; `cpu_s` is of the process and its children."""
        cpu_s = tree_cpu_s(self._process.pid)
        return self.ask("run") | {"cpu_s": tree_cpu_s(self._process.pid) - cpu_s}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it has nothing to finish
        self._process.communicate()
        self._log.close()


def measure(
    each: Set,
    rows: dict[str, Row],
    recordings: Sequence[Recording],
    log: Path,
    options: argparse.Namespace,
) -> None:
    """Run every row once in each round, in turns; append each run to `log`."""
    done = {key: len(runs_of(each, key, recordings, read_runs(log))) for key in rows}
    failed: set[str] = set()
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for number in range(1, each.rounds + 1):
            for key, row in rows.items():
                if key in failed or done[key] >= number:
                    continue
                if key not in workers:
                    request = row.request(each.model, each.threads) | {
                        "model": str(options.models / f"{row.layout}-{each.model}"),
                        "audio": [str(recording.path) for recording in recordings],
                        "warm_up": str(options.audio / "warm_up.wav"),
                    }
                    python = options.peers if row.peer else sys.executable
                    workers[key] = stack.enter_context(Worker(request, python))
                time.sleep(SETTLE_S)
                reply = workers[key].reply
                if "failed" not in reply:
                    reply = {"versions": reply["versions"]} | workers[key].run()
                head = {"set": each.name, "row": key, "audio_s": audio_s(recordings)}
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(head | {"round": number} | reply) + "\n")
                if "failed" in reply:
                    failed.add(key)
                    say(f"{each.name} {row.name} failed: {reply['failed']}")
                    continue
                say(
                    f"{each.name} {number}/{each.rounds} {row.name}: {reply['cpu_s']:.1f} CPU s, "
                    f"{reply['wall_s']:.1f} s, WER {_percent(reply['texts'], recordings)} %"
                )


def summary(sets: Sequence[Set], audio: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Return medians of what was measured, with the environment; texts are left out."""
    tables = []
    for each in sets:
        recordings = selected(audio / each.folder, each.minutes)
        rows = [_row(key, runs_of(each, key, recordings, runs), recordings) for key in each.rows]
        if any(row["runs"] for row in rows):
            failures = {run["row"]: run["failed"] for run in runs if "failed" in run}
            for row in rows:
                row["failed"] = None if row["runs"] else failures.get(row["key"], "not measured")
            tables.append(
                {
                    "name": each.name,
                    "model": each.model,
                    "threads": each.threads,
                    "rounds": each.rounds,
                    "num_recordings": len(recordings),
                    "audio_s": audio_s(recordings),
                    "rows": rows,
                }
            )
    versions = {name: number for run in runs for name, number in run.get("versions", {}).items()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(gpu=None),
        "versions": versions,
        "sets": tables,
    }


def _row(key: str, runs: Sequence[Run], recordings: Sequence[Recording]) -> dict[str, Any]:
    rates = [word_error_rate(run["texts"], recordings) for run in runs]
    row = ROWS[key]
    return {
        "key": key,
        "name": row.name,
        "options": dict(row.options),
        "cpu_s": _median([run["cpu_s"] for run in runs]),
        "wall_s": _median([run["wall_s"] for run in runs]),
        "word_error_rate": _median([rate for rate in rates if rate is not None]),
        "runs": [{name: run[name] for name in ("round", "cpu_s", "wall_s")} for run in runs],
    }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _percent(texts: Sequence[str], recordings: Sequence[Recording]) -> str:
    rate = word_error_rate(texts, recordings)
    return "unknown" if rate is None else f"{100 * rate:.2f}"


if __name__ == "__main__":
    main()
