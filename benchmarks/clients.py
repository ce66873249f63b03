"""Measure how many calls a second one loaded model answers for 1, 4 and 16 clients at once.

    python -m benchmarks.clients OUT.json --model CHECKPOINT --clips FOLDER --scratch FOLDER

In: a checkpoint in Hugging Face layout and a folder of short recordings; --scratch keeps the
checkpoint that is converted for faster-whisper. Out: OUT.json, and tables in Markdown. Each row is
measured in a process of its own, in rounds that alternate; the clients are threads that share the
calls. CPU seconds are those of all processes, clients included.
"""

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.compare import hardware

CLIENTS = (1, 4, 16)
SERVICE = Path(__file__).parents[1] / "docs" / "examples" / "service.py"
_SUFFIXES = (".wav", ".flac", ".mp3", ".opus")
_PACKAGES = ("corpus-asr", "torch", "faster-whisper", "ctranslate2", "fastapi", "uvicorn")
_START_S = 120.0

Call = Callable[[str], object]

# The same search for all: one beam, no thresholds, no speech detection, no previous text.
_OUR_GREEDY = {
    "temperature": 0, "compression_ratio_threshold": None, "logprob_threshold": None,
    "no_speech_threshold": None, "vad_filter": False, "language": "en",
}  # fmt: skip
_THEIR_GREEDY = {
    "beam_size": 1, "temperature": 0, "compression_ratio_threshold": None,
    "log_prob_threshold": None, "no_speech_threshold": None, "condition_on_previous_text": False,
    "language": "en",
}  # fmt: skip
_TWO = {"compute_type": "int8", "num_workers": 2, "cpu_threads": 1}
_BATCHED = {"batch_size": 8, "vad_filter": True}

# Table, row, engine and its options.
ROWS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("greedy", "corpus-asr, threads", "ours", {"options": _OUR_GREEDY}),
    ("greedy", "corpus-asr, service", "service", {"options": _OUR_GREEDY}),
    ("greedy", "corpus-asr, threads, `padding_s=10`", "ours",
     {"options": _OUR_GREEDY | {"padding_s": 10}}),
    ("greedy", "faster-whisper, as it is loaded by default", "faster", {"options": _THEIR_GREEDY}),
    ("greedy", "faster-whisper, int8, `num_workers=2`, `cpu_threads=1`", "faster",
     {"options": _THEIR_GREEDY, "load": _TWO}),
    ("greedy", "faster-whisper, the same, `BatchedInferencePipeline`", "faster",
     {"options": _THEIR_GREEDY | _BATCHED, "load": _TWO, "batched": True}),
    ("defaults", "corpus-asr, threads", "ours", {}),
    ("defaults", "corpus-asr, service", "service", {}),
    ("defaults", "faster-whisper", "faster", {}),
    ("defaults", "faster-whisper, int8, `num_workers=2`, `cpu_threads=1`", "faster",
     {"load": _TWO}),
    ("defaults", "faster-whisper, the same, `BatchedInferencePipeline`", "faster",
     {"load": _TWO, "batched": True}),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.row is not None:
        measure_row(options)
        return
    clips = clips_of(options.clips)
    converted = convert(options.model, options.scratch)
    log: list[dict[str, Any]] = []
    numbers = [at for at, row in enumerate(ROWS) if options.table in (None, row[0])]
    for number in range(options.rounds):
        for at in numbers:
            command = [sys.executable, "-m", "benchmarks.clients", str(options.out), "--row",
                       str(at), "--model", str(options.model), "--clips", str(options.clips),
                       "--scratch", str(converted), "--calls", str(options.calls)]  # fmt: skip
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for line in done.stdout.splitlines():
                log.append(json.loads(line) | {"round": number})
                sys.stderr.write(f"{line}\n")
        found = {
            "date": datetime.now(UTC).date().isoformat(), "hardware": hardware(),
            "versions": {each: version(each) for each in _PACKAGES},
            "model": options.model.name, "clips": len(clips), "calls": options.calls, "runs": log,
        }  # fmt: skip
        options.out.write_text(f"{json.dumps(found, indent=1)}\n")
    sys.stdout.write(tables(log))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("out", type=Path)
    add("--model", type=Path, required=True, help="checkpoint in Hugging Face layout")
    add("--clips", type=Path, required=True, help="folder of short recordings")
    add("--scratch", type=Path, required=True, help="folder for the converted checkpoint")
    add("--calls", type=int, default=32, help="of each number of clients")
    add("--rounds", type=int, default=2)
    add("--table", choices=("greedy", "defaults"), help="instead of both")
    add("--row", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def clips_of(folder: Path) -> list[str]:
    """Return the recordings of a folder, in order of their names."""
    found = sorted(str(path) for path in folder.iterdir() if path.suffix in _SUFFIXES)
    if not found:
        raise SystemExit(f"{folder} has no recordings: expected {', '.join(_SUFFIXES)}")
    return found


def convert(model: Path, folder: Path) -> Path:
    """Convert a checkpoint for faster-whisper, once, its numbers in the precision they have."""
    target = folder / f"ct2-{model.name}"
    if not target.is_dir():
        from ctranslate2.converters import TransformersConverter

        folder.mkdir(parents=True, exist_ok=True)
        names = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(model), copy_files=names).convert(str(target))
    return target


def measure_row(options: argparse.Namespace) -> None:
    """Load one engine, and print a line for each number of clients."""
    table, name, engine, how = ROWS[options.row]
    clips = clips_of(options.clips)
    with ENGINES[engine](options.model, options.scratch, how) as call:
        for clip in clips[:4]:
            call(clip)
        for clients in CLIENTS:
            run = measured(call, list(islice(cycle(clips), options.calls)), clients)
            head = {"table": table, "row": name, "clients": clients}
            sys.stdout.write(json.dumps(head | run) + "\n")
            sys.stdout.flush()


def measured(call: Call, clips: Sequence[str], clients: int) -> dict[str, Any]:
    """Let clients share calls; returns calls a second, CPU seconds a call and times of calls."""

    def timed(clip: str) -> float:
        began_s = time.perf_counter()
        call(clip)
        return time.perf_counter() - began_s

    load, cpu_s, began_s = os.getloadavg()[0], all_cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = sorted(pool.map(timed, clips))
    wall_s = time.perf_counter() - began_s
    return {
        "calls_per_s": len(clips) / wall_s,
        "cpu_s_per_call": (all_cpu_s() - cpu_s) / len(clips),
        "median_s": statistics.median(times),
        "slowest_s": times[-1],
        "load_before": load,
    }


def all_cpu_s() -> float:
    """Return the CPU seconds of this process and its children so far."""
    own = psutil.Process()
    times = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    # With those of processes that have ended.
    return float(sum(sum(each[:4]) for each in times))


@contextmanager
def ours(model: Path, _: Path, how: dict[str, Any]) -> Iterator[Call]:
    """Call one Transcriber from threads."""
    from corpus_asr import Transcriber

    with Transcriber(str(model), **how.get("options", {})) as transcriber:
        yield lambda clip: transcriber.transcribe(clip).text


@contextmanager
def faster(_: Path, converted: Path, how: dict[str, Any]) -> Iterator[Call]:
    """Call one model of faster-whisper from threads."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(str(converted), device="cpu", **how.get("load", {}))
    engine = BatchedInferencePipeline(model) if how.get("batched") else model

    def call(clip: str) -> str:
        segments, _ = engine.transcribe(clip, **how.get("options", {}))
        return "".join(segment.text for segment in segments)

    yield call


@contextmanager
def service(model: Path, _: Path, how: dict[str, Any]) -> Iterator[Call]:
    """Call the service of docs/service.md in a process of its own, each client by itself."""
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = f"from benchmarks.clients import serve; serve({json.dumps(str(model))}, {port}, {how})"
    server = subprocess.Popen([sys.executable, "-c", code])
    address = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                httpx.get(f"{address}/docs")
                break
            except httpx.ConnectError as error:
                if time.monotonic() > deadline_s or server.poll() is not None:
                    raise SystemExit("the service did not start") from error
                time.sleep(0.2)
        with httpx.Client(timeout=600, limits=httpx.Limits(max_connections=max(CLIENTS))) as client:

            def call(clip: str) -> str:
                with open(clip, "rb") as file:
                    answer = client.post(
                        f"{address}/v1/audio/transcriptions",
                        files={"file": file},
                        data={"model": "whisper-1"},
                    )
                text: str = answer.raise_for_status().json()["text"]
                return text

            yield call
    finally:
        server.terminate()
        server.wait()


def serve(model: str, port: int, how: dict[str, Any]) -> None:
    """Be the service, with options of its model."""
    import uvicorn

    from corpus_asr import Transcriber

    spec = importlib.util.spec_from_file_location("service", SERVICE)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.MODEL = model
    module.Transcriber = partial(Transcriber, **how.get("options", {}))
    uvicorn.run(module.app, port=port, log_level="warning")


ENGINES = {"ours": ours, "service": service, "faster": faster}


def tables(runs: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown of each kind, with medians over rounds."""
    lines: list[str] = []
    for table in dict.fromkeys(run["table"] for run in runs):
        several = " | ".join(f"{count} clients" for count in CLIENTS[1:])
        lines += [
            f"{table}:", "",
            f"| | 1 client: calls a second | {several} | CPU s a call | 1 client: median s | "
            f"{CLIENTS[-1]} clients: slowest s |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        of_table = [run for run in runs if run["table"] == table]
        for row in dict.fromkeys(run["row"] for run in of_table):
            ours = [run for run in of_table if run["row"] == row]
            speeds = [_median(ours, "calls_per_s", clients) for clients in CLIENTS]
            cells = [f"{speed:.2f}" for speed in speeds] + [
                " / ".join(f"{_median(ours, 'cpu_s_per_call', each):.2f}" for each in CLIENTS),
                f"{_median(ours, 'median_s', CLIENTS[0]):.2f}",
                f"{_median(ours, 'slowest_s', CLIENTS[-1]):.2f}",
            ]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _median(runs: Sequence[dict[str, Any]], name: str, clients: int) -> float:
    return float(statistics.median(run[name] for run in runs if run["clients"] == clients))


if __name__ == "__main__":
    main()
