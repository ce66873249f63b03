"""The driver's snapshots: how far its run is, written into the output folder every few seconds.

In: a progress line and what the run was planned to do. Out: `_run/progress.json`, and one log line
per snapshot. A snapshot that cannot be written is no reason to stop a run.
"""

import datetime
import logging
import os
import socket
import threading
from types import TracebackType
from typing import Self

from corpus_asr.activity import Activity
from corpus_asr.errors import FetchError
from corpus_asr.logs import event
from corpus_asr.runtime.progress import Progress, Tally
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

_LOG = logging.getLogger(__name__)

MOST_MOMENTS = 120


class History:
    """Moments of a run, about evenly spaced and never many, however long it takes.

    Args:
        every_s: their distance, until there are too many of them.
        most: how many that is; then every second one is forgotten, and the distance doubles.
    """

    def __init__(self, every_s: float, most: int = MOST_MOMENTS) -> None:
        self._tick_s = self._every_s = every_s
        self._most = most
        self._kept: list[Moment] = []

    def with_now(self, now: Moment) -> tuple[Moment, ...]:
        """Return all of them, this one the last; it is kept if it is far enough from the others."""
        # Moments come a little early or late.
        apart_s = self._every_s - self._tick_s / 2
        if self._kept and now.elapsed_s - self._kept[-1].elapsed_s < apart_s:
            return (*self._kept, now)
        self._kept.append(now)
        found = tuple(self._kept)
        if len(found) > self._most:
            self._kept = self._kept[::2]
            self._every_s *= 2
        return found


class Recorder:
    """Writes snapshots while its context is open, one at its beginning and one at its end.

    Args:
        store: the output folder.
        progress: what is counted; entered before this and left after it.
        run_id: the run.
        plan: what it has to do.
        resources: what it does it with.
        every_s: time between snapshots.
    """

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
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="snapshots", daemon=True)

    def snapshot(self, state: str = RUNNING) -> Snapshot:
        """Return what is to be written now."""
        progress, plan = self._progress, self._plan
        tally, elapsed_s, committed_at = progress.tally, progress.elapsed_s, progress.committed_at
        activity = progress.activity
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
            speed=tally.audio_s / elapsed_s if elapsed_s > 0 else 0.0,
            time_left_s=progress.time_left_s(),
            last_commit_at=None
            if committed_at is None
            else _iso(datetime.datetime.fromtimestamp(committed_at, datetime.UTC)),
            extract_workers=self._resources.extract_workers,
            transcribe_workers=self._resources.transcribe_workers,
            failures=tally.failures,
            activity=activity,
            history=self._history.with_now(_moment(elapsed_s, tally, activity)),
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._write(TRANSCRIBED if error is None else STOPPED)

    def _write_on(self) -> None:
        self._write(RUNNING)
        while not self._ended.wait(self._every_s):
            self._write(RUNNING)

    def _write(self, state: str) -> None:
        seen = self.snapshot(state)
        event(
            _LOG, logging.INFO, "progress", run_id=seen.run_id, state=state, planned=seen.planned,
            files=seen.files, failed=seen.failed, left=seen.left, audio_s=round(seen.audio_s, 1),
            speed=round(seen.speed, 2), time_left_s=seen.time_left_s,
        )  # fmt: skip
        try:
            write_snapshot(self._store, seen)
        except FetchError as failure:
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
