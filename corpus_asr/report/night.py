"""One night over an archive, and the nights before it, as values.

In: what a night came to. Out: the same as plain data, and from such data the few numbers that later
nights are compared with. Knows no store and no words.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from corpus_asr.report.statistics import FailureGroup, LanguageShare


class NightState(StrEnum):
    """How a night ended."""

    done = "done"
    time_over = "time_over"
    """Its time was over before its work: the next night goes on."""
    stopped = "stopped"
    """By a signal; what was committed is kept."""
    broken_off = "broken_off"
    """It could not go on; what was committed is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastNight:
    """What a night is compared by; times in seconds."""

    date: str
    state: str
    listed: int
    new: int
    done: int
    failed: int
    left: int
    audio_s: float
    wall_s: float
    speed: float
    unsure: int

    @property
    def ended(self) -> int:
        """Recordings that were done or failed."""
        return self.done + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsure:
    """A recording whose text the model was not sure of."""

    uri: str
    confidence: float
    audio_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the night's recordings hold, done and failed ones."""

    done: int = 0
    no_speech: int = 0
    failed: int = 0
    failures: tuple[FailureGroup, ...] = ()
    languages: tuple[LanguageShare, ...] = ()
    unsure: int = 0
    least_sure: tuple[Unsure, ...] = ()
    """Of them the first few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """All that is listed, whenever it was done."""

    done: int
    failed: int
    audio_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """A night; times in seconds, moments as ISO 8601 with their offset."""

    date: str
    """When it began, by the local clock."""
    output: str
    run_id: str
    state: NightState
    error: str | None
    """Why it broke off or was stopped."""
    started_at: str
    ended_at: str
    wall_s: float
    listed: int
    new: int
    """Of the recordings it had to do, those never seen before, ..."""
    changed: int
    """... those with new content, ..."""
    retried: int
    """... those that had failed before, ..."""
    continued: int
    """... and those begun before."""
    left: int
    """Neither done nor failed."""
    audio_s: float
    """Audio it committed."""
    speed: float
    """Hours of that per hour."""
    findings: Findings
    archive: Archive | None
    """None where the night did not come to its end."""
    left_alone: int
    """Recordings that failed too often to be tried again."""
    given_up: tuple[str, ...]
    """Those of them that this night gave up, the first few."""
    over_budget: str | None = None
    """Which budget is exceeded, and how far."""
    warnings: tuple[str, ...] = ()
    past: tuple[PastNight, ...] = ()
    """Earlier nights, the last one first."""
    not_told: str | None = None
    """Why the webhook did not take the message."""

    @property
    def planned(self) -> int:
        """Recordings it had to do."""
        return self.new + self.changed + self.retried + self.continued

    @property
    def ended(self) -> int:
        """Recordings that were done or failed."""
        return self.findings.done + self.findings.failed

    def as_past(self) -> PastNight:
        """Return what later nights compare with."""
        found = self.findings
        return PastNight(
            date=self.date, state=self.state, listed=self.listed, new=self.new, done=found.done,
            failed=found.failed, left=self.left, audio_s=self.audio_s, wall_s=self.wall_s,
            speed=self.speed, unsure=found.unsure,
        )  # fmt: skip


def as_data(night: Night) -> dict[str, Any]:
    """Return a night as JSON has it."""
    return {**asdict(night), "planned": night.planned, "numbers": asdict(night.as_past())}


def past_from(data: Any) -> PastNight | None:
    """Return the numbers of what `as_data` made; None of anything else, or another version."""
    try:
        numbers = data["numbers"]
        return PastNight(**{field.name: numbers[field.name] for field in fields(PastNight)})
    except (KeyError, TypeError):
        return None


def comparable(past: Sequence[PastNight]) -> list[PastNight]:
    """Return the nights that came to their end."""
    return [one for one in past if one.state in (NightState.done, NightState.time_over)]
