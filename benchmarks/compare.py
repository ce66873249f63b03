"""Measure engines in alternating rounds, within a limit of time.

    python -m benchmarks.compare OUT --audio FOLDER --models FOLDER --peers PYTHON

In: recordings of `benchmarks.audio`, models of `benchmarks/models.sh`, and the Python that has the
peers. Out: OUT/rounds.jsonl, a line for each run of a row as soon as it ends, and OUT/results.json.
The same command continues where it was interrupted.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import Recording, measured, word_error_rate
from benchmarks.rows import ROWS, SETS, Row, Set
from corpus_asr.threads import usable_cpus

Run = dict[str, Any]
# Loading and warming up, of a run.
START_S = 12.0
# Of what runs here; other environments say theirs.
_PACKAGES = ("corpus-asr", "torch", "onnxruntime", "faster-whisper", "ctranslate2", "transformers")
# What fast kernels are chosen by.
_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip


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
            total_s += missing * (START_S + audio_s(recordings) / speed)
    return total_s


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
    # The longest first: where there are several workers, none is left with a long one at the end.
    recordings = sorted(recordings, key=lambda recording: -recording.duration_s)
    for number in range(1, each.rounds + 1):
        for key, row in rows.items():
            if key in failed or done[key] >= number:
                continue
            found = measured(
                row.engine,
                row.options_for(each.model, each.threads, options.models),
                {
                    "work": [str(recording.path) for recording in recordings],
                    "warm_up": [str(options.audio / "warm_up.wav")] * each.threads,
                },
                options.peers if row.peer else sys.executable,
            )
            head = {"set": each.name, "row": key, "audio_s": audio_s(recordings), "round": number}
            if "texts" in found:
                found["word_error_rate"] = word_error_rate(found["texts"], recordings)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(head | found) + "\n")
            if "failed" in found:
                failed.add(key)
                say(f"{each.name} {row.name} failed: {found['failed']}")
                continue
            say(
                f"{each.name} {number}/{each.rounds} {row.name}: {found['cpu_s']:.1f} CPU s, "
                f"{found['wall_s']:.1f} s, WER {_percent(found.get('word_error_rate'))} %"
            )


def summary(sets: Sequence[Set], audio: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Return medians of what was measured, with the environment; texts are left out."""
    tables = []
    for each in sets:
        recordings = selected(audio / each.folder, each.minutes)
        rows = [_row(key, runs_of(each, key, recordings, runs)) for key in each.rows]
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
    theirs = {name: number for run in runs for name, number in run.get("versions", {}).items()}
    versions = {package: version(package) for package in _PACKAGES} | theirs
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions,
        "sets": tables,
    }


def hardware() -> dict[str, Any]:
    """Describe this machine: processor, memory, system."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().partition("\n\n")[0].splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    cpu = {name.strip(): value.strip() for name, _, value in pairs}
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": usable_cpus(),
        "memory_gib": round(memory_bytes / (1 << 30), 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def _row(key: str, runs: Sequence[Run]) -> dict[str, Any]:
    row = ROWS[key]
    medians = {
        name: _median([run[name] for run in runs if run.get(name) is not None])
        for name in ("cpu_s", "wall_s", "word_error_rate")
    }
    kept = [{name: run[name] for name in ("round", "cpu_s", "wall_s")} for run in runs]
    return {"key": key, "name": row.name, "options": dict(row.options), **medians, "runs": kept}


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _percent(rate: float | None) -> str:
    return "unknown" if rate is None else f"{100 * rate:.2f}"


if __name__ == "__main__":
    main()
