"""Progress of a run: a line on the terminal, snapshots in the output folder, a final summary."""

import datetime
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, astuple, dataclass, field, replace
from typing import Self, TextIO

from rich.console import Group
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from corpus_asr.activity import Activity, Estimate, Strata, Tally, clock_time, rtfx
from corpus_asr.errors import EngineError, FetchError
from corpus_asr.logs import event
from corpus_asr.runtime.estimate import estimate_audio, rest_s
from corpus_asr.runtime.resources import Resources
from corpus_asr.runtime.terminal import Display, repeated
from corpus_asr.storage.run_state.plan import Plan
from corpus_asr.storage.run_state.run_files import (
    EVERY_S,
    RUNNING,
    STOPPED,
    TRANSCRIBED,
    RunProgress,
    Snapshot,
    write_snapshot,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import counted

_LOG = logging.getLogger(__name__)

# Identical failures at the start after which a run is aborted: one host or folder may have a few in
# a row, and a store that is down or denies access gets no more requests than these.
ENOUGH_ALIKE = 20


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


@dataclass(slots=True, kw_only=True)
class Progress:
    """Progress of a run, and its display."""

    total_files: int
    """Number of pending recordings."""
    planned: Strata = field(default_factory=dict)
    """Sums of these, by type and size."""
    workers: int = 1
    """Planned number of engines."""
    stream: TextIO | None
    """Output for lines; None: no output."""
    clock: Callable[[], float] = time.monotonic
    started_s: float = field(default_factory=time.monotonic)
    """Start of the run, by the clock."""
    tally: Tally = field(default_factory=Tally)
    """Counts of committed results; written by one thread."""
    committed_at: str | None = None
    """Time of the last commit."""
    read_activity: Callable[[], Activity] = Activity
    """Returns the workers' activity so far; fast and thread-safe."""
    read_left_s: Callable[[], float | None] = lambda: None
    """Returns the seconds left for work in progress while the run is stopping; else None."""
    taken_out: tuple[str, ...] = ()
    """Disabled workers: device, machine and error of each."""
    sampled: Strata = field(default_factory=dict)
    """Durations of randomly sampled recordings, once their headers are read."""
    is_over: bool = False
    """Whether no part is in work any more."""
    _stages: "StageWatch" = field(default_factory=lambda: StageWatch())

    @property
    def files_left(self) -> int:
        """Number of recordings without a committed last part."""
        return max(0, self.total_files - self.tally.files)

    def set(self, tally: Tally) -> None:
        """Replace the counts of committed results."""
        if tally.parts != self.tally.parts:
            self.committed_at = _now()
        self.tally = tally

    def is_futile(self, tally: Tally) -> bool:
        """Return whether all recordings so far failed with one kind, enough to predict the rest.

        `tally` counts the results so far, committed or not.
        """
        alike = tally.alike
        if alike is None or alike.count < ENOUGH_ALIKE:
            return False
        # Failures commit sooner than successes still being decoded; headers were sampled from all.
        read = self.read_activity().decoded_s > 0
        return not read and not any(sums.audio_s > 0 for sums in self.sampled.values())

    @property
    def elapsed_s(self) -> float:
        """Wall time in seconds since the run started."""
        return self.clock() - self.started_s

    def standing(self) -> RunProgress:
        """Return the present progress; thread-safe."""
        tally, activity, elapsed_s = self.tally, self.read_activity(), self.elapsed_s
        if self.is_over:  # what workers reported last may be older
            all_parts = activity.parts_extracted
            activity = replace(activity, parts_started=all_parts, parts_transcribed=all_parts)
        # Parts of a dead worker are decoded and transcribed twice.
        done_s = max(tally.audio_s, min(activity.decoded_s, activity.transcribed_s))
        files = min(tally.files, self.total_files)  # parts of a dead worker, too
        # The last part of a recording may be committed before others.
        if activity.parts_ready or activity.parts_in_engines:
            files = min(files, self.total_files - 1)
        audio, rest = self._estimates(done_s, files, activity)
        all_open = sum(sums.files for sums in activity.durations.values()) >= self.total_files
        extract, transcribe = self._stages.words(activity, elapsed_s, all_open=all_open)
        return RunProgress(
            **tally.by_name() | {"files": files},
            elapsed_s=elapsed_s,
            planned=self.total_files,
            rtfx=rtfx(tally.audio_s, elapsed_s),
            audio_done_s=done_s,
            audio_expected_s=None if audio is None else audio.value,
            audio_expected_range_s=None if audio is None else (audio.low, audio.high),
            eta_s=None if rest is None else rest.value,
            eta_range_s=None if rest is None else (rest.low, rest.high),
            extract=extract,
            transcribe=transcribe,
        )

    def _estimates(
        self, done_s: float, files: int, activity: Activity
    ) -> tuple[Estimate | None, Estimate | None]:
        """Return estimates of the run's audio and of the remaining time, in seconds."""
        files_left = max(0, self.total_files - files)
        if not files_left:
            return Estimate(done_s, done_s, done_s), Estimate(0.0, 0.0, 0.0)
        audio = estimate_audio(self.planned, activity.durations, self.sampled)
        if audio is not None:
            audio = Estimate(*(max(done_s, seconds) for seconds in astuple(audio)))
        working_s = activity.transcribe_alive_s / self.workers
        num_done = files - self.tally.failed
        return audio, rest_s(
            audio, done_s=done_s, working_s=working_s, done=num_done, files=files_left
        )

    @contextmanager
    def shown(self) -> Iterator[Self]:
        """Keep the display up to date while the context is open."""
        with Display(
            self.stream,
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


def line_of(standing: RunProgress) -> str:
    """Return the progress as one log line."""
    return "; ".join(standing.words().values())


def _panel(standing: RunProgress, ending: str) -> Group:
    """Return the terminal display: a bar, and lines by importance."""
    words = standing.words()
    done = standing.share_done
    return Group(
        # Padding of zero ends the line, which a bar alone does not.
        Padding(ProgressBar(total=1.0, completed=done or 0.0, width=_BAR_WIDTH), 0),
        Text(f"{words['audio']}, {words['speed']}; {words['time']}"),
        Text(words["files"], style="red" if standing.failed else ""),
        Text(words["stages"], style="dim"),
        *([Text(ending, style="bold")] if ending else []),
    )


_BAR_WIDTH = 40
# Averaging window in seconds: about one part, so that short gaps do not count as idle.
_WATCHED_S = 20.0
# Minimum fraction of time spent working for a stage to count as busy.
_BUSY = 0.5


class StageWatch:
    """Recent state of each stage, in plain words."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, Activity]] = deque()

    def words(self, now: Activity, at_s: float, *, all_open: bool) -> tuple[str, str]:
        """Return the states of extraction and of the engines; call in time order."""
        with self._lock:
            while len(self._seen) > 1 and at_s - self._seen[1][0] >= _WATCHED_S:
                self._seen.popleft()
            before = self._seen[0][1] if self._seen else Activity()
            if not self._seen or at_s - self._seen[-1][0] >= 1.0:
                self._seen.append((at_s, now))
        return _extract_words(before, now, all_open=all_open), _transcribe_words(before, now)


def _extract_words(before: Activity, now: Activity, *, all_open: bool) -> str:
    if now.extract_alive_s <= 0:
        return "starting"
    # Idle Ray workers exit and stop reporting.
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


@dataclass(slots=True)
class ProgressWriter:
    """Writes snapshots of a run to its output folder."""

    store: OutputStore
    progress: Progress
    _: KW_ONLY
    run_id: str
    plan: Plan
    resources: Resources
    every_s: float = EVERY_S
    started_at: str = field(default_factory=_now)

    def snapshot(self, state: str) -> Snapshot:
        """Return the present snapshot."""
        progress, plan = self.progress, self.plan
        return Snapshot(
            **progress.standing().by_name(),
            run_id=self.run_id,
            state=state,
            started_at=self.started_at,
            written_at=_now(),
            host=socket.gethostname(),
            pid=os.getpid(),
            listed=plan.num_files,
            done_before=plan.num_done,
            planned_bytes=plan.num_remaining_bytes,
            last_commit_at=progress.committed_at,
            extract_workers=self.resources.extract_workers,
            transcribe_workers=self.resources.transcribe_workers,
            workers_out=progress.taken_out,
            activity=progress.read_activity(),
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write snapshots while the context is open, first at entry and last at exit."""
        state = STOPPED
        try:
            with repeated(self._write, every_s=self.every_s, name="snapshots"):
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
            write_snapshot(self.store, seen)
        except (FetchError, EngineError) as failure:  # the store failed, or the lock was lost
            # Only `status` and the report are outdated; the next write may succeed.
            event(_LOG, logging.WARNING, "snapshot_not_written", error=str(failure))
