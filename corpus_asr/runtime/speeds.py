"""How fast a machine does a job: as its run before, as it is stated, or calculated from times.

Speeds of a model that was not run here are calculated for the job's settings, with a range.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from corpus_asr.activity import Estimate
from corpus_asr.config.decoding import AUTO_BEAMS
from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.runtime.checkpoints import Checkpoint, model_name
from corpus_asr.runtime.resources import (
    ASSUMED_SLOTS_CPU,
    ASSUMED_SLOTS_GPU,
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
from corpus_asr.transcription.pace import Pace, rtfx_range, searched_words, time_pace
from corpus_asr.units import counted

# Times of one GPU by model and card, float16, 64 slots, random weights, without extraction: from
# windows per second of 63 tokens, and steps of 64 windows, or of 12 with beams (docs/gpu.md).
GPU_SLOTS, GPU_TOKENS = 64, 63
GPU_TIMES: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("whisper-large-v3", "H200"): {"rate": 75.38, "greedy_ms": 6.567, "beams_ms": 6.826},
    ("whisper-large-v3-turbo", "H200"): {"rate": 152.5, "greedy_ms": 1.025},
}
# A run over less than this is mostly its start.
LEAST_AUDIO_S = 300.0
_LEAST_WALL_S = 60.0
# Another corpus or another day: a measured speed is known to about a tenth and a half.
_SPEED_RANGE = 1.15
HERE = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What could do the work, and how fast."""

    name: str
    rtfx: float
    """Seconds of audio per second of one."""
    price_per_hour: float | None = None
    """Of one."""
    count: float = 1.0
    """How many work at once."""
    spread: float = _SPEED_RANGE
    """Factor by which the speed may be higher or lower."""
    source: str = ""
    """Where the speed is from."""

    @classmethod
    def of_pace(
        cls,
        name: str,
        pace: Pace,
        config: RunConfig,
        source: str,
        *,
        recording_s: float = math.inf,
        count: float = 1.0,
    ) -> "Machine | None":
        """Calculate the speed of one engine with a job's settings; None where a time lacks."""
        decoding = config.decoding.settings()
        bounds = rtfx_range(pace, decoding, vad=config.extract.vad_filter, recording_s=recording_s)
        if bounds is None:
            return None
        low, high = bounds
        return cls(
            name=name,
            rtfx=math.sqrt(low * high),
            spread=math.sqrt(high / low),
            count=count,
            source=f"calculated for {searched_words(decoding)} from {source}",
        )

    def words(self) -> str:
        """Name it, and where its speed is from."""
        return f"{self.name}, {self.source}" if self.source else self.name

    def speed_words(self) -> str:
        """Write the speed of all, and that of one where there are several."""
        all_rtfx = f"RTFx {self.rtfx * self.count:,.1f}"
        return all_rtfx if self.count == 1 else f"{all_rtfx} ({self.count:g} x {self.rtfx:,.1f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a corpus takes on a machine."""

    machine: Machine
    duration_s: Estimate
    cost: Estimate | None
    """In the currency of the price; None without one."""

    def cost_words(self) -> str:
        """Write the cost, and that of an hour of audio; empty without a price."""
        cost, price = self.cost, self.machine.price_per_hour
        if cost is None or price is None:
            return ""
        return (
            f", costs {cost.value:,.2f} ({cost.low:,.2f}-{cost.high:,.2f}), "
            f"{price / self.machine.rtfx:,.3g} per hour of audio, at {price:g} an hour"
        )


def outlooks(audio: Estimate, machines: Sequence[Machine]) -> list[Outlook]:
    """Return what so many seconds of audio take on each machine, without the start of a run."""
    found = []
    for machine in machines:
        likely = audio.over(machine.rtfx * machine.count)
        duration_s = Estimate(
            likely.value, likely.low / machine.spread, likely.high * machine.spread
        )
        price = machine.price_per_hour
        cost = None if price is None else duration_s.over(3600 / (price * machine.count))
        found.append(Outlook(machine=machine, duration_s=duration_s, cost=cost))
    return found


def known_machines(
    config: RunConfig, store: OutputStore, prices: Sequence[str] = ()
) -> list[Machine]:
    """Return how fast the run in a job's folder was, of the same model with the same settings.

    A price without a name is that of each of its workers.
    """
    of_run = store.read_json(FINGERPRINT_NAME)
    if of_run is not None and of_run["settings"] != result_settings(config):
        return []
    price = dict(_named("--price", text) for text in prices).get("")
    model = model_name(config.model)
    machines = []
    run = store.read_json(RUN_NAME)
    snapshot = read_snapshot(store)
    if run is not None and run["model"] == model:
        speed = speed_of(run)
        if speed.audio_s >= LEAST_AUDIO_S and speed.wall_s >= _LEAST_WALL_S:
            known = snapshot is not None and snapshot.run_id == run.get("run_id")
            machines.append(
                _as_before(run["started_at"], speed.rtfx, snapshot if known else None, price)
            )
    elif run is None and snapshot is not None and snapshot.audio_s >= LEAST_AUDIO_S:
        machines.append(_as_before(snapshot.started_at, snapshot.rtfx, snapshot, price))
    return machines


def timed_machines(
    config: RunConfig, num_packs: int, *, recording_s: float
) -> tuple[list[Machine], str]:
    """Time parts of the job's model on this machine, and calculate its speed for the settings.

    Returns no machine, and why, where that is not possible or not of use.
    """
    try:
        if config.cluster.ray_address() != "local":
            raise ConfigError("the cluster of cluster.address is not this machine")
        if config.pipeline == CLASSIFY_AUDIO or config.decoding.align:
            raise ConfigError("only transcription is timed")
        folder = Checkpoint.of(config.model).folder
        resources = resolve_resources(config, (this_machine(),), num_packs=num_packs)
        slots = config.transcribe.slots
        if slots == "auto":
            slots = ASSUMED_SLOTS_GPU if resources.transcribe_gpus else ASSUMED_SLOTS_CPU
        spin_briefly()
        pace = time_pace(
            folder,
            config.decoding.settings(),
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
    source = f"parts of a {redact_uri(model_name(config.model))} without weights, timed on {device}"
    machine = Machine.of_pace(
        HERE, pace, config, source, recording_s=recording_s, count=resources.transcribe_workers
    )
    assert machine is not None, "all that the settings need was timed"
    return [machine], ""


def _as_before(
    started_at: str, rtfx: float, snapshot: Snapshot | None, price: float | None
) -> Machine:
    # Without a snapshot nobody knows how many workers there were.
    workers = 1 if snapshot is None else max(1, snapshot.transcribe_workers)
    return Machine(
        name=f"as the run of {started_at[:10]} here",
        rtfx=rtfx / workers,
        count=workers,
        price_per_hour=None if snapshot is None else price,
    )


def measured_gpus(config: RunConfig, card: str | None = None) -> list[Machine]:
    """Return each kind of GPU that the job's model was timed on, with its slots and settings.

    Args:
        config: the job; `auto` slots are 64, if memory suffices.
        card: the only one that is asked for, such as H200.
    """
    model = model_name(config.model).rstrip("/").rpartition("/")[2]
    if config.transcribe.slots not in ("auto", GPU_SLOTS):
        return []
    machines = [
        Machine.of_pace(
            device,
            gpu_pace(**times),
            config,
            "times of November 2026 with random weights, without extraction (docs/gpu.md)",
        )
        for (name, device), times in GPU_TIMES.items()
        if name == model and (card or device).upper() == device
    ]
    return [machine for machine in machines if machine is not None]


def gpu_pace(*, rate: float, greedy_ms: float, beams_ms: float | None = None) -> Pace:
    """Return the times of a GPU's parts from its windows per second and its steps."""
    token_s = greedy_ms / 1000 / GPU_SLOTS
    return Pace(
        window_s=1 / rate - GPU_TOKENS * token_s,
        token_s=token_s,
        beam_token_s=beams_ms and beams_ms / 1000 / (GPU_SLOTS // AUTO_BEAMS),
    )


def given_machines(
    speeds: Sequence[str],
    prices: Sequence[str],
    *,
    measured: Sequence[Machine] = (),
    count: float = 1.0,
) -> list[Machine]:
    """Read `[NAME=]RTFX` and `[NAME=]PRICE` of an hour; a price without a name is of all others.

    Args:
        speeds: those of one machine or GPU.
        prices: of an hour of one.
        measured: others.
        count: how many work at once.

    Raises:
        ConfigError: a number is none, or a price names no speed.
    """
    stated = dict(_named("--speed", text) for text in speeds)
    machines = [
        *measured, *(Machine(name=name or "as given", rtfx=rtfx) for name, rtfx in stated.items())
    ]  # fmt: skip
    named = dict(_named("--price", text) for text in prices)
    if unknown := sorted(set(named) - {machine.name for machine in machines} - {""}):
        raise ConfigError(
            f"reading --price {unknown[0]}=...: found no --speed {unknown[0]}=RTFX, expected the "
            "speed of what the price is for; add it, or give the price without a name"
        )
    usual = named.get("")
    return [
        replace(machine, price_per_hour=named.get(machine.name, usual), count=count)
        for machine in machines
    ]


def _named(option: str, text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(
            f"reading {option} {text}: found {number!r}, expected a number above 0, by itself or "
            f"as NAME=NUMBER, such as {option} l4=180"
        )
    return name.strip(), value
