"""What a run came to: counts and times, free of Ray, for the command line and for tests."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run over the output folder's recordings, earlier runs of the same folder included."""

    output_uri: str
    run_id: str
    files: int
    """Recordings listed now."""
    done: int
    """Of these, those with segments or without speech."""
    failed: int
    no_speech: int
    left: int
    """Neither done nor failed: the run's time was over. 0 for a run without such a limit."""
    segments: int
    """Or labels, of a classification."""
    audio_s: float
    """Audio decoded over all runs of the folder."""
    processed_files: int
    """Recordings that this run had left to do."""
    processed_audio_s: float
    """Audio this run committed."""
    wall_s: float
    made: Literal["segments", "labels"] = "segments"

    @property
    def failed_fraction(self) -> float:
        """Share of failed recordings; 0 where there are none at all."""
        return self.failed / self.files if self.files else 0.0

    @property
    def speed(self) -> float:
        """Hours of audio this run committed per hour."""
        return self.processed_audio_s / self.wall_s if self.wall_s > 0 else 0.0
