"""Ending a run on request: the first signal asks for a graceful stop, the second one forces it.

After the first, no new work is started, and what is being decoded may end within a grace period. A
run whose time is over ends in the same way, but is no error.
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

# A scheduler that sends SIGTERM usually kills after 30 s (Slurm, Kubernetes), so that what is
# finished has to be committed before.
GRACE_S = 20.0
# Nobody kills a run whose own time is over, or that a person ends, who may press Ctrl-C again: what
# is being decoded is hours of audio on a GPU.
DRAIN_S = 600.0
# A closed terminal sends SIGHUP, and Slurm what `--signal` names, for which people take SIGUSR1.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class RunStoppedError(KeyboardInterrupt):
    """A run ended because a signal asked it to; what was committed is kept."""

    def __init__(self, message: str = "", *, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that such a signal ended."""
        return 128 + self.signal_number


class Stop:
    """Whether a run is to end, by a signal or by the clock, and whether its grace is over."""

    def __init__(self, grace_s: float | None, *, at: float | None = None) -> None:
        self._grace_s = grace_s
        self._at_s = float("inf") if at is None else at
        self._deadline_s = self._at_s + DRAIN_S
        self.signal_number: int | None = None
        self.futile = False
        """Whether nothing can be done: the run ends as if its time were over."""
        self.failure: Exception | None = None
        """What the next signal raises: another thread saw that the work cannot go on."""

    @property
    def requested(self) -> bool:
        """Whether nothing new is to be started."""
        over = self.futile or time.monotonic() >= self._at_s
        return over or self.signal_number is not None

    def give_up(self) -> None:
        """Start nothing new, since no recording can be done."""
        if not self.futile:
            self.futile = True
            self._end_within(GRACE_S if self._grace_s is None else self._grace_s)

    @property
    def expired(self) -> bool:
        """Whether what is still going on is to be left."""
        return time.monotonic() >= self._deadline_s

    @property
    def left_s(self) -> float | None:
        """Seconds for what is in progress; None while the run is not to end."""
        return max(0.0, self._deadline_s - time.monotonic()) if self.requested else None

    @property
    def out_of_time(self) -> bool:
        """Whether it is the clock that ended the run for good, and nobody else."""
        return self.signal_number is None and self.expired

    def request(self, number: int) -> None:
        """Ask the run to end."""
        if self.failure is not None:
            raise self.failure
        if self.signal_number is not None or self.expired:
            raise KeyboardInterrupt
        self.signal_number = number
        grace_s = self._grace_s
        if grace_s is None:
            grace_s = DRAIN_S if number == signal.SIGINT else GRACE_S
        # A signal while the time is over shortens the drain; it never prolongs it.
        self._end_within(grace_s)
        allowed = f"{grace_s / 60:g} min" if grace_s >= 60 else f"{grace_s:g} s"
        second = "a second Ctrl-C" if number == signal.SIGINT else "a second signal"
        # Unbuffered: a signal may have come in the middle of another write to stderr.
        words = (
            f"\ncorpus-asr: {signal.Signals(number).name}: no new work is started; decoding in "
            f"progress gets {allowed} to finish and is committed; {second} stops immediately, "
            "without it\n"
        )
        os.write(2, words.encode())

    def _end_within(self, grace_s: float) -> None:
        self._deadline_s = min(self._deadline_s, time.monotonic() + grace_s)

    def error(self, left: int) -> RunStoppedError:
        """Return what tells that `left` recordings were not done."""
        number = self.signal_number or signal.SIGINT
        return RunStoppedError(
            f"stopped by {signal.Signals(number).name}: {counted(left, 'recording')} remaining; "
            "what was committed is kept: run the same command again to continue",
            signal_number=number,
        )


@contextmanager
def stoppable(
    left: Callable[[], int], *, at: float | None = None, grace_s: float | None = None
) -> Iterator[Stop]:
    """Let signals, and the clock at `at` by `time.monotonic()`, end the work in the context.

    Outside the main thread signals are not seen. `left` returns how many recordings are not done,
    which is no error where the time is over; what was started gets `grace_s` after a signal, by
    default `DRAIN_S` after Ctrl-C and `GRACE_S` after others.
    """
    stop = Stop(grace_s, at=at)

    def handle(number: int, _: FrameType | None) -> None:
        stop.request(number)

    before = _replace_handlers(SIGNALS, handle)
    try:
        yield stop
    except BaseException as error:
        if stop.signal_number is not None:
            raise stop.error(left()) from error  # a scheduler may have ended our helpers as well
        if not (stop.out_of_time and isinstance(error, KeyboardInterrupt)):
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.signal_number is not None and (count := left()):
        raise stop.error(count)


def _replace_handlers(
    numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], None]
) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    # What is ignored stays so: `nohup` and shells' background jobs ask for that.
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in wanted}


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let every other signal of `SIGNALS` end what is in the context in order, as Ctrl-C does."""

    def handle(number: int, _: FrameType | None) -> None:
        raise RunStoppedError(
            f"stopped by {signal.Signals(number).name}; what was committed is kept: run the same "
            "command again to continue",
            signal_number=number,
        )

    before = _replace_handlers(SIGNALS[1:], handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
