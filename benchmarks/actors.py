"""Throughput of the pipeline on Ray with one and with more transcribe actors.

    python -m benchmarks.actors --actors 1 2 --packs 60 --pause 1.0

The engine sleeps instead of computing, two parts at a time in each actor, so that what is seen is
how well Ray and commits keep actors busy, also on a machine without as many cores. Parts come
from a scripted extractor; commits are real.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.ray_cluster import connected
from corpus_asr.runtime.ray_dataset import run_on_ray
from corpus_asr.runtime.resources import resolve_resources
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import EXTRACTOR, committer_of, scripted_job
from tests.support.killing import PAUSE, slow_engine
from tests.support.tables import packs_of

PARTS_PER_PACK = 4
PARTS_AT_ONCE = 2  # of a slow engine


def measure(folder: Path, actors: int, num_packs: int) -> tuple[float, float]:
    """Return parts committed per second once the first were, and the driver's CPU seconds."""
    actors_of = {"workers": actors, "cpus_per_worker": 1}
    config = scripted_job(folder, extract={"workers": 1}, transcribe=actors_of)
    packs = [packs_of(f"{n}/parts={PARTS_PER_PACK}") for n in range(num_packs)]
    plan = folder / "packs"
    plan.mkdir()
    pq.write_table(pa.concat_tables(packs), plan / "00000.parquet")
    with connected("local", store_bytes=0) as cluster:
        resources = resolve_resources(
            config, cluster.nodes, num_packs=num_packs, store_bytes=cluster.store_bytes
        )
        cpu = time.process_time()
        run_on_ray(
            config,
            [str(plan / "00000.parquet")],
            committer_of(config),
            resources=resources,
            progress=Progress(total_files=num_packs, stream=None),
            engine_factory=slow_engine,
            extractor=EXTRACTOR,
        )
        cpu_s = time.process_time() - cpu
    # Names begin with the time of the commit; before the first, actors were starting.
    store = OutputStore(config.output.uri)
    rows = {batch.name: batch.rows.num_rows for batch in store.committed(["part"])}
    times = [int(name.partition("/")[2].partition("-")[0]) / 1e9 for name in sorted(rows)]
    after_first = sum(rows[name] for name in sorted(rows)[1:])
    return after_first / (times[-1] - times[0]), cpu_s


def main() -> None:
    """Measure each number of actors on a Ray of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--packs", type=int, default=60)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds a part takes")
    arguments = parser.parse_args()
    os.environ[PAUSE] = str(arguments.pause)
    os.environ["PYTHONPATH"] = os.getcwd()
    parts = arguments.packs * PARTS_PER_PACK
    for actors in arguments.actors:
        ray.init(
            address="local", num_cpus=6, object_store_memory=250 * 1024 * 1024,
            include_dashboard=False, log_to_driver=False,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            rate, cpu_s = measure(Path(folder), actors, arguments.packs)
        ray.shutdown()
        ideal = PARTS_AT_ONCE * actors / arguments.pause
        sys.stdout.write(
            f"{actors} actors: {rate:.2f} parts per second of {ideal:.2f} without any overhead; "
            f"driver {1e3 * cpu_s / parts:.1f} ms CPU/part\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
