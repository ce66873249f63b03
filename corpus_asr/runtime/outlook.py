"""How long a corpus takes and what it costs, by speeds that were measured: none is assumed."""

from collections.abc import Sequence
from dataclasses import dataclass

from corpus_asr.activity import Estimate
from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.storage.model_files import full_name
from corpus_asr.storage.run_state.run_files import RUN_NAME, read_snapshot, speed_of
from corpus_asr.storage.run_state.tables import OutputStore

# RTFx of `corpus-asr bench`, from files to text with the default settings (docs/benchmarks).
BENCHMARKED = {"whisper-tiny.en": 48.1, "whisper-base": 26.8}
BENCHMARK = "2 cores of an AMD EPYC, benchmark of 2026-11-23"
# A run over less than this is mostly its start.
_LEAST_AUDIO_S = 300.0
_LEAST_WALL_S = 60.0
# Another corpus, other settings or another day: a speed is known to about a tenth and a half.
_SPEED_RANGE = 1.15
HERE = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What could do the work, and how fast."""

    name: str
    rtfx: float
    """Seconds of audio per second."""
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a corpus takes on a machine."""

    machine: Machine
    duration_s: Estimate
    cost: Estimate | None
    """In the currency of the price; None without one."""


def outlooks(audio: Estimate, machines: Sequence[Machine]) -> list[Outlook]:
    """Return what so many seconds of audio take on each machine, without the start of a run."""
    found = []
    for machine in machines:
        likely = audio.over(machine.rtfx)
        duration_s = Estimate(likely.value, likely.low / _SPEED_RANGE, likely.high * _SPEED_RANGE)
        price = machine.price_per_hour
        cost = None if price is None else duration_s.over(3600 / price)
        found.append(Outlook(machine=machine, duration_s=duration_s, cost=cost))
    return found


def known_machines(config: RunConfig, store: OutputStore) -> list[Machine]:
    """Return what was measured with a job's model: by earlier runs in its folder, by benchmarks."""
    model = full_name(config.model.checkpoint)
    machines = []
    run = store.read_json(RUN_NAME)
    snapshot = read_snapshot(store)
    if run is not None and run["model"] == model:
        speed = speed_of(run)
        if speed.audio_s >= _LEAST_AUDIO_S and speed.wall_s >= _LEAST_WALL_S:
            day = run["started_at"][:10]
            machines.append(Machine(name=f"as the run of {day} here", rtfx=speed.rtfx))
    elif run is None and snapshot is not None and snapshot.audio_s >= _LEAST_AUDIO_S:
        day = snapshot.started_at[:10]
        machines.append(Machine(name=f"as the run of {day} here", rtfx=snapshot.rtfx))
    rtfx = BENCHMARKED.get(model.rstrip("/").rpartition("/")[2])
    if rtfx is not None and config.pipeline != CLASSIFY_AUDIO:
        machines.append(Machine(name=BENCHMARK, rtfx=rtfx))
    return machines


def given_machines(speeds: Sequence[str], prices: Sequence[str]) -> list[Machine]:
    """Read `[NAME=]RTFX` and `[NAME=]PRICE` of an hour; a price without a speed is of all others.

    Raises:
        ConfigError: a number is none, or a price names no speed.
    """
    by_name = {name: rtfx for name, rtfx in (_named("--speed", text) for text in speeds)}
    named = dict(_named("--price", text) for text in prices)
    if unknown := sorted(set(named) - set(by_name) - {""}):
        raise ConfigError(
            f"reading --price {unknown[0]}=...: found no --speed {unknown[0]}=RTFX, expected the "
            "speed of what the price is for; add it, or give the price without a name"
        )
    return [
        Machine(
            name=name or "as given",
            rtfx=rtfx,
            price_per_hour=named.get(name, named.get("")),
        )
        for name, rtfx in by_name.items()
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
