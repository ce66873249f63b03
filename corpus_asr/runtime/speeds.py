"""Speed of a machine for a job: of the last run, stated, or calculated from timings.

That of a model that has not run here is calculated for the settings, with a range.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    read_snapshot,
    result_settings,
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
    of_run, snapshot = store.read_json(FINGERPRINT_NAME), read_snapshot(store)
    if of_run is None or snapshot is None or of_run["settings"] != result_settings(config):
        return []
    # Settings are without the model, since one that was moved is the same; an unfinished run has
    # none to compare.
    run = store.read_json(RUN_NAME)
    if run is not None and run["model"] != model_name(config.model):
        return []
    if snapshot.audio_s < LEAST_AUDIO_S or snapshot.elapsed_s < _LEAST_WALL_S:
        return []
    workers = max(1, snapshot.transcribe_workers)
    name = f"as the run of {snapshot.started_at[:10]} here"
    return [Machine(name=name, rtfx=snapshot.rtfx / workers, count=workers)]


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
