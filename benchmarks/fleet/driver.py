"""Parts a second that the driver of a run on Ray can pass through stages that do nothing.

    python -m benchmarks.fleet.driver --packs 800 --parts-per-pack 22 --parts-per-block 14

Ray, plan, blocks, commits and tables are real; extraction and engines are empty, so that the
driver, the commits and Ray itself are all that takes time. A block of 128 MiB, as of 64 GPUs, holds
fourteen parts of six minutes, and a pack of 64 MB of MP3 (64 kbit/s) twenty-two. Prints JSON.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from corpus_asr.runtime import ray_dataset
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.ray_cluster import connected
from corpus_asr.runtime.resources import resolve_resources
from corpus_asr.schemas import RESULTS
from corpus_asr.storage.run_state.tables import OutputStore, time_ns_of
from tests.support.engines import committer_of, scripted_job
from tests.support.killing import descendants
from tests.support.tables import packs_of, part, results

# Results of six minutes: 11 KB in memory.
SEGMENTS = 90
FEATURE_BYTES = 1000


class EmptyExtract:
    """Yields for each recording of a pack a row of as many bytes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._features = b"x" * FEATURE_BYTES

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        for file in pc.list_flatten(packs["files"]).to_pylist():
            yield pa.table({"recording_id": [file["recording_id"]], "features": [self._features]})


class EmptyTranscribe:
    """Returns the same results for each row."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._said = results(part("a", 0, texts=[" some words that were said"] * SEGMENTS))

    def __call__(self, parts: pa.Table) -> pa.Table:
        # One chunk, as a worker's: each chunk of a nested column costs Ray 0.3 ms.
        rows = pa.concat_tables([self._said] * parts.num_rows).combine_chunks()
        place = RESULTS.get_field_index("recording_id")
        ids = parts["recording_id"].cast(pa.string())
        return rows.set_column(place, RESULTS.field(place), ids)


def cpu_s_of_all() -> float:
    """Return the CPU seconds of this process and of all that it started, Ray's too."""
    times = [each.cpu_times() for each in (psutil.Process(), *descendants(os.getpid()))]
    return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Pass a plan through, and return what it took."""
    gpus = {"workers": arguments.workers, "gpus_per_worker": 0.001}
    config = scripted_job(folder, extract={"workers": arguments.workers}, transcribe=gpus)
    each = arguments.parts_per_pack
    packs = [packs_of(*(f"{n}/{i}" for i in range(each))) for n in range(arguments.packs)]
    pq.write_table(pa.concat_tables(packs), folder / "packs.parquet")
    with connected("local", store_bytes=0) as cluster:
        resources = resolve_resources(
            config, cluster.nodes, num_packs=len(packs), store_bytes=cluster.store_bytes
        )
        resources = dataclasses.replace(
            resources,
            packs_per_task=arguments.packs_per_task or resources.packs_per_task,
            block_bytes=arguments.parts_per_block * FEATURE_BYTES,
            rows_per_call=arguments.parts_per_block,
            calls_in_flight=16,
        )
        all_cpu_s = cpu_s_of_all()
        cpu_s, began_s = time.process_time(), time.monotonic()
        ray_dataset.run_on_ray(
            config,
            [str(folder / "packs.parquet")],
            committer_of(config),
            resources=resources,
            progress=Progress(total_files=each * len(packs), stream=None),
        )
        cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - began_s
        all_cpu_s = cpu_s_of_all() - all_cpu_s
    store = OutputStore(config.output.uri)
    rows = {batch.name: batch.rows.num_rows for batch in store.committed(["part"])}
    num_parts = sum(rows.values())
    # Names begin with the time of the commit; before the first, actors were starting.
    times_s = [time_ns_of(name) / 1e9 for name in sorted(rows)]
    after_first = num_parts - rows[min(rows)]
    return {
        "packs": len(packs),
        "packs_per_task": resources.packs_per_task,
        "parts_per_block": arguments.parts_per_block,
        "parts": num_parts,
        "commits": len(rows),
        "wall_s": round(wall_s, 1),
        "parts_per_s": round(after_first / (times_s[-1] - times_s[0])),
        "cpu_s": round(all_cpu_s, 1),
        "driver_cpu_s": round(cpu_s, 1),
        "driver_ms_per_part": round(1e3 * cpu_s / num_parts, 2),
        "driver_ms_per_pack": round(1e3 * cpu_s / len(packs), 1),
    }


def main() -> None:
    """Measure on a Ray of this machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--packs", type=int, default=800)
    parser.add_argument("--parts-per-pack", type=int, default=22)
    parser.add_argument("--parts-per-block", type=int, default=14)
    parser.add_argument("--packs-per-task", type=int, help="default: as for a run")
    parser.add_argument("--workers", type=int, default=1, help="of each stage")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.getcwd()
    for name, stage in (("ExtractWorker", EmptyExtract), ("TranscribeWorker", EmptyTranscribe)):
        setattr(ray_dataset, name, stage)
    ray.init(
        address="local", num_cpus=6, num_gpus=1, object_store_memory=400 * 1024 * 1024,
        include_dashboard=False, log_to_driver=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments)
    ray.shutdown()
    sys.stdout.write(f"{json.dumps({'ray': ray.__version__} | found)}\n")


if __name__ == "__main__":
    main()
