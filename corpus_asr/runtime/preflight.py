"""Whether a job can be done, and how fast, tried in a minute: a line per thing that went well.

Works in this process: of a cluster it sees the machines and their GPUs, not whether each of them
has the model's memory.
"""

import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError, DecodeError, EngineError
from corpus_asr.runtime.checkpoints import model_name
from corpus_asr.runtime.resources import (
    Resources,
    feature_bytes_per_s,
    local_machine,
    memory_use,
    ray_address,
    resolve_resources,
    store_bytes_for,
    this_machine,
)
from corpus_asr.schemas import PACKS
from corpus_asr.stages.extract import ExtractStage
from corpus_asr.stages.parts import FAILED, FEATURE_COLUMNS, cut_part
from corpus_asr.stages.transcribe import EngineSpec, TranscribeStage
from corpus_asr.storage.run_state.plan import Plan, read_packs
from corpus_asr.storage.run_state.prune import check_removable
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ, counted

# Any archive has a broken file; three that all fail are a wrong source or a missing codec.
RECORDINGS_TRIED = 3
# So much of a recording is transcribed alone, then so many pieces of it at once, as many slots as a
# CPU has, or fewer where they might take longer than this: a large model on a small machine.
PIECE_S = 30.0
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
        *,
        audio_s: float | None = None,
    ) -> None:
        """`plan_store` holds the plan; `audio_s` is its remaining audio, None if unknown."""
        self._config, self._store, self._plan = config, store, plan
        self._plan_store = plan_store
        self._audio_s = math.inf if audio_s is None else audio_s
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
            yield f"memory     {self._memory(stage)}"
            if self._part is not None:
                yield f"speed      {self._measured(stage, self._part)}"

    def _decoded(self) -> str:
        """Decode the start of one of the first recordings, since some may be broken."""
        stage = ExtractStage(self._config)
        failures: list[str] = []
        try:
            for pack in _single(self._plan_store, self._plan):
                # Parts after the first are discarded with the stage.
                first = next(stage(pack)).slice(0, 1)
                part = first.drop_columns(list(FEATURE_COLUMNS)).to_pylist()[0]
                if part["error_kind"] is None:
                    self._part = first
                    length = f"{part['part_end_s'] - part['part_start_s']:.1f} s of audio decoded"
                    failure_note = f" (before it failed: {failures[0]})" if failures else ""
                    return f"{redact_uri(part['uri'])}: {length}{failure_note}"
                failures.append(part["error_message"])
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

    def _memory(self, stage: TranscribeStage) -> str:
        # For a GPU model, the peak of this process, in KiB, is the best estimate.
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        model_bytes = stage.predicted_bytes or peak_bytes
        if self._ray_address != "local":
            return f"a model process takes about {model_bytes / _GIBIBYTE:.1f} GiB"
        values = None if self._part is None else self._part["num_mel_bins"][0].as_py()
        bytes_per_s = feature_bytes_per_s(self._config, values=values or None)
        features = min(self._audio_s * bytes_per_s, sys.maxsize)
        return _fitting(
            self._config,
            num_packs=max(1, self._plan.num_packs),
            model_bytes=model_bytes,
            features_bytes=int(features),
        )

    def _measured(self, stage: TranscribeStage, part: pa.Table) -> str:
        """Transcribe pieces of a part: one alone, then as many at once as time allows."""
        pieces = cut_part(part, PIECE_S)
        if not pieces:
            return "not measured: no speech in the decoded audio"
        first_s = _timed(stage, pieces[:1])  # includes one-time initialization
        count = max(1, min(PIECES_AT_ONCE, int(MEASURED_S / first_s)))
        tried = [pieces[at % len(pieces)] for at in range(count)]
        audio_s = pa.concat_tables(tried)["num_samples"].to_numpy().sum() / SAMPLE_RATE_HZ
        spent_s = first_s if count == 1 else _timed(stage, tried)
        self.rtfx = audio_s / spent_s
        return (
            f"RTFx {self.rtfx:,.1f} here: {audio_s:.0f} s of audio in {spent_s:.1f} s, "
            f"{counted(count, 'piece')} at once"
        )


def _timed(stage: TranscribeStage, pieces: list[pa.Table]) -> float:
    began_s = time.monotonic()
    results = stage(pa.concat_tables(pieces))
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


def _fitting(config: RunConfig, **needs: int) -> str:
    """Say what a run takes on this machine, with and without Ray."""
    machine = this_machine()
    with_ray = memory_use(config, local_machine(), with_ray=True, **needs)
    local = memory_use(config, machine, with_ray=False, **needs)
    if with_ray.total > machine.memory_bytes:
        raise ConfigError(
            f"checking memory: found {_gib(machine.memory_bytes)} GiB, expected about "
            f"{_gib(with_ray.total)} (models {_gib(with_ray.models)}, extraction "
            f"{_gib(with_ray.extraction)}, features {_gib(with_ray.features)}, Ray "
            f"{_gib(with_ray.ray)}), or {_gib(local.total)} for run --local; set a smaller model, "
            "fewer workers or shorter part_s"
        )
    line = (
        f"about {_gib(with_ray.total)} of {_gib(machine.memory_bytes)} GiB are needed, "
        f"{_gib(local.total)} with --local"
    )
    return line + _shared_memory(store_bytes_for(config, local_machine()))


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
