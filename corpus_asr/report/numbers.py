"""What the recordings of a run came to, its failures, and whether its tables say the same.

`RunNumbers` are computed of all recordings of an output folder, or of those of one run. The report,
its table of the last runs and the night each say some of them.

Failures are examples by kind, and the full list for a page and a CSV file. Their queries use the
table created by `collect_failures`: a row per recording and kind, including failures of new
versions while an earlier one is current.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from corpus_asr.confidence import LOW_CONFIDENCE
from corpus_asr.config.document import hide_secrets
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.report.text import cell
from corpus_asr.storage.run_state.current_rows import CONFIDENCE_BINS
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.stores.uri import public, without_secrets
from corpus_asr.units import counted

EXAMPLES = 3
CSV_COLUMNS = ("uri", "recording_id", "stage", "kind", "retryable", "message", "advice")
# URIs and messages are looked up only for displayed rows: text in groups takes memory.
_FAILURES = """
create or replace table failures as
with failed as (
  select recording_id, id, coalesce(nullif(error_stage, ''), 'unknown') as stage,
    coalesce(nullif(error_kind, ''), 'unknown') as kind, coalesce(retryable, false) as retryable
  from outcomes join row_states using (id)
  where status = 'failed' and (counts or failing) and ({which}))
select stage, kind, recording_id, min(id) as id, bool_or(retryable) as retryable
from failed group by all
"""
_KINDS = """
create or replace table failure_groups as
select row_number() over (order by count(*) desc, stage, kind) - 1 as number,
  stage, kind, count(*) as recordings, bool_or(retryable) as retryable
from failures group by stage, kind
"""
# First rows by URI of each group; the recording's first part provides the message.
_SHOWN = """
with places as (
  select number, id, failures.retryable,
    row_number() over (partition by number order by uri, id) as place
  from failures join failure_groups using (stage, kind) join outcomes using (id))
select number as "group", recording_id, uri, stage, kind,
  coalesce(error_message, '') as message, places.retryable
from places join failure_groups using (number) join outcomes using (id)
where place <= {most} order by number, place
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureExample:
    """One failed recording."""

    uri: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failures of one kind."""

    stage: str
    kind: str
    recordings: int
    retryable: bool
    examples: tuple[FailureExample, ...]


def collect_failures(tables: RunTables, which: str = "true", **parameters: Any) -> None:
    """Create the failure tables; `which` is an SQL condition on outcomes and `counts`."""
    tables.execute(_FAILURES.format(which=which), **parameters)
    tables.execute(_KINDS)


def failure_groups(tables: RunTables) -> tuple[FailureGroup, ...]:
    """Return the groups, most frequent first, with the first examples by URI."""
    groups = tables.table("select * exclude (number) from failure_groups order by number")
    examples = failure_examples(tables, EXAMPLES)
    return tuple(
        FailureGroup(
            **(group | {"retryable": _is_retryable(group)}), examples=tuple(examples[number])
        )
        for number, group in enumerate(groups.to_pylist())
    )


def failure_examples(
    tables: RunTables, most: int, *, of_groups: int | None = None
) -> dict[int, list[FailureExample]]:
    """Return up to `most` failures of each group, or of the first groups, by group index."""
    limit = str(most) if of_groups is None else f"if(number < {of_groups}, {most}, 0)"
    examples = defaultdict(list)
    for failure in _each(tables, limit):
        example = FailureExample(uri=failure["uri"], message=failure["message"])
        examples[failure["group"]].append(example)
    return examples


def failures_csv(tables: RunTables) -> bytes:
    """Return all failures with advice; column `uri` makes the file a manifest."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for failure in _each(tables, "recordings"):
        shown = {
            "uri": public(failure["uri"]),
            "retryable": "yes" if failure["retryable"] else "no",
            "message": hide_secrets(without_secrets(failure["message"])),
            "advice": failure_kind(failure["kind"], retryable=failure["retryable"]).advice,
        }
        writer.writerow(cell((failure | shown)[name]) for name in CSV_COLUMNS)
    return text.getvalue().encode("utf-8", "replace")


def _each(tables: RunTables, most: str) -> Iterator[dict[str, Any]]:
    """Yield up to `most` failures of each group."""
    for batch in tables.batches(_SHOWN.format(most=most)):
        for row in batch.to_pylist():
            yield row | {"retryable": _is_retryable(row)}


def _is_retryable(failure: dict[str, Any]) -> bool:
    # By kind: an earlier version of this program may have stored another value.
    return failure_kind(failure["kind"], retryable=failure["retryable"]).retryable


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """Audio in one language, or of one label."""

    name: str
    recordings: int
    """Those with some part in it."""
    audio_s: float
    segments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNumbers:
    """Numbers of the recordings of an output folder or of one run in it."""

    ok: int = 0
    no_speech: int = 0
    failed: int = 0
    parts: int = 0
    audio_s: float = 0.0
    speech_s: float | None = None
    """None where no part was searched for speech."""
    segments: int = 0
    """Or labels, of a classification."""
    extract_s: float = 0.0
    """Decoding, speech detection and features, summed over processes."""
    transcribe_s: float = 0.0
    """From submission to result, summed over parts, which overlap."""
    skipped_packets: int = 0
    recordings_with_skipped_packets: int = 0
    devices: tuple[tuple[str, int], ...] = ()
    """Parts transcribed by each device."""
    languages: tuple[ClassShare, ...] = ()
    confidence: tuple[int, ...] = ()
    """Segments, or windows of a classification, per bin of confidence from 0 to 1."""
    failures: tuple[FailureGroup, ...] = ()
    audio_by_run_s: tuple[tuple[str, float], ...] = ()
    """Audio committed by each run that worked on this output."""
    labels: tuple[ClassShare, ...] = ()
    """By each part's likeliest label, of a classification."""
    mean_confidence: float | None = None
    """Mean of segments or windows, weighted by their length; None without any."""
    low_confidence: int = 0
    """Recordings with text or labels whose confidence is below `LOW_CONFIDENCE`."""
    speech_without_text_s: float = 0.0
    """Detected speech in gaps between segments; 0.0 where speech was not looked for."""
    text_words: int = 0
    """Words of the known texts of recordings that are done; 0 where no texts were aligned."""
    missing_words: int = 0
    """Those of them that are not in the audio."""
    extra_words: int = 0
    """Recognized words that are not in the known texts."""

    @property
    def done(self) -> int:
        """Recordings with text, labels or no speech."""
        return self.ok + self.no_speech

    @classmethod
    def of(cls, tables: RunTables, *, run: str | None = None) -> "RunNumbers":
        """Count recordings whose confidences were read: all, or those last committed by a run.

        Failures of a run include new versions while an earlier one is current.
        """
        collect_failures(tables, _FAILED, run=run)
        [sums] = tables.table(_TOTALS, run=run, low=LOW_CONFIDENCE).to_pylist()
        [(mean,)] = tables.rows(_MEAN, run=run)
        bins = dict(tables.rows(_BINS, run=run))
        languages, labels = (
            tuple(ClassShare(**row) for row in tables.table(query, run=run).to_pylist())
            for query in map(_CLASSES.format, ("parts.language", "label_means[1].label"))
        )
        return cls(
            **sums,
            devices=tuple(tables.rows(_DEVICES, run=run)),
            languages=languages,
            labels=labels,
            confidence=tuple(bins.get(number, 0) for number in range(CONFIDENCE_BINS)),
            mean_confidence=None if mean is None else round(mean, 6),
            failures=failure_groups(tables),
            audio_by_run_s=tuple(tables.rows(_BY_RUN, run=run)),
        )


# A recording is of the last run that committed parts of it.
OF_RUN = "recording_id in (select recording_id from recordings where complete and run_id = $run)"
_MINE = f"($run is null or {OF_RUN})"
# Also those of new versions while an earlier one counts.
_FAILED = f"$run is null or if(counts, {OF_RUN}, run_id = $run)"
_TOTALS = f"""
select count(*) filter (complete and status = 'ok') as ok,
  count(*) filter (complete and status = 'no_speech') as no_speech,
  count(*) filter (complete and status = 'failed')
    + (select count(distinct recording_id) from failing where run_id = $run) as failed,
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
  coalesce(sum(missing_words) filter (complete), 0)::bigint as missing_words,
  coalesce(sum(extra_words) filter (complete), 0)::bigint as extra_words
from recordings left join confidences using (recording_id) where {_MINE}
"""
_DEVICES = f"""
select device, count(*) from parts where device is not null and {_MINE} group by all order by all
"""
_BY_RUN = f"""
select coalesce(parts.run_id, ''), coalesce(exact_sum(parts.duration_s / separate), 0)
from parts join recordings using (recording_id) where {_MINE} group by all order by all
"""
_SCORED = "from scored where counts and ($run is null or run_id = $run)"
_BINS = f"select bin, sum(rows)::bigint {_SCORED} and bin is not null group by all"
_MEAN = f"select exact_sum(weighted) / exact_sum(weight) {_SCORED}"
# Each part for itself, in recording time: channels transcribed separately share its length.
_CLASSES = f"""
select {{}} as name, count(distinct recording_id) as recordings,
  coalesce(exact_sum(parts.duration_s / separate), 0) as audio_s,
  coalesce(sum(segments_written), 0)::bigint as segments
from parts join recordings using (recording_id)
where name is not null and {_MINE} group by all order by audio_s desc, name
"""


_WRITTEN = pa.schema([("recording_id", pa.string()), ("status", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Listed files by how far they are, and what contradicts `exactly one outcome each`."""

    listed: int | None
    """None where the listing is not known; the others then count all files with outcomes."""
    processed: int
    """Files with a final outcome."""
    unfinished: int
    """Files with some parts committed and others not."""
    waiting: int
    """Files without outcomes."""
    unlisted: int
    """Complete recordings that are gone, as in `run.json`; their rows are kept."""
    superseded_parts: int
    """Rows that do not count: a part committed twice, or an object replaced since."""
    outdated: int = 0
    """Processed, listed files whose present version is not done; an earlier one counts."""
    failed_since: int = 0
    """Listed files whose present version failed: the text of an earlier one counts."""
    problems: tuple[str, ...]


def balance_problems(accounting: Accounting, *, finished: bool) -> list[str]:
    """Return the errors of an accounting as messages."""
    problems = list(accounting.problems)
    waiting = accounting.waiting + accounting.outdated
    if finished and accounting.unfinished + waiting:
        problems.append(
            f"the run finished, yet left {counted(accounting.unfinished, 'recording')} only "
            f"started and {waiting:,} waiting"
        )
    return problems


# Without a listing all files with outcomes are counted, and none are known to have changed.
_FILES = """
select count(*) filter (complete and (listed or not $is_listed)) as processed,
  count(*) filter (not complete and (listed or not $is_listed)) as unfinished,
  count(*) filter (complete and gone and $is_listed) as unlisted,
  count(*) filter (complete and listed and not current and not failed_since) as outdated,
  count(*) filter (failed_since) as failed_since,
  (select count(*) from outcomes) - (select count(*) from parts) as superseded_parts
from recordings
"""
_LISTED = "select count(distinct recording_id), count(*) from listed"
# A part is named by its recording and number: twice among those that count is never right.
_TWICE = "select count(*) - count(distinct (recording_id, part)) from parts"
_WRITTEN_TWICE = "select count(*) - count(distinct recording_id) from written"
_FIRST = "(list(recording_id order by recording_id))[:3]"
_OTHER_RECORDINGS = f"""
select count(*), {_FIRST}
from (select recording_id, status from recordings where complete) ended
full join written using (recording_id) where ended.status is distinct from written.status
"""


def reconcile(
    tables: RunTables, written: Iterable[pa.RecordBatch] | None = None, *, is_listed: bool
) -> Accounting:
    """Compare the tables with the listing and with each other, once confidences were read.

    `written` are rows of the recordings table, with recording_id and status; None if there is none
    yet. `is_listed` says whether there is a listing.
    """
    [[num_listed, rows]] = tables.rows(_LISTED)
    [files] = tables.table(_FILES, is_listed=is_listed).to_pylist()
    waiting = num_listed - files["processed"] - files["unfinished"] if is_listed else 0
    problems = []
    if repeated := rows - num_listed:
        problems.append(f"listed more than once: {counted(repeated, 'file')}")
    if repeated := tables.rows(_TWICE)[0][0]:
        problems.append(f"counted more than once: {counted(repeated, 'part')}")
    if written is not None:
        problems += _recordings_problems(tables, written)
    return Accounting(
        **files,
        listed=num_listed if is_listed else None,
        waiting=waiting,
        problems=tuple(problems),
    )


def _recordings_problems(tables: RunTables, written: Iterable[pa.RecordBatch]) -> list[str]:
    tables.add("written", _WRITTEN.empty_table())
    for batch in written:
        tables.execute("insert into written from arriving", pa.Table.from_batches([batch]))
    problems = []
    if repeated := tables.rows(_WRITTEN_TWICE)[0][0]:
        problems.append(f"twice in the recordings table: {counted(repeated, 'recording')}")
    [[num, first]] = tables.rows(_OTHER_RECORDINGS)
    if num:
        problems.append(
            f"recordings table and outcomes differ on {counted(num, 'recording')}, such as "
            f"{', '.join(first)}"
        )
    return problems
