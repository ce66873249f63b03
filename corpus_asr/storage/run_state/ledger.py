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
from corpus_asr.failure_kinds import Origin, failure_kind
from corpus_asr.schemas import FILES, OUTCOMES
from corpus_asr.storage.run_state.tables import (
    ALL_PART_ROWS_FOLDERS,
    PENDING,
    OutputStore,
    projected,
)

logger = logging.getLogger(__name__)

_LEDGER_COLUMNS = ("recording_id", "etag", "size_bytes", "part", "last_part", "run_id")
_DONE_PARTS = pa.field("done_parts", pa.list_(pa.int32()))
_REASON = pa.field("reason", pa.int8())
REMAINING = FILES.append(_DONE_PARTS).append(_REASON)


class Reason(IntEnum):
    """Why a listed recording is left to be done."""

    new = 0
    changed = 1  # only other versions of it are committed
    retried = 2  # it failed, and is to be done again
    continued = 3  # some of its parts are committed, not all


class Place(IntEnum):
    """Where a committed row belongs once a run has finished."""

    nowhere = 0
    tables = 1
    pending = 2  # a part of a new version that is not complete, while an earlier one counts


class _Rank(IntEnum):
    """How much of a recording a version holds: a better one is replaced by no worse one."""

    none = 0  # not complete, or failed without any text
    failed = 1  # complete, and some parts failed
    good = 2  # complete


_ORIGINS = tuple(Origin)


class Ledger:
    """The committed parts of an output folder, in memory.

    Rows are sorted by recording and part, and so that of several commits of one part the one that
    counts comes first: the oldest that did not fail, else the newest failure, which knows most.
    Commits whose segments object is gone are left out: what they transcribed is to be done again.

    A version of a recording is an ETag and a size. One version of each recording counts: the
    listed one once it is complete without a failure, until then an earlier one that has more.
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
        self._failed, self._origin = failed[order], rows["origin"].to_numpy()[order]
        self._written = rows["written"].to_numpy()[order]
        self._versions = _Versions(rows.take(order), self._code)
        self._names = names
        self._lost = lost
        # Of each version the rows that count if it does, by version and part.
        pairs_row, pairs_version = self._versions.pairs()
        first = _first_of_runs(pairs_version, self._part[pairs_row])
        self._winner, self._of_version = pairs_row[first], pairs_version[first]
        edges = np.arange(len(self._versions) + 1)
        self._winner_starts = np.searchsorted(self._of_version, edges)
        self._complete, self._rank = self._ranks()

    @classmethod
    def empty(cls) -> "Ledger":
        """Return the ledger of a folder without commits."""
        return cls(_ROWS.empty_table(), [], {}, ())

    @classmethod
    def load(cls, store: OutputStore, *, leave_alone: Collection[str] = ()) -> "Ledger":
        """Read the committed outcomes of a folder."""
        names = store.commit_names()
        number = {name: index for index, name in enumerate(names)}
        counts = np.zeros(len(names), dtype=np.int32)
        tables = [_ROWS.empty_table()]
        promised: dict[str, set[str]] = {}
        needed = (*_LEDGER_COLUMNS, *_FAILURE_COLUMNS, "segments_written", "segments_object")
        for batch in store.committed(needed, names):
            index, rows = number[batch.name], batch.rows
            segments = rows["segments_object"].unique().drop_null()
            promised.setdefault(batch.name, set()).update(segments.to_pylist())
            columns = [rows[name] for name in _LEDGER_COLUMNS] + [
                pc.equal(rows["status"], "failed"),
                _origins(rows),
                pc.greater(pc.fill_null(rows["segments_written"], 0), 0),
                pa.array(np.full(len(rows), index, np.int32)),
                pa.array(np.arange(counts[index], counts[index] + len(rows), dtype=np.int32)),
            ]
            tables.append(pa.table(columns, schema=_ROWS))
            counts[index] += len(rows)
        # Listed after the outcomes were: each commit puts its segments first. Some stores' listings
        # lag behind by minutes, what they do not show may be there.
        present = {name for folder in ALL_PART_ROWS_FOLDERS for name in store.names(folder)}
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

    def _ranks(self) -> tuple[np.ndarray, np.ndarray]:
        rows, versions, number = self._winner, self._of_version, len(self._versions)
        complete = self._covered(rows, versions, number)
        failed, written = np.zeros(number, dtype=bool), np.zeros(number, dtype=bool)
        failed[versions[self._failed[rows]]] = True
        written[versions[self._written[rows]]] = True
        # Where a version with an unknown one's rows is less complete, it has since been gone on
        # with in the place of a failure of theirs.
        included = self._versions.included
        partly = np.where(complete & written & ~included, _Rank.failed, _Rank.none)
        return complete, np.where(complete & ~failed, _Rank.good, partly)

    def remaining(self, batch: pa.RecordBatch, retry: Retry = Retry.environment) -> pa.Table:
        """Return the FILES rows that are not fully committed, with the parts that are, and why.

        Failed parts count as committed unless `retry` is for them.
        """
        versions, files = self._versions.of(self._ids, batch)
        known = np.bincount(files, minlength=batch.num_rows) > 0
        fresh = self._versions.fit(versions, batch.take(pa.array(files)))
        versions, files = versions[fresh], files[fresh]
        best = self._best(versions, files)
        rows, files = self._winners_of(versions[best], files[best])
        reasons = np.where(known, Reason.changed, Reason.new)
        reasons[files] = Reason.continued
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
        tried = np.array([retry.includes(origin) for origin in _ORIGINS])
        # What failed too often is left alone, but never for what the environment did to it.
        always = np.array([origin is Origin.environment for origin in _ORIGINS])
        origins, spared = self._origin[rows], self._spared[self._code[rows]]
        again: np.ndarray = self._failed[rows] & tried[origins] & (always[origins] | ~spared)
        return again

    def _best(
        self, versions: np.ndarray, owners: np.ndarray, listed: np.ndarray | None = None
    ) -> np.ndarray:
        """Return of each owner the place of its best version.

        Of equals a listed one is better, then one whose rows no other has as well, then a newer.
        """
        wanted = np.zeros(len(versions), bool) if listed is None else listed[versions]
        newest, rank = self._versions.newest[versions], self._rank[versions]
        own = ~self._versions.included[versions]
        order = np.lexsort((newest, own, wanted, rank, owners))
        last = np.append(np.diff(owners[order]) != 0, True)[: len(order)]
        best: np.ndarray = order[last]
        return best

    def _winners_of(
        self, versions: np.ndarray, owners: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        starts = self._winner_starts
        places, repeated = _ranges(starts[versions], starts[versions + 1])
        return self._winner[places], owners[repeated]

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
        owner = self._versions.owner
        fresh = np.zeros(len(self._versions), dtype=bool)
        listed = np.zeros(len(self._ids), dtype=bool)
        num_listed = 0
        for batch in listing:
            num_listed += batch.num_rows
            versions, files = self._versions.of(self._ids, batch)
            listed[owner[versions]] = True
            fresh[versions] = self._versions.fit(versions, batch.take(pa.array(files)))
        # For recordings that are no longer listed, the newest commit stands for the listing.
        fresh |= ~listed[owner] & self._versions.fit_newest()
        every = np.arange(len(self._versions))
        counting = every[self._best(every, owner, fresh)]
        asked = every[fresh]
        present = np.full(len(self._ids), -1)
        best = asked[self._best(asked, owner[asked])]
        present[owner[best]] = best
        counts = np.zeros(len(self), dtype=bool)
        place = np.full(len(self), Place.nowhere, dtype=np.int8)
        rows, _ = self._winners_of(best, best)
        place[rows] = np.where(self._failed[rows], Place.tables, Place.pending)
        mine, _ = self._winners_of(counting, counting)
        counts[mine], place[mine] = True, Place.tables
        failing = np.zeros(len(self), dtype=bool)
        failing[rows] = self._failed[rows] & ~counts[rows]
        home = np.array([name.startswith(PENDING) for name in self._names], dtype=bool)
        home = np.where(home, Place.pending, Place.tables)
        lost = {name: np.zeros(count, dtype=bool) for name, count in self._lost.items()}
        complete, current = self._complete[counting], counting == present
        failed_now = (present >= 0) & self._complete[present] & ~current if len(present) else listed
        earlier = listed & ~current & (self._rank[counting] > _Rank.none)
        return CommitResolution(
            num_listed=num_listed,
            counts=self._masks(counts, ~counts) | lost,
            places=self._masks(place, place != home[self._object])
            | {name: mask.astype(np.int8) for name, mask in lost.items()},
            failing=self._masks(failing, failing),
            complete_ids=self._ids.filter(pa.array(complete)),
            listed_ids=self._ids.filter(pa.array(complete & current & listed)),
            failed_ids=self._ids.filter(pa.array(failed_now & listed)),
            earlier_ids=self._ids.filter(pa.array(earlier)),
        )

    def _masks(self, values: np.ndarray, where: np.ndarray) -> dict[str, np.ndarray]:
        # Of objects with such rows only: the values of all their rows, in their order.
        in_order = np.lexsort((self._row, self._object))
        objects = self._object[in_order]
        found = np.unique(self._object[where])
        bounds = zip(
            np.searchsorted(objects, found, "left").tolist(),
            np.searchsorted(objects, found, "right").tolist(),
            strict=True,
        )
        return {
            self._names[index]: values[in_order[start:stop]]
            for index, (start, stop) in zip(found.tolist(), bounds, strict=True)
        }


class _Versions:
    """The versions of recordings that have committed rows, by recording.

    Web servers and manifests often tell no version: an unknown one fits any.
    """

    def __init__(self, rows: pa.Table, code: np.ndarray) -> None:
        etags = rows["etag"].combine_chunks().dictionary_encode()
        etag = pc.fill_null(etags.indices, -1).to_numpy()
        size = pc.fill_null(rows["size_bytes"], -1).to_numpy()
        order = np.lexsort((size, etag, code))
        keys = [key[order] for key in (code, etag, size)]
        first = np.zeros(len(order), dtype=bool)
        first[:1] = True
        for key in keys:
            first[1:] |= key[1:] != key[:-1]
        self._by_version = order
        self._starts = np.append(np.flatnonzero(first), len(order))
        self.owner, self._etag, self._size = (key[first] for key in keys)
        self._etags = etags.dictionary
        # Runs are named by the time that they began, also where rows were put into another object.
        runs = rows["run_id"].combine_chunks().dictionary_encode()
        rank = np.argsort(np.argsort(runs.dictionary.to_numpy(zero_copy_only=False)))
        run = rank[runs.indices.to_numpy()] if len(rank) else np.empty(0, np.int64)
        by_age = np.lexsort((rows["row"].to_numpy(), rows["object"].to_numpy(), run))
        age = np.empty(len(order), np.int64)
        age[by_age] = np.arange(len(order))
        self.newest = np.maximum.reduceat(age[order], self._starts[:-1]) if len(order) else age
        self._inclusions = [*self._fitting()]
        self.included = np.zeros(len(self), dtype=bool)
        """Whether each is unknown, and another one of its recording has its rows as well."""
        self.included[[version for version, _ in self._inclusions]] = True

    def __len__(self) -> int:
        return len(self.owner)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows with their version, by version and row; unknown versions' rows with each."""
        of_row, of_version = [self._by_version], [np.repeat(np.arange(len(self)), self._lengths)]
        for version, other in self._inclusions:
            some = self._by_version[self._starts[version] : self._starts[version + 1]]
            of_row.append(some)
            of_version.append(np.full(len(some), other))
        rows, versions = np.concatenate(of_row), np.concatenate(of_version)
        order = np.lexsort((rows, versions))
        return rows[order], versions[order]

    def _fitting(self) -> Iterator[tuple[int, int]]:
        for version in np.flatnonzero((self._etag < 0) | (self._size < 0)).tolist():
            theirs = np.searchsorted(self.owner, self.owner[version] + np.arange(2))
            for other in range(*theirs.tolist()):
                fits = all(key[version] in (key[other], -1) for key in (self._etag, self._size))
                if other != version and fits:
                    yield version, other

    @property
    def _lengths(self) -> np.ndarray:
        return np.diff(self._starts)

    def of(self, ids: pa.Array, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return the versions of a batch of files, and each one's position in the batch."""
        if not len(self):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        codes = pc.index_in(batch.column("recording_id"), value_set=ids)
        files = np.flatnonzero(codes.is_valid().to_numpy(zero_copy_only=False))
        known = codes.drop_null().to_numpy()
        starts, stops = (np.searchsorted(self.owner, known, side) for side in ("left", "right"))
        versions, repeated = _ranges(starts, stops)
        return versions, files[repeated]

    def fit(self, versions: np.ndarray, files: pa.RecordBatch) -> np.ndarray:
        """Return whether each of these versions is that of the file at its place."""
        etag = self._etags.take(pa.array(self._etag[versions], mask=self._etag[versions] < 0))
        size = pa.array(self._size[versions], mask=self._size[versions] < 0)
        same: np.ndarray = _same(etag.cast(pa.string()), files["etag"])
        same &= _same(size, files["size_bytes"])
        return same

    def fit_newest(self) -> np.ndarray:
        """Return whether each version fits the newest one of its recording."""
        if not len(self):
            return np.empty(0, dtype=bool)
        by_age = np.lexsort((self.newest, self.owner))
        last = np.searchsorted(self.owner, self.owner, side="right") - 1
        newest = by_age[last]
        same = np.ones(len(self), dtype=bool)
        for key in (self._etag, self._size):
            same &= (key == key[newest]) | (key < 0) | (key[newest] < 0)
        return same


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResolution:
    """Which committed rows count. Masks are over the rows of an outcomes object, by its name."""

    num_listed: int
    counts: dict[str, np.ndarray]
    """Whether rows count; of objects in which some do not."""
    places: dict[str, np.ndarray]
    """The `Place` of rows; of objects in which some lie elsewhere."""
    failing: dict[str, np.ndarray]
    """Whether rows are failures of a version in whose place an earlier one counts."""
    complete_ids: (
        pa.Array
    )  # recordings all of whose parts are committed, of the version that counts
    listed_ids: pa.Array  # those of them whose listed version it is
    failed_ids: pa.Array  # those whose listed version failed, so that an earlier one counts
    earlier_ids: pa.Array  # listed recordings that have the text of an earlier version

    @property
    def num_done(self) -> int:
        """Listed recordings whose listed version is done or failed."""
        return len(self.listed_ids) + len(self.failed_ids)


def counted(
    store: OutputStore,
    counts: Mapping[str, np.ndarray],
    columns: Sequence[str],
    names: Iterable[str] | None = None,
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Yield outcomes rows, in the order of their commits, each with whether it counts."""
    seen: Counter[str] = Counter()
    for batch in store.committed(columns, store.commit_names() if names is None else names):
        start = seen[batch.name]
        seen[batch.name] += batch.rows.num_rows
        mask = counts.get(batch.name, np.ones(seen[batch.name], dtype=bool))
        yield batch.rows, mask[start : seen[batch.name]]


def failing_rows(
    store: OutputStore, resolution: CommitResolution, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the failures of versions in whose place an earlier one counts."""
    masks = resolution.failing
    for rows, mask in counted(store, masks, columns, sorted(masks)):
        yield rows.filter(pa.array(mask))


_FAILURE_COLUMNS = ("status", "error_kind", "retryable")
_ROWS = pa.schema([
    *projected(OUTCOMES, _LEDGER_COLUMNS), ("failed", pa.bool_()), ("origin", pa.int8()),
    ("written", pa.bool_()), ("object", pa.int32()), ("row", pa.int32()),
])  # fmt: skip


def _origins(rows: pa.RecordBatch) -> pa.Array:
    # By kind: what `retryable` says is of the version of this program that wrote it.
    kinds = pa.StructArray.from_arrays(
        [pc.fill_null(rows["error_kind"], ""), pc.fill_null(rows["retryable"], False)],
        ["kind", "retryable"],
    )
    known: dict[tuple[str, bool], int] = {}
    codes = np.zeros(len(rows), np.int8)
    for at in np.flatnonzero(pc.equal(rows["status"], "failed").to_numpy(zero_copy_only=False)):
        kind = kinds[int(at)].as_py()
        key = (kind["kind"], kind["retryable"])
        if key not in known:
            known[key] = _ORIGINS.index(failure_kind(key[0], retryable=key[1]).origin)
        codes[at] = known[key]
    return pa.array(codes)


def _same(left: pa.Array, right: pa.Array) -> np.ndarray:
    equal: np.ndarray = pc.fill_null(pc.equal(left, right), True).to_numpy(zero_copy_only=False)
    return equal


def _ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of ranges one after the other, and the place of each one's range."""
    counts = stops - starts
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    places = np.repeat(np.arange(len(counts)), counts)
    return starts[places] + within, places


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
    """A recording that this program failed on, so that nights try it again a few times."""

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
    program = _ORIGINS.index(Origin.program)
    for batch in store.outcomes([*columns, *_FAILURE_COLUMNS]):
        failed = pc.equal(batch["status"], "failed")
        failed = pc.and_(failed, pc.equal(_origins(batch), program))
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
