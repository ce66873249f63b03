"""Report of a run: counts of its output folder, as text or plain data, and those of past runs.

The numbers of past runs are one object each, `_run/history/RUN_ID.json`. A run that committed
results saves the numbers of its output folder, whose tables show only the present state; a nightly
run saves its own. Both are kept regardless of later settings.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.errors import CorpusAsrError
from corpus_asr.json_values import parsed
from corpus_asr.logs import event
from corpus_asr.report.numbers import Accounting, RunNumbers, balance_problems, reconcile
from corpus_asr.report.samples import Sampler
from corpus_asr.report.status import activity_values
from corpus_asr.report.text import duration, text_template
from corpus_asr.storage.run_state.current_rows import CONFIDENCE_BINS, read_confidences
from corpus_asr.storage.run_state.lock import SUCCESS_NAME
from corpus_asr.storage.run_state.plan import latest_plan, read_listing
from corpus_asr.storage.run_state.run_files import (
    CONFIG_NAME,
    FINGERPRINT_NAME,
    Snapshot,
    Speed,
    erased_of,
    outcomes_names,
    read_snapshot,
    speed_of,
)
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.source_listings import other_listings
from corpus_asr.storage.run_state.speaker_turns import SPEAKING, speaking_times
from corpus_asr.storage.run_state.table_names import LABEL_ROWS, RUN_NAME, SEGMENT_ROWS
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import READERS
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted, joined_names

_LOG = logging.getLogger(__name__)

HISTORY_FOLDER = "_run/history"
MOST_RUNS = 30  # a month of nightly runs

_LISTING_COLUMNS = ("recording_id", "uri", "etag", "size_bytes")
_MOST_LABELS = 20  # a classifier may have thousands


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerGroup:
    """Recordings with an equal number of speakers."""

    number: int
    recordings: int
    speech_s: float
    """Speech of all turns in seconds."""
    most_s: float
    """Speech of the main speaker of each recording in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Counts of an output folder, and the records of its run."""

    uri: str
    finished: bool
    """False while it is running and after it was stopped."""
    run_id: str | None
    """ID of the last run that had work."""
    model: str | None
    model_revision: str | None
    wall_s: float | None
    """From its start to its end, or to its last snapshot."""
    rtfx: float | None
    statistics: RunNumbers
    accounting: Accounting
    snapshot: Snapshot | None = None
    """Last snapshot of that run."""
    nothing_to_do_at: str | None = None
    """Time of a later run without work."""
    speakers: tuple[SpeakerGroup, ...] = ()
    """By number of speakers; empty without diarization."""
    erased: int = 0
    """Erased recordings that the last finished run found in the source, and skipped."""
    workers: int | None = None
    """Transcribe workers of the last run; None without a snapshot."""

    @property
    def outcomes(self) -> list[tuple[str, int]]:
        """Recordings by outcome name."""
        counts = self.statistics
        return [
            ("with labels" if counts.labels else "with text", counts.ok),
            ("without speech", counts.no_speech),
            ("failed", counts.failed),
            ("started", self.accounting.unfinished),
            ("waiting", self.accounting.waiting),
        ]

    @property
    def total(self) -> int:
        """Recordings of all outcomes: listed ones, and those missing from the source."""
        return sum(count for _, count in self.outcomes)

    @property
    def num_speakers(self) -> int:
        """Sum of the numbers of speakers of all recordings."""
        return sum(group.number * group.recordings for group in self.speakers)

    @property
    def most_share(self) -> float | None:
        """Fraction of speech by main speakers, if there are several; None without speech."""
        several = [group for group in self.speakers if group.number > 1]
        speech_s = sum(group.speech_s for group in several)
        return sum(group.most_s for group in several) / speech_s if speech_s else None


_SPEAKERS = """
select speakers as number, count(*) as recordings, coalesce(exact_sum(speech_s), 0) as speech_s,
  coalesce(exact_sum(most_s), 0) as most_s
from speaking group by all order by all
"""


def load_report(store: OutputStore) -> Report:
    """Count the present contents of an output folder.

    Raises `FetchError` also while a run is merging tables: retry.
    """
    with counted_run(store) as (report, _):
        return report


@contextmanager
def counted_run(
    store: OutputStore, sampler: Sampler | None = None
) -> Iterator[tuple[Report, RunTables]]:
    """Yield the report of an output folder, and the tables from which it was counted.

    A sampler gets the segments as they are read.
    """
    # Names first: later commits belong to the next report.
    names = outcomes_names(store)
    config = store.read_json(CONFIG_NAME) or {}
    finished = store.exists(SUCCESS_NAME)
    run = store.read_json(RUN_NAME)  # missing after `transcribe -o`
    plan = latest_plan(store)
    listing = () if plan is None else read_listing(store, plan, _LISTING_COLUMNS)
    rows = LABEL_ROWS if config.get("pipeline") == CLASSIFY_AUDIO else SEGMENT_ROWS
    listings = other_listings(store, plan)
    with RunTables(store, names=names, listing=listing, elsewhere=listings) as tables:
        if sampler is None:
            read_confidences(store, tables, rows)
        else:
            sampler.read(tables, rows)
        speaking = speaking_times(store)
        tables.add("speaking", SPEAKING.empty_table() if speaking is None else speaking)
        written = store.recordings(("recording_id", "status")) if finished else None
        yield (
            _report(
                store,
                config,
                run if finished else None,
                finished=finished,
                models=_models(store, tables, run, config),
                statistics=RunNumbers.of(tables),
                accounting=reconcile(tables, written, is_listed=plan is not None),
                speakers=tuple(SpeakerGroup(**row) for row in tables.table(_SPEAKERS).to_pylist()),
            ),
            tables,
        )


def _models(
    store: OutputStore, tables: RunTables, run: dict[str, Any] | None, config: dict[str, Any]
) -> tuple[str | None, str | None]:
    """Return the models of current rows, most rows first, and their revisions.

    Settings only name the last model; used if there is no text yet.
    """
    models = tables.rows(
        "select model, model_revision from scored where counts group by all "
        "order by sum(rows) desc, model, model_revision"
    )
    if not models:
        if run is not None:
            return run["model"], run["model_revision"]
        name = (store.read_json(FINGERPRINT_NAME) or {}).get("fingerprint", "")
        return config.get("model", {}).get("checkpoint"), name.partition("-")[2] or None
    names, revisions = zip(*models, strict=True)
    return joined_names(names), joined_names(revisions)


def _report(
    store: OutputStore,
    config: dict[str, Any],
    run: dict[str, Any] | None,
    *,
    finished: bool,
    models: tuple[str | None, str | None],
    statistics: RunNumbers,
    **others: Any,
) -> Report:
    if run is not None:
        work = run.get("last_work") or run
        run_id = work["run_id"]
        speed: Speed | None = speed_of(work)
    else:
        run_id = max(dict(statistics.audio_by_run_s), default=None)  # IDs start with the time
        speed = None
    snapshot = read_snapshot(store)
    if snapshot is not None and snapshot.run_id != run_id:
        snapshot = None
    if snapshot is not None:
        # Activity of a running run; after its end, totals of the whole run.
        snapshot = snapshot if speed is None else snapshot.after(speed)
        speed = speed or Speed(snapshot.audio_s, snapshot.elapsed_s)
    return Report(
        uri=redact_uri(store.uri),
        finished=finished,
        run_id=run_id,
        model=models[0],
        model_revision=models[1],
        wall_s=None if speed is None else speed.wall_s,
        rtfx=speed.rtfx if speed is not None and speed.audio_s else None,
        statistics=statistics,
        snapshot=snapshot,
        nothing_to_do_at=run["finished_at"] if run is not None and "last_work" in run else None,
        erased=erased_of(run),
        workers=None if snapshot is None else snapshot.transcribe_workers,
        **others,
    )


def as_data(report: Report) -> dict[str, Any]:
    """Return the report as JSON-compatible values."""
    data = asdict(report)
    counts = data["statistics"]
    counts["accounting"] = data.pop("accounting")
    counts["devices"] = dict(counts["devices"])
    counts["languages"] = [
        {"language": share.pop("name"), **share} for share in counts["languages"]
    ]
    counts["labels"] = [
        {"label": label["name"], "recordings": label["recordings"], "audio_s": label["audio_s"]}
        for label in counts["labels"]
    ]
    return data


def render(report: Report) -> str:
    """Return the report as text, without a final newline."""
    counts = report.statistics
    shares = counts.labels or counts.languages
    most = _MOST_LABELS if counts.labels else len(shares)
    total_s = sum(share.audio_s for share in shares) or 1.0
    classes = []
    for share in shares[:most]:
        audio = (duration(share.audio_s), f"{share.audio_s / total_s:.0%}")
        cells = (share.name, *audio, counted(share.recordings, "recording"))
        classes.append(cells if counts.labels else (*cells, counted(share.segments, "segment")))
    text = text_template("corpus_asr.report", "run.txt.j2").render(
        report=report,
        counts=counts,
        bins=CONFIDENCE_BINS,
        classes=classes,
        other_labels=shares[most:],
        failures=[
            # A message usually names its recording; otherwise the URI is added.
            (
                group,
                group.recordings,
                [
                    example.message
                    if example.uri in example.message
                    else f"{example.uri}: {example.message}"
                    for example in group.examples
                ],
            )
            for group in counts.failures
        ],
        problems=balance_problems(report.accounting, finished=report.finished),
        **activity_values(report.snapshot),
    )
    return text.rstrip("\n")


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
