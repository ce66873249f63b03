"""Activity of a run's workers, as additive counts; its speed, and estimates."""

import heapq
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Self
from zlib import crc32

from corpus_asr.failure_kinds import Origin, failure_kind

EngineStage = Literal["encode_s", "fill_s", "prefill_s", "step_s", "wait_s"]

# Per kind of failure; all failed recordings are in the recordings table.
EXAMPLES = 3


# Suffixes that determine the seconds per byte. Others count as one, so that names such as part.0001
# do not make each recording a type of its own.
_TYPES = """
    302 3g2 3ga 3gp 722 aa3 aac aax ac3 ac4 act adts aif aifc aiff al alaw amr ape asf au avi avr
    awb bwf caf dff divx dsf dss dts dv ec3 eac3 f4a f4b f4v flac flv g722 g723_1 g726 g729 gsm
    iff ircam lpcm m2a m2t m2ts m4a m4b m4p m4r m4v mj2 mka mkv mlp mmf mov mp1 mp2 mp3 mp4 mpa mpc
    mpeg mpg mpga mts mxf nist nsv nut oga ogg ogm ogv oma opus paf pcm qcp ra rf64 rm rmvb sd2 sf
    snd sph spx tak thd truehd ts tta ul ulaw vob voc vox vqf w64 wav wave weba webm wma wmv wtv wv
"""
_KNOWN_TYPES = frozenset(_TYPES.split())
# Assumed size of a recording of unknown size, such as at a URL.
USUAL_BYTES = 2**24  # 16 MiB


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated value, and a range that holds the true value in about 80 % of cases."""

    value: float
    low: float
    high: float

    def over(self, speed: float) -> "Estimate":
        """Return the estimate divided by a number."""
        return Estimate(self.value / speed, self.low / speed, self.high / speed)

    def clock_words(self) -> str:
        """Write seconds as `0:12:30 (0:10:00-0:16:00)`, from ten minutes on a range of minutes."""
        step_s = 60 if self.high >= _MINUTES_FROM_S else 1
        low, high = (
            clock_time(step_s * round(bound_s / step_s)) for bound_s in (self.low, self.high)
        )
        return f"{clock_time(self.value)} ({low}-{high})"

    def hours_words(self) -> str:
        """Format seconds as `1.35 h (1.20-1.52)`, or in minutes if below an hour."""
        unit, (low, value, high) = in_hours(self.low, self.value, self.high)
        return f"{value} {unit}" if low == high else f"{value} {unit} ({low}-{high})"


_MINUTES_FROM_S = 600.0


def in_hours(*seconds: float) -> tuple[str, list[str]]:
    """Format durations in one unit: hours, or minutes if all are below an hour."""
    unit, unit_s, digits = ("h", 3600.0, 2) if max(seconds) >= 3600 else ("min", 60.0, 1)
    return unit, [f"{length_s / unit_s:,.{digits}f}" for length_s in seconds]


def clock_time(seconds: float) -> str:
    """Format a duration as hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def rtfx(audio_s: float, wall_s: float) -> float:
    """Return the speed of a run: seconds of audio committed per second of its wall time."""
    return audio_s / wall_s if wall_s > 0 else 0.0


def _ending(uri: str) -> str:
    return uri.partition("?")[0].rpartition(".")[2].lower()


def has_media_name(uri: str) -> bool:
    """Return whether a file has the suffix of a sound or a film, also before a query."""
    return _ending(uri) in _KNOWN_TYPES or uri.rpartition(".")[2].lower() in _KNOWN_TYPES


def stratum(uri: str, size_bytes: int | None) -> str:
    """Return a key for recordings of one type and similar size (factor of 4), such as `mp3:11`.

    A recording of unknown size counts as one of `USUAL_BYTES`.
    """
    ending = _ending(uri)
    size = USUAL_BYTES if size_bytes is None else size_bytes
    return f"{ending if ending in _KNOWN_TYPES else 'other'}:{size.bit_length() // 2}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSums:
    """Sums over recordings, which give a ratio of seconds to bytes."""

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
    """Add sums by stratum."""
    totals: dict[str, FileSums] = {}
    for sums in strata:
        for name, of_stratum in sums.items():
            totals[name] = totals.get(name, _NO_FILES) + of_stratum
    return totals


@dataclass(slots=True, kw_only=True)
class Activity:
    """Additive counts of an engine or worker since its start, or their sums over workers."""

    extract_alive_s: float = 0.0
    """Time since an extract worker started."""
    extract_s: float = 0.0
    """Time waiting for the child process to read, decode and make features."""
    extract_cpu_s: float = 0.0
    """CPU time of the child; it spends the rest of `extract_s` waiting, mostly for the store."""
    backpressure_s: float = 0.0
    """Time extracted parts were blocked by backpressure."""
    fetch_retries: int = 0
    """Retried store requests for recordings."""
    parts_extracted: int = 0
    files_extracted: int = 0
    """Recordings processed by Ray's extract workers; some may be left to another pass."""
    durations: Strata = field(default_factory=dict)
    """Recordings of known duration: from the header while open, else as decoded."""
    decoded_s: float = 0.0
    """Decoded audio, incomplete parts included."""
    transcribed_s: float = 0.0
    """Transcribed audio, incomplete parts included."""
    load_s: float = 0.0
    """Time to load the model."""
    transcribe_alive_s: float = 0.0
    """Time since a transcribe worker's model was loaded."""
    # Engine times are the host's: on a CPU, of the computation; on a GPU, of queueing it, and
    # additional device time is in `wait_s`. Windows that a CPU encodes in a separate thread are not
    # in `encode_s`.
    encode_s: float = 0.0
    fill_s: float = 0.0
    prefill_s: float = 0.0
    step_s: float = 0.0
    wait_s: float = 0.0
    """Time to detect finished slots and read results."""
    slots: int = 0
    """Maximum of one worker; not additive."""
    halvings: int = 0
    """Out-of-memory events, after which slots or encoder batches were halved."""
    failed_captures: int = 0
    """Decoding steps that could not be captured as CUDA graphs, so that none is."""
    steps: int = 0
    """Decoding steps of all search methods."""
    slot_steps: int = 0
    """Occupied slots, summed over the steps."""
    slot_room: int = 0
    """Available slots, summed over the steps."""
    windows: int = 0
    """Encoded windows."""
    encoder_batches: int = 0
    tokens: int = 0
    """Decoded tokens, excluding end tokens."""
    parts_started: int = 0
    """Parts submitted to an engine, including those without speech."""
    parts_transcribed: int = 0
    """Submitted parts with a result."""
    commits: int = 0
    commit_s: float = 0.0
    commit_retries: int = 0
    """Retried store requests of commits."""
    workers_replaced: int = 0
    """Unusable transcribe workers."""

    def __add__(self, other: "Activity") -> "Activity":
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in _ADDED}
        return Activity(
            **sums,
            slots=max(self.slots, other.slots),
            durations=added(self.durations, other.durations),
        )

    def since(self, before: "Activity") -> "Activity":
        """Return the activity after `before`, so that both sum to this.

        `slots`, which are not additive, keep their present value.
        """
        grown: dict[str, Any] = {n: getattr(self, n) - getattr(before, n) for n in _ADDED}
        kinds = self.durations.keys() | before.durations.keys()
        pairs = (
            (k, self.durations.get(k, _NO_FILES), before.durations.get(k, _NO_FILES)) for k in kinds
        )
        durations = {kind: later - earlier for kind, later, earlier in pairs if later != earlier}
        return Activity(**grown, slots=self.slots, durations=durations)

    @classmethod
    def total(cls, activities: "Iterable[Activity]") -> "Activity":
        """Return the sum of any number of activities."""
        return sum(activities, cls())

    def count_steps(self, steps: int, *, active: int, places: int) -> None:
        """Count steps that were run with `active` of `places` slots in use."""
        self.steps += steps
        self.slot_steps += steps * active
        self.slot_room += steps * places

    @contextmanager
    def timing(self, stage: EngineStage) -> Iterator[None]:
        """Add the duration of the context to a stage."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started_s)

    @property
    def engine_s(self) -> float:
        """Seconds during which the engines worked."""
        return self.encode_s + self.fill_s + self.prefill_s + self.step_s + self.wait_s

    @property
    def engine_share(self) -> float | None:
        """Fraction of the time with a loaded model in which the engines worked; None before."""
        return _share(self.engine_s, self.transcribe_alive_s)

    @property
    def extract_share(self) -> float | None:
        """Fraction of the extract workers' time spent extracting; None without any."""
        return _share(self.extract_s, self.extract_alive_s)

    @property
    def backpressure_share(self) -> float | None:
        """Fraction of the extract workers' time blocked by backpressure."""
        return _share(self.backpressure_s, self.extract_alive_s)

    @property
    def extract_cpu_share(self) -> float | None:
        """Fraction of extraction time spent computing; the rest is mostly waiting for the store."""
        return _share(self.extract_cpu_s, self.extract_s)

    @property
    def occupancy(self) -> float | None:
        """Mean fraction of the decoder slots in use; None before the first step."""
        return _share(self.slot_steps, self.slot_room)

    @property
    def parts_ready(self) -> int:
        """Extracted parts queued for an engine."""
        # A part whose worker died is submitted twice.
        return max(0, self.parts_extracted - self.parts_started)

    @property
    def parts_in_engines(self) -> int:
        """Parts submitted to an engine without a result."""
        return max(0, self.parts_started - self.parts_transcribed)


_NOT_ADDED = ("slots", "durations")
_ADDED = tuple(field.name for field in fields(Activity) if field.name not in _NOT_ADDED)


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCount:
    """Number of recordings that failed in one way."""

    stage: str
    kind: str
    count: int
    retryable: bool
    examples: tuple[str, ...]
    """URIs of the first few, without credentials."""
    message: str = ""
    """Error message of the first."""


def merged(counts: Iterable[FailureCount]) -> tuple[FailureCount, ...]:
    """Sum counts of the same stage and kind, most frequent first."""
    sums: dict[tuple[str, str], FailureCount] = {}
    for failures in counts:
        key = failures.stage, failures.kind
        previous = sums.setdefault(key, replace(failures, count=0))
        sums[key] = replace(
            previous,
            count=previous.count + failures.count,
            # Retryable if any of them may succeed.
            retryable=previous.retryable or failures.retryable,
            examples=tuple(dict.fromkeys((*previous.examples, *failures.examples)))[:EXAMPLES],
        )
    return tuple(sorted(sums.values(), key=lambda total: (-total.count, total.stage, total.kind)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of committed results; adds up."""

    parts: int = 0
    files: int = 0
    """Recordings whose last part was committed."""
    failed: int = 0
    """Recordings with a failed part; one that fails twice counts twice until the finish."""
    audio_s: float = 0.0
    parts_retried: int = 0
    """Parts that were tried more than once."""
    failures: tuple[FailureCount, ...] = ()

    @property
    def alike(self) -> FailureCount | None:
        """The environment failure shared by all recordings so far, if any; else None."""
        kinds = {failure.kind for failure in self.failures}
        if len(kinds) != 1 or self.failed < self.parts:
            return None
        first = self.failures[0]
        if failure_kind(first.kind).origin is not Origin.environment:
            return None
        return replace(first, count=self.files)

    def __add__(self, other: "Tally") -> "Tally":
        sums = {name: value + getattr(other, name) for name, value in self.by_name().items()}
        return Tally(**sums | {"failures": merged(sums["failures"])})

    def by_name(self) -> dict[str, Any]:
        """Return all fields by name; of more than counts, if it is of a subclass."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


# Headers of this many recordings predict a corpus's hours to about 10 %.
SAMPLE_FILES = 64


class SampledFile(NamedTuple):
    """A sampled recording that represents others."""

    recording_id: str
    uri: str
    size_bytes: int | None


class FileSample:
    """Sums over recordings by type and size, and a sample independent of their order.

    Recordings are added as they are listed; memory is bounded. It holds original URIs, including
    signatures, and never leaves the process.

    Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir": the largest u
    ** (1 / weight) are a weighted sample.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[int]] = {}
        self._drawn: list[tuple[float, SampledFile]] = []

    def add(
        self, ids: Sequence[str], uris: Sequence[str], sizes_bytes: Sequence[int | None]
    ) -> None:
        """Count recordings, and keep those that are sampled."""
        for recording_id, uri, size_bytes in zip(ids, uris, sizes_bytes, strict=True):
            size = USUAL_BYTES if size_bytes is None else max(1, size_bytes)
            sums = self._sums.setdefault(stratum(uri, size_bytes), [0, 0])
            sums[0] += 1
            sums[1] += size
            # The square root of the size: small recordings may hold most of the audio.
            lot = math.log((crc32(recording_id.encode()) + 1) / 2**32) / math.sqrt(size)
            drawn = lot, SampledFile(recording_id, uri, size_bytes)
            if len(self._drawn) < SAMPLE_FILES:
                heapq.heappush(self._drawn, drawn)
            elif drawn > self._drawn[0]:
                heapq.heapreplace(self._drawn, drawn)

    @property
    def strata(self) -> dict[str, FileSums]:
        """Numbers and sizes of all recordings, by stratum, without their durations."""
        return {
            name: FileSums(files=files, size=float(size))
            for name, (files, size) in self._sums.items()
        }

    def draw(self) -> list[SampledFile]:
        """Return at most `SAMPLE_FILES` recordings, larger ones more often."""
        return [file for _, file in sorted(self._drawn, reverse=True)]


def sums_of(files: Iterable[tuple[str, int | None, float]]) -> dict[str, FileSums]:
    """Sum recordings, given as URI, bytes and seconds, by stratum."""
    return added(
        *(
            {stratum(uri, size_bytes): FileSums.of(size_bytes, audio_s)}
            for uri, size_bytes, audio_s in files
        )
    )
