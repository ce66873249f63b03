"""What the workers of a run have been doing, as counts and seconds that add up."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

EngineStage = Literal["encode_s", "fill_s", "prefill_s", "step_s", "wait_s"]

# Of each kind of failure; all failed recordings are in the recordings table.
EXAMPLES = 3


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
    load_s: float = 0.0
    """Loading the model."""
    transcribe_alive_s: float = 0.0
    """Time since a transcribe worker's model was loaded."""
    # Seconds of an engine are the host's: on a CPU those of the work, on a GPU those of queueing
    # it, where what the device takes beyond that shows as `wait_s`.
    encode_s: float = 0.0
    fill_s: float = 0.0
    prefill_s: float = 0.0
    step_s: float = 0.0
    wait_s: float = 0.0
    """Looking for ended slots and reading results."""
    slots: int = 0
    """Of one worker, the largest; the only count that does not add up."""
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
        sums = {name: getattr(self, name) + getattr(other, name) for name in _NAMES}
        return Activity(**{**sums, "slots": max(self.slots, other.slots)})

    @classmethod
    def total(cls, activities: "Iterable[Activity]") -> "Activity":
        """Add up any number of them."""
        return sum(activities, cls())

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Return what JSON holds; counts of another version are left out, or 0."""
        return cls(**{name: data[name] for name in _NAMES if name in data})

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
    def parts_ready(self) -> int:
        """Extracted parts that wait for an engine."""
        # A part whose worker died is handed over twice.
        return max(0, self.parts_extracted - self.parts_started)

    @property
    def parts_in_engines(self) -> int:
        """Parts handed to an engine that have no result yet."""
        return max(0, self.parts_started - self.parts_transcribed)


_NAMES = tuple(field.name for field in fields(Activity))


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
