"""Numbers of past runs: one object per run, `_run/history/RUN_ID.json`.

A run that committed results saves the numbers of its output folder, whose tables show only the
present state; a nightly run saves its own. Both are kept regardless of later settings.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

from corpus_asr.errors import CorpusAsrError
from corpus_asr.json_values import parsed
from corpus_asr.logs import event
from corpus_asr.report.run import Report
from corpus_asr.storage.run_state.tables import READERS, OutputStore
from corpus_asr.storage.stores.uri import redact_uri

_LOG = logging.getLogger(__name__)

HISTORY_FOLDER = "_run/history"
MOST_RUNS = 30  # a month of nightly runs


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputNumbers:
    """Numbers of an output folder after a run; speed and time are of the run itself."""

    ok: int
    no_speech: int
    failed: int
    audio_s: float
    segments: int
    """Or labels."""
    mean_confidence: float | None
    low_confidence: float | None
    """Fraction of recordings with text or labels whose confidence is below `LOW_CONFIDENCE`."""
    rtfx: float | None
    wall_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NightNumbers:
    """Numbers of a nightly run, as in `numbers` of its JSON summary."""

    date: str
    state: str
    listed: int
    new: int
    done: int
    failed: int
    remaining: int
    audio_s: float
    wall_s: float
    rtfx: float
    low_confidence: int

    @property
    def processed(self) -> int:
        """Number of recordings that were completed or failed."""
        return self.done + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Saved numbers of a run."""

    run_id: str
    finished_at: str
    """ISO 8601, UTC."""
    output: OutputNumbers | None = None
    """None if the run committed nothing."""
    night: NightNumbers | None = None
    """None if it was not a nightly run."""


def output_numbers(report: Report) -> OutputNumbers | None:
    """Return the numbers of a report; None if its run committed nothing."""
    counts = report.statistics
    if report.run_id is None or report.run_id not in dict(counts.audio_by_run_s):
        return None
    return OutputNumbers(
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


def run_entry(store: OutputStore, run_id: str, *, finished_at: str) -> Entry:
    """Return the saved entry of a run, or a new one."""
    return _read(store, _name(run_id)) or Entry(run_id=run_id, finished_at=finished_at)


def write_entry(store: OutputStore, entry: Entry) -> None:
    """Save the numbers of a run for later runs of the output folder."""
    store.write_json(_name(entry.run_id), asdict(entry))


def last_runs(store: OutputStore) -> list[Entry]:
    """Return the last `MOST_RUNS` runs of an output folder, latest first."""
    # IDs start with the time of their run; within a second, runs are in order of their ends.
    names = sorted(store.all_names(HISTORY_FOLDER))[-MOST_RUNS:]
    with ThreadPoolExecutor(READERS, thread_name_prefix="history") as pool:
        entries = [entry for entry in pool.map(partial(_read, store), names) if entry is not None]
    return sorted(entries, key=lambda entry: (entry.finished_at, entry.run_id), reverse=True)


def _name(run_id: str) -> str:
    return f"{HISTORY_FOLDER}/{run_id}.json"


def _read(store: OutputStore, name: str) -> Entry | None:
    try:
        data = store.read_json(name)
        entry: Entry | None = None if data is None else parsed(Entry, data)
    except (CorpusAsrError, ValueError) as error:
        # Of another version, or damaged: it is skipped.
        why = f"{name}: {type(error).__name__}"
        event(_LOG, logging.WARNING, "history_not_read", uri=redact_uri(store.uri), why=why)
        return None
    return entry
