"""CPU seconds a recording of `corpus_asr.Transcribe` and of `corpus-asr run --local`, by turns.

    python -m benchmarks.stage AUDIO... --to docs/benchmarks/DATE-stage.json

Each turn is a process that loads the model, works and closes it, after a warm-up with one recording
that does the same; `ratio` is the median of those within a round. Fails where a text differs.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import hardware
from benchmarks.measure import Row, measure
from benchmarks.worker import Engine

BATCH, CALLS = 16, 4
COLUMNS = ("uri", "start_s", "text")


def transcribe(*, threads: int) -> Engine:
    """Return an engine of batches in four calls at once, as an actor of Ray Data makes them."""
    from corpus_asr import Transcribe

    def engine(paths: Sequence[str]) -> dict[str, Any]:
        stage = Transcribe("whisper-tiny.en", num_threads=threads)
        batches = [{"path": [*paths[at : at + BATCH]]} for at in range(0, len(paths), BATCH)]
        with ThreadPoolExecutor(CALLS) as pool:
            results = list(pool.map(stage, batches))
        stage.close()
        return {"texts": [text for batch in results for text in batch["text"]]}

    return engine


def run_local(*, threads: int) -> Engine:
    """Return an engine of runs, each with a folder of its own."""
    from corpus_asr import read_segments
    from corpus_asr.config.run import RunConfig
    from corpus_asr.pipelines.driver import run

    def engine(paths: Sequence[str]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            sections = {
                "source": {"uri": paths},
                "output": {"uri": f"{folder}/output"},
                "model": {"checkpoint": "whisper-tiny.en"},
                "transcribe": {"cpus_per_worker": threads},
            }
            run(RunConfig.model_validate(sections), local=True)
            rows = read_segments(f"{folder}/output").to_pylist()
        rows.sort(key=lambda row: row["start_s"])
        texts = ["".join(row["text"] for row in rows if row["uri"] == path) for path in paths]
        return {"texts": [text.strip() for text in texts]}

    return engine


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("audio", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--to", type=Path, required=True)
    asked = parser.parse_args(arguments)
    paths = [str(path.resolve()) for path in asked.audio]
    row = partial(Row, options={"threads": asked.threads})
    stage = row(name="Transcribe", engine="benchmarks.stage:transcribe")
    job = row(name="run --local", engine="benchmarks.stage:run_local")
    measure([job, stage], {"work": paths, "warm_up": paths[:1]}, runs=asked.rounds)
    if failed := job.failed or stage.failed:
        sys.exit(failed)
    pairs = list(zip(stage.runs, job.runs, strict=True))
    texts = [ours["texts"] == theirs["texts"] for ours, theirs in pairs]
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "threads": asked.threads,
        "recordings": len(paths),
        "cpu_s_per_recording": {
            each.name: [cpu_s / len(paths) for cpu_s in each.all("cpu_s")] for each in (job, stage)
        },
        "peak_mib": {each.name: each.all("peak_mib") for each in (job, stage)},
        "ratio": statistics.median(ours["cpu_s"] / theirs["cpu_s"] for ours, theirs in pairs),
        "same_texts": all(texts),
    }
    asked.to.write_text(f"{json.dumps(results, indent=1)}\n")
    print(json.dumps(results, indent=1))
    return not all(texts)


if __name__ == "__main__":
    sys.exit(main())
