"""How far a run is: a line on the terminal, snapshots in the output, a summary at the end."""

import datetime
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, fields
from typing import Self

from rich.console import Group
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from corpus_asr.activity import Activity, Estimate, Strata, clock_time, rtfx
from corpus_asr.errors import EngineError, FetchError
from corpus_asr.logs import event
from corpus_asr.runtime.commit import Tally
from corpus_asr.runtime.estimate import estimate_audio, rest_s
from corpus_asr.runtime.resources import Resources
from corpus_asr.runtime.terminal import Display, Stream, repeated
from corpus_asr.storage.run_state.plan import Plan
from corpus_asr.storage.run_state.run_files import (
    EVERY_S,
    RUNNING,
    STOPPED,
    TRANSCRIBED,
    Moment,
    Snapshot,
    Standing,
    write_snapshot,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import counted

_LOG = logging.getLogger(__name__)

# Recordings at the beginning of a run that fail alike before it is given up: one host or folder may
# have a few such in a row, and a store that is down or denies costs no more requests than these.
ENOUGH_ALIKE = 20
# More points than a chart has room for say nothing, and the file is written every few seconds.
MOST_MOMENTS = 120


class Progress:
    """How far a run is, and lines that say so.

    Args:
        total_files: recordings to do.
        planned: the same, by type and size.
        workers: engines there are to be.
        stream: where the lines go; None for nowhere.
        started_s: when the run began, by `clock`; now, where it is not given.
    """

    def __init__(
        self,
        *,
        total_files: int,
        planned: Strata | None = None,
        workers: int = 1,
        stream: Stream | None,
        started_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_files, self._planned, self._workers = total_files, planned or {}, workers
        self._stream = stream
        self._clock = clock
        self._started_s = clock() if started_s is None else started_s
        self._lock = threading.Lock()
        self._history = History()
        self._stages = StageWatch()
        self.tally = Tally()
        """What was committed so far; one thread writes it."""
        self.committed_at: datetime.datetime | None = None
        """When results were committed last."""
        self.read_activity: Callable[[], Activity] = Activity
        """Returns what the workers did so far, quickly and in any thread."""
        self.read_left_s: Callable[[], float | None] = lambda: None
        """Returns seconds for what is in progress once the run is to end; None before."""
        self.taken_out: tuple[str, ...] = ()
        """Workers that no longer get work: device, machine and error of each."""
        self.sampled: Strata = {}
        """Seconds of recordings that were drawn by lot, once their headers are read."""

    @property
    def files_left(self) -> int:
        """Recordings without a last part."""
        return max(0, self._total_files - self.tally.files)

    def set(self, tally: Tally) -> None:
        """Replace the count of committed results."""
        if tally.parts != self.tally.parts:
            self.committed_at = datetime.datetime.now(datetime.UTC)
        self.tally = tally

    def is_futile(self, tally: Tally) -> bool:
        """Tell whether so many recordings failed alike, and none was read, that all others would.

        `tally` is of the results so far, committed or not.
        """
        alike = tally.alike
        if alike is None or alike.count < ENOUGH_ALIKE:
            return False
        # Failures are committed sooner than what is decoded meanwhile; the sample is of all.
        read = self.read_activity().decoded_s > 0
        return not read and not any(sums.audio_s > 0 for sums in self.sampled.values())

    @property
    def elapsed_s(self) -> float:
        """Wall time since the run began."""
        return self._clock() - self._started_s

    def standing(self) -> Standing:
        """Return how far the run is now; from any thread."""
        return self.standing_and_history()[0]

    def standing_and_history(self) -> tuple[Standing, tuple[Moment, ...]]:
        """Return how far the run is now, and how it came to this; from any thread."""
        with self._lock:
            return self._standing(self.tally, self.read_activity(), self.elapsed_s)

    def _standing(
        self, tally: Tally, activity: Activity, elapsed_s: float
    ) -> tuple[Standing, tuple[Moment, ...]]:
        # Parts whose worker died are decoded and transcribed twice.
        done_s = max(tally.audio_s, min(activity.decoded_s, activity.transcribed_s))
        files = tally.files
        # The last part of a recording may overtake others of it.
        if activity.parts_ready or activity.parts_in_engines:
            files = min(files, self._total_files - 1)
        moment = Moment(
            elapsed_s=round(elapsed_s, 2),
            audio_s=round(tally.audio_s, 2),
            audio_done_s=round(done_s, 2),
            files=files,
            failed=tally.failed,
            extract_s=round(activity.extract_s, 2),
            extract_alive_s=round(activity.extract_alive_s, 2),
            engine_s=round(activity.engine_s, 2),
            transcribe_alive_s=round(activity.transcribe_alive_s, 2),
        )
        moments = self._history.with_now(moment)
        audio, rest = self._estimates(moments, activity)
        all_open = sum(sums.files for sums in activity.durations.values()) >= self._total_files
        extract, transcribe = self._stages.words(activity, elapsed_s, all_open=all_open)
        standing = Standing(
            elapsed_s=elapsed_s,
            planned=self._total_files,
            files=files,
            failed=tally.failed,
            audio_s=tally.audio_s,
            rtfx=rtfx(tally.audio_s, elapsed_s),
            audio_done_s=done_s,
            audio_expected_s=None if audio is None else audio.value,
            audio_expected_range_s=None if audio is None else (audio.low, audio.high),
            eta_s=None if rest is None else rest.value,
            eta_range_s=None if rest is None else (rest.low, rest.high),
            extract=extract,
            transcribe=transcribe,
        )
        return standing, moments

    def _estimates(
        self, moments: Sequence[Moment], activity: Activity
    ) -> tuple[Estimate | None, Estimate | None]:
        """Return the seconds of audio of the run, and the time that is left."""
        done_s = moments[-1].audio_done_s
        files_left = max(0, self._total_files - moments[-1].files)
        if not files_left:
            return Estimate(done_s, done_s, done_s), Estimate(0.0, 0.0, 0.0)
        audio = estimate_audio(self._planned, activity.durations, self.sampled)
        if audio is not None:
            audio = Estimate(*(max(done_s, seconds) for seconds in astuple(audio)))
        rest = rest_s(
            moments,
            audio,
            workers=self._workers,
            files=files_left,
            slots=activity.slots * self._workers,
            slots_in_use=activity.slots_in_use * self._workers,
            longest_left_s=activity.longest_left_s,
        )
        return audio, rest

    @contextmanager
    def shown(self) -> Iterator[Self]:
        """Keep the lines up to date while the context is open."""
        with Display(
            self._stream,
            line=lambda: "; ".join(filter(None, (line_of(self.standing()), self._ending()))),
            drawn=lambda: _panel(self.standing(), self._ending()),
            stays=True,
        ):
            yield self

    def _ending(self) -> str:
        left_s = self.read_left_s()
        if left_s is None or not self.files_left:
            return ""
        return f"stopping: {clock_time(left_s)} for what is in progress"


def line_of(standing: Standing) -> str:
    """Return one line for a log."""
    return "; ".join(standing.words().values())


def _panel(standing: Standing, ending: str) -> Group:
    """Return what is shown on a terminal: a bar, and lines of it by their importance."""
    words = standing.words()
    done = standing.share_done
    return Group(
        # Padded by nothing: that ends its line, which a bar by itself does not.
        Padding(ProgressBar(total=1.0, completed=done or 0.0, width=_BAR_WIDTH), 0),
        Text(f"{words['audio']}, {words['speed']}; {words['time']}"),
        Text(words["files"], style="red" if standing.failed else ""),
        Text(words["stages"], style="dim"),
        *([Text(ending, style="bold")] if ending else []),
    )


_BAR_WIDTH = 40
# Over so long a stage is watched: a part's time, so that it is not idle between two of them.
_WATCHED_S = 20.0
# A stage that works for this share of its time is busy.
_BUSY = 0.5


class StageWatch:
    """What each stage did in the last seconds, in plain words."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Activity]] = deque()

    def words(self, now: Activity, at_s: float, *, all_open: bool) -> tuple[str, str]:
        """Return what extraction and what the engines are doing; moments come in order."""
        while len(self._seen) > 1 and at_s - self._seen[1][0] >= _WATCHED_S:
            self._seen.popleft()
        before = self._seen[0][1] if self._seen else Activity()
        if not self._seen or at_s - self._seen[-1][0] >= 1.0:
            self._seen.append((at_s, now))
        return _extract_words(before, now, all_open=all_open), _transcribe_words(before, now)


def _extract_words(before: Activity, now: Activity, *, all_open: bool) -> str:
    if now.extract_alive_s <= 0:
        return "starting"
    # Workers of Ray that have nothing left end, and report no more.
    alive_s = now.extract_alive_s - before.extract_alive_s or float("inf")
    working = (now.extract_s - before.extract_s) / alive_s
    blocked = (now.backpressure_s - before.backpressure_s) / alive_s
    if max(working, blocked) < 1 - working - blocked:
        return "done" if all_open else "idle"
    return "busy" if working >= blocked else "blocked, as the engines are behind"


def _transcribe_words(before: Activity, now: Activity) -> str:
    if now.transcribe_alive_s <= 0:
        return "loading the model"
    alive_s = now.transcribe_alive_s - before.transcribe_alive_s
    if alive_s > 0 and (now.engine_s - before.engine_s) / alive_s >= _BUSY:
        return f"busy, {counted(now.parts_ready, 'part')} ready" if now.parts_ready else "busy"
    return "waiting for extraction" if not now.parts_ready else "starting"


class History:
    """Moments of a run, a second apart and more; beyond `most` every second one is forgotten."""

    def __init__(self, most: int = MOST_MOMENTS) -> None:
        self._every_s, self._most = 1.0, most
        self._kept: list[Moment] = []

    def with_now(self, now: Moment) -> tuple[Moment, ...]:
        """Return all of them, this one the last; it is kept if it is far enough from the others."""
        if self._kept and now.elapsed_s - self._kept[-1].elapsed_s < self._every_s:
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
        self._started_at = _iso(datetime.datetime.now(datetime.UTC))

    def snapshot(self, state: str) -> Snapshot:
        """Return what is to be written now."""
        progress, plan = self._progress, self._plan
        activity, (standing, moments) = progress.read_activity(), progress.standing_and_history()
        tally, committed_at = progress.tally, progress.committed_at
        return Snapshot(
            **{each.name: getattr(standing, each.name) for each in fields(Standing)},
            run_id=self._run_id,
            state=state,
            started_at=self._started_at,
            written_at=_iso(datetime.datetime.now(datetime.UTC)),
            host=socket.gethostname(),
            pid=os.getpid(),
            listed=plan.num_files,
            done_before=plan.num_done,
            planned_bytes=plan.num_remaining_bytes,
            parts=tally.parts,
            parts_retried=tally.retried,
            last_commit_at=None if committed_at is None else _iso(committed_at),
            extract_workers=self._resources.extract_workers,
            transcribe_workers=self._resources.transcribe_workers,
            failures=tally.failures,
            workers_out=progress.taken_out,
            activity=activity,
            history=moments,
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write while the context is open, at its beginning, and how it ended."""
        state = STOPPED
        try:
            with repeated(self._write, every_s=self._every_s, name="snapshots"):
                yield
            state = TRANSCRIBED
        finally:
            self._write(state)

    def _write(self, state: str = RUNNING) -> None:
        seen = self.snapshot(state)
        event(
            _LOG, logging.INFO, "progress", run_id=seen.run_id, state=state, planned=seen.planned,
            files=seen.files, failed=seen.failed, remaining=seen.remaining,
            audio_s=round(seen.audio_s, 1), rtfx=round(seen.rtfx, 2),
            audio_done_s=round(seen.audio_done_s, 1), audio_expected_s=seen.audio_expected_s,
            eta_s=seen.eta_s, eta_range_s=seen.eta_range_s,
        )  # fmt: skip
        try:
            write_snapshot(self._store, seen)
        except (FetchError, EngineError) as failure:  # the store failed, or the lock is lost
            # Only `status` and the page are late; the next one may succeed.
            event(_LOG, logging.WARNING, "snapshot_not_written", error=str(failure))


def _iso(when: datetime.datetime) -> str:
    return when.isoformat(timespec="milliseconds")
