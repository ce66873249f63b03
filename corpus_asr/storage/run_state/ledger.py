"""What runs have done already: the committed parts, and how often recordings failed."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import Retry
from corpus_asr.schemas import FILES, OUTCOMES
from corpus_asr.storage.run_state.tables import (
    OUTCOMES_FOLDER,
    PART_ROWS_FOLDERS,
    OutputStore,
    projected,
)

logger = logging.getLogger(__name__)

_LEDGER_COLUMNS = ("recording_id", "etag", "size_bytes", "part", "last_part")
_DONE_PARTS = pa.field("done_parts", pa.list_(pa.int32()))
_REASON = pa.field("reason", pa.int8())
REMAINING = FILES.append(_DONE_PARTS).append(_REASON)


class Reason(IntEnum):
    """Why a listed recording is left to be done."""

    new = 0
    changed = 1  # only other versions of it are committed
    retried = 2  # it failed, and is to be done again
    continued = 3  # some of its parts are committed, not all


class Ledger:
    """The committed parts of an output folder, in memory.

    Rows are sorted by recording and part, and so that of several commits of one part the one that
    counts comes first: the oldest that did not fail, else the newest failure, which knows most.
    Commits whose segments object is gone are left out: what they transcribed is to be done again.
    """

    def __init__(
        self,
        rows: pa.Table,
        names: list[str],
        lost: Mapping[str, int],
        leave_alone: Collection[str],
    ) -> None:
        ids = rows["recording_id"].combine_chunks().dictionary_encode()
        codes = ids.indices.to_numpy()
        keys = [rows[name].to_numpy() for name in ("row", "object", "part")]
        failed = rows["failed"].to_numpy()
        # Of commits that succeeded the oldest comes first, of those that failed the newest.
        age = np.where(failed, -1, 1)
        order = np.lexsort((keys[0] * age, keys[1] * age, failed, keys[2], codes))
        self._ids = ids.dictionary
        spared = pc.is_in(self._ids, value_set=pa.array(list(leave_alone), pa.string()))
        self._spared = spared.to_numpy(zero_copy_only=False)
        self._code = codes[order]
        self._row, self._object, self._part = (key[order] for key in keys)
        self._last = rows["last_part"].to_numpy()[order]
        self._failed, self._retryable = failed[order], rows["retryable"].to_numpy()[order]
        versions = rows.select(["etag", "size_bytes"]).take(order)
        self._etag = versions["etag"].combine_chunks().dictionary_encode()
        self._size = versions["size_bytes"].combine_chunks()
        self._starts = np.searchsorted(self._code, np.arange(len(self._ids) + 1))
        self._names = names
        self._lost = lost

    @classmethod
    def empty(cls) -> "Ledger":
        """Return the ledger of a folder without commits."""
        return cls(_ROWS.empty_table(), [], {}, ())

    @classmethod
    def load(cls, store: OutputStore, *, leave_alone: Collection[str] = ()) -> "Ledger":
        """Read the committed outcomes of a folder."""
        names = store.names(OUTCOMES_FOLDER)
        number = {name: index for index, name in enumerate(names)}
        counts = np.zeros(len(names), dtype=np.int32)
        tables = [_ROWS.empty_table()]
        promised: dict[str, set[str]] = {}
        needed = (*_LEDGER_COLUMNS, "status", "retryable", "segments_object")
        for batch in store.committed(needed, names):
            index, rows = number[batch.name], batch.rows
            segments = rows["segments_object"].unique().drop_null()
            promised.setdefault(batch.name, set()).update(segments.to_pylist())
            columns = [rows[name] for name in _LEDGER_COLUMNS] + [
                pc.equal(rows["status"], "failed"),
                pc.fill_null(rows["retryable"], False),
                pa.array(np.full(len(rows), index, np.int32)),
                pa.array(np.arange(counts[index], counts[index] + len(rows), dtype=np.int32)),
            ]
            tables.append(pa.table(columns, schema=_ROWS))
            counts[index] += len(rows)
        # Listed after the outcomes were: each commit puts its segments first. Some stores' listings
        # lag behind by minutes, what they do not show may be there.
        present = {name for folder in PART_ROWS_FOLDERS for name in store.names(folder)}
        gone_names = store.missing(set().union(*promised.values()) - present)
        lost = {
            name: int(counts[number[name]])
            for name, segments_names in promised.items()
            if segments_names & gone_names
        }
        for name in lost:
            logger.warning("segments are gone: outcomes=%s", name)
        table = pa.concat_tables(tables)
        gone = pa.array([number[name] for name in lost], pa.int32())
        table = table.filter(pc.invert(pc.is_in(table["object"], value_set=gone)))
        return cls(table.combine_chunks(), names, lost, leave_alone)

    def __len__(self) -> int:
        return len(self._code)

    def remaining(self, batch: pa.RecordBatch, retry: Retry = Retry.none) -> pa.Table:
        """Return the FILES rows that are not fully committed, with the parts that are, and why.

        Failed parts count as committed unless `retry` is for them.
        """
        rows, files = self._rows_of(batch)
        known = np.bincount(files, minlength=batch.num_rows) > 0
        fresh = self._fresh(rows, files, batch)
        rows, files = rows[fresh], files[fresh]
        reasons = np.where(known, Reason.changed, Reason.new)
        reasons[files] = Reason.continued
        first = _first_of_runs(files, self._part[rows])
        rows, files = rows[first], files[first]
        again = self._again(rows, retry)
        due = np.bincount(files[again], minlength=batch.num_rows) > 0
        reasons[due] = Reason.retried
        rows, files = rows[~again], files[~again]
        left = np.flatnonzero(due | ~self._covered(rows, files, batch.num_rows))
        # A failure that ended an incomplete recording may come again: its place has to be free.
        ended = self._failed[rows] & self._last[rows]
        half = np.isin(files, left) & ~ended
        lengths = np.bincount(files[half], minlength=batch.num_rows)[left]
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        parts = pa.ListArray.from_arrays(pa.array(offsets), pa.array(self._part[rows[half]]))
        kept = pa.Table.from_batches([batch]).take(pa.array(left))
        kept = kept.append_column(_DONE_PARTS, parts.cast(_DONE_PARTS.type))
        return kept.append_column(_REASON, pa.array(reasons[left].astype(np.int8))).cast(REMAINING)

    def _again(self, rows: np.ndarray, retry: Retry) -> np.ndarray:
        if retry is Retry.none:
            return np.zeros(len(rows), dtype=bool)
        again: np.ndarray = self._failed[rows] & ~self._spared[self._code[rows]]
        return again if retry is Retry.all else again & self._retryable[rows]

    def _rows_of(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        # The ledger's rows of a batch of files, and each one's position in the batch.
        if not len(self):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        found = pc.index_in(self._ids, value_set=batch.column("recording_id"))
        codes = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
        positions = found.drop_null().to_numpy()
        by_position = np.argsort(positions, kind="stable")
        codes, positions = codes[by_position], positions[by_position]
        counts = self._starts[codes + 1] - self._starts[codes]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self._starts[codes], counts) + within, np.repeat(positions, counts)

    def _fresh(self, rows: np.ndarray, files: np.ndarray, batch: pa.RecordBatch) -> np.ndarray:
        # Web servers and manifests often tell no version: an unknown one fits any.
        etag, size = self._version(rows)
        now = batch.take(pa.array(files))
        fresh: np.ndarray = _same(etag, now["etag"]) & _same(size, now["size_bytes"])
        return fresh

    def _version(self, rows: np.ndarray) -> tuple[pa.Array, pa.Array]:
        taken = pa.array(rows)
        return self._etag.take(taken).cast(pa.string()), self._size.take(taken)

    def _covered(self, rows: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
        # Every part up to one that was the last; parts may lie beyond it, where that one failed.
        parts, last = self._part[rows], self._last[rows]
        nowhere = np.iinfo(np.int32).max
        end = np.full(num_groups, nowhere, dtype=np.int64)
        np.minimum.at(end, groups[last], parts[last])
        until_end = np.bincount(groups[parts <= end[groups]], minlength=num_groups)
        covered: np.ndarray = (end < nowhere) & (until_end == end + 1)
        return covered

    def resolve(self, listing: Iterable[pa.RecordBatch]) -> "CommitResolution":
        """Decide which committed rows count, against the present listing."""
        stale = np.zeros(len(self), dtype=bool)
        listed = np.zeros(len(self), dtype=bool)
        num_listed = 0
        for batch in listing:
            num_listed += batch.num_rows
            rows, files = self._rows_of(batch)
            listed[rows] = True
            stale[rows] = ~self._fresh(rows, files, batch)
        stale |= ~listed & self._superseded()
        fresh = np.flatnonzero(~stale)
        winners = fresh[_first_of_runs(self._code[fresh], self._part[fresh])]
        keep = np.zeros(len(self), dtype=bool)
        keep[winners] = True
        complete = self._covered(winners, self._code[winners], len(self._ids))
        now_listed = np.zeros(len(self._ids), dtype=bool)
        now_listed[self._code[listed]] = True
        return CommitResolution(
            num_listed=num_listed,
            keep=self._masks(keep)
            | {name: np.zeros(count, dtype=bool) for name, count in self._lost.items()},
            complete_ids=self._ids.filter(pa.array(complete)),
            listed_ids=self._ids.filter(pa.array(complete & now_listed)),
        )

    def _superseded(self) -> np.ndarray:
        # For recordings that are no longer listed, the newest commit stands for the listing.
        if not len(self):
            return np.zeros(0, dtype=bool)
        newest = np.lexsort((self._row, self._object, self._code))[self._starts[1:] - 1]
        reference = newest[self._code]
        etag, size = self._version(np.arange(len(self)))
        newest_etag, newest_size = self._version(reference)
        same: np.ndarray = _same(etag, newest_etag) & _same(size, newest_size)
        return ~same

    def _masks(self, keep: np.ndarray) -> dict[str, np.ndarray]:
        # Of objects with rows that lose only: no others are rewritten.
        in_order = np.lexsort((self._row, self._object))
        objects = self._object[in_order]
        losing = np.unique(self._object[~keep])
        bounds = zip(
            np.searchsorted(objects, losing, "left").tolist(),
            np.searchsorted(objects, losing, "right").tolist(),
            strict=True,
        )
        return {
            self._names[index]: keep[in_order[start:stop]]
            for index, (start, stop) in zip(losing.tolist(), bounds, strict=True)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResolution:
    """Which committed rows count."""

    num_listed: int
    keep: dict[str, np.ndarray]
    """Per outcomes object with rows that do not count: a mask over its rows."""
    complete_ids: pa.Array  # recordings all of whose parts are committed
    listed_ids: pa.Array  # those of them in the present listing


def counted(
    store: OutputStore,
    keep: Mapping[str, np.ndarray],
    columns: Sequence[str],
    names: Iterable[str] | None = None,
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Yield outcomes rows, in the order of their commits, each with whether it counts."""
    seen: Counter[str] = Counter()
    for batch in store.committed(columns, names):
        start = seen[batch.name]
        seen[batch.name] += batch.rows.num_rows
        mask = keep.get(batch.name, np.ones(seen[batch.name], dtype=bool))
        yield batch.rows, mask[start : seen[batch.name]]


_ROWS = pa.schema([
    *projected(OUTCOMES, _LEDGER_COLUMNS), ("failed", pa.bool_()), ("retryable", pa.bool_()),
    ("object", pa.int32()), ("row", pa.int32()),
])  # fmt: skip


def _same(left: pa.Array, right: pa.Array) -> np.ndarray:
    equal: np.ndarray = pc.fill_null(pc.equal(left, right), True).to_numpy(zero_copy_only=False)
    return equal


def _first_of_runs(groups: np.ndarray, parts: np.ndarray) -> np.ndarray:
    first = np.ones(len(groups), dtype=bool)
    first[1:] = (groups[1:] != groups[:-1]) | (parts[1:] != parts[:-1])
    return first


FAILING_NAME = "_run/failing.parquet"
_FAILING = pa.schema([
    ("recording_id", pa.string()), ("uri", pa.string()), ("etag", pa.string()),
    ("size_bytes", pa.int64()), ("run_id", pa.string()), ("tries", pa.int32()),
])  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A recording that failed, and of which another try may come out otherwise."""

    recording_id: str
    uri: str
    etag: str | None
    size_bytes: int | None
    run_id: str  # the run that failed on it last
    tries: int = 1  # runs that failed on this content

    def after(self, before: "Failing | None") -> "Failing":
        """Return it with the tries that were noted before."""
        if before is None or (before.etag, before.size_bytes) != (self.etag, self.size_bytes):
            return self
        return replace(self, tries=before.tries + (before.run_id != self.run_id))


def count_tries(store: OutputStore) -> list[Failing]:
    """Return the recordings that are failing now, by address."""
    noted: dict[str, Failing] = {}
    if store.exists(FAILING_NAME):
        for row in store.read_table(FAILING_NAME, _FAILING).to_pylist():
            noted[row["recording_id"]] = Failing(**row)
    columns = _FAILING.names[:-1]
    latest: dict[str, Failing] = {}
    for batch in store.outcomes([*columns, "status", "retryable"]):
        retryable = pc.fill_null(batch["retryable"], False)
        failed = pc.and_(pc.equal(batch["status"], "failed"), retryable)
        for row in batch.filter(failed).select(columns).to_pylist():
            before = latest.get(row["recording_id"])
            # Identities of runs sort by the time that they began.
            if before is None or before.run_id < row["run_id"]:
                latest[row["recording_id"]] = Failing(**row)
    counted = (failing.after(noted.get(name)) for name, failing in latest.items())
    return sorted(counted, key=lambda failing: failing.uri)


def note_tries(store: OutputStore, failing: Iterable[Failing]) -> None:
    """Keep what was counted for the next night."""
    rows = [asdict(recording) for recording in failing]
    store.write_table(FAILING_NAME, pa.Table.from_pylist(rows, schema=_FAILING))
