"""What runs came to, kept for later ones: one object per run, `_run/history/RUN_ID.json`.

A run that committed something leaves the numbers of its output folder, whose tables hold the
archive as it is now; a night leaves its own. Both stay whatever the settings of later runs.
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
MOST_RUNS = 30  # a month of nights


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputNumbers:
    """An output folder after a run; of the run itself are speed and time only."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class NightNumbers:
    """A night; its fields are the `numbers` of its summary's JSON."""

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
        """Recordings that were done or failed."""
        return self.done + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a run came to."""

    run_id: str
    finished_at: str
    """ISO 8601, UTC."""
    output: OutputNumbers | None = None
    """None if the run committed nothing."""
    night: NightNumbers | None = None
    """None of other runs than nights."""


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
    """Return what is kept of a run, or the entry of one that has nothing yet."""
    return _read(store, _name(run_id)) or Entry(run_id=run_id, finished_at=finished_at)


def write_entry(store: OutputStore, entry: Entry) -> None:
    """Keep what a run came to for later runs of the output folder."""
    store.write_json(_name(entry.run_id), asdict(entry))


def last_runs(store: OutputStore) -> list[Entry]:
    """Return the last `MOST_RUNS` runs of an output folder, the latest first."""
    # Identities begin with the time of their run; runs of one second follow each other as they end.
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
        # Of another version, or damaged: the table and the nights do without.
        why = f"{name}: {type(error).__name__}"
        event(_LOG, logging.WARNING, "history_not_read", uri=redact_uri(store.uri), why=why)
        return None
    return entry
