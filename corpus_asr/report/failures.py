"""Failures of a run: by kind with some examples, and each of them for a page and a CSV file."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.document import hide_secrets
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.run_state.tables import projected
from corpus_asr.storage.stores.uri import public, without_secrets

EXAMPLES = 3
# What failures are grouped by and shown with; URIs and messages are held of a few only, unless
# all are to be listed.
FAILURE_COLUMNS = (
    "recording_id", "error_stage", "error_kind", "retryable", "uri", "error_message",
)  # fmt: skip
_KEY = ("recording_id", "error_stage", "error_kind")
_VALUES = ("retryable", "uri", "error_message")
_UNKNOWN = "unknown"
CSV_COLUMNS = ("uri", "recording_id", "stage", "kind", "retryable", "message", "advice")
# A spreadsheet takes a cell that begins so for a formula, and file names come from anywhere.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One recording's failure of one kind."""

    group: int
    """Place of its kind among the groups."""
    recording_id: str
    uri: str
    stage: str
    kind: str
    message: str
    retryable: bool


class Failures:
    """Failed parts or recordings, grouped by stage and kind; `keep` holds each to be listed."""

    def __init__(self, *, keep: bool = False) -> None:
        self._ids: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._messages: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._retryable: set[tuple[str, str]] = set()
        self._kept: list[pa.RecordBatch] | None = [] if keep else None

    def add(self, failed: pa.RecordBatch) -> None:
        """Take rows with `FAILURE_COLUMNS`."""
        failed = failed.select(list(FAILURE_COLUMNS))
        if self._kept is not None and failed.num_rows:
            self._kept.append(failed)
        for failure in failed.to_pylist():
            key = (failure["error_stage"] or _UNKNOWN, failure["error_kind"] or _UNKNOWN)
            self._ids[key].add(failure["recording_id"])
            # By kind: an earlier version of this program may have stored something else.
            if failure_kind(key[1], retryable=bool(failure["retryable"])).retryable:
                self._retryable.add(key)
            messages = self._messages[key]
            messages[failure["uri"]] = failure["error_message"] or ""
            if len(messages) > 100 * EXAMPLES:  # sorted once in a while: failures can be many
                self._messages[key] = {uri: messages[uri] for uri in sorted(messages)[:EXAMPLES]}

    def groups(self) -> tuple[FailureGroup, ...]:
        """Return the groups, the most frequent first, with the first examples by address."""
        groups = [
            FailureGroup(
                stage=stage,
                kind=kind,
                recordings=len(ids),
                retryable=(stage, kind) in self._retryable,
                examples=tuple(
                    FailureExample(uri=uri, message=message)
                    for uri, message in sorted(self._messages[stage, kind].items())[:EXAMPLES]
                ),
            )
            for (stage, kind), ids in self._ids.items()
        ]
        return tuple(sorted(groups, key=lambda group: (-group.recordings, group.stage, group.kind)))

    def listed(self, most: int) -> list[Failure]:
        """Return failures by group and address; of more than `most`, some of each group."""
        table, counts = self._table(), [group.recordings for group in self.groups()]
        chosen, start = [], 0
        for count, quota in zip(counts, quotas(counts, most), strict=True):
            chosen.append(table.slice(start, quota))
            start += count
        return list(_each(pa.concat_tables(chosen))) if chosen else []

    def as_csv(self) -> bytes:
        """Return all failures with what to do about them; column `uri` makes it a manifest."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for failure in _each(self._table()):
            advice = failure_kind(failure.kind, retryable=failure.retryable).advice
            cells = (
                public(failure.uri), failure.recording_id, failure.stage, failure.kind,
                "yes" if failure.retryable else "no",
                hide_secrets(without_secrets(failure.message)), advice,
            )  # fmt: skip
            writer.writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells])
        return text.getvalue().encode("utf-8", "replace")

    def _table(self) -> pa.Table:
        """Return one row for each recording and kind, by group and address."""
        assert self._kept is not None, "made with keep=True"
        schema = projected(OUTCOMES, FAILURE_COLUMNS)
        table = pa.Table.from_batches([batch.cast(schema) for batch in self._kept], schema)
        for name in _KEY[1:]:
            place = schema.get_field_index(name)
            known = pc.if_else(pc.equal(table[name], ""), _UNKNOWN, table[name])
            table = table.set_column(place, name, pc.fill_null(known, _UNKNOWN))
        # One thread: "first" is only defined in order.
        table = table.group_by(list(_KEY), use_threads=False).aggregate(
            [(name, "first") for name in _VALUES]
        )
        groups = pa.array([_joined(group.stage, group.kind) for group in self.groups()])
        joined = pc.binary_join_element_wise(*(table[name] for name in _KEY[1:]), "\n")
        place = pc.index_in(joined, value_set=groups.cast(pa.string()))
        table = table.append_column("group", place)
        return table.sort_by([("group", "ascending"), ("uri_first", "ascending")])


def _joined(stage: str, kind: str) -> str:
    return f"{stage}\n{kind}"


def _each(table: pa.Table) -> Iterator[Failure]:
    for batch in table.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            yield Failure(
                group=row["group"],
                recording_id=row["recording_id"],
                uri=row["uri_first"],
                stage=row["error_stage"],
                kind=row["error_kind"],
                message=row["error_message_first"] or "",
                retryable=failure_kind(
                    row["error_kind"], retryable=bool(row["retryable_first"])
                ).retryable,
            )


def quotas(counts: Sequence[int], most: int) -> list[int]:
    """Share `most` places out: the small groups whole, the large ones equally cut."""
    given = [0] * len(counts)
    for done, place in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        given[place] = min(counts[place], (most - sum(given)) // (len(counts) - done))
    return given
