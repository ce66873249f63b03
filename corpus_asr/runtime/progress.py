"""How far a run is: a line on the terminal, snapshots in the output, a summary at the end."""

import datetime
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, Self, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from corpus_asr.activity import Activity
from corpus_asr.errors import FetchError
from corpus_asr.logs import event
from corpus_asr.runtime.commit import Tally
from corpus_asr.runtime.resources import Resources
from corpus_asr.storage.run_state.plan import Plan
from corpus_asr.storage.run_state.run_files import (
    EVERY_S,
    RUNNING,
    STOPPED,
    TRANSCRIBED,
    Moment,
    Snapshot,
    write_snapshot,
)
from corpus_asr.storage.run_state.tables import OutputStore


class Stream(Protocol):
    """Where a line can be written: any text file, captured ones of tests included."""

    def write(self, text: str, /) -> int:
        """Write and return the number of characters."""

    def flush(self) -> None:
        """Hand on what was written."""

    def isatty(self) -> bool:
        """Whether a person is looking."""


_LOG = logging.getLogger(__name__)

# A log file keeps every line: two a minute of them. A terminal shows one, as fast as it is read.
PLAIN_EVERY_S = 30.0
REDRAW_EVERY_S = 0.5
# More points than a chart has room for say nothing, and the file is written every few seconds.
MOST_MOMENTS = 120


def line_writer(stream: Stream | None) -> Callable[[str], None]:
    """Return what writes a line to a stream, or nowhere if there is none."""

    def write(line: str) -> None:
        if stream is not None:
            stream.write(line + "\n")

    return write


@contextmanager
def _repeated(action: Callable[[], None], *, every_s: float, name: str) -> Iterator[None]:
    """Call `action` in a thread, at once and then every so often, while the context is open."""
    ended = threading.Event()

    def repeat() -> None:
        action()
        while not ended.wait(every_s):
            action()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Progress:
    """How far a run is, and a line that says so."""

    def __init__(
        self,
        *,
        total_files: int,
        total_bytes: int,
        stream: Stream | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_files, self._total_bytes = total_files, total_bytes
        self._stream = stream
        self._clock = clock
        self._started_s = clock()
        self.tally = Tally()
        """What was committed so far; one thread writes it."""
        self.committed_at: datetime.datetime | None = None
        """When results were committed last."""
        self.read_activity: Callable[[], Activity] = Activity
        """Returns what the workers did so far, quickly and in any thread."""

    @property
    def files_left(self) -> int:
        """Recordings without a last part."""
        return max(0, self._total_files - self.tally.files)

    def set(self, tally: Tally) -> None:
        """Replace the count of committed results."""
        if tally.parts != self.tally.parts:
            self.committed_at = datetime.datetime.now(datetime.UTC)
        self.tally = tally

    @property
    def elapsed_s(self) -> float:
        """Time since the work began."""
        return self._clock() - self._started_s

    def eta_s(self) -> float | None:
        """Estimate from the sizes of what is done; None while nothing is."""
        tally = self.tally
        # Bytes say more than counts where clips and hours lie together; a listing without sizes
        # has only counts.
        if self._total_bytes:
            share = tally.size_bytes / self._total_bytes
        else:
            share = tally.files / max(1, self._total_files)
        return self.elapsed_s * max(0.0, 1.0 - share) / share if share > 0 else None

    def line(self) -> str:
        """Return the line as it is now."""
        tally, elapsed_s, eta_s = self.tally, self.elapsed_s, self.eta_s()
        rtfx = tally.audio_s / elapsed_s if elapsed_s > 0 else 0.0
        return (
            f"{tally.files}/{self._total_files} files, {tally.failed} failed, "
            f"{self.files_left} remaining; "
            f"{tally.audio_s / 3600:.2f} h of audio, RTFx {rtfx:.1f}; "
            f"elapsed {_clock_time(elapsed_s)}, "
            f"ETA {'unknown' if eta_s is None else _clock_time(eta_s)}"
        )

    @contextmanager
    def shown(self) -> Iterator[Self]:
        """Keep the line up to date, from now on, while the context is open."""
        # Listing and starting Ray took their time; neither counts for the speed.
        self._started_s = self._clock()
        stream = self._stream
        if stream is None:
            yield self
            return
        with ExitStack() as stack:
            if stream.isatty():
                console = Console(file=cast("TextIO", stream))  # uses no more than Stream has
                # Rich's own thread would redraw what it was given last, not what is true now.
                live = stack.enter_context(Live(console=console, auto_refresh=False))
                every_s = REDRAW_EVERY_S
            else:
                live, every_s = None, PLAIN_EVERY_S

            def show() -> None:
                if live is not None:
                    live.update(Text(self.line()), refresh=True)
                else:
                    stream.write(self.line() + "\n")
                    stream.flush()

            stack.callback(show)  # the last line is that of the end, however it ended
            stack.enter_context(_repeated(show, every_s=every_s, name="progress"))
            yield self


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class History:
    """Moments of a run, `every_s` apart; beyond `most` every second one is forgotten."""

    def __init__(self, every_s: float, most: int = MOST_MOMENTS) -> None:
        self._tick_s = self._every_s = every_s
        self._most = most
        self._kept: list[Moment] = []

    def with_now(self, now: Moment) -> tuple[Moment, ...]:
        """Return all of them, this one the last; it is kept if it is far enough from the others."""
        # Half a tick of slack: moments come a little early or late.
        apart_s = self._every_s - self._tick_s / 2
        if self._kept and now.elapsed_s - self._kept[-1].elapsed_s < apart_s:
            return (*self._kept, now)
        self._kept.append(now)
        moments = tuple(self._kept)
        if len(moments) > self._most:
            # Thinned out evenly: a chart of hours needs no quarter minutes.
            self._kept = self._kept[::2]
            self._every_s *= 2
        return moments


class ProgressWriter:
    """Writes snapshots of a run into its output folder."""

    def __init__(
        self,
        store: OutputStore,
        progress: Progress,
        *,
        run_id: str,
        plan: Plan,
        resources: Resources,
        every_s: float = EVERY_S,
    ) -> None:
        self._store, self._progress = store, progress
        self._run_id, self._plan, self._resources = run_id, plan, resources
        self._every_s = every_s
        self._history = History(every_s)
        self._started_at = _iso(datetime.datetime.now(datetime.UTC))

    def snapshot(self, state: str) -> Snapshot:
        """Return what is to be written now."""
        progress, plan = self._progress, self._plan
        tally, elapsed_s, committed_at = progress.tally, progress.elapsed_s, progress.committed_at
        activity = progress.read_activity()
        return Snapshot(
            run_id=self._run_id,
            state=state,
            started_at=self._started_at,
            written_at=_iso(datetime.datetime.now(datetime.UTC)),
            elapsed_s=elapsed_s,
            host=socket.gethostname(),
            pid=os.getpid(),
            listed=plan.num_files,
            done_before=plan.num_done,
            planned=plan.num_remaining,
            planned_bytes=plan.num_remaining_bytes,
            files=tally.files,
            failed=tally.failed,
            parts=tally.parts,
            parts_retried=tally.retried,
            audio_s=tally.audio_s,
            rtfx=tally.audio_s / elapsed_s if elapsed_s > 0 else 0.0,
            eta_s=progress.eta_s(),
            last_commit_at=None if committed_at is None else _iso(committed_at),
            extract_workers=self._resources.extract_workers,
            transcribe_workers=self._resources.transcribe_workers,
            failures=tally.failures,
            activity=activity,
            history=self._history.with_now(_moment(elapsed_s, tally, activity)),
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write while the context is open, at its beginning, and how it ended."""
        state = STOPPED
        try:
            with _repeated(self._write, every_s=self._every_s, name="snapshots"):
                yield
            state = TRANSCRIBED
        finally:
            self._write(state)

    def _write(self, state: str = RUNNING) -> None:
        seen = self.snapshot(state)
        event(
            _LOG, logging.INFO, "progress", run_id=seen.run_id, state=state, planned=seen.planned,
            files=seen.files, failed=seen.failed, remaining=seen.remaining,
            audio_s=round(seen.audio_s, 1), rtfx=round(seen.rtfx, 2), eta_s=seen.eta_s,
        )  # fmt: skip
        try:
            write_snapshot(self._store, seen)
        except FetchError as failure:
            # Only `status` and the page are late; the next one may succeed.
            event(_LOG, logging.WARNING, "snapshot_not_written", error=str(failure))


def _moment(elapsed_s: float, tally: Tally, activity: Activity) -> Moment:
    return Moment(
        elapsed_s=round(elapsed_s, 2),
        audio_s=round(tally.audio_s, 2),
        files=tally.files,
        failed=tally.failed,
        extract_s=round(activity.extract_s, 2),
        extract_alive_s=round(activity.extract_alive_s, 2),
        engine_s=round(activity.engine_s, 2),
        transcribe_alive_s=round(activity.transcribe_alive_s, 2),
    )


def _iso(when: datetime.datetime) -> str:
    return when.isoformat(timespec="milliseconds")
