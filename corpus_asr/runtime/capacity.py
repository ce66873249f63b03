"""What a fleet of GPUs needs for so many hours of audio, and what that costs: no listing is made.

Cores, drivers and requests follow from the speed of a GPU, the settings and what was measured of
one core, one driver and one commit (docs/scaling.md). The corpus is one of recordings of six
minutes; of another, the files alone differ, whose requests are few beside what GPUs cost.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from corpus_asr.activity import clock_time
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.runtime.resources import (
    SPARE_CPUS,
    WORKERS_PER_ACTOR,
    NodeShape,
    Resources,
    feature_bytes_per_s,
    resolve_resources,
)
from corpus_asr.runtime.speeds import GPU_TIMES, Machine, given_machines, measured_gpus
from corpus_asr.storage.run_state.lock import USUAL
from corpus_asr.storage.run_state.plan import MAX_FILES_PER_PACK
from corpus_asr.storage.run_state.run_files import EVERY_S
from corpus_asr.storage.run_state.tables import LOOK_EVERY_S
from corpus_asr.storage.stores.filesystem import BLOCK_BYTES
from corpus_asr.transcription.pace import searched_words
from corpus_asr.units import MEBIBYTE, counted

# The corpus: MP3 of 64 kbit/s.
RECORDING_S = 360.0
RECORDING_BYTES = RECORDING_S * 64_000 / 8
LISTED_AT_ONCE = 1000  # S3's page
# Seconds of audio that one core extracts in a second: the slowest MP3 of benchmarks/README.md.
EXTRACT_RTFX = 385.0
# For each of them, where they are scored, or their sounds named (docs/reading.md).
DNSMOS_CPU_S, TAGGER_CPU_S = 0.033, 0.003
# CPU time of the driver for each block between the stages and for each part in it, tasks included:
# through the first and the last of three measurements, 16 % below the other (docs/scaling.md).
DRIVER_BLOCK_S = 0.0074
DRIVER_PART_S = 0.0005
# Results of six minutes of speech in memory: 11.3 KB.
RESULT_BYTES_PER_S = 11_300 / 360
# Objects of a commit, put by a worker; the finish reads and removes them. Removing is free on S3.
COMMIT_OBJECTS = 2
_ENOUGH_BYTES = 2**62  # memory is not planned here: docs/clusters.md


class RequestPrices(NamedTuple):
    """Prices of a million requests."""

    read: float
    """That get an object, or a range of one."""
    write: float
    """That put an object or list a thousand."""

    @classmethod
    def parse(cls, text: str) -> "RequestPrices":
        """Read `READ,WRITE`.

        Raises:
            ConfigError: these are not two numbers.
        """
        try:
            read, write = (float(number) for number in text.split(","))
        except ValueError:
            read = write = -1.0
        if not (0 <= read < math.inf and 0 <= write < math.inf):
            raise ConfigError(
                f"reading --request-price {text}: found {text!r}, expected the prices of a million "
                "requests that read and of a million that write: --request-price 0.4,5"
            )
        return cls(read, write)


# Dollars of Amazon S3 Standard in US East, November 2026: 0.0004 and 0.005 for a thousand.
S3_STANDARD = RequestPrices(0.4, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a fleet needs and costs; requests are those of the whole run."""

    machine: Machine
    """One GPU; its count is that of those at work."""
    gpus: int
    audio_s: float
    workers: int
    """Model processes."""
    rtfx: float
    """Of the fleet: that of its slower side."""
    waits: str | None
    """The side that is faster, where the settings name the extract workers."""
    duration_s: float
    cost: float | None
    """Of all GPUs; None without a price."""
    extract_cores: int
    extract_rtfx: float
    """Of each of them."""
    drivers: int
    """With a core each."""
    driver_rtfx: float
    """What one driver can schedule."""
    reads: int
    writes: int
    request_cost: float

    def lines(self) -> Iterator[str]:
        """Return it in words, a line for each figure."""
        each = self.machine
        yield (
            f"gpus       {self.gpus:,}, {each.count:g} at work, with "
            f"{counted(self.workers, 'worker')}"
        )
        speed, cost = each.speed_words(), ""
        if self.rtfx < each.rtfx * each.count:
            speed = f"RTFx {self.rtfx:,.1f} of {speed.removeprefix('RTFx ')}"
        if self.cost is not None:
            low, high = (f"{self.cost * off:,.2f}" for off in (1 / each.spread, each.spread))
            of_an_hour = self.cost / (self.audio_s / 3600)
            cost = (
                f", costs {self.cost:,.2f} ({low}-{high}), {of_an_hour:,.3g} per hour of audio, "
                f"at {each.price_per_hour:g} an hour"
            )
        low, high = (clock_time(self.duration_s * off) for off in (1 / each.spread, each.spread))
        yield (
            f"takes      {clock_time(self.duration_s)} ({low}-{high}) at {speed}{cost}: "
            f"{each.words()}"
        )
        if self.waits is not None:
            yield f"waits      {self.waits}"
        yield (
            f"cores      {self.extract_cores:,} to extract at RTFx {self.extract_rtfx:.3g} each, "
            f"{SPARE_CPUS} to read and write, {self.drivers} for drivers"
        )
        yield f"drivers    {self.drivers}, of at most RTFx {self.driver_rtfx:,.0f} each"
        reads_per_s, writes_per_s = self.requests_per_s
        yield (
            f"requests   {reads_per_s:,.1f} reads and {writes_per_s:,.1f} writes a second; "
            f"{self.reads:,} and {self.writes:,} cost {self.request_cost:,.2f}"
        )
        yield f"network    {self.bytes_per_s / 1e9:,.3g} GB of recordings a second"

    @property
    def bytes_per_s(self) -> float:
        """Of recordings that are read."""
        return self.rtfx * RECORDING_BYTES / RECORDING_S

    @property
    def requests_per_s(self) -> tuple[float, float]:
        """Those that read and those that write."""
        return self.reads / self.duration_s, self.writes / self.duration_s

    def as_data(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        reads_per_s, writes_per_s = self.requests_per_s
        return asdict(self) | {"reads_per_s": reads_per_s, "writes_per_s": writes_per_s}


def extract_rtfx(config: RunConfig) -> float:
    """Return how many seconds of audio a job extracts in a second of one core."""
    more_s = DNSMOS_CPU_S if config.extract.dnsmos else 0.0
    more_s += 0.0 if config.extract.audio_tagger is None else TAGGER_CPU_S
    return 1 / (1 / EXTRACT_RTFX + more_s)


def capacity(
    config: RunConfig,
    machine: Machine,
    *,
    gpus: int,
    audio_s: float,
    prices: RequestPrices = S3_STANDARD,
) -> Capacity:
    """Return what so many GPUs of a kind need for so much audio, with the workers of a job.

    Raises:
        ConfigError: the job's workers do not fit on these GPUs, or need none.
    """
    processes, at_work = workers_of(config, gpus)
    decode_rtfx, core_rtfx = at_work * machine.rtfx, extract_rtfx(config)
    wanted = config.extract.workers
    extract_workers = math.ceil(decode_rtfx / core_rtfx) if wanted == "auto" else wanted
    recordings = math.ceil(audio_s / RECORDING_S)
    resources = _resources(
        config, gpus, recordings=recordings, processes=processes, extract_workers=extract_workers
    )
    rtfx = min(decode_rtfx, extract_workers * core_rtfx)
    duration_s = audio_s / rtfx
    waits = None
    if wanted != "auto":
        waits = "GPUs, for extraction" if rtfx < decode_rtfx else "extraction, for GPUs"
    driver_rtfx = _driver_rtfx(config, resources)
    drivers = math.ceil(rtfx / driver_rtfx)
    reads, writes = _requests(config, resources, recordings, duration_s=duration_s, drivers=drivers)
    price = machine.price_per_hour
    return Capacity(
        machine=machine,
        gpus=gpus,
        audio_s=audio_s,
        workers=resources.transcribe_workers,
        rtfx=rtfx,
        waits=waits,
        duration_s=duration_s,
        cost=None if price is None else gpus * price * duration_s / 3600,
        extract_cores=extract_workers,
        extract_rtfx=core_rtfx,
        drivers=drivers,
        driver_rtfx=driver_rtfx,
        reads=reads,
        writes=writes,
        request_cost=(reads * prices.read + writes * prices.write) / 1e6,
    )


def fleets(
    config: RunConfig,
    machines: Sequence[Machine],
    *,
    gpus: int | None,
    hours: float,
    prices: RequestPrices | None = None,
) -> list[Capacity]:
    """Return what each kind of GPU needs for so many hours; without `gpus`, of those at work."""
    return [
        capacity(
            config,
            machine,
            gpus=gpus or math.ceil(machine.count),
            audio_s=3600 * hours,
            prices=prices or S3_STANDARD,
        )
        for machine in machines
    ]


def machines_of(
    config: RunConfig,
    speeds: Sequence[str],
    prices: Sequence[str],
    *,
    gpus: int | None,
    card: str | None,
    measured: bool,
) -> list[Machine]:
    """Return the kinds of GPU of a command line, as many of each as the job has at work.

    With `measured`, the speeds that are known of the model are taken where none is stated.

    Raises:
        ConfigError: none is known then.
    """
    named = [f"{card}={text}" if card and "=" not in text else text for text in speeds]
    known = measured_gpus(config, card) if measured and not speeds else []
    if measured and not speeds and not known:
        others = " and ".join(
            f"{model} on {timed_on}{'' if 'beams_ms' in times else ' (greedy)'}"
            for (model, timed_on), times in GPU_TIMES.items()
        )
        raise ConfigError(
            f"planning GPUs: found no times of {config.model.checkpoint} on "
            f"{card or 'any card'} with {config.transcribe.slots} slots, "
            f"{searched_words(config.decoding.settings())}, expected --speed RTFX, that of one "
            f"GPU; timed are {others}, without word times (docs/gpu.md)"
        )
    _, at_work = workers_of(config, gpus)
    return given_machines(named, prices, measured=known, count=at_work)


def workers_of(config: RunConfig, gpus: int | None) -> tuple[int, float]:
    """Return how many model processes a job starts on so many GPUs, and the GPUs that they use.

    Without a number of GPUs there are as many as they need; of workers that are counted later, one.
    """
    each = config.transcribe.gpus_per_worker
    share = 1.0 if each == "auto" or each == 0 else each
    workers = config.transcribe.workers
    processes = int((gpus or 1) / share) if workers == "auto" else workers
    return processes, min(gpus or math.inf, processes * share)


def _resources(
    config: RunConfig, gpus: int, *, recordings: int, processes: int, extract_workers: int
) -> Resources:
    """Return what the stages get on as many cores as they need."""
    each = config.transcribe.cpus_per_worker
    reserved = 0 if each == "auto" else math.ceil(each * processes)
    cpus = extract_workers + reserved + SPARE_CPUS
    node = NodeShape(cpus=cpus, cores=cpus, gpus=gpus, memory_bytes=_ENOUGH_BYTES)
    packs = math.ceil(recordings / _recordings_per_pack(config))
    resources = resolve_resources(config, (node,), num_packs=packs, fixed=True)
    if resources.transcribe_gpus == 0:
        raise ConfigError(
            f"planning {counted(gpus, 'GPU')}: found model.device or transcribe.gpus_per_worker "
            "for CPUs, expected workers that use GPUs; leave these keys out"
        )
    return resources


def _recordings_per_pack(config: RunConfig) -> int:
    fitting = int(config.extract.pack_mb * MEBIBYTE / RECORDING_BYTES)
    return max(1, min(MAX_FILES_PER_PACK, fitting))


def _driver_rtfx(config: RunConfig, resources: Resources) -> float:
    """Return the seconds of audio that a driver schedules in a second of its time."""
    part_s = min(config.extract.part_s, RECORDING_S)
    parts_per_block = max(1, int(resources.block_bytes / (part_s * feature_bytes_per_s(config))))
    return part_s / (DRIVER_BLOCK_S / parts_per_block + DRIVER_PART_S)


def _requests(
    config: RunConfig,
    resources: Resources,
    recordings: int,
    *,
    duration_s: float,
    drivers: int,
) -> tuple[int, int]:
    """Return how many requests read, and how many put or list."""
    # By size and by time, whichever comes first.
    result_bytes = recordings * RECORDING_S * RESULT_BYTES_PER_S
    by_time = duration_s / config.output.commit_every_s if config.output.commit_every_s else 0.0
    objects = COMMIT_OBJECTS * (result_bytes / (config.output.commit_mb * MEBIBYTE) + by_time)
    heartbeats = drivers * duration_s / USUAL.heartbeat_s
    snapshots = drivers * duration_s / EVERY_S
    looks = math.ceil(resources.transcribe_workers / WORKERS_PER_ACTOR) * duration_s / LOOK_EVERY_S
    ranges = recordings * math.ceil(RECORDING_BYTES / BLOCK_BYTES)
    # A heartbeat and a snapshot look at the lock before they are put.
    reads = ranges + objects + looks + heartbeats + snapshots
    writes = recordings / LISTED_AT_ONCE + objects + heartbeats + snapshots
    return math.ceil(reads), math.ceil(writes)
