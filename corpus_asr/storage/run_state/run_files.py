"""How far a run is, as a small object in its output folder that is written again and again.

In: numbers of a run's driver. Out: `_run/progress.json`, and the same numbers for whoever looks at
the folder from outside. Knows nothing of how the numbers come about or are shown.
"""

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from corpus_asr.activity import Activity, FailureCount
from corpus_asr.storage.run_state.tables import OutputStore

PROGRESS_NAME = "_run/progress.json"
EVERY_S = 15.0

RUNNING, TRANSCRIBED, STOPPED = "running", "transcribed", "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was done by one moment of a run; all of it counted from the run's beginning."""

    elapsed_s: float
    audio_s: float
    files: int
    failed: int
    extract_s: float
    extract_alive_s: float
    engine_s: float
    transcribe_alive_s: float
    """These four: as in `Activity`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run at one moment; times are ISO 8601 by the driver's clock."""

    run_id: str
    state: str
    """`running`; `transcribed`: all is committed, the tables are being finished; `stopped`: it
    ended before all was committed."""
    started_at: str
    written_at: str
    elapsed_s: float
    host: str
    pid: int
    listed: int
    """Recordings listed."""
    done_before: int
    """Of these, those that earlier runs had committed."""
    planned: int
    """Those this run has to do."""
    planned_bytes: int
    files: int
    """Of the planned, those whose last part is committed; those of the other counts, too."""
    failed: int
    parts: int
    parts_retried: int
    """Parts that were tried more than once because a worker died."""
    audio_s: float
    speed: float
    """Hours of audio committed per hour."""
    time_left_s: float | None
    last_commit_at: str | None
    extract_workers: int
    transcribe_workers: int
    failures: tuple[FailureCount, ...]
    activity: Activity
    history: tuple[Moment, ...] = ()
    """How it came to this: moments about evenly spaced, the last of them this one."""

    @property
    def left(self) -> int:
        """Recordings that are neither done nor failed."""
        return max(0, self.planned - self.files)

    @property
    def parts_uncommitted(self) -> int:
        """Parts with a result that wait to be committed; those without speech are not seen."""
        return max(0, self.activity.parts_transcribed - self.parts)


def write_snapshot(store: OutputStore, snapshot: Snapshot) -> None:
    """Replace the output folder's snapshot.

    Raises:
        FetchError: the store failed beyond its retries.
    """
    store.write_json(PROGRESS_NAME, asdict(snapshot))


def read_snapshot(store: OutputStore) -> Snapshot | None:
    """Return the last snapshot; None where there is none, or one of another version.

    Raises:
        FetchError: the store does not answer.
    """
    return snapshot_from(store.read_json(PROGRESS_NAME))


def snapshot_from(data: Any) -> Snapshot | None:
    """Return what JSON holds; None where something is missing."""
    try:
        values = _values(Snapshot, data)
        values["history"] = tuple(Moment(**_values(Moment, one)) for one in values["history"])
        values["activity"] = Activity.from_data(values["activity"])
        values["failures"] = tuple(
            FailureCount(**{**one, "examples": tuple(one["examples"])})
            for one in values["failures"]
        )
    except (KeyError, TypeError, AttributeError):
        return None
    return Snapshot(**values)


def _values(kind: type, data: Any) -> dict[str, Any]:
    """Return the values of a dataclass's fields; those with a default may be missing."""
    return {
        field.name: data[field.name]
        if field.default is MISSING
        else data.get(field.name, field.default)
        for field in fields(kind)
    }
