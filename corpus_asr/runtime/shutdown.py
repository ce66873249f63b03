"""Graceful shutdown: the first signal stops new work, the second one exits immediately.

After the first, no new work starts, and work in progress may finish within a grace period. A run at
its time limit ends in the same way, but without an error.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from corpus_asr.units import counted

# Schedulers that send SIGTERM usually kill after 30 s (Slurm, Kubernetes): finished results must be
# committed before.
GRACE_S = 20.0
# A run at its own time limit, or interrupted by a person, who may press Ctrl-C again, is not
# killed: work in progress may be hours of audio on a GPU.
DRAIN_S = 600.0
# A closed terminal sends SIGHUP; Slurm sends what `--signal` names, usually SIGUSR1.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class RunStoppedError(KeyboardInterrupt):
    """A run stopped by a signal; committed results are kept."""

    def __init__(self, message: str = "", *, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """Shell exit code of a process ended by this signal."""
        return 128 + self.signal_number


class Stop:
    """Stop request of a run, by a signal or the clock, and the end of its grace period."""

    def __init__(self, *, at: float | None = None) -> None:
        self._at_s = float("inf") if at is None else at
        self._deadline_s = self._at_s + DRAIN_S
        self.signal_number: int | None = None
        self.futile = False
        """Whether no recording can succeed: the run ends as at its time limit."""
        self.failure: Exception | None = None
        """Exception for the next signal: another thread detected a fatal failure."""

    @property
    def requested(self) -> bool:
        """Whether no new work may be started."""
        over = self.futile or time.monotonic() >= self._at_s
        return over or self.signal_number is not None

    def give_up(self) -> None:
        """Start no new work, since no recording can succeed."""
        if not self.futile:
            self.futile = True
            self._end_within(GRACE_S)

    @property
    def expired(self) -> bool:
        """Whether work in progress is to be abandoned."""
        return time.monotonic() >= self._deadline_s

    @property
    def left_s(self) -> float | None:
        """Seconds left for work in progress; None while the run is not stopping."""
        return max(0.0, self._deadline_s - time.monotonic()) if self.requested else None

    @property
    def out_of_time(self) -> bool:
        """Whether the run ended by the clock only."""
        return self.signal_number is None and self.expired

    def request(self, number: int) -> None:
        """Request a stop by a signal number."""
        if self.failure is not None:
            raise self.failure
        if self.signal_number is not None or self.expired:
            raise KeyboardInterrupt
        self.signal_number = number
        grace_s = DRAIN_S if number == signal.SIGINT else GRACE_S
        # A signal after the time limit shortens the grace period; it never extends it.
        self._end_within(grace_s)
        allowed = f"{grace_s / 60:g} min" if grace_s >= 60 else f"{grace_s:g} s"
        second = "a second Ctrl-C" if number == signal.SIGINT else "a second signal"
        # Unbuffered: the signal may have interrupted another write to stderr.
        words = (
            f"\ncorpus-asr: {signal.Signals(number).name}: no new work is started; decoding in "
            f"progress gets {allowed} to finish and is committed; {second} stops immediately, "
            "without it\n"
        )
        os.write(2, words.encode())

    def _end_within(self, grace_s: float) -> None:
        self._deadline_s = min(self._deadline_s, time.monotonic() + grace_s)

    def error(self, left: int) -> RunStoppedError:
        """Return the error for a stop with `left` pending recordings."""
        number = self.signal_number or signal.SIGINT
        return RunStoppedError(
            f"stopped by {signal.Signals(number).name}: {counted(left, 'recording')} remaining; "
            "run the same command again to continue from the last commit",
            signal_number=number,
        )


@contextmanager
def stoppable(left: Callable[[], int], *, at: float | None = None) -> Iterator[Stop]:
    """Let signals, or the clock at `at` (`time.monotonic()`), stop the work in the context.

    Signals are handled in the main thread only. `left` returns the number of pending recordings,
    which at the time limit is no error; work in progress gets `DRAIN_S` after Ctrl-C and `GRACE_S`
    after other signals.
    """
    stop = Stop(at=at)

    def handle(number: int, _: FrameType | None) -> None:
        stop.request(number)

    handlers = _replace_handlers(SIGNALS, handle)
    try:
        yield stop
    except BaseException as error:
        if stop.signal_number is not None:
            raise stop.error(left()) from error  # a scheduler may have killed our children as well
        if not (stop.out_of_time and isinstance(error, KeyboardInterrupt)):
            raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stop.signal_number is not None and (count := left()):
        raise stop.error(count)


def _replace_handlers(
    numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], None]
) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    # Ignored signals stay ignored: `nohup` and background jobs of shells set that.
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in wanted}


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let all `SIGNALS` end the context like Ctrl-C."""

    def handle(number: int, _: FrameType | None) -> None:
        raise RunStoppedError(
            f"stopped by {signal.Signals(number).name}; run the same command again to continue "
            "from the last commit",
            signal_number=number,
        )

    handlers = _replace_handlers(SIGNALS[1:], handle)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
