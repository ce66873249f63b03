"""Speed of a machine for a job, and whether extraction or transcription is the bottleneck.

Speeds are measured in the last run, stated, or calculated from timings: that of a model that has
not run here is calculated for the settings, with a range. With worker counts from the settings they
give the throughput of both stages, and the slower one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from corpus_asr.activity import Estimate
from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.runtime.checkpoints import Checkpoint, model_name
from corpus_asr.runtime.resources import (
    ASSUMED_SLOTS_CPU,
    ASSUMED_SLOTS_GPU,
    RAY_ADDRESS,
    ray_address,
    resolve_resources,
    this_machine,
)
from corpus_asr.storage.run_state.run_files import (
    FINGERPRINT_NAME,
    RUN_NAME,
    Snapshot,
    read_snapshot,
    result_settings,
    speed_of,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.threads import spin_briefly
from corpus_asr.transcription.pace import rtfx_range, searched_words, time_pace
from corpus_asr.units import counted

# Shorter runs are mostly startup.
LEAST_AUDIO_S = 300.0
_LEAST_WALL_S = 60.0
# Another corpus or day: relative range of a measured speed.
_SPEED_RANGE = 1.15
BENCHMARK = "the benchmark of one core"
# RTFx of extraction on one core: the slowest MP3 of benchmarks/README.md.
EXTRACT_RTFX = 385.0

HERE = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine or cluster for the work, and its speed."""

    name: str
    rtfx: float
    """RTFx of one worker."""
    count: int = 1
    """Number of workers."""
    spread: float = _SPEED_RANGE
    """Factor by which the speed may be higher or lower."""
    source: str = ""
    """Source of the speed."""

    def words(self) -> str:
        """Return the name, and the source of the speed."""
        return f"{self.name}, {self.source}" if self.source else self.name

    def speed_words(self) -> str:
        """Return the total speed as text, and that of one worker if there are several."""
        all_rtfx = f"RTFx {self.rtfx * self.count:,.1f}"
        return all_rtfx if self.count == 1 else f"{all_rtfx} ({self.count} x {self.rtfx:,.1f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Predicted time for a corpus on a machine."""

    machine: Machine
    duration_s: Estimate


def outlooks(audio: Estimate, machines: Sequence[Machine]) -> list[Outlook]:
    """Return the time for an audio duration on each machine, without the start of a run."""
    results = []
    for machine in machines:
        likely = audio.over(machine.rtfx * machine.count)
        duration_s = Estimate(
            likely.value, likely.low / machine.spread, likely.high * machine.spread
        )
        results.append(Outlook(machine=machine, duration_s=duration_s))
    return results


def stated_machine(config: RunConfig, rtfx: float) -> Machine:
    """Return the configured number of workers, or one, at a stated RTFx each.

    Raises:
        ConfigError: the speed is not a number above 0.
    """
    if not 0 < rtfx < math.inf:
        raise ConfigError(
            f"planning with --speed: found {rtfx:g}, expected the RTFx of one worker, above 0, "
            "such as 180"
        )
    workers = config.transcribe.workers
    return Machine(name="as given", rtfx=rtfx, count=1 if workers == "auto" else workers)


def known_machines(config: RunConfig, store: OutputStore) -> list[Machine]:
    """Return the speed of the last run in a job's folder, if model and settings are the same."""
    of_run = store.read_json(FINGERPRINT_NAME)
    if of_run is not None and of_run["settings"] != result_settings(config):
        return []
    model = model_name(config.model)
    machines = []
    run = store.read_json(RUN_NAME)
    snapshot = read_snapshot(store)
    if run is not None and run["model"] == model:
        speed = speed_of(run)
        if speed.audio_s >= LEAST_AUDIO_S and speed.wall_s >= _LEAST_WALL_S:
            is_of_run = snapshot is not None and snapshot.run_id == run.get("run_id")
            of_run_snapshot = snapshot if is_of_run else None
            machines.append(_as_before(run["started_at"], speed.rtfx, of_run_snapshot))
    elif run is None and snapshot is not None and snapshot.audio_s >= LEAST_AUDIO_S:
        machines.append(_as_before(snapshot.started_at, snapshot.rtfx, snapshot))
    return machines


def timed_machines(
    config: RunConfig, num_packs: int, *, recording_s: float
) -> tuple[list[Machine], str]:
    """Time the job's model on this machine, and calculate its speed for the settings.

    Returns no machine, and the reason, if that is impossible or useless.
    """
    try:
        if ray_address() != "local":
            raise ConfigError(f"the cluster of {RAY_ADDRESS} is not this machine")
        if config.pipeline == CLASSIFY_AUDIO or config.decoding.align:
            raise ConfigError("only transcription is timed")
        folder = Checkpoint.of(config.model).folder
        resources = resolve_resources(config, (this_machine(),), num_packs=num_packs)
        slots = config.transcribe.slots
        if slots == "auto":
            slots = ASSUMED_SLOTS_GPU if resources.transcribe_gpus else ASSUMED_SLOTS_CPU
        spin_briefly()
        decoding = config.decoding.settings()
        pace = time_pace(
            folder,
            decoding,
            device=resources.device,
            dtype=config.model.compute_type,
            num_threads=resources.transcribe_threads,
            slots=slots,
        )
        if pace is None:
            raise ConfigError("only the networks of Whisper are timed")
    except (CorpusAsrError, ImportError, OSError, RuntimeError) as error:
        return [], f"no speed was timed here: {str(error).partition(chr(10))[0]}"
    threads = resources.transcribe_threads
    device = resources.device if threads is None else counted(threads, "CPU thread")
    low, high = rtfx_range(pace, decoding, vad=config.extract.vad_filter, recording_s=recording_s)
    machine = Machine(
        name=HERE,
        rtfx=math.sqrt(low * high),
        count=resources.transcribe_workers,
        spread=math.sqrt(high / low),
        source=f"calculated for {searched_words(decoding)} from parts of a "
        f"{redact_uri(model_name(config.model))} without weights, timed on {device}",
    )
    return [machine], ""


def _as_before(started_at: str, rtfx: float, snapshot: Snapshot | None) -> Machine:
    # Without a snapshot the number of workers is unknown.
    workers = 1 if snapshot is None else max(1, snapshot.transcribe_workers)
    return Machine(name=f"as the run of {started_at[:10]} here", rtfx=rtfx / workers, count=workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Throughput of both stages of a job."""

    name: str
    """Source of the transcription speed."""
    transcribe_rtfx: float
    """RTFx of all workers."""
    extract_rtfx: float
    """RTFx of one worker."""
    extract_workers: int
    """From the settings or the last run; else the number required."""
    measured: str
    """Source of the extraction speed."""

    @property
    def waits(self) -> str | None:
        """The stage that waits for the other; None where the required extraction is calculated."""
        if self.extract_workers == math.ceil(self.transcribe_rtfx / self.extract_rtfx):
            return None
        slower = self.extract_workers * self.extract_rtfx < self.transcribe_rtfx
        return "transcription" if slower else "extraction"

    def words(self) -> str:
        """Return a line on which stage waits, and why."""
        waits = {
            None: "neither side",
            "transcription": "transcription, for extraction",
            "extraction": "extraction, for transcription",
        }[self.waits]
        return (
            f"{waits}: {counted(self.extract_workers, 'extract worker')} of RTFx "
            f"{self.extract_rtfx:,.1f} ({self.measured}) for transcription of RTFx "
            f"{self.transcribe_rtfx:,.1f} ({self.name})"
        )

    def as_data(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self) | {"waits": self.waits}


def balances(config: RunConfig, store: OutputStore, machines: Sequence[Machine]) -> list[Balance]:
    """Return the throughput of both stages, for each stated speed and for the last run.

    Args:
        config: job settings.
        store: its output folder.
        machines: with stated speeds.
    """
    seen = read_snapshot(store)
    extract_rtfx, measured = EXTRACT_RTFX, BENCHMARK
    workers = None if config.extract.workers == "auto" else config.extract.workers
    speeds = [(machine.name, machine.rtfx * machine.count) for machine in machines]
    if seen is not None:
        run = store.read_json(RUN_NAME)
        own_model = run is None or run["model"] == model_name(config.model)
        activity, day = seen.activity, f"the run of {seen.started_at[:10]} here"
        if activity.extract_s > 0 and activity.decoded_s >= LEAST_AUDIO_S:
            extract_rtfx, measured = activity.decoded_s / activity.extract_s, day
            workers = workers or seen.extract_workers
        if own_model and activity.engine_s > 0 and activity.transcribed_s >= LEAST_AUDIO_S:
            wanted = config.transcribe.workers
            engines = seen.transcribe_workers if wanted == "auto" else wanted
            # A lower bound if slots were free, since more parts would have filled them.
            speeds.append((day, engines * activity.transcribed_s / activity.engine_s))
    return [
        Balance(
            name=name,
            transcribe_rtfx=rtfx,
            extract_rtfx=extract_rtfx,
            extract_workers=workers or math.ceil(rtfx / extract_rtfx),
            measured=measured,
        )
        for name, rtfx in speeds
    ]


def words_of(balances: Sequence[Balance]) -> Iterator[str]:
    """Yield a line per balance, the first with a label."""
    for number, balance in enumerate(balances):
        yield f"{'' if number else 'waits':<11}{balance.words()}"
