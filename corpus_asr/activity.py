"""What the workers of a run did, as sums that add up; its speed, and estimates of the rest."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

EngineStage = Literal["encode_s", "fill_s", "prefill_s", "step_s", "wait_s"]

# Of each kind of failure; all failed recordings are in the recordings table.
EXAMPLES = 3


# What the seconds of a byte depend on. Other endings count as one, so that names such as part.0001
# do not make every recording a type of its own.
_TYPES = """
    3gp aac aif aiff amr au avi caf flac flv gsm m4a m4b mka mkv mov mp3 mp4 mpeg mpg oga ogg opus
    spx ts wav webm wma wmv wv
"""
_KNOWN_TYPES = frozenset(_TYPES.split())
# A recording that a store says no size of, such as one of the web, counts as one of so many bytes.
USUAL_BYTES = 2**24  # 16 MiB


@dataclass(frozen=True, slots=True)
class Estimate:
    """A likely value, and the range that holds the true one about eight times in ten."""

    value: float
    low: float
    high: float

    def over(self, speed: float) -> "Estimate":
        """Return it divided by a number."""
        return Estimate(self.value / speed, self.low / speed, self.high / speed)

    def clock_words(self) -> str:
        """Write seconds as `0:12:30 (0:10:00-0:16:00)`, from ten minutes on a range of minutes."""
        step_s = 60 if self.high >= _MINUTES_FROM_S else 1
        low, high = (clock_time(step_s * round(each / step_s)) for each in (self.low, self.high))
        return f"{clock_time(self.value)} ({low}-{high})"

    def hours_words(self) -> str:
        """Write seconds as `1.35 h (1.20-1.52)`, or in minutes where they are less than an hour."""
        unit, (low, value, high) = in_hours(self.low, self.value, self.high)
        return f"{value} {unit}" if low == high else f"{value} {unit} ({low}-{high})"


_MINUTES_FROM_S = 600.0


def in_hours(*seconds: float) -> tuple[str, list[str]]:
    """Write lengths of time in one unit: hours, or minutes where all are less than an hour."""
    unit, unit_s, digits = ("h", 3600.0, 2) if max(seconds) >= 3600 else ("min", 60.0, 1)
    return unit, [f"{each / unit_s:,.{digits}f}" for each in seconds]


def clock_time(seconds: float) -> str:
    """Write a length of time as hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def rtfx(audio_s: float, wall_s: float) -> float:
    """Return the speed of a run: seconds of audio committed per second of its wall time."""
    return audio_s / wall_s if wall_s > 0 else 0.0


def stratum(uri: str, size_bytes: int | None) -> str:
    """Name the recordings of the same type and about the same size, within a factor of 4: `mp3:11`.

    A recording of unknown size counts as one of `USUAL_BYTES`.
    """
    ending = uri.partition("?")[0].rpartition(".")[2].lower()
    size = USUAL_BYTES if size_bytes is None else size_bytes
    return f"{ending if ending in _KNOWN_TYPES else 'other'}:{size.bit_length() // 2}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSums:
    """Sums over recordings, from which a ratio of seconds to bytes follows."""

    files: int = 0
    size: float = 0.0
    """Bytes; a recording of unknown size has `USUAL_BYTES`."""
    audio_s: float = 0.0

    @classmethod
    def of(cls, size_bytes: int | None, audio_s: float = 0.0) -> Self:
        """Return the sums over one recording."""
        size = USUAL_BYTES if size_bytes is None else max(1, size_bytes)
        return cls(files=1, size=float(size), audio_s=audio_s)

    def __add__(self, other: "FileSums") -> "FileSums":
        return FileSums(
            files=self.files + other.files,
            size=self.size + other.size,
            audio_s=self.audio_s + other.audio_s,
        )

    def __sub__(self, other: "FileSums") -> "FileSums":
        return FileSums(
            files=self.files - other.files,
            size=self.size - other.size,
            audio_s=self.audio_s - other.audio_s,
        )


_NO_FILES = FileSums()
Strata = Mapping[str, FileSums]
"""Sums by `stratum`."""


def added(*strata: Strata) -> dict[str, FileSums]:
    """Add up sums, each stratum by itself."""
    totals: dict[str, FileSums] = {}
    for sums in strata:
        for name, of_stratum in sums.items():
            totals[name] = totals.get(name, _NO_FILES) + of_stratum
    return totals


@dataclass(slots=True, kw_only=True)
class Activity:
    """Counts of one engine or worker since it began, or their sums over workers; adds up."""

    extract_alive_s: float = 0.0
    """Time since an extract worker began."""
    extract_s: float = 0.0
    """Of it, waiting for its child process to read, decode and make features."""
    extract_cpu_s: float = 0.0
    """CPU time of that child; the rest of `extract_s` it waited, mostly for the store."""
    backpressure_s: float = 0.0
    """Time extracted parts waited for room in what comes next."""
    fetch_retries: int = 0
    """Requests of recordings that a store had to be asked again."""
    parts_extracted: int = 0
    files_extracted: int = 0
    """Recordings that Ray's extract workers are through with; some may be left to another pass."""
    durations: Strata = field(default_factory=dict)
    """Recordings whose duration is known: from the header of one that is open, else as decoded."""
    decoded_s: float = 0.0
    """Audio decoded, also of a part that is not complete."""
    transcribed_s: float = 0.0
    """Audio that is through the engines, also of a part that is not complete."""
    longest_left_s: float = 0.0
    """Audio left of the part in an engine that has most; a part is decoded from start to end."""
    load_s: float = 0.0
    """Loading the model."""
    transcribe_alive_s: float = 0.0
    """Time since a transcribe worker's model was loaded."""
    # Seconds of an engine are the host's: on a CPU those of the work, on a GPU those of queueing
    # it, where what the device takes beyond that shows as `wait_s`. Windows that a CPU encodes in
    # a thread beside the one that decodes are not in `encode_s`.
    encode_s: float = 0.0
    fill_s: float = 0.0
    prefill_s: float = 0.0
    step_s: float = 0.0
    wait_s: float = 0.0
    """Looking for ended slots and reading results."""
    slots: int = 0
    """Of one worker, the largest; does not add up."""
    halvings: int = 0
    """How often memory did not suffice, so that slots or encoder batches were halved."""
    failed_captures: int = 0
    """Decoding steps that could not be recorded as CUDA graphs, so that all run without."""
    steps: int = 0
    """Decoding steps of all kinds of search."""
    slot_steps: int = 0
    """Occupied slots, summed over the steps."""
    slot_room: int = 0
    """Slots there were, summed over the steps."""
    windows: int = 0
    """Windows encoded."""
    encoder_batches: int = 0
    refills: int = 0
    """Jobs that took the place of one that ended."""
    tokens: int = 0
    """Tokens decoded, end tokens left out."""
    parts_started: int = 0
    """Parts handed to an engine, those that were without speech included."""
    parts_transcribed: int = 0
    """Of these, parts with a result."""
    commits: int = 0
    commit_s: float = 0.0
    commit_retries: int = 0
    """Requests of commits that the output's store had to be asked again."""
    workers_replaced: int = 0
    """Transcribe workers that were found unusable."""

    def __add__(self, other: "Activity") -> "Activity":
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in _ADDED}
        return Activity(
            **sums,
            slots=max(self.slots, other.slots),
            longest_left_s=max(self.longest_left_s, other.longest_left_s),
            durations=added(self.durations, other.durations),
        )

    def since(self, before: "Activity") -> "Activity":
        """Return what was done after `before`, so that both add up to this.

        `slots` and `longest_left_s`, which do not add up, are those of now.
        """
        grown: dict[str, Any] = {n: getattr(self, n) - getattr(before, n) for n in _ADDED}
        kinds = self.durations.keys() | before.durations.keys()
        pairs = (
            (k, self.durations.get(k, _NO_FILES), before.durations.get(k, _NO_FILES)) for k in kinds
        )
        durations = {kind: now - earlier for kind, now, earlier in pairs if now != earlier}
        largest: dict[str, Any] = {"slots": self.slots, "longest_left_s": self.longest_left_s}
        return Activity(**grown, **largest, durations=durations)

    @classmethod
    def total(cls, activities: "Iterable[Activity]") -> "Activity":
        """Add up any number of them."""
        return sum(activities, cls())

    def count_steps(self, steps: int, *, active: int, places: int) -> None:
        """Note that so many steps were run with `active` of `places` in use."""
        self.steps += steps
        self.slot_steps += steps * active
        self.slot_room += steps * places

    @contextmanager
    def timing(self, stage: EngineStage) -> Iterator[None]:
        """Add the time the block takes to a stage."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started_s)

    @property
    def engine_s(self) -> float:
        """Time the engines worked."""
        return self.encode_s + self.fill_s + self.prefill_s + self.step_s + self.wait_s

    @property
    def engine_share(self) -> float | None:
        """Share of the time with a loaded model in which the engines worked; None before."""
        return _share(self.engine_s, self.transcribe_alive_s)

    @property
    def extract_share(self) -> float | None:
        """Share of the extract workers' time in which they extracted; None without any."""
        return _share(self.extract_s, self.extract_alive_s)

    @property
    def backpressure_share(self) -> float | None:
        """Share of the extract workers' time in which finished parts were not taken."""
        return _share(self.backpressure_s, self.extract_alive_s)

    @property
    def extract_cpu_share(self) -> float | None:
        """Share of the time of extraction that was computing; the rest is mostly the store's."""
        return _share(self.extract_cpu_s, self.extract_s)

    @property
    def occupancy(self) -> float | None:
        """Mean share of the decoder slots in use; None before the first step."""
        return _share(self.slot_steps, self.slot_room)

    @property
    def slots_in_use(self) -> float:
        """Mean number of one worker's slots in use; 0 before the first step."""
        return self.slot_steps / self.steps if self.steps else 0.0

    @property
    def parts_ready(self) -> int:
        """Extracted parts that wait for an engine."""
        # A part whose worker died is handed over twice.
        return max(0, self.parts_extracted - self.parts_started)

    @property
    def parts_in_engines(self) -> int:
        """Parts handed to an engine that have no result yet."""
        return max(0, self.parts_started - self.parts_transcribed)


_NOT_ADDED = ("slots", "longest_left_s", "durations")
_ADDED = tuple(field.name for field in fields(Activity) if field.name not in _NOT_ADDED)


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCount:
    """How many recordings failed in one way."""

    stage: str
    kind: str
    count: int
    retryable: bool
    examples: tuple[str, ...]
    """Addresses of the first few, without credentials."""
    message: str = ""
    """What the first of them failed with."""


def merged(counts: Iterable[FailureCount]) -> tuple[FailureCount, ...]:
    """Add up counts of the same stage and kind, the most frequent first."""
    sums: dict[tuple[str, str], FailureCount] = {}
    for failures in counts:
        key = failures.stage, failures.kind
        before = sums.setdefault(key, replace(failures, count=0))
        sums[key] = replace(
            before,
            count=before.count + failures.count,
            # A retry pays as soon as one of them may succeed.
            retryable=before.retryable or failures.retryable,
            examples=tuple(dict.fromkeys((*before.examples, *failures.examples)))[:EXAMPLES],
        )
    return tuple(sorted(sums.values(), key=lambda total: (-total.count, total.stage, total.kind)))
