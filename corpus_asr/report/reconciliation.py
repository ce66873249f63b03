"""Whether every listed file has exactly one outcome, and the tables of a run say the same."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.units import counted

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


# Without a listing all files with outcomes are counted, and none are known to have changed.
_FILES = """
select count(*) filter (complete and (listed or not $is_listed)) as processed,
  count(*) filter (not complete and (listed or not $is_listed)) as unfinished,
  count(*) filter (not listed and $is_listed) as unlisted,
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
# Outer: segments without outcomes, and outcomes without their segments, are wrong, too.
_OTHER_SEGMENTS = f"""
with claimed as (
  select recording_id, sum(segments_written) as claim from outcomes group by all),
found as (select recording_id, sum(rows) as num from scored group by all),
joined as (
  select recording_id, coalesce(claim, 0) as claim, coalesce(num, 0) as num
  from claimed full join found using (recording_id))
select count(*), {_FIRST}, (select sum(num) from joined)::bigint,
  (select sum(claim) from joined)::bigint
from joined where claim != num
"""
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
    [[num, first, found, claimed]] = tables.rows(_OTHER_SEGMENTS)
    if num:
        problems.append(
            f"other segments than their outcomes claim: {counted(num, 'recording')}, such as "
            f"{', '.join(first)} ({found:,} rows in all, {claimed:,} claimed)"
        )
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
