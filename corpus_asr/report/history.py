"""What an output folder came to after each of its last runs, kept for the table of its report.

Tables hold the archive as it is now; each run that committed something leaves its numbers in
`_run/numbers.json`, whatever its settings.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any

from corpus_asr.json_values import parsed
from corpus_asr.logs import event
from corpus_asr.report.run import Report
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

_LOG = logging.getLogger(__name__)

NUMBERS_NAME = "_run/numbers.json"
MOST_RUNS = 30  # a month of nights


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """An output folder after a run; of the run itself are speed and time only."""

    run_id: str
    finished_at: str
    """ISO 8601, UTC."""
    ok: int
    no_speech: int
    failed: int
    audio_s: float
    segments: int
    """Or labels."""
    mean_confidence: float | None
    low_confidence: float | None
    """Share of the recordings with text, or labels, whose confidence is below `LOW_CONFIDENCE`."""
    rtfx: float | None
    wall_s: float | None


def past_run(report: Report, *, finished_at: str) -> PastRun | None:
    """Return the numbers of a report; None if its run committed nothing."""
    counts = report.statistics
    if report.run_id is None or report.run_id not in dict(counts.audio_by_run_s):
        return None
    return PastRun(
        run_id=report.run_id,
        finished_at=finished_at,
        ok=counts.ok,
        no_speech=counts.no_speech,
        failed=counts.failed,
        audio_s=counts.audio_s,
        segments=counts.segments,
        mean_confidence=counts.mean_confidence,
        low_confidence=counts.low_confidence / counts.ok if counts.ok else None,
        rtfx=report.rtfx,
        wall_s=report.wall_s,
    )


def past_runs(store: OutputStore, last: PastRun | None) -> list[PastRun]:
    """Return the last runs of an output folder, the latest first, `last` among them."""
    data: Any = store.read_json(NUMBERS_NAME)
    try:
        runs: list[PastRun] = [] if data is None else parsed(list[PastRun], data["runs"])
    except (KeyError, TypeError, ValueError) as error:
        # Of another version: the page does without, and the next run begins it again.
        why = f"{NUMBERS_NAME}: {type(error).__name__}"
        event(_LOG, logging.WARNING, "numbers_not_read", uri=redact_uri(store.uri), why=why)
        runs = []
    if last is not None:
        runs = [*(run for run in runs if run.run_id != last.run_id), last]
    return runs[::-1][:MOST_RUNS]


def write_runs(store: OutputStore, runs: list[PastRun]) -> None:
    """Keep what `past_runs` returned for later runs of the output folder."""
    store.write_json(NUMBERS_NAME, {"runs": [asdict(run) for run in reversed(runs)]})
