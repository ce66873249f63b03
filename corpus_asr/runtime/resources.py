"""Numbers and sizes of workers: each `auto` of a job, resolved once for the machines' shapes.

`ray_address` reads where they run, which the environment alone says.
"""

import math
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from corpus_asr.config.document import hide_secrets
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.stages.extract import further_features_of
from corpus_asr.threads import group_folders, read_limit, usable_cpus, usable_threads
from corpus_asr.units import FRAMES_PER_SECOND, HOP_SAMPLES, MEBIBYTE, counted

# Slots assumed for bookkeeping where the engine chooses them itself.
_ASSUMED_SLOTS_GPU = 64
_ASSUMED_SLOTS_CPU = 8
# Parts waiting or being decoded per slot: one in the slot, one ready to take its place.
PARTS_PER_SLOT = 2
# ... but beyond one per slot a CPU, which is slow to use them up, holds no more than this ready.
READY_BYTES_CPU = 256 * MEBIBYTE
# Features of one call stay below this, so that few long parts or many short ones travel together:
# a GPU is fed in few calls, a CPU in small ones, whose parts Ray joins into one more copy.
CALL_BYTES: dict[Literal["gpu", "cpu"], int] = {"gpu": 64 * MEBIBYTE, "cpu": 16 * MEBIBYTE}
# Blocks leave extraction at this size or at the end of a task. Ray's 128 MiB would hold a file's
# parts back until it is decoded; one part of a minute fills this, shorter clips travel together.
BLOCK_BYTES = MEBIBYTE
# Each block is some 10 ms of work for the one driver: the more GPUs there are, the larger are
# blocks, and the more other workers have parts ready while one is filled.
BLOCK_BYTES_PER_GPU = 2 * MEBIBYTE
MAX_BLOCK_BYTES = 128 * MEBIBYTE
# Packs of one task, where there are many tasks for each extract worker all the same.
MAX_PACKS_PER_TASK = 8
MIN_TASKS_PER_WORKER = 32
MAX_MEL_BINS = 128
FEATURE_BYTES_PER_S = FRAMES_PER_SECOND * MAX_MEL_BINS * 2  # float16: 25,600
# Whose GPUs fill a commit of 4 MB in a second or two, which takes a store as long.
WORKERS_PER_ACTOR = 32
# Features between the stages take half of the object store, so that none is spilled to disk while
# others are on their way; half of that is in flight, the other waits to take its place.
STORE_SHARE_AHEAD = 0.5
AHEAD_SHARE_IN_FLIGHT = 2
# Parts that Ray holds for each extract worker beside those.
PARTS_PER_EXTRACT_WORKER = 2
# Without Ray: four long parts beside those in flight.
AHEAD_BYTES_LOCAL = 64 * MEBIBYTE
MIN_STORE_BYTES = 512 * MEBIBYTE
MAX_STORE_SHARE_OF_MEMORY = 0.3
# One core extracts 340 to 630 times faster than real time, far ahead of a model on the other three.
CORES_PER_EXTRACT_WORKER_ON_CPU = 4
# While one waits for a store that answers late, another feeds the GPU.
MIN_EXTRACT_WORKERS_GPU = 2
# Reading the plan and writing results must find a CPU when the actors hold all others.
SPARE_CPUS = 1
# With fewer logical CPUs the plan's read tasks and the actors can wait for each other for ever.
MIN_LOGICAL_CPUS = 4
# Minimum CPUs that `auto` leaves to extraction, and the smallest share of a CPU to reserve.
MIN_EXTRACT_CPUS = 0.5
CPU_STEP = 0.001
# Abort the run after this long without any result (Ray's own default is 1,800 s).
MIN_NO_PROGRESS_S = 3600.0
SLOWEST_SPEED: dict[Literal["gpu", "cpu"], float] = {"gpu": 10.0, "cpu": 0.5}  # times real time


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """One machine as the scheduler sees it."""

    cpus: float
    """CPUs to reserve; may be more than there are."""
    cores: int
    """Those that threads of models run on, and processes beside them: at most OMP_NUM_THREADS."""
    gpus: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Resources of each stage. Bytes and seconds are limits, not expectations."""

    extract_workers: int
    extract_cpus: float
    packs_per_task: int
    block_bytes: int
    """Parts that travel between the stages together."""
    transcribe_workers: int
    transcribe_cpus: float
    transcribe_gpus: float
    device: str
    """Never `auto`: a worker that has a GPU must use it, or say that it cannot."""
    transcribe_threads: int | None
    """Threads of the model; None where a GPU does the work."""
    rows_per_call: int
    calls_in_flight: int
    ahead_bytes: int
    """Features extracted and not yet transcribed, over all machines; beyond, extraction waits."""
    no_progress_timeout_s: float

    @property
    def parts_in_flight(self) -> int:
        """Number of parts held by one transcribe worker."""
        return self.rows_per_call * self.calls_in_flight

    def describe(self) -> str:
        """Return one line per stage."""
        threads = self.transcribe_threads
        model = "" if threads is None else f", {counted(threads, 'thread')}"
        return (
            f"extract: up to {counted(self.extract_workers, 'worker')} of {self.extract_cpus:g} "
            f"CPU; {self.ahead_bytes / MEBIBYTE:.0f} MiB of buffered features at most\n"
            f"transcribe: {counted(self.transcribe_workers, 'worker')} of {self.transcribe_gpus:g} "
            f"GPU, {self.transcribe_cpus:g} CPU{model}; {counted(self.parts_in_flight, 'part')} "
            f"in flight each ({counted(self.calls_in_flight, 'call')} of {self.rows_per_call})\n"
            f"limit: the run aborts after {self.no_progress_timeout_s / 60:.0f} min without "
            "any progress"
        )


def this_machine() -> NodeShape:
    """Return the shape of this machine, as usable by this process."""
    cpus = usable_cpus()
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory_bytes = min(memory_bytes, memory_limit_bytes() or memory_bytes)
    return NodeShape(
        cpus=cpus, cores=usable_threads(), gpus=_visible_gpus(), memory_bytes=memory_bytes
    )


def local_machine() -> NodeShape:
    """Return the shape of this machine as seen by a local Ray."""
    machine = this_machine()
    return replace(machine, cpus=max(MIN_LOGICAL_CPUS, machine.cpus))


def _visible_gpus() -> int:
    """Count NVIDIA GPUs without loading CUDA, which costs seconds and memory."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(Path("/dev").glob("nvidia[0-9]*"))) or int(Path("/dev/dxg").exists())  # WSL
    if visible is None:
        return present
    named = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return min(present, len(named))


def resolve_resources(
    config: RunConfig,
    nodes: tuple[NodeShape, ...],
    *,
    num_packs: int,
    store_bytes: int | None = None,
    fixed: bool = False,
    in_process: bool = False,
) -> Resources:
    """Resolve every `auto` for these machines; explicit numbers are kept.

    At most `num_packs` extract workers are useful. Without `store_bytes`, memory for tables between
    the stages is sized for the parts in flight. `fixed`: no machines will be added; `in_process`:
    one engine in this process, which sees all GPUs, instead of Ray workers.

    Raises:
        ConfigError: GPUs are requested without a number of workers, and none exist; or with
            `fixed`, the requested resources can never be scheduled.
    """
    gpus_each = _gpus_per_worker(config, nodes)
    if not in_process:
        _check_device(config)
    workers = _transcribe_workers(config, nodes, gpus_each=gpus_each)
    workers_per_node = math.ceil(workers / max(1, len(nodes)))
    largest = max(nodes, key=lambda node: node.cpus)
    cpus_each = _cpus_per_worker(config, largest, gpus_each, workers_per_node=workers_per_node)
    extract_workers, extract_cpus = _extract_workers(
        config, nodes, on_gpu=gpus_each > 0, taken_cpus=workers * cpus_each, num_packs=num_packs
    )
    block_bytes = BLOCK_BYTES
    if gpus_each > 0:
        block_bytes = min(MAX_BLOCK_BYTES, max(1, workers) * BLOCK_BYTES_PER_GPU)
    ahead_bytes = _ahead_bytes(config, store_bytes)
    rows, calls = _in_flight(
        config,
        on_gpu=gpus_each > 0,
        workers=workers,
        ahead_bytes=ahead_bytes,
        block_bytes=block_bytes,
    )
    speed = SLOWEST_SPEED["gpu" if gpus_each > 0 else "cpu"]
    resources = Resources(
        extract_workers=extract_workers,
        extract_cpus=extract_cpus,
        packs_per_task=max(
            1, min(MAX_PACKS_PER_TASK, num_packs // (MIN_TASKS_PER_WORKER * extract_workers))
        ),
        block_bytes=block_bytes,
        transcribe_workers=workers,
        transcribe_cpus=cpus_each,
        transcribe_gpus=gpus_each,
        device=_device(config, gpus_each),
        transcribe_threads=_threads(config, largest, gpus_each, workers_per_node=workers_per_node),
        rows_per_call=rows,
        calls_in_flight=calls,
        ahead_bytes=ahead_bytes or AHEAD_BYTES_LOCAL + rows * calls * _part_bytes(config),
        # A failing store blocks everything for this long.
        no_progress_timeout_s=config.output.patience_s
        + max(MIN_NO_PROGRESS_S, rows * calls * config.extract.part_s / speed),
    )
    if fixed:
        _check_fits(resources, nodes)
    return resources


def store_bytes_for(config: RunConfig, node: NodeShape) -> int:
    """Return the object store bytes of a Ray started on this machine."""
    ahead_bytes = _ahead_bytes(config, None)
    if ahead_bytes is None:
        resources = resolve_resources(config, (node,), num_packs=sys.maxsize)
        in_flight = resources.transcribe_workers * resources.parts_in_flight
        held = PARTS_PER_EXTRACT_WORKER * resources.extract_workers
        ahead_bytes = (AHEAD_SHARE_IN_FLIGHT * in_flight + held) * _part_bytes(config)
    needed = int(ahead_bytes / STORE_SHARE_AHEAD)
    return max(MIN_STORE_BYTES, min(needed, int(node.memory_bytes * MAX_STORE_SHARE_OF_MEMORY)))


def _check_fits(resources: Resources, nodes: tuple[NodeShape, ...]) -> None:
    """Raise an error for requests that Ray could never schedule."""
    gpus_each, workers = resources.transcribe_gpus, resources.transcribe_workers
    if gpus_each > 0 and workers > (room := _room_on_gpus(nodes, gpus_each)):
        raise ConfigError(
            f"planning workers: transcribe.workers is {workers}, but there are GPUs for {room} "
            f"with transcribe.gpus_per_worker {gpus_each:g}; lower either, or remove workers"
        )
    transcribe = workers * resources.transcribe_cpus
    extract = resources.extract_workers * resources.extract_cpus
    cpus = sum(node.cpus for node in nodes)
    if transcribe + extract + SPARE_CPUS > cpus:
        raise ConfigError(
            f"planning workers: found {cpus:g} CPUs, but transcription takes {transcribe:g}, "
            f"extraction {extract:g} and storage {SPARE_CPUS:g}; lower transcribe.workers, "
            "cpus_per_worker or extract.workers"
        )


def _room_on_gpus(nodes: tuple[NodeShape, ...], gpus_each: float) -> int:
    return sum(int(node.gpus / gpus_each) for node in nodes)


def _gpus_per_worker(config: RunConfig, nodes: tuple[NodeShape, ...]) -> float:
    gpus = config.transcribe.gpus_per_worker
    if gpus != "auto":
        return gpus
    if config.model.device == "cpu":
        return 0.0
    if any(node.gpus >= 1 for node in nodes):
        return 1.0
    if config.model.device == "auto":
        return 0.0
    raise ConfigError(
        f"planning workers: model.device is {config.model.device}, but no machine of {len(nodes)} "
        "shows a GPU; check nvidia-smi, set it to auto, or set transcribe.gpus_per_worker and "
        "workers to scale up"
    )


def _check_device(config: RunConfig) -> None:
    number = config.model.device.partition(":")[2]
    if number.isdecimal() and int(number) > 0:
        raise ConfigError(
            f"planning workers: model.device is {config.model.device}, but a Ray worker sees its "
            "GPU as cuda:0; set it to cuda, and choose GPUs by CUDA_VISIBLE_DEVICES, or run with "
            "--local"
        )


def _device(config: RunConfig, gpus_each: float) -> str:
    if config.model.device != "auto":
        return config.model.device
    return "cuda" if gpus_each > 0 else "cpu"


def _transcribe_workers(
    config: RunConfig, nodes: tuple[NodeShape, ...], *, gpus_each: float
) -> int:
    if config.transcribe.workers != "auto":
        return config.transcribe.workers
    if gpus_each == 0:
        # One model per machine, on all its cores: two would hold the weights twice.
        return max(1, sum(node.cpus > 0 for node in nodes))
    workers = _room_on_gpus(nodes, gpus_each)
    if workers == 0:
        raise ConfigError(
            f"planning workers: transcribe.gpus_per_worker is {gpus_each:g}, but no machine of "
            f"{len(nodes)} has as many; set it to 0 to use CPUs, or set transcribe.workers if the "
            "cluster scales up"
        )
    if config.transcribe.cpus_per_worker == "auto":
        return workers
    free = sum(node.cpus for node in nodes) - SPARE_CPUS - MIN_EXTRACT_CPUS
    return max(1, min(workers, int(free / config.transcribe.cpus_per_worker)))


def _cpus_per_worker(
    config: RunConfig, node: NodeShape, gpus_each: float, *, workers_per_node: int
) -> float:
    if config.transcribe.cpus_per_worker != "auto":
        return config.transcribe.cpus_per_worker
    if gpus_each > 0:
        return 0.0
    share = min(node.cpus // 2, node.cpus - SPARE_CPUS - MIN_EXTRACT_CPUS)
    return _whole_steps(share / workers_per_node)


def _threads(
    config: RunConfig, node: NodeShape, gpus_each: float, *, workers_per_node: int
) -> int | None:
    """Return the number of CPU threads of the model."""
    if gpus_each > 0:
        return None
    # All cores, though only half are reserved: extraction is many times faster than the model, so
    # that its processes are mostly blocked.
    if config.transcribe.cpus_per_worker != "auto":
        return max(1, round(config.transcribe.cpus_per_worker))
    return max(1, node.cores // workers_per_node)


def _extract_workers(
    config: RunConfig,
    nodes: tuple[NodeShape, ...],
    *,
    on_gpu: bool,
    taken_cpus: float,
    num_packs: int,
) -> tuple[int, float]:
    """Return the number of extract workers and the CPUs reserved for each."""
    free = sum(node.cpus for node in nodes) - taken_cpus - SPARE_CPUS
    if config.extract.workers != "auto":
        wanted = config.extract.workers
    elif on_gpu:
        wanted = max(MIN_EXTRACT_WORKERS_GPU, int(free))
    else:
        wanted = sum(node.cores for node in nodes) // CORES_PER_EXTRACT_WORKER_ON_CPU
    workers = max(1, min(wanted, num_packs))
    # More workers than free CPUs, or a tiny machine: share CPUs, so that none waits forever.
    share = 1.0 if workers <= free else _whole_steps(max(free, 0.0) / workers)
    return workers, share


def _whole_steps(cpus: float) -> float:
    # A small margin, since 0.043 / 0.001 is 42.999...
    return max(CPU_STEP, math.floor(cpus / CPU_STEP + 1e-9) * CPU_STEP)


def _in_flight(
    config: RunConfig, *, on_gpu: bool, workers: int, ahead_bytes: int | None, block_bytes: int
) -> tuple[int, int]:
    """Return rows per call and calls in flight of one transcribe worker."""
    slots = config.transcribe.slots
    if slots == "auto":
        slots = _ASSUMED_SLOTS_GPU if on_gpu else _ASSUMED_SLOTS_CPU
    parts = PARTS_PER_SLOT * slots
    if not on_gpu:
        parts = min(parts, max(slots, READY_BYTES_CPU // _part_bytes(config)))
    if ahead_bytes is not None:
        room = ahead_bytes // AHEAD_SHARE_IN_FLIGHT // workers // _part_bytes(config)
        parts = max(2, min(parts, room))
    # At least four calls, so that results arrive while others are decoded.
    call_bytes = CALL_BYTES["gpu" if on_gpu else "cpu"]
    part_bytes = _part_bytes(config)
    # A block larger than a call would be decoded in two calls, sequentially.
    rows = max(call_bytes // part_bytes, math.ceil(block_bytes / part_bytes))
    rows = max(1, min(parts // 4, rows))
    return rows, math.ceil(parts / rows)


def _ahead_bytes(config: RunConfig, store_bytes: int | None) -> int | None:
    """Return the configured limit, or the one from object stores; None without either."""
    if config.extract.max_buffered_features_mb != "auto":
        return int(config.extract.max_buffered_features_mb * MEBIBYTE)
    return None if store_bytes is None else int(store_bytes * STORE_SHARE_AHEAD)


def _feature_bytes_per_s(config: RunConfig) -> int:
    """Return the most feature bytes per second of audio, summed over kinds of features.

    A user's own recognizer gets the samples.
    """
    values = MAX_MEL_BINS if config.model.recognizer is None else HOP_SAMPLES
    values += MAX_MEL_BINS * len(further_features_of(config.needed_model, config.align.model))
    return FEATURE_BYTES_PER_S * values // MAX_MEL_BINS


def _part_bytes(config: RunConfig) -> int:
    return int(config.extract.part_s * _feature_bytes_per_s(config))


def memory_limit_bytes() -> int | None:
    """Return the smallest memory limit of this process's cgroups."""
    limits = [
        int(text)
        for folder in (*group_folders(""), *group_folders("memory"))
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := read_limit(folder / name)).isdecimal()
    ]
    return min(limits, default=None)


RAY_ADDRESS = "RAY_ADDRESS"
"""Environment variable with the cluster address, as used by Ray's own programs."""


def ray_address() -> str:
    """Return the Ray address in RAY_ADDRESS: `local` (default), `auto` or host:port.

    Raises:
        ConfigError: a run cannot join this address.
    """
    named = os.environ.get(RAY_ADDRESS, "").strip()
    if not named or re.fullmatch(r"local|auto|[^:/\s]+:\d+", named):
        return named or "local"
    wrong = "expected host:port of a cluster, such as 10.0.0.1:6379, auto or local; correct it"
    if named.startswith("ray://"):
        # Ray Data needs a driver that is part of the cluster (seen with Ray 2.60).
        wrong = (
            "Ray Client, which cannot run Ray Data; run the same command on a machine of the "
            "cluster, for example by `ray job submit`"
        )
    elif named.startswith(("http://", "https://")):
        wrong = (
            "a dashboard, which takes jobs and no drivers; submit this command by `ray job submit`"
        )
    raise ConfigError(
        f"finding the Ray to join: {RAY_ADDRESS} is {hide_secrets(named)!r}, {wrong}; or unset it "
        "to start Ray here"
    )
