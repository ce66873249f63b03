"""Runs of a simulated fleet that loses machines, GPUs and its coordinator, and what that costs.

Ray, its nodes, actors, commits and tables are real; the GPUs are numbers to Ray, and the
engine takes its time and says what it was given. Faults strike once a quarter is committed.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import EngineError
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.ray_cluster import connected
from corpus_asr.runtime.ray_dataset import run_on_ray
from corpus_asr.runtime.resources import resolve_resources
from corpus_asr.stages.transcribe import EngineSpec
from tests.support.engines import EXTRACTOR, ScriptedEngine, committer_of, scripted_job
from tests.support.killing import SlowEngine, command_line, descendants, kill_below, tables_of
from tests.support.tables import packs_of

STORE_BYTES = 100 * 1024 * 1024
SLOWER = 10
WAVES = 3
WAVE_S = 10.0
FAULTS, LOADS = "faults.json", "loads"
# What strikes; of each scenario.
SCENARIOS = {
    "calm": (),
    "bad GPU": ("bad",),
    "lost node": ("lost",),
    "slow node": ("slow",),
    "preemption in waves": ("waves",),
    "killed coordinator": ("coordinator",),
    "bad GPU, lost node, killed coordinator": ("bad", "lost", "coordinator"),
}
Tables = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """How large it is, and its work."""

    nodes: int = 4
    gpus_per_node: int = 2
    recordings: int = 400
    pause_s: float = 0.5
    """What a part takes; two of them at a time on each GPU."""
    extract_workers: int = 2
    ready_s: float = 600.0
    """Until a quarter is committed, at most."""

    @property
    def gpus(self) -> int:
        """In all."""
        return self.nodes * self.gpus_per_node


class BadEngine(ScriptedEngine):
    """Fails of everything."""

    def submit(self, request: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_exception(EngineError("CUDA error: unknown error (simulated)"))
        return future


def fleet_engine(spec: EngineSpec) -> ScriptedEngine:
    """Return the engine of the GPU that this worker has."""
    folder = Path(spec.config.model.checkpoint).parent
    with (folder / LOADS).open("a") as file:
        file.write("x\n")
    faults = json.loads((folder / FAULTS).read_text())
    context = ray.get_runtime_context()
    node, gpus = context.get_node_id(), context.get_accelerator_ids()["GPU"]
    if node == faults["bad"] and "0" in gpus:
        return BadEngine()
    return SlowEngine(pause_s=faults["pause_s"] * (SLOWER if node == faults["slow"] else 1))


@dataclass
class Machines:
    """The nodes of a cluster on this machine."""

    fleet: Fleet
    cluster: Cluster
    nodes: list[Any] = field(default_factory=list)

    def add(self) -> None:
        """Add a node with GPUs."""
        gpus = self.fleet.gpus_per_node
        # Ray sets a signal handler for each node, which only the main thread may: it runs the job.
        with mock.patch("ray._private.utils.set_sigterm_handler"):
            node = self.cluster.add_node(
                num_cpus=gpus, num_gpus=gpus, object_store_memory=STORE_BYTES
            )
        self.nodes.append(node)

    def lose(self) -> None:
        """End the last one as if its power was cut."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@contextlib.contextmanager
def machines_of(fleet: Fleet) -> Iterator[Machines]:
    """Start a head, which extracts, and the nodes with GPUs."""
    head = {"num_cpus": 2 + fleet.extract_workers, "num_gpus": 0}
    head["object_store_memory"] = 2 * STORE_BYTES
    machines = Machines(fleet, Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(fleet.nodes):
            machines.add()
        yield machines
    finally:
        ray.shutdown()
        machines.cluster.shutdown()  # type: ignore[no-untyped-call]


class Strikes(threading.Thread):
    """Brings the faults of a scenario once a quarter of the work is committed."""

    def __init__(
        self, fleet: Fleet, machines: Machines, progress: Progress, what: tuple[str, ...]
    ) -> None:
        super().__init__(daemon=True, name="strikes")
        self._fleet, self._machines, self._progress = fleet, machines, progress
        self._what = what
        self.done: list[str] = []
        self.worker_mib: list[float] = []

    def run(self) -> None:
        """Wait, measure and strike."""
        deadline = time.monotonic() + self._fleet.ready_s
        while self._progress.tally.parts < self._fleet.recordings // 4:
            if time.monotonic() > deadline:
                return
            time.sleep(0.2)
        self.worker_mib = [pss_mib(process) for process in workers()]
        if "lost" in self._what:
            self._machines.lose()
            self.done.append("lost")
        if "coordinator" in self._what and kill_below(os.getpid(), "board"):
            self.done.append("coordinator")
        for _ in range(WAVES if "waves" in self._what else 0):
            self._machines.lose()
            time.sleep(WAVE_S / 2)
            self._machines.add()
            self.done.append("wave")
            time.sleep(WAVE_S / 2)


def workers() -> list[psutil.Process]:
    """Return the processes that transcribe."""
    return [each for each in descendants(os.getpid()) if "TranscribeWorker" in command_line(each)]


def pss_mib(process: psutil.Process) -> float:
    """Return the memory of a process, shared pages by their share; 0 where it has ended."""
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What became of a run."""

    tables: Tables
    figures: dict[str, Any]


def run_fleet(fleet: Fleet, scenario: str, folder: Path) -> Measured:
    """Work off a plan on a fleet of its own, with the faults of a scenario."""
    what = SCENARIOS[scenario]
    folder.mkdir(parents=True)
    packs = [packs_of(f"{number}/parts=1") for number in range(fleet.recordings)]
    numbered = [p.set_column(0, "pack_id", pa.array([i], pa.int64())) for i, p in enumerate(packs)]
    pq.write_table(pa.concat_tables(numbered), folder / "packs.rows")
    progress = Progress(total_files=fleet.recordings, stream=None)
    with machines_of(fleet) as machines:
        config = _job(fleet, folder)
        nodes = [node.node_id for node in machines.nodes]
        faults = {
            "pause_s": fleet.pause_s,
            "bad": nodes[0] if "bad" in what else None,
            "slow": nodes[0] if "slow" in what else None,
        }
        (folder / FAULTS).write_text(json.dumps(faults))
        strikes = Strikes(fleet, machines, progress, what)
        with connected(machines.cluster.address, store_bytes=0) as cluster:
            resources = resolve_resources(
                config, cluster.nodes, num_packs=len(packs), store_bytes=cluster.store_bytes
            )
            began_s = time.monotonic()
            strikes.start()
            run_on_ray(
                config,
                [str(folder / "packs.rows")],
                committer_of(config),
                # One part more than the engine takes: a part for each call.
                resources=dataclasses.replace(
                    resources, device="cpu", rows_per_call=1, calls_in_flight=4, packs_per_task=1
                ),
                progress=progress,
                engine_factory=fleet_engine,
                extractor=EXTRACTOR,
            )
            wall_s = time.monotonic() - began_s
    figures = {
        "scenario": scenario,
        "gpus": fleet.gpus,
        "recordings": fleet.recordings,
        "wall_s": round(wall_s, 1),
        "strikes": strikes.done,
        "models_loaded": len((folder / LOADS).read_text().splitlines()),
        "taken_out": list(progress.taken_out),
        "counted": progress.tally.files,
        "failed": progress.tally.failed,
        "worker_mib": round(statistics.mean(strikes.worker_mib or [0.0])),
    }
    # The model lies in the folder of the run.
    tables = {
        name: [{k: v for k, v in row.items() if k != "model"} for row in rows]
        for name, rows in tables_of(config).items()
    }
    return Measured(tables=tables, figures=figures)


def _job(fleet: Fleet, folder: Path) -> RunConfig:
    return scripted_job(
        folder,
        extract={"workers": fleet.extract_workers},
        transcribe={"workers": fleet.gpus, "gpus_per_worker": 1, "slots": 2},
        output={"uri": str(folder / "output"), "commit_mb": 0.001},
    )


def compared(calm: Measured, struck: Measured) -> dict[str, Any]:
    """Return the figures of a run with what it lost and cost, compared with one in peace."""
    lost = doubled = 0
    for name, rows in calm.tables.items():
        wanted, found = Counter(map(repr, rows)), Counter(map(repr, struck.tables[name]))
        lost += (wanted - found).total()
        doubled += (found - wanted).total()
    cost_s = struck.figures["wall_s"] - calm.figures["wall_s"]
    return struck.figures | {"lost": lost, "doubled": doubled, "cost_s": round(cost_s, 1)}
