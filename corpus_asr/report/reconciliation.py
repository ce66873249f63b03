"""Whether every listed file has exactly one outcome, counted again from the tables.

Shares no code with what writes the tables, on purpose: this is the check of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.units import counted

RECORDING_COLUMNS = ("recording_id", "status")
_EXAMPLES = 3


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
    """Recordings with outcomes that are not listed any more; their rows are kept."""
    superseded_parts: int
    """Rows that do not count: a part committed twice, or an object replaced since."""
    outdated: int = 0
    """Of the processed, listed files whose present version is not done: an earlier one counts."""
    failed_since: int = 0
    """Listed files whose present version failed: the text of an earlier one counts."""
    problems: tuple[str, ...]

    @property
    def total(self) -> int:
        """Files in any state."""
        return self.processed + self.unfinished + self.waiting


def balance_problems(accounting: Accounting, *, finished: bool) -> list[str]:
    """Return what is wrong with an accounting, in words."""
    problems = list(accounting.problems)
    waiting = accounting.waiting + accounting.outdated
    if finished and accounting.unfinished + waiting:
        problems.append(
            f"the run finished, yet left {counted(accounting.unfinished, 'recording')} only "
            f"started and {waiting:,} waiting"
        )
    return problems


def by_recording(parts: pa.Table) -> pa.Table:
    """Fold parts into recordings: recording_id, processed, status, decode_errors, and the words.

    These, text_words and missing_words, are null without a known text, and where a part failed.
    """
    # A recording is processed when a part that was its last is there, and all parts before it.
    # Parts after it are possible: one attempt failed where another, cut short elsewhere, came
    # further. One whose speech gave no text counts as no_speech, as in the recordings table.
    ids = parts["recording_id"].combine_chunks().dictionary_encode()
    code, part = ids.indices.to_numpy(), parts["part"].to_numpy()
    last = parts["last_part"].to_numpy()
    number = len(ids.dictionary)
    # Above all parts: the end of recordings whose last part is not committed.
    nowhere = np.iinfo(np.int32).max
    end = np.full(number, nowhere, dtype=np.int64)
    np.minimum.at(end, code[last], part[last])
    until_end = np.bincount(code[part <= end[code]], minlength=number)
    # Each part counts them from the start of the recording: the largest count is that of all.
    errors = np.zeros(number, dtype=np.int64)
    np.maximum.at(errors, code, pc.fill_null(parts["decode_errors"], 0).to_numpy())
    failed, written = np.zeros(number, dtype=bool), np.zeros(number, dtype=bool)
    failed[code[pc.equal(parts["status"], "failed").to_numpy()]] = True
    written[code[pc.fill_null(parts["segments_written"], 0).to_numpy() > 0]] = True
    words, found = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
    np.maximum.at(words, code, pc.fill_null(parts["text_words"], 0).to_numpy())
    np.add.at(found, code, pc.fill_null(parts["text_found"], 0).to_numpy())
    processed = (end < nowhere) & (until_end == end + 1)
    unknown = failed | ~processed | (words == 0)
    worst = np.where(failed, "failed", np.where(written, "ok", "no_speech"))
    return pa.table(
        {
            "recording_id": ids.dictionary,
            "processed": pa.array(processed),
            "status": pa.array(worst.astype(object), pa.string()),
            "decode_errors": pa.array(errors),
            "text_words": pa.array(words, mask=unknown),
            "missing_words": pa.array(words - found, mask=unknown),
        }
    )


def reconcile(
    committed: pa.Table,
    parts: pa.Table,
    folded: pa.Table,
    written: pa.Table,
    *,
    listing: Iterable[pa.RecordBatch] | None,
    recordings: Iterable[pa.RecordBatch] | None,
    current: pa.Array | None = None,
    failed_since: pa.Array | None = None,
) -> Accounting:
    """Compare the tables with the listing and with each other.

    Of the outcomes `committed`, `parts` count; `folded` are these by recording; `written` has
    `recording_id` and `rows`, the number of rows in the segments table. The parts of `current`
    recordings are of the listed version, those of `failed_since` of one before it that failed;
    without these, all parts are of the listed version.
    """
    started, num_listed, waiting, unlisted = folded, None, 0, 0
    problems: list[str] = []
    if listing is not None:
        rows = pa.chunked_array([batch["recording_id"] for batch in listing], pa.string())
        ids = pc.unique(rows)
        num_listed = len(ids)
        started = folded.filter(pc.is_in(folded["recording_id"], value_set=ids))
        waiting = num_listed - started.num_rows
        unlisted = folded.num_rows - started.num_rows
        if repeated := len(rows) - num_listed:
            problems.append(f"listed more than once: {counted(repeated, 'file')}")
    # A part is named by its recording and number: twice among those that count is never right.
    distinct = parts.group_by(["recording_id", "part"]).aggregate([])
    if repeated := parts.num_rows - distinct.num_rows:
        problems.append(f"counted more than once: {counted(repeated, 'part')}")
    problems += _segment_problems(committed, written)
    if recordings is not None:
        problems += _recordings_problems(folded, recordings)
    processed = int(sum_of(started["processed"]))
    num_failed = 0 if failed_since is None else len(failed_since)
    done = started.filter(started["processed"])["recording_id"]
    num_current = processed
    if listing is not None and current is not None:
        num_current = num_failed + int(sum_of(pc.is_in(done, value_set=current)))
    return Accounting(
        listed=num_listed,
        processed=processed,
        unfinished=started.num_rows - processed,
        waiting=waiting,
        unlisted=unlisted,
        superseded_parts=committed.num_rows - parts.num_rows,
        outdated=processed - num_current,
        failed_since=num_failed,
        problems=tuple(problems),
    )


def _recordings_problems(folded: pa.Table, recordings: Iterable[pa.RecordBatch]) -> list[str]:
    schema = pa.schema([(name, pa.string()) for name in RECORDING_COLUMNS])
    batches = [batch.select(schema.names).cast(schema) for batch in recordings]
    table = pa.Table.from_batches(batches, schema)
    ended = folded.filter(pc.field("processed")).select(["recording_id", "status"])
    problems = []
    if repeated := table.num_rows - len(pc.unique(table["recording_id"])):
        problems.append(f"twice in the recordings table: {counted(repeated, 'recording')}")
    # Outer again: a recording may be missing on either side.
    both = ended.rename_columns(["recording_id", "expected"]).join(
        table, keys="recording_id", join_type="full outer"
    )
    differs = pc.invert(pc.fill_null(pc.equal(both["expected"], both["status"]), False))
    if (differing := both.filter(differs)).num_rows:
        count, names = counted(differing.num_rows, "recording"), _names(differing)
        problems.append(f"recordings table and outcomes differ on {count}, such as {names}")
    return problems


def _segment_problems(committed: pa.Table, written: pa.Table) -> list[str]:
    claimed = committed.group_by("recording_id").aggregate([("segments_written", "sum")])
    # Outer: segments without outcomes, and outcomes without their segments, are wrong, too.
    both = claimed.join(written, keys="recording_id", join_type="full outer")
    claim = pc.fill_null(both["segments_written_sum"], 0)
    rows = pc.fill_null(both["rows"], 0)
    off = both.filter(pc.not_equal(claim, rows))
    if not off.num_rows:
        return []
    return [
        f"other segments than their outcomes claim: {counted(off.num_rows, 'recording')}, such as "
        f"{_names(off)} ({int(sum_of(rows)):,} rows in all, {int(sum_of(claim)):,} claimed)"
    ]


def _names(recordings: pa.Table) -> str:
    return ", ".join(sorted(recordings["recording_id"].to_pylist())[:_EXAMPLES])


def sum_of(column: pa.ChunkedArray | pa.Array) -> float:
    """Return the sum of a column; 0 for one without values."""
    return float(pc.sum(column).as_py() or 0)
