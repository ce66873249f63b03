"""Status of a run: progress, whether its driver is alive, and its bottleneck, in a few requests.

Reads only the driver's snapshot and the lock: as fast for a million recordings as for ten, and as
current as the snapshot.
"""

import datetime
from dataclasses import asdict, dataclass
from typing import Any

from corpus_asr.activity import Activity
from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.errors import ConfigError
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.report.text import duration, text_template
from corpus_asr.storage.run_state.lock import SUCCESS_NAME, USUAL, Holder, read_holder
from corpus_asr.storage.run_state.run_files import (
    CONFIG_NAME,
    RUNNING,
    TRANSCRIBED,
    Snapshot,
    erased_of,
    read_snapshot,
    speed_of,
)
from corpus_asr.storage.run_state.table_names import RUN_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted

# Seconds without a heartbeat, comparing the driver's clock with ours, after which it is dead.
SILENT_S = USUAL.heartbeat_s * USUAL.looks

# Rules of thumb: their fractions are always displayed with the verdict. A stage that works for this
# fraction of its time is the bottleneck.
BUSY = 0.75
# If less than this fraction of extraction is computing, the store is the bottleneck.
COMPUTING = 0.5
# With fewer slots in use than this while the engine works, decoding steps are wasted.
FULL = 0.6
# If loading took more than this fraction, a run has no meaningful bottleneck yet.
SHORT = 0.5

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
    SILENT: "no heartbeat of its driver; if it is dead, run the same command again with "
    "--steal-lock to continue",
    DEAD: f"not running: its driver died; {_CONTINUE}",
    STOPPED: f"not running: stopped before the end; {_CONTINUE}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """State of a run, as visible in its output folder."""

    uri: str
    state: str
    """Key of `STATE_WORDS`."""
    now: datetime.datetime
    holder: Holder | None
    snapshot: Snapshot | None
    """Snapshot of the last run; None before it starts to transcribe."""
    counts: dict[str, int] | None
    """From run.json of a finished run."""
    erased: int = 0
    """Erased recordings that a finished run found in the source, and skipped."""
    classifies: bool = False
    """Whether a finished run wrote labels instead of text."""

    @property
    def alive(self) -> bool:
        """Whether a driver is working, as far as visible from outside."""
        return self.state in (BEGINNING, RUNNING, FINISHING)


def load_status(store: OutputStore, *, now: datetime.datetime | None = None) -> Status:
    """Read the status of the run in an output folder; `now` is for tests."""
    read_at = now or datetime.datetime.now(datetime.UTC)
    store.check_tables()
    holder, snapshot = read_holder(store), read_snapshot(store)
    if holder is None and snapshot is None and store.read_json(CONFIG_NAME) is None:
        raise ConfigError(
            f"reading {redact_uri(store.uri)}: found no _run/, expected the output folder of a "
            "run; check the URI"
        )
    is_complete = store.exists(SUCCESS_NAME)
    run = store.read_json(RUN_NAME) if is_complete else None
    if snapshot is not None and holder is not None and snapshot.run_id != holder.run_id:
        snapshot = None  # of an earlier run
    # A finished run still holds the lock while writing its report; `transcribe -o` has neither a
    # lock nor a run.json.
    ended = holder is None or (run is not None and holder.run_id == run["run_id"])
    finished = is_complete and ended
    if finished and run is not None and snapshot is not None and snapshot.run_id == run["run_id"]:
        snapshot = snapshot.after(speed_of(run))
    return Status(
        uri=redact_uri(store.uri),
        state=FINISHED if finished else _state(holder, snapshot, read_at),
        now=read_at,
        holder=holder,
        snapshot=snapshot,
        counts=run["counts"] if finished and run is not None else None,
        erased=erased_of(run) if finished else 0,
        classifies=bool(run and run.get("config", {}).get("pipeline") == CLASSIFY_AUDIO),
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


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def as_data(status: Status) -> dict[str, Any]:
    """Return the status as JSON-compatible values."""
    holder, seen = status.holder, status.snapshot
    verdict = seen and bottleneck_of(seen)
    driver = holder and {
        "run_id": holder.run_id,
        **{name: getattr(holder.process, name) for name in ("host", "pid", "user")},
        "started_at": holder.started_at,
        "heartbeat_at": holder.heartbeat_at,
    }
    return {
        "uri": status.uri,
        "state": status.state,
        "alive": status.alive,
        "driver": driver,
        "last_commit_at": seen and seen.last_commit_at,
        "remaining": seen and seen.remaining,
        "counts": status.counts,
        "erased": status.erased,
        "progress": seen and seen.share_done,
        "snapshot": seen and asdict(seen),
        "bottleneck": verdict and asdict(verdict),
        "failures": [
            asdict(failure)
            | {"advice": failure_kind(failure.kind, retryable=failure.retryable).advice}
            for failure in (() if seen is None else seen.failures)
        ],
    }


def render(status: Status) -> str:
    """Return the status as text, without a final newline."""

    def ago(when: datetime.datetime | str) -> str:
        when = _time(when) if isinstance(when, str) else when
        seconds = max(0.0, (status.now - when).total_seconds())
        return f"{duration(seconds)} ago, at {when:%Y-%m-%d %H:%M:%S} UTC"

    snapshot = status.snapshot
    text = text_template("corpus_asr.report", "status.txt.j2", ago=ago).render(
        status=status,
        words=STATE_WORDS[status.state],
        failures=[
            (group, group.count, group.examples)
            for group in (snapshot.failures if snapshot else ())
        ],
        **activity_values(snapshot),
    )
    return text.rstrip("\n")


def activity_values(snapshot: Snapshot | None) -> dict[str, Any]:
    """Return the values of activity.txt.j2."""
    return {
        "snapshot": snapshot,
        "facts": snapshot and activity_facts(snapshot),
        "verdict": snapshot and bottleneck_of(snapshot),
    }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The bottleneck of a run."""

    stage: str
    """`loading`, `transcription`, `slots`, `extraction`, `store`, `commits` or `nothing`."""
    why: str
    advice: str


def bottleneck_of(seen: Snapshot) -> Verdict | None:
    """Return the bottleneck of a run; None if too little was counted."""
    activity, elapsed_s = seen.activity, seen.elapsed_s
    if not activity.steps and not activity.parts_extracted:
        return None
    workers = max(1, seen.transcribe_workers)
    # Summed over workers, which load in parallel.
    load_s = activity.load_s / workers
    if load_s > SHORT * elapsed_s:
        why = f"loading the model took {duration(load_s)} of {duration(elapsed_s)}"
        return Verdict("loading", why, "nothing: a longer run spreads this over more audio")
    if (share := activity.engine_share) is not None and share >= BUSY:
        return _transcription(activity, share)
    if (share := activity.extract_share) is not None and share >= BUSY:
        return _extraction(activity, share)
    if elapsed_s > 0 and activity.commit_s / elapsed_s >= BUSY:
        return Verdict(
            "commits",
            f"a commit takes {duration(activity.commit_s / max(1, activity.commits))}",
            "an output.uri nearer to the workers; check the latency of small writes to the store",
        )
    return Verdict(
        "nothing",
        "no stage was busy most of the time",
        "longer runs; where recordings are few, a smaller extract.part_s or "
        "extract.pack_mb spreads them over more workers",
    )


def _transcription(activity: Activity, share: float) -> Verdict:
    why = f"the engines were busy {share:.0%} of the time"
    full = activity.occupancy
    # If parts are queued for the engine, more parts would fill no slots.
    if full is not None and full < FULL and activity.parts_ready == 0:
        return Verdict(
            "slots",
            f"{why}, with only {full:.0%} of their slots in use",
            "more parts at once: more extract.workers or a smaller extract.part_s; for few "
            "recordings fewer transcribe.slots cost nothing",
        )
    change = (
        "more GPUs (transcribe.workers), a smaller model.checkpoint, or another model.compute_type"
    )
    if activity.halvings:
        times = counted(activity.halvings, "time")
        change += f"; memory did not suffice {times}, so that slots were halved"
    return Verdict("transcription", why, change)


def _extraction(activity: Activity, share: float) -> Verdict:
    why = f"extraction was busy {share:.0%} of the time while the engines waited"
    computing = activity.extract_cpu_share
    if computing is not None and computing < COMPUTING:
        return Verdict(
            "store",
            f"{why}, and {1 - computing:.0%} of that was waiting, mostly for the store",
            "more extract.workers, since they wait more than they compute; workers nearer "
            "to the store",
        )
    change = "more extract.workers where cores are free, more CPU nodes where they are not"
    return Verdict("extraction", why, change)


def activity_facts(seen: Snapshot) -> list[tuple[str, str]]:
    """Return each stage's use of time by stage name, if it was counted."""
    activity, facts = seen.activity, []
    if activity.extract_share is not None:
        facts.append(("Extraction", _extract_words(activity, seen.extract_workers)))
    if activity.engine_share is not None:
        facts.append(("Engines", _engine_words(activity, seen.transcribe_workers)))
    if activity.failed_captures:
        failed = counted(activity.failed_captures, "capture")
        facts.append(
            (
                "CUDA graphs",
                f"{failed} failed, and steps run without graphs, which is slower: read the "
                "workers' logs, update torch or the driver",
            )
        )
    if activity.commits:
        mean = duration(activity.commit_s / activity.commits)
        facts.append(("Commits", f"{counted(activity.commits, 'commit')} of {mean} each"))
    repeated = [
        (activity.fetch_retries + activity.commit_retries, "request", "to stores"),
        (seen.parts_retried, "part", "after their worker died"),
        (activity.workers_replaced, "worker", "replaced"),
    ]
    if words := [f"{counted(count, noun)} {why}" for count, noun, why in repeated if count]:
        facts.append(("Repeated", ", ".join(words)))
    if seen.workers_out:
        facts.append(("Taken out", "; ".join(seen.workers_out)))
    return facts


def _extract_words(activity: Activity, workers: int) -> str:
    working, waiting = activity.extract_share or 0.0, activity.backpressure_share or 0.0
    words = f"{working:.0%} busy"
    if (computing := activity.extract_cpu_share) is not None:
        words += f" ({computing:.0%} of it CPU)"
    # Fractions are counted separately, and may sum to slightly more than one.
    idle = max(0.0, 1 - working - waiting)
    words += f", {waiting:.0%} blocked by backpressure, {idle:.0%} idle"
    return f"{words}; {counted(workers, 'worker')}"


def _engine_words(activity: Activity, workers: int) -> str:
    stages = {
        "encoding": activity.encode_s,
        "steps": activity.step_s,
        "prompts": activity.fill_s + activity.prefill_s,
        "reading results": activity.wait_s,
    }
    whole = activity.engine_s or 1.0
    shares = ", ".join(f"{name} {spent / whole:.0%}" for name, spent in stages.items())
    words = f"{activity.engine_share or 0.0:.0%} busy ({shares})"
    if activity.occupancy is not None:
        words += f"; {activity.occupancy:.0%} of {counted(activity.slots, 'slot')} in use"
    if activity.load_s:
        words += f"; model loaded in {duration(activity.load_s / max(1, workers))}"
    words += f"; {counted(activity.windows, 'window')}, {counted(activity.tokens, 'token')}"
    return f"{words}; {counted(workers, 'worker')}"
