"""Committed results in, one line about the run out: files done, failed and left, speed, time left.

On a terminal the line is redrawn in place; elsewhere it is printed every half minute, and the
first and the last always are. Knows neither Ray nor storage: who commits results adds a `Tally`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.live import Live
from rich.text import Text

from corpus_asr.activity import Activity, FailureCount, merged
from corpus_asr.stages.stage import FAILED
from corpus_asr.storage.stores.uri import public, redact_uri


class Stream(Protocol):
    """Where a line can be written: any text file, captured ones of tests included."""

    def write(self, text: str, /) -> int:
        """Write and return the number of characters."""

    def flush(self) -> None:
        """Hand on what was written."""

    def isatty(self) -> bool:
        """Whether a person is looking."""


PLAIN_EVERY_S = 30.0
REDRAW_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of committed results; adds up."""

    parts: int = 0
    files: int = 0
    """Recordings whose last part was committed."""
    failed: int = 0
    """Recordings with a failed part; one that fails twice counts twice until the finish."""
    audio_s: float = 0.0
    size_bytes: int = 0
    """Sizes of the recordings in `files`."""
    retried: int = 0
    """Parts that were tried more than once."""
    failures: tuple[FailureCount, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            parts=self.parts + other.parts,
            files=self.files + other.files,
            failed=self.failed + other.failed,
            audio_s=self.audio_s + other.audio_s,
            size_bytes=self.size_bytes + other.size_bytes,
            retried=self.retried + other.retried,
            failures=merged((*self.failures, *other.failures)),
        )


def tally_of(results: pa.Table) -> Tally:
    """Count RESULTS rows."""
    last = results.filter(results.column("last_part"))
    failed = results.filter(pc.equal(results.column("status"), FAILED))
    return Tally(
        parts=results.num_rows,
        files=last.num_rows,
        failed=failed.num_rows,
        audio_s=pc.sum(results.column("duration_s")).as_py() or 0.0,
        size_bytes=pc.sum(last.column("size_bytes")).as_py() or 0,
        retried=pc.sum(pc.greater(results.column("attempts"), 1)).as_py() or 0,
        failures=merged(_failure_of(row) for row in failed.select(_FAILURE).to_pylist()),
    )


_FAILURE = ["error_stage", "error_kind", "retryable", "uri"]


def _failure_of(row: dict[str, Any]) -> FailureCount:
    return FailureCount(
        stage=row["error_stage"] or "unknown",
        kind=row["error_kind"] or "unknown",
        count=1,
        retryable=bool(row["retryable"]),
        examples=(redact_uri(public(row["uri"])),),
    )


class Progress:
    """A line about a run, kept up to date by a thread while the context is open.

    Args:
        total_files: recordings this run has left to do.
        total_bytes: their size; the time left is estimated from it.
        stream: where the line goes; None says nothing at all.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        *,
        total_files: int,
        total_bytes: int,
        stream: Stream | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_files = total_files
        self._total_bytes = total_bytes
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._tally = Tally()
        self._committed_at: float | None = None
        self._read_activity: Callable[[], Activity] = Activity
        self._started = clock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None

    @property
    def tally(self) -> Tally:
        """What was committed so far."""
        with self._lock:
            return self._tally

    @property
    def files_left(self) -> int:
        """Recordings without a last part."""
        return max(0, self._total_files - self.tally.files)

    def add(self, tally: Tally) -> None:
        """Count results just committed."""
        with self._lock:
            self._tally += tally
            self._committed_at = time.time()

    def set(self, tally: Tally) -> None:
        """Replace the count, where it is kept elsewhere."""
        with self._lock:
            if tally.parts != self._tally.parts:
                self._committed_at = time.time()
            self._tally = tally

    def watch(self, read: Callable[[], Activity]) -> None:
        """Say where the workers' counts are read from, quickly and from any thread."""
        self._read_activity = read

    @property
    def activity(self) -> Activity:
        """What the workers did so far."""
        return self._read_activity()

    @property
    def committed_at(self) -> float | None:
        """When results were committed last, in seconds since 1970; None before."""
        with self._lock:
            return self._committed_at

    @property
    def elapsed_s(self) -> float:
        """Time since the work began."""
        return self._clock() - self._started

    def time_left_s(self) -> float | None:
        """Estimate from the sizes of what is done; None while nothing is."""
        return self._estimate(self.tally, self.elapsed_s)

    def line(self) -> str:
        """Return the line as it is now."""
        tally = self.tally
        elapsed_s = self.elapsed_s
        speed = tally.audio_s / elapsed_s if elapsed_s > 0 else 0.0
        return (
            f"{tally.files}/{self._total_files} files, {tally.failed} failed, "
            f"{self.files_left} left; "
            f"{tally.audio_s / 3600:.2f} h of audio, {speed:.1f} h per hour; "
            f"elapsed {_clock_time(elapsed_s)}, left {self._time_left(tally, elapsed_s)}"
        )

    def __enter__(self) -> Self:
        self._started = self._clock()
        if self._stream is None:
            return self
        if self._stream.isatty():
            console = Console(file=cast("TextIO", self._stream))  # uses no more than Stream has
            self._live = Live(Text(self.line()), console=console, auto_refresh=False)
            self._live.start()
        else:
            self._print()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            self._live.update(Text(self.line()), refresh=True)
            self._live.stop()
        elif self._stream is not None:
            self._print()

    def _tick(self) -> None:
        every_s = PLAIN_EVERY_S if self._live is None else REDRAW_EVERY_S
        while not self._stop.wait(every_s):
            if self._live is None:
                self._print()
            else:
                self._live.update(Text(self.line()), refresh=True)

    def _print(self) -> None:
        assert self._stream is not None
        self._stream.write(self.line() + "\n")
        self._stream.flush()

    def _time_left(self, tally: Tally, elapsed_s: float) -> str:
        left_s = self._estimate(tally, elapsed_s)
        return "unknown" if left_s is None else _clock_time(left_s)

    def _estimate(self, tally: Tally, elapsed_s: float) -> float | None:
        share = (
            tally.size_bytes / self._total_bytes
            if self._total_bytes
            else tally.files / max(1, self._total_files)
        )
        return elapsed_s * max(0.0, 1.0 - share) / share if share > 0 else None


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
