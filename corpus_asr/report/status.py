"""How far a run is and whether it lives, from its output folder alone, in a handful of requests.

In: the address of an output folder. Out: a `Status`, as text or plain data. Reads the driver's
snapshot, the lock and the names of commits, no table: as quick for a million recordings as for
ten. What it says is as old as the snapshot; `report` counts the tables themselves.
"""

import datetime
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.errors import ConfigError
from corpus_asr.report.advice import advice
from corpus_asr.report.bottleneck import bottleneck, time_lines
from corpus_asr.report.text import counted, duration, row, wrapped
from corpus_asr.storage.run_state.lock import USUAL, Holder, read_holder
from corpus_asr.storage.run_state.run_files import RUNNING, TRANSCRIBED, Snapshot, read_snapshot
from corpus_asr.storage.run_state.start import CONFIG_NAME, RUN_NAME, SUCCESS_NAME
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore
from corpus_asr.storage.stores.uri import redact_uri

# Without a heartbeat for this long, by the driver's clock against ours, a driver is taken for dead.
SILENT_S = USUAL.heartbeat_s * USUAL.looks

FINISHED = "finished"
BEGINNING = "beginning"
FINISHING = "finishing"
SILENT = "silent"
DEAD = "dead"
STOPPED = "stopped"

_CONTINUE = "run the same command again to continue"
STATE_WORDS = {
    FINISHED: "finished",
    BEGINNING: "running: listing and planning",
    RUNNING: "running",
    FINISHING: "running: all is committed, the tables are being finished",
    SILENT: "its driver gives no sign of life; if it is dead, run the same command again with "
    "--steal-lock to continue",
    DEAD: f"not running: its driver died; {_CONTINUE}",
    STOPPED: f"not running: stopped before its end; {_CONTINUE}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run as its output folder shows it."""

    uri: str
    state: str
    """A key of the words that say it: `running`, `finished`, `dead` ..."""
    now: datetime.datetime
    holder: Holder | None
    snapshot: Snapshot | None
    """Of the run that is or was at work last; None before it began to transcribe."""
    counts: dict[str, int] | None
    """Those of a finished run, from its tables."""
    last_commit_at: datetime.datetime | None
    commits_since: int
    """Commits made after the snapshot."""
    pipeline: str | None = None
    """Of a finished run."""

    @property
    def alive(self) -> bool:
        """Whether a driver is at work, as far as can be seen from outside."""
        return self.state in (BEGINNING, RUNNING, FINISHING)


def load_status(store: OutputStore, *, now: datetime.datetime | None = None) -> Status:
    """Look at an output folder.

    Args:
        store: the folder.
        now: the time; for tests.

    Raises:
        ConfigError: it is not the output of a run.
        FetchError: the store does not answer.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    holder, snapshot = read_holder(store), read_snapshot(store)
    if holder is None and snapshot is None and store.read_json(CONFIG_NAME) is None:
        raise ConfigError(
            f"reading {redact_uri(store.uri)}: found no _run/, expected the output folder of a "
            "run; check the address"
        )
    run = store.read_json(RUN_NAME) if store.exists(SUCCESS_NAME) else None
    if snapshot is not None and holder is not None and snapshot.run_id != holder.run_id:
        snapshot = None  # of an earlier run
    # A run that has finished still holds the lock while it writes its page.
    finished = run is not None and (holder is None or holder.run_id == run["run_id"])
    times = [] if finished else _commit_times(store)
    since = [time for time in times if snapshot and time > _time(snapshot.written_at)]
    last = max(times, default=None)
    if finished and snapshot is not None and snapshot.last_commit_at is not None:
        last = _time(snapshot.last_commit_at)
    return Status(
        uri=redact_uri(store.uri),
        state=FINISHED if finished else _state(holder, snapshot, now),
        now=now,
        holder=holder,
        snapshot=snapshot,
        counts=run["counts"] if finished and run is not None else None,
        last_commit_at=last,
        commits_since=len(since),
        pipeline=run.get("config", {}).get("pipeline") if finished and run is not None else None,
    )


def _state(holder: Holder | None, snapshot: Snapshot | None, now: datetime.datetime) -> str:
    if holder is None:
        return STOPPED
    if holder.process.is_surely_dead():
        return DEAD
    if (now - _time(holder.heartbeat_at)).total_seconds() > SILENT_S:
        return SILENT
    if snapshot is None:
        return BEGINNING
    return FINISHING if snapshot.state == TRANSCRIBED else RUNNING


def _commit_times(store: OutputStore) -> list[datetime.datetime]:
    """Return when commits were made, which their names tell."""
    found = []
    for name in store.names(OUTCOMES_FOLDER):
        made_ns = name.rpartition("/")[2].partition("-")[0]
        if made_ns.isdecimal():  # another program's objects may have any name
            found.append(datetime.datetime.fromtimestamp(int(made_ns) / 1e9, datetime.UTC))
    return found


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def as_data(status: Status) -> dict[str, Any]:
    """Return the status as plain data for JSON."""
    seen = status.snapshot
    verdict = None
    if seen is not None:
        verdict = bottleneck(
            seen.activity, elapsed_s=seen.elapsed_s, transcribe_workers=seen.transcribe_workers
        )
    last = status.last_commit_at
    return {
        "uri": status.uri,
        "state": status.state,
        "alive": status.alive,
        "driver": None if status.holder is None else _driver(status.holder),
        "last_commit_at": None if last is None else last.isoformat(timespec="seconds"),
        "commits_since_snapshot": status.commits_since,
        "left": None if seen is None else seen.left,
        "counts": status.counts,
        "snapshot": None if seen is None else asdict(seen),
        "bottleneck": None if verdict is None else asdict(verdict),
        "failures": []
        if seen is None
        else [
            asdict(one) | {"advice": advice(one.kind, retryable=one.retryable)}
            for one in seen.failures
        ],
    }


def _driver(holder: Holder) -> dict[str, Any]:
    return {
        "run_id": holder.run_id,
        "host": holder.process.host,
        "pid": holder.process.pid,
        "user": holder.process.user,
        "started_at": holder.started_at,
        "heartbeat_at": holder.heartbeat_at,
    }


def render(status: Status) -> str:
    """Return the status as text, without a final newline."""
    return "\n".join(_lines(status))


def _lines(status: Status) -> Iterator[str]:
    yield f"{status.uri} ({STATE_WORDS[status.state]})"
    holder, seen = status.holder, status.snapshot
    if holder is not None:
        heartbeat = _ago(status, _time(holder.heartbeat_at))
        process = holder.process
        yield row(
            "driver",
            f"process {process.pid} of {process.user} on {process.host}, heartbeat {heartbeat}",
        )
    if status.counts is not None:
        yield row("recordings", _final_words(status.counts, status.pipeline))
    if seen is not None:
        yield from _snapshot_lines(status, seen)
    if status.last_commit_at is not None:
        since = f"; {status.commits_since:,} since the counts" if status.commits_since else ""
        yield row("last commit", f"{_ago(status, status.last_commit_at)}{since}")
    if seen is not None:
        yield from time_lines(seen)
        yield from _failures(seen)


def _snapshot_lines(status: Status, seen: Snapshot) -> Iterator[str]:
    if status.state != FINISHED:
        yield row("counted", _ago(status, _time(seen.written_at)))
    done = max(0, seen.files - seen.failed)
    before = f"; {seen.done_before:,} done before" if seen.done_before else ""
    yield row(
        "this run",
        f"{seen.planned:,} planned: {done:,} done, {seen.failed:,} failed, {seen.left:,} left"
        f"{before}",
    )
    audio = f"{duration(seen.audio_s)} in {duration(seen.elapsed_s)}: "
    yield row("audio", f"{audio}{seen.speed:,.1f} hours of audio per hour")
    if status.state == RUNNING:
        left = "unknown" if seen.time_left_s is None else f"about {duration(seen.time_left_s)}"
        yield row("time left", left)


def _final_words(counts: dict[str, int], pipeline: str | None) -> str:
    what = "labels" if pipeline == CLASSIFY_AUDIO else "text"
    return (
        f"{counts['listed']:,} listed: {counts['ok']:,} with {what}, "
        f"{counts['no_speech']:,} without speech, {counts['failed']:,} failed, "
        f"{counts['left']:,} left"
    )


def _failures(seen: Snapshot) -> Iterator[str]:
    for one in seen.failures:
        count = counted(one.count, "recording")
        yield row("failed", f"{count}: {one.kind}, in {one.stage}")
        for example in one.examples:
            yield from wrapped(example, bullet="- ")
        yield from wrapped(f"What to do: {advice(one.kind, retryable=one.retryable)}.")


def _ago(status: Status, when: datetime.datetime) -> str:
    seconds = (status.now - when).total_seconds()
    return f"{duration(max(0.0, seconds))} ago, at {when:%Y-%m-%d %H:%M:%S} UTC"
