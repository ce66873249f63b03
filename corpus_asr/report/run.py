"""A run's report: what its output folder holds, counted, and shown as text or plain data."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa

from corpus_asr.confidence import LOW_CONFIDENCE
from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.report.confidences import CONFIDENCE_BINS, read_confidences
from corpus_asr.report.failures import (
    FailureExample,
    FailureGroup,
    collect_failures,
    failure_groups,
)
from corpus_asr.report.reconciliation import Accounting, balance_problems, reconcile
from corpus_asr.report.samples import Sampler
from corpus_asr.report.status import activity_values
from corpus_asr.report.text import duration, text_template
from corpus_asr.storage.run_state.plan import PLANS_FOLDER
from corpus_asr.storage.run_state.run_files import (
    CONFIG_NAME,
    FINGERPRINT_NAME,
    RUN_NAME,
    SUCCESS_NAME,
    Snapshot,
    Speed,
    outcomes_names,
    read_snapshot,
    speed_of,
)
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.speaker_turns import SPEAKING, speaking_times
from corpus_asr.storage.run_state.tables import LABEL_ROWS, SEGMENT_ROWS, OutputStore
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted

_LISTING_COLUMNS = ("recording_id", "etag", "size_bytes")
_MOST_LABELS = 20  # a classifier may know thousands


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """Audio in one language, or of one label."""

    name: str
    recordings: int
    """Those with some part in it."""
    audio_s: float
    segments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """Counts of a run's tables."""

    ok: int
    no_speech: int
    failed: int
    parts: int
    audio_s: float
    speech_s: float | None
    """None where no part was searched for speech."""
    segments: int
    """Or labels, of a classification."""
    extract_s: float
    """Decoding, speech detection and features, summed over processes."""
    transcribe_s: float
    """From submission to result, summed over parts, which overlap."""
    skipped_packets: int
    recordings_with_skipped_packets: int
    devices: tuple[tuple[str, int], ...]
    """Parts transcribed by each device."""
    languages: tuple[ClassShare, ...]
    confidence: tuple[int, ...]
    """Segments, or windows of a classification, per bin of confidence from 0 to 1."""
    failures: tuple[FailureGroup, ...]
    audio_by_run_s: tuple[tuple[str, float], ...]
    """Audio committed by each run that worked on this output."""
    accounting: Accounting
    labels: tuple[ClassShare, ...] = ()
    """By each part's likeliest label, of a classification."""
    mean_confidence: float | None = None
    """Of segments or windows, weighted by their length; None without any."""
    low_confidence: int = 0
    """Recordings with text or labels whose confidence is below `LOW_CONFIDENCE`."""
    speech_without_text_s: float = 0.0
    """Detected speech in gaps between segments; 0.0 where speech was not looked for."""
    text_words: int = 0
    """Words of the known texts of recordings that are done; 0 where no texts were aligned."""
    missing_words: int = 0
    """Those of them that are not in the audio."""

    @property
    def outcomes(self) -> list[tuple[str, int]]:
        """Recordings by outcome, in words."""
        return [
            ("with labels" if self.labels else "with text", self.ok),
            ("without speech", self.no_speech),
            ("failed", self.failed),
            ("started", self.accounting.unfinished),
            ("waiting", self.accounting.waiting),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerGroup:
    """Recordings in which as many speak."""

    number: int
    recordings: int
    speech_s: float
    """Of all their turns."""
    most_s: float
    """Of those who speak most, one in each recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run's counts, together with what the run itself recorded."""

    uri: str
    finished: bool
    """False while it runs and after it was stopped."""
    run_id: str | None
    """The last run that had something to do."""
    model: str | None
    model_revision: str | None
    wall_s: float | None
    """From its start to its end, or to its last snapshot so far."""
    rtfx: float | None
    statistics: RunCounts
    snapshot: Snapshot | None = None
    """The last one of that run."""
    nothing_to_do_at: str | None = None
    """When a later run found nothing to do."""
    speakers: tuple[SpeakerGroup, ...] = ()
    """By number of speakers; empty where they were not looked for."""

    @property
    def num_speakers(self) -> int:
        """Speakers of all recordings, each counted in each recording."""
        return sum(group.number * group.recordings for group in self.speakers)

    @property
    def most_share(self) -> float | None:
        """Share of speech of those who speak most, where several speak; None where nobody does."""
        several = [group for group in self.speakers if group.number > 1]
        speech_s = sum(group.speech_s for group in several)
        return sum(group.most_s for group in several) / speech_s if speech_s else None


def load_report(store: OutputStore) -> Report:
    """Count what an output folder holds so far.

    Raises `FetchError` also while a run is merging tables here: try again.
    """
    with counted_run(store) as (report, _):
        return report


@contextmanager
def counted_run(
    store: OutputStore, sampler: Sampler | None = None
) -> Iterator[tuple[Report, RunTables]]:
    """Give the report of an output folder and the tables that it was counted from.

    A sampler is shown the segments as they are read.
    """
    # Names first: what is committed while the tables are read belongs to the next report.
    names = outcomes_names(store)
    config = store.read_json(CONFIG_NAME) or {}
    run = store.read_json(RUN_NAME)
    finished = run is not None and store.exists(SUCCESS_NAME)
    listing = _latest_listing(store)
    files = map(partial(store.batches, columns=_LISTING_COLUMNS), listing or ())
    rows = LABEL_ROWS if config.get("pipeline") == CLASSIFY_AUDIO else SEGMENT_ROWS
    with RunTables(store, names=names, listing=chain.from_iterable(files)) as tables:
        if sampler is None:
            read_confidences(store, tables, rows)
        else:
            sampler.read(tables, rows)
        speaking = speaking_times(store)
        tables.add("speaking", SPEAKING.empty_table() if speaking is None else speaking)
        written = store.recordings(("recording_id", "status")) if finished else None
        counts = count_run(tables, written, is_listed=listing is not None)
        yield _report(store, counts, config, run if finished else None, _speakers(tables)), tables


def _report(
    store: OutputStore,
    counts: RunCounts,
    config: dict[str, Any],
    run: dict[str, Any] | None,
    speakers: tuple[SpeakerGroup, ...],
) -> Report:
    if run is not None:
        model, revision = run["model"], run["model_revision"]
        work = run.get("last_work") or run
        run_id = work["run_id"]
        speed: Speed | None = speed_of(work)
    else:
        run_id = max(dict(counts.audio_by_run_s), default=None)  # IDs begin with their time
        model = config.get("model", {}).get("checkpoint")
        fingerprint = store.read_json(FINGERPRINT_NAME) or {}
        revision = fingerprint.get("fingerprint", "").partition("-")[2] or None
        speed = None
    snapshot = read_snapshot(store)
    if snapshot is not None and snapshot.run_id != run_id:
        snapshot = None
    if snapshot is not None:
        # What a run that goes on says of itself; after its end, its figures from beginning to end.
        snapshot = snapshot if speed is None else snapshot.after(speed)
        speed = speed or Speed(snapshot.audio_s, snapshot.elapsed_s)
    return Report(
        uri=redact_uri(store.uri),
        finished=run is not None,
        run_id=run_id,
        model=model,
        model_revision=revision,
        wall_s=None if speed is None else speed.wall_s,
        rtfx=speed.rtfx if speed is not None and speed.audio_s else None,
        statistics=counts,
        snapshot=snapshot,
        nothing_to_do_at=run["finished_at"] if run is not None and "last_work" in run else None,
        speakers=speakers,
    )


def _speakers(tables: RunTables) -> tuple[SpeakerGroup, ...]:
    rows = tables.table(
        """select speakers as number, count(*) as recordings,
             coalesce(exact_sum(speech_s), 0) as speech_s, coalesce(exact_sum(most_s), 0) as most_s
           from speaking group by all order by all"""
    )
    return tuple(SpeakerGroup(**row) for row in rows.to_pylist())


def _latest_listing(store: OutputStore) -> list[str] | None:
    # Packs are written after a listing is complete: a plan without any may have half of one.
    newest: str | None = None
    listings: dict[str, list[str]] = {}
    for name in store.names(PLANS_FOLDER):
        plan, _, table = name.removeprefix(f"{PLANS_FOLDER}/").partition("/")
        if table.startswith("listing/"):
            listings.setdefault(plan, []).append(name)
        elif table.startswith("packs/"):
            newest = max(newest or plan, plan)
    return None if newest is None else listings.get(newest, [])


_TOTALS = """
select count(*) filter (complete and status = 'ok') as ok,
  count(*) filter (complete and status = 'no_speech') as no_speech,
  count(*) filter (complete and status = 'failed') as failed,
  count(*) filter (complete and status = 'ok' and confidence < $low) as low_confidence,
  coalesce(sum(parts), 0)::bigint as parts, coalesce(sum(segments), 0)::bigint as segments,
  coalesce(exact_sum(duration_s), 0) as audio_s, exact_sum(speech_s) as speech_s,
  coalesce(exact_sum(speech_without_text_s), 0) as speech_without_text_s,
  coalesce(exact_sum(decode_s), 0) as extract_s,
  coalesce(exact_sum(transcribe_s), 0) as transcribe_s,
  coalesce(sum(decode_errors), 0)::bigint as skipped_packets,
  count(*) filter (decode_errors > 0) as recordings_with_skipped_packets,
  coalesce(sum(if(complete and missing_words is not null, text_words, 0)), 0)::bigint
    as text_words,
  coalesce(sum(missing_words) filter (complete), 0)::bigint as missing_words
from recordings left join confidences using (recording_id) where {which}
"""
_DEVICES = "select device, count(*) from parts where device is not null group by all order by all"
_BY_RUN = """
select coalesce(parts.run_id, ''), coalesce(exact_sum(parts.duration_s / separate), 0)
from parts join recordings using (recording_id) group by all order by all
"""
_BINS = "select bin, sum(rows)::bigint from scored where counts and bin is not null group by all"
# Each part for itself, in recording time: channels transcribed separately share its length.
_CLASSES = """
select parts.{column} as name, count(distinct recording_id) as recordings,
  coalesce(exact_sum(parts.duration_s / separate), 0) as audio_s,
  coalesce(sum(segments_written), 0)::bigint as segments
from parts join recordings using (recording_id)
where parts.{column} is not null and ({which}) group by all order by audio_s desc, name
"""


def count_run(
    tables: RunTables, written: Iterable[pa.RecordBatch] | None = None, *, is_listed: bool
) -> RunCounts:
    """Count a run whose confidences were read, and check its tables against each other.

    `written` are rows of the recordings table of a finished run, with recording_id and status;
    `is_listed` says whether there is a listing.
    """
    collect_failures(tables)
    bins = dict(tables.rows(_BINS))
    return RunCounts(
        **sum_recordings(tables, low_confidence=LOW_CONFIDENCE),
        devices=tuple(tables.rows(_DEVICES)),
        languages=class_shares(tables, "language"),
        labels=class_shares(tables, "label"),
        confidence=tuple(bins.get(number, 0) for number in range(CONFIDENCE_BINS)),
        mean_confidence=mean_confidence(tables),
        failures=failure_groups(tables),
        audio_by_run_s=tuple(tables.rows(_BY_RUN)),
        accounting=reconcile(tables, written, is_listed=is_listed),
    )


def sum_recordings(
    tables: RunTables, which: str = "true", *, low_confidence: float, **parameters: Any
) -> dict[str, Any]:
    """Return the sums over recordings, by the names that they have in `RunCounts`.

    `which` is a condition on `recordings`.
    """
    query = _TOTALS.format(which=which)
    sums: list[dict[str, Any]] = tables.table(query, low=low_confidence, **parameters).to_pylist()
    return sums[0]


def class_shares(
    tables: RunTables, column: str, which: str = "true", **parameters: Any
) -> tuple[ClassShare, ...]:
    """Return the audio by `language`, or `label`, of parts, the most first.

    `which` is a condition on `recordings`.
    """
    query = _CLASSES.format(column=column, which=which)
    return tuple(ClassShare(**row) for row in tables.table(query, **parameters).to_pylist())


def mean_confidence(tables: RunTables, which: str = "true", **parameters: Any) -> float | None:
    """Return the mean over the time of all segments that count; None without any.

    `which` is a condition on `scored`.
    """
    query = f"select exact_sum(weighted) / exact_sum(weight) from scored where counts and ({which})"
    [(mean,)] = tables.rows(query, **parameters)
    return None if mean is None else round(mean, 6)


def as_data(report: Report) -> dict[str, Any]:
    """Return the report as plain data for JSON."""
    data = asdict(report)
    counts = data["statistics"]
    counts["devices"] = dict(counts["devices"])
    counts["languages"] = [{"language": each.pop("name"), **each} for each in counts["languages"]]
    counts["labels"] = [
        {"label": each["name"], "recordings": each["recordings"], "audio_s": each["audio_s"]}
        for each in counts["labels"]
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
            (group, group.recordings, [_example(each) for each in group.examples])
            for group in counts.failures
        ],
        problems=balance_problems(counts.accounting, finished=report.finished),
        **activity_values(report.snapshot),
    )
    return text.rstrip("\n")


def _example(failure: FailureExample) -> str:
    # A message names its recording; one that does not is given the address.
    named = failure.uri in failure.message
    return failure.message if named else f"{failure.uri}: {failure.message}"
