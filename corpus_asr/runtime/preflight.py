"""Whether a job can be done, and how fast, tried in a minute: a line per thing that went well.

Works in this process: of a cluster it sees the machines and their GPUs, not whether each of them
has the model's memory.
"""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import pyarrow as pa

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError, DecodeError, EngineError
from corpus_asr.runtime.checkpoints import model_name
from corpus_asr.runtime.resources import (
    Resources,
    local_machine,
    ray_address,
    resolve_resources,
    store_bytes_for,
    this_machine,
)
from corpus_asr.schemas import PACKS
from corpus_asr.stages.extract import ExtractStage
from corpus_asr.stages.parts import FAILED, OK, part_rows
from corpus_asr.stages.transcribe import EngineSpec, TranscribeStage
from corpus_asr.storage.run_state.plan import Plan, read_packs
from corpus_asr.storage.run_state.prune import check_removable
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ, counted

# Any archive has a broken file; three that all fail are a wrong source or a missing codec.
RECORDINGS_TRIED = 3
# The first piece with speech is transcribed alone, then so many times at once, as many slots as a
# CPU has, or fewer where they might take longer than this: a large model on a small machine.
PIECE_S = 30.0
PIECES_TRIED = 20
PIECES_AT_ONCE = 8
MEASURED_S = 20.0
_GIBIBYTE = 1024 * MEBIBYTE


class ReadyCheck:
    """Tries what a job needs, and how fast this machine is with it."""

    def __init__(
        self,
        config: RunConfig,
        store: OutputStore,
        plan: Plan,
        plan_store: OutputStore,
    ) -> None:
        """`plan_store` holds the plan."""
        self._config, self._store, self._plan = config, store, plan
        self._plan_store = plan_store
        self._ray_address = ray_address()
        self._part: pa.Table | None = None
        self.rtfx: float | None = None
        """RTFx of this machine with all slots filled; None if nothing was transcribed."""

    def lines(self) -> Iterator[str]:
        """Run the checks, yielding a line on each.

        Raises:
            CorpusAsrError: of the first check that fails.
        """
        config = self._config
        check_removable(self._store)
        yield f"output     written and removed in {redact_uri(self._store.uri)}"
        if self._plan.num_remaining:
            yield f"recording  {self._decoded()}"
        resources, joined = _resources(config, self._plan, self._ray_address)
        if joined is not None:
            yield f"cluster    {joined}"
        yield f"machines   {resources.describe().splitlines()[1]}"
        with closing(self._load(resources)) as stage:
            yield f"model      {self._loaded(stage)}"
            if self._plan.num_remaining:
                yield f"speed      {self._measured(stage)}"
        yield f"memory     {self._memory(resources)}"

    def _decoded(self) -> str:
        """Decode the start of one of the first recordings, since some may be broken."""
        extract = self._config.extract.model_copy(update={"part_s": PIECE_S})
        stage = ExtractStage(self._config.model_copy(update={"extract": extract}))
        failures: list[str] = []
        try:
            for pack in _single(self._plan_store, self._plan):
                decoded_s = 0.0
                # Parts after these are discarded with the stage.
                for part in islice(stage(pack), PIECES_TRIED):
                    [row] = part_rows(part)
                    if row["status"] == FAILED:
                        failures.append(row["error_message"])
                        break
                    decoded_s += row["part_end_s"] - row["part_start_s"]
                    if row["status"] == OK:
                        self._part = part
                        break
                if decoded_s:
                    failure_note = f" (before it failed: {failures[0]})" if failures else ""
                    length = f"{decoded_s:.1f} s of audio decoded"
                    return f"{redact_uri(row['uri'])}: {length}{failure_note}"
        finally:
            stage.close()
        raise DecodeError(failures[0])

    def _load(self, resources: Resources) -> TranscribeStage:
        remote = self._ray_address != "local"
        return TranscribeStage(
            EngineSpec(
                config=self._config,
                # A cluster's GPUs are not those of the driver.
                device="auto" if remote else resources.device,
                dtype="auto" if remote else None,
                num_threads=resources.transcribe_threads,
            )
        )

    def _loaded(self, stage: TranscribeStage) -> str:
        began_s = time.monotonic()
        stage.wait_until_loaded()
        checkpoint = redact_uri(model_name(self._config.model))
        spent_s = time.monotonic() - began_s
        return f"{checkpoint} loaded in {spent_s:.1f} s on {stage.device_name}"

    def _measured(self, stage: TranscribeStage) -> str:
        """Transcribe a piece alone, then as often at once as time allows."""
        if self._part is None:
            return "not measured: no speech in the decoded audio"
        first_s = _timed(stage, self._part)  # includes one-time initialization
        count = max(1, min(PIECES_AT_ONCE, int(MEASURED_S / first_s)))
        audio_s = count * self._part["num_samples"][0].as_py() / SAMPLE_RATE_HZ
        spent_s = first_s if count == 1 else _timed(stage, pa.concat_tables([self._part] * count))
        self.rtfx = audio_s / spent_s
        return (
            f"RTFx {self.rtfx:,.1f} here: {audio_s:.0f} s of audio in {spent_s:.1f} s, "
            f"{counted(count, 'piece')} at once"
        )

    def _memory(self, resources: Resources) -> str:
        """Say what the model and a decoder took here, and what all workers will."""
        # In KiB; of a child that has ended.
        model_bytes, extract_bytes = (
            1024 * resource.getrusage(of).ru_maxrss
            for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        if self._ray_address != "local":
            return f"a model process took {_gib(model_bytes)} GiB here"
        total_bytes = resources.transcribe_workers * model_bytes
        total_bytes += resources.extract_workers * extract_bytes
        found_bytes = this_machine().memory_bytes
        words = (
            f"{_gib(total_bytes)} of {_gib(found_bytes)} GiB for all workers (model "
            f"{_gib(model_bytes)}, extraction {_gib(extract_bytes)})"
        )
        if total_bytes > found_bytes:
            raise ConfigError(
                f"checking memory: found a need of {words}, expected room; set a smaller model, "
                "fewer workers or shorter part_s"
            )
        return words + _shared_memory(store_bytes_for(self._config, local_machine()))


def _timed(stage: TranscribeStage, pieces: pa.Table) -> float:
    began_s = time.monotonic()
    results = stage(pieces)
    if FAILED in results["status"].to_pylist():
        raise EngineError(results["error_message"].drop_null()[0].as_py())
    return time.monotonic() - began_s


def _single(store: OutputStore, plan: Plan) -> Iterator[pa.Table]:
    """Yield the first recordings of the plan, one per pack."""
    tried = 0
    for pack in read_packs(store, plan):
        row = pack.to_pylist()[0]
        for file in row["files"][: RECORDINGS_TRIED - tried]:
            tried += 1
            yield pa.Table.from_pylist([row | {"files": [file]}], schema=PACKS)
        if tried == RECORDINGS_TRIED:
            return


def _resources(config: RunConfig, plan: Plan, ray_address: str) -> tuple[Resources, str | None]:
    """Return the resources of a run, and the name of the cluster that it would join."""
    num_packs = max(1, plan.num_packs)
    if ray_address == "local":
        return resolve_resources(config, (this_machine(),), num_packs=num_packs), None
    # Importing Ray takes seconds, and single-machine jobs do not need it here.
    from corpus_asr.runtime.ray_cluster import connected

    with connected(ray_address, store_bytes=0) as cluster:
        resources = resolve_resources(
            config, cluster.nodes, num_packs=num_packs, store_bytes=cluster.store_bytes
        )
        return resources, cluster.joined


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIBIBYTE:.1f}"


def _shared_memory(store_bytes: int) -> str:
    """Return a warning if /dev/shm is too small for Ray's object store, which is then slow."""
    try:
        shared = os.statvfs("/dev/shm")
    except OSError:
        return ""
    size = shared.f_blocks * shared.f_frsize
    if size >= store_bytes:
        return ""
    return (
        f"; /dev/shm has {size / MEBIBYTE:.0f} MiB and Ray wants {store_bytes / MEBIBYTE:.0f}: "
        "raise --shm-size of the container, or use run --local, which needs none"
    )
