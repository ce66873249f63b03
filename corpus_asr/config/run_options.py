"""What may be asked of one run beyond its YAML: how it treats what earlier runs left, and its time.

In: options of the command line. Out: frozen values. Nothing here changes what a transcript says.
"""

from dataclasses import dataclass
from enum import StrEnum


class Retry(StrEnum):
    """Which failed recordings are done again."""

    none = "none"
    retryable = "retryable"
    """Those of which another try may come out otherwise: a store that did not answer, say."""
    all = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The choices of one run; the defaults continue what is there and touch nothing else."""

    steal_lock: bool = False
    """Take over the lock of a run that shows no sign of life."""
    retry: Retry = Retry.none
    leave_alone: frozenset[str] = frozenset()
    """Of the failed recordings, the `recording_id` of those that are not retried, whatever `retry`
    says; with new content they are new."""
    stop_at: float | None = None
    """When, by `time.monotonic()`, nothing new is begun; None never."""
    new_run: bool = False
    """Where the results were made with other settings: put them aside and begin anew."""


DEFAULT_OPTIONS = RunOptions()
