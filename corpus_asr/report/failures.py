"""Failures of a run: examples by kind, and the full list for a page and a CSV file.

All queries use the table created by `collect_failures`: a row per recording and kind, including
failures of new versions while an earlier one is current.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from corpus_asr.config.document import hide_secrets
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.report.text import cell
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.stores.uri import public, without_secrets

EXAMPLES = 3
CSV_COLUMNS = ("uri", "recording_id", "stage", "kind", "retryable", "message", "advice")
# URIs and messages are looked up only for displayed rows: text in groups takes memory.
_FAILURES = """
create or replace table failures as
with failed as (
  select recording_id, id, coalesce(nullif(error_stage, ''), 'unknown') as stage,
    coalesce(nullif(error_kind, ''), 'unknown') as kind, coalesce(retryable, false) as retryable
  from outcomes join standing using (id)
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
