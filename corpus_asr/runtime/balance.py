"""Predicts whether extraction on CPUs or transcription is the bottleneck of a job.

Input: worker counts from the settings, stated speeds, and statistics of the last run in the output
folder. Output: throughput of both stages, and the slower one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from corpus_asr.config.run import RunConfig
from corpus_asr.runtime.checkpoints import model_name
from corpus_asr.runtime.speeds import LEAST_AUDIO_S, Machine
from corpus_asr.storage.run_state.run_files import RUN_NAME, read_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import counted

BENCHMARK = "the benchmark of one core"
# RTFx of extraction on one core: the slowest MP3 of benchmarks/README.md.
EXTRACT_RTFX = 385.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Throughput of both stages of a job."""

    name: str
    """Source of the transcription speed."""
    transcribe_rtfx: float
    """RTFx of all workers."""
    extract_rtfx: float
    """RTFx of one worker."""
    extract_workers: int
    """From the settings or the last run; else the number required."""
    measured: str
    """Source of the extraction speed."""

    @property
    def waits(self) -> str | None:
        """The stage that waits for the other; None where the required extraction is calculated."""
        if self.extract_workers == math.ceil(self.transcribe_rtfx / self.extract_rtfx):
            return None
        slower = self.extract_workers * self.extract_rtfx < self.transcribe_rtfx
        return "transcription" if slower else "extraction"

    def words(self) -> str:
        """Return a line on which stage waits, and why."""
        waits = {
            None: "neither side",
            "transcription": "transcription, for extraction",
            "extraction": "extraction, for transcription",
        }[self.waits]
        return (
            f"{waits}: {counted(self.extract_workers, 'extract worker')} of RTFx "
            f"{self.extract_rtfx:,.1f} ({self.measured}) for transcription of RTFx "
            f"{self.transcribe_rtfx:,.1f} ({self.name})"
        )

    def as_data(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self) | {"waits": self.waits}


def balances(config: RunConfig, store: OutputStore, machines: Sequence[Machine]) -> list[Balance]:
    """Return the throughput of both stages, for each stated speed and for the last run.

    Args:
        config: job settings.
        store: its output folder.
        machines: with stated speeds.
    """
    seen = read_snapshot(store)
    extract_rtfx, measured = EXTRACT_RTFX, BENCHMARK
    workers = None if config.extract.workers == "auto" else config.extract.workers
    speeds = [(machine.name, machine.rtfx * machine.count) for machine in machines]
    if seen is not None:
        run = store.read_json(RUN_NAME)
        own_model = run is None or run["model"] == model_name(config.model)
        activity, day = seen.activity, f"the run of {seen.started_at[:10]} here"
        if activity.extract_s > 0 and activity.decoded_s >= LEAST_AUDIO_S:
            extract_rtfx, measured = activity.decoded_s / activity.extract_s, day
            workers = workers or seen.extract_workers
        if own_model and activity.engine_s > 0 and activity.transcribed_s >= LEAST_AUDIO_S:
            wanted = config.transcribe.workers
            engines = seen.transcribe_workers if wanted == "auto" else wanted
            # A lower bound if slots were free, since more parts would have filled them.
            speeds.append((day, engines * activity.transcribed_s / activity.engine_s))
    return [
        Balance(
            name=name,
            transcribe_rtfx=rtfx,
            extract_rtfx=extract_rtfx,
            extract_workers=workers or math.ceil(rtfx / extract_rtfx),
            measured=measured,
        )
        for name, rtfx in speeds
    ]


def words_of(found: Sequence[Balance]) -> Iterator[str]:
    """Yield a line per balance, the first with a label."""
    for number, balance in enumerate(found):
        yield f"{'' if number else 'waits':<11}{balance.words()}"
