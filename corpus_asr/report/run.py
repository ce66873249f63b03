"""A run's report: what its output folder holds, counted, and shown as text or plain data.

Of each part narrow columns are held (about 60 bytes), so a report of millions of recordings fits
the memory of a laptop.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.report.failures import (
    FAILURE_COLUMNS,
    FailureExample,
    FailureGroup,
    Failures,
)
from corpus_asr.report.reconciliation import (
    RECORDING_COLUMNS,
    Accounting,
    balance_problems,
    by_recording,
    reconcile,
    sum_of,
)
from corpus_asr.report.samples import Gatherer
from corpus_asr.report.status import activity_values
from corpus_asr.report.text import duration, text_template
from corpus_asr.schemas import OUTCOMES
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
from corpus_asr.storage.run_state.speaker_turns import speaking_times
from corpus_asr.storage.run_state.tables import (
    LABEL_ROWS,
    SEGMENT_ROWS,
    OutputStore,
    projected,
    table_of,
)
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted

OUTCOME_COLUMNS = (
    "run_id", "recording_id", "uri", "part", "last_part", "channel", "status", "duration_s",
    "speech_s", "speech_without_text_s", "segments_written", "decode_errors", "language", "device",
    "decode_s", "transcribe_s", "label", "text_words", "text_found", "error_stage", "error_kind",
    "error_message", "retryable",
)  # fmt: skip
SEGMENT_COLUMNS = ("recording_id", "confidence", "start_s", "end_s")
LABEL_COLUMNS = ("recording_id", "rank", "probability", "start_s", "end_s")
# Added to outcomes as they are read: whether the row is the one that counts for its part.
COUNTS = pa.field("counts", pa.bool_())
_OUTCOMES = f"""
select {", ".join(OUTCOME_COLUMNS)}, coalesce(counts, false) as counts
from outcomes left join standing using (id) order by id
"""
_COUNTING = (
    "select name, count(*) from parts join objects using (object) group by all order by min(id)"
)
_FAILING = f"select {', '.join(FAILURE_COLUMNS)} from failing order by id"
CONFIDENCE_BINS = 10  # of equal width over 0-1
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


def load_report(store: OutputStore, gatherer: Gatherer | None = None) -> Report:
    """Count what an output folder holds so far; a gatherer is shown all rows as they are read.

    Raises `FetchError` also while a run is merging tables here: try again.
    """
    # Names first: what is committed while the tables are read belongs to the next report.
    names = outcomes_names(store)
    config = store.read_json(CONFIG_NAME) or {}
    run = store.read_json(RUN_NAME)
    finished = run is not None and store.exists(SUCCESS_NAME)
    listing = _latest_listing(store)
    files = chain.from_iterable(map(store.batches, listing or ()))
    with RunTables(store, names=names, listing=files) as tables:
        if gatherer is not None:
            for name, num_rows in tables.rows(_COUNTING):
                gatherer.outcomes(name, num_rows)
        counts = count_run(
            tables.batches(_OUTCOMES),
            _part_rows(store, names, gatherer, pipeline=config.get("pipeline")),
            None if listing is None else chain.from_iterable(map(store.batches, listing)),
            store.recordings(RECORDING_COLUMNS) if finished else None,
            gatherer,
            failing=tables.batches(_FAILING),
            current=None if listing is None else tables.ids("listed and current"),
            failed_since=None if listing is None else tables.ids("failed_since"),
        )
    speaking = speaking_times(store)
    if gatherer is not None:
        gatherer.speaking = speaking
    audio_by_run = dict(counts.audio_by_run_s)
    if run is not None and finished:
        model, revision = run["model"], run["model_revision"]
        work = run.get("last_work") or run
        run_id = work["run_id"]
        speed: Speed | None = speed_of(work)
    else:
        run_id = max(audio_by_run, default=None)  # IDs begin with their time
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
        finished=finished,
        run_id=run_id,
        model=model,
        model_revision=revision,
        wall_s=None if speed is None else speed.wall_s,
        rtfx=speed.rtfx if speed is not None and speed.audio_s else None,
        statistics=counts,
        snapshot=snapshot,
        nothing_to_do_at=run["finished_at"] if finished and run and "last_work" in run else None,
        speakers=_speaker_groups(speaking),
    )


def _speaker_groups(speaking: pa.Table | None) -> tuple[SpeakerGroup, ...]:
    if speaking is None:
        return ()
    sums = speaking.group_by("speakers").aggregate(
        [("recording_id", "count"), ("speech_s", "sum"), ("most_s", "sum")]
    )
    return tuple(
        SpeakerGroup(
            number=row["speakers"],
            recordings=row["recording_id_count"],
            speech_s=row["speech_s_sum"] or 0.0,
            most_s=row["most_s_sum"] or 0.0,
        )
        for row in sums.sort_by("speakers").to_pylist()
    )


def _part_rows(
    store: OutputStore, names: Sequence[str], gatherer: Gatherer | None, *, pipeline: str | None
) -> Iterator[pa.RecordBatch]:
    # Of these outcomes alone: a run in progress may have committed others since.
    labels = pipeline == CLASSIFY_AUDIO
    rows = LABEL_ROWS if labels else SEGMENT_ROWS
    columns = LABEL_COLUMNS if labels else SEGMENT_COLUMNS
    schema = projected(rows.schema, columns)
    named = store.named_segments(names)
    ours = [name for name in named if table_of(name) == rows.folder]
    for name, rows_of_name in store.read_tables(ours, schema):
        for batch in rows_of_name.to_batches():
            if labels:
                batch = as_segments(batch)
            if gatherer is not None:
                gatherer.part_rows(name, batch["confidence"], batch["recording_id"])
            yield batch


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


def count_run(
    outcomes: Iterable[pa.RecordBatch],
    segments: Iterable[pa.RecordBatch],
    listing: Iterable[pa.RecordBatch] | None,
    recordings: Iterable[pa.RecordBatch] | None = None,
    gatherer: Gatherer | None = None,
    *,
    failing: Iterable[pa.RecordBatch] = (),
    current: pa.Array | None = None,
    failed_since: pa.Array | None = None,
) -> RunCounts:
    """Count a run from batches of its tables, in any order of rows.

    `outcomes` have `OUTCOME_COLUMNS` and `COUNTS`, `segments` have `SEGMENT_COLUMNS`, `listing`
    has `recording_id` (None if it is not known); `recordings` are those of a finished run;
    `failing` are failures of versions in whose place an earlier one counts; `current` and
    `failed_since` are recordings, as in `reconcile`.
    """
    failures = Failures(keep=gatherer is not None)
    committed = _collect_outcomes(outcomes, failures)
    for batch in failing:
        failures.add(batch)
    parts = _in_recording_time(committed.filter(committed["counts"]))
    folded = by_recording(parts)
    confidence, written = _collect_segments(segments)
    if gatherer is not None:
        gatherer.counted = (parts, folded, written)
        gatherer.failures = failures
    accounting = reconcile(
        committed,
        parts,
        folded,
        written,
        listing=listing,
        recordings=recordings,
        current=current,
        failed_since=failed_since,
    )
    with_status = Counter(folded.filter(pc.field("processed"))["status"].to_pylist())
    packets = folded["decode_errors"]
    speech_s = parts["speech_s"]
    devices = pc.value_counts(parts["device"].drop_null()).to_pylist()
    by_run = parts.group_by("run_id").aggregate([("duration_s", "sum")]).to_pylist()
    return RunCounts(
        ok=with_status["ok"],
        no_speech=with_status["no_speech"],
        failed=with_status["failed"],
        parts=parts.num_rows,
        audio_s=sum_of(parts["duration_s"]),
        speech_s=None if speech_s.null_count == len(speech_s) else sum_of(speech_s),
        speech_without_text_s=sum_of(parts["speech_without_text_s"]),
        segments=int(sum_of(parts["segments_written"])),
        extract_s=sum_of(parts["decode_s"]),
        transcribe_s=sum_of(parts["transcribe_s"]),
        skipped_packets=int(sum_of(packets)),
        recordings_with_skipped_packets=int(sum_of(pc.greater(packets, 0))),
        devices=tuple(sorted((each["values"], each["counts"]) for each in devices)),
        languages=_classes(parts, "language"),
        confidence=confidence,
        mean_confidence=_mean_confidence(written),
        failures=failures.groups(),
        audio_by_run_s=tuple(
            sorted((row["run_id"] or "", row["duration_s_sum"] or 0.0) for row in by_run)
        ),
        accounting=accounting,
        labels=_classes(parts, "label"),
        text_words=int(sum_of(folded["text_words"])),
        missing_words=int(sum_of(folded["missing_words"])),
    )


def _collect_outcomes(outcomes: Iterable[pa.RecordBatch], failures: Failures) -> pa.Table:
    # Addresses and messages are the bulk of a row: they are kept of failures alone.
    narrow = [name for name in OUTCOME_COLUMNS if name not in FAILURE_COLUMNS[1:]]
    schema = projected(OUTCOMES, narrow).append(COUNTS)
    kept: list[pa.RecordBatch] = []
    for batch in outcomes:
        kept.append(batch.select(schema.names).cast(schema))
        failures.add(batch.filter(pc.and_(pc.equal(batch["status"], "failed"), batch["counts"])))
    return pa.Table.from_batches(kept, schema)


def _in_recording_time(parts: pa.Table) -> pa.Table:
    # Channels transcribed separately hold the same span of time, so they share its length.
    owners = parts.group_by("recording_id").aggregate(
        [("channel", "count_distinct", pc.CountOptions(mode="only_valid"))]
    )
    place = pc.index_in(parts["recording_id"], value_set=owners["recording_id"].combine_chunks())
    channels = pc.max_element_wise(owners["channel_count_distinct"].take(place), 1)
    for name in ("duration_s", "speech_s", "speech_without_text_s"):
        position = parts.schema.get_field_index(name)
        shared = pc.divide(parts[name], channels.cast(pa.float64()))
        parts = parts.set_column(position, parts.schema.field(position), shared)
    return parts


def _collect_segments(segments: Iterable[pa.RecordBatch]) -> tuple[tuple[int, ...], pa.Table]:
    bins = np.zeros(CONFIDENCE_BINS, dtype=np.int64)
    schema = pa.schema(
        [("recording_id", pa.string()), ("rows", pa.int64()),
         ("weight", pa.float64()), ("weighted", pa.float64())]
    )  # fmt: skip
    sums = [schema.empty_table()]
    for batch in segments:
        confidence = batch["confidence"].drop_null().to_numpy(zero_copy_only=False)
        # A confidence of 1 belongs to the last bin.
        index = np.clip((confidence * CONFIDENCE_BINS).astype(np.int64), 0, CONFIDENCE_BINS - 1)
        bins += np.bincount(index, minlength=CONFIDENCE_BINS)
        weight, weighted = weighted_confidence(batch)
        rows = pa.repeat(1, batch.num_rows)
        table = pa.table([batch["recording_id"], rows, weight, weighted], schema=schema)
        sums.append(_by_recording(table))
    table = _by_recording(pa.concat_tables(sums))
    return tuple(int(count) for count in bins), table


def _by_recording(table: pa.Table) -> pa.Table:
    names = table.schema.names[1:]
    grouped = table.group_by("recording_id").aggregate([(name, "sum") for name in names])
    return grouped.rename_columns(table.schema.names).cast(table.schema)


def weighted_confidence(segments: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """Return the weight of each segment in means of confidence, its length, and their product."""
    seconds = pc.subtract(segments["end_s"], segments["start_s"])
    weight = pc.add(pc.max_element_wise(seconds, 0.0), 1e-3)  # a segment may have no length
    weight = pc.if_else(pc.is_valid(segments["confidence"]), weight, None)
    return weight, pc.multiply(pc.cast(segments["confidence"], pa.float64()), weight)


def _mean_confidence(written: pa.Table) -> float | None:
    weight = sum_of(written["weight"])
    # Rounded: sums in another order differ in their last digits.
    return round(sum_of(written["weighted"]) / weight, 6) if weight else None


def as_segments(labels: pa.RecordBatch) -> pa.RecordBatch:
    """Return `LABEL_COLUMNS` as `SEGMENT_COLUMNS`, with a confidence for likeliest labels only."""
    # The outcomes count all labels as rows written, but a window is as sure as its first.
    first = pc.equal(labels["rank"], 1)
    probability = pc.if_else(first, labels["probability"], pa.scalar(None, pa.float32()))
    columns = [labels["recording_id"], probability, labels["start_s"], labels["end_s"]]
    return pa.RecordBatch.from_arrays(columns, list(SEGMENT_COLUMNS))


def _classes(parts: pa.Table, column: str) -> tuple[ClassShare, ...]:
    grouped = parts.filter(pc.is_valid(parts[column])).group_by(column)
    sums = grouped.aggregate(
        [("recording_id", "count_distinct"), ("duration_s", "sum"), ("segments_written", "sum")]
    )
    shares = [
        ClassShare(
            name=row[column],
            recordings=row["recording_id_count_distinct"],
            audio_s=row["duration_s_sum"] or 0.0,
            segments=row["segments_written_sum"] or 0,
        )
        for row in sums.to_pylist()
    ]
    return tuple(sorted(shares, key=lambda share: (-share.audio_s, share.name)))


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
