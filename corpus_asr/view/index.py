"""The recordings of an output folder by position, and whose the rows of its objects are.

Comes in: what counts of a run. Goes out: an index, and rows with the positions of their recordings.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.storage.run_state.corrections import (
    Correction,
    Corrections,
    SegmentKey,
    corrected,
    key_of,
)
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import (
    LABEL_ROWS,
    SEGMENT_ROWS,
    OutputStore,
    PartRows,
    table_of,
)
from corpus_asr.storage.stores.uri import redact_uri


@dataclass(frozen=True, slots=True)
class Claims:
    """Whose the rows of one object of segments are, in their order."""

    owners: np.ndarray
    """Positions in the index."""
    counts: np.ndarray
    """False if another commit of the same part counts."""


class Index:
    """The recordings of an output folder, sorted by URI.

    `recordings` has recording_id, uri, size_bytes and etag (of what was transcribed), duration_s,
    language, failed (a part did), succeeded (a part did not), complete (no part is missing), and
    segments.
    """

    def __init__(self, recordings: pa.Table, parts: pa.Table, names: Sequence[str]) -> None:
        self.recordings = recordings
        self._names = names
        self._object = parts["object"].to_numpy()
        self._owner = parts["owner"].to_numpy()
        self._written = parts["segments_written"].to_numpy()
        self._counts = parts["counts"].to_numpy()
        # Stable: parts of one object keep the order in which their rows lie.
        self._order = np.argsort(self._object, kind="stable")
        self._starts = np.searchsorted(
            self._object[self._order], np.arange(len(names) + 1), side="left"
        )

    def __len__(self) -> int:
        return int(self.recordings.num_rows)

    def objects(self) -> Iterator[tuple[str, Claims]]:
        """Yield the objects with rows that count, and the owners of their rows."""
        for number, name in enumerate(self._names):
            rows = self._order[self._starts[number] : self._starts[number + 1]]
            written = self._written[rows]
            claims = Claims(
                np.repeat(self._owner[rows], written), np.repeat(self._counts[rows], written)
            )
            if claims.counts.any():
                yield name, claims

    def places(self, position: int) -> Iterator[tuple[str, int, int]]:
        """Yield where a recording's rows lie: an object, the first row, and the row after."""
        theirs = (self._owner == position) & self._counts & (self._written > 0)
        for number in np.unique(self._object[theirs]).tolist():
            rows = self._order[self._starts[number] : self._starts[number + 1]]
            stops = np.cumsum(self._written[rows])
            starts = stops - self._written[rows]
            for at in np.flatnonzero(theirs[rows]).tolist():
                yield self._names[number], int(starts[at]), int(stops[at])


def index_of(store: OutputStore, tables: RunTables, rows: PartRows) -> Index:
    """Return the index of an output folder, given what counts of it."""
    _refuse_others(store, [name for (name,) in tables.rows(_NAMES)], rows)
    parts = tables.table(_PARTS)
    # Objects of segments as numbers: their names would be most of the memory of an index.
    objects = parts["segments_object"].combine_chunks().dictionary_encode()
    parts = parts.append_column("object", objects.indices).drop_columns(["segments_object"])
    return Index(tables.table(_RECORDINGS), parts, objects.dictionary.to_pylist())


_NAMES = "select distinct segments_object from outcomes where segments_object is not null"
_RECORDINGS = """
select recording_id, uri, size_bytes, etag, coalesce(end_s, 0.0) as duration_s,
       languages[1] as language, failed, succeeded, complete, segments::bigint as segments
from recordings order by uri, recording_id
"""
# Rows that do not count are there for their places: segments lie in the order of outcomes.
_PARTS = """
with placed as (
  select recording_id, row_number() over (order by uri, recording_id) - 1 as owner from recordings)
select segments_object, coalesce(owner, -1) as owner, segments_written,
       coalesce(counts, false) as counts
from outcomes left join standing using (id) left join placed using (recording_id)
where segments_object is not null order by id
"""
_PIPELINE_OF = {
    SEGMENT_ROWS.folder: ("the segments of a transcription", "transcribed"),
    LABEL_ROWS.folder: ("the labels of a classification", "classified"),
}


def _refuse_others(store: OutputStore, named: Iterable[str | None], rows: PartRows) -> None:
    if all(name is None or table_of(name) == rows.folder for name in named):
        return
    other = LABEL_ROWS if rows is SEGMENT_ROWS else SEGMENT_ROWS
    raise ConfigError(
        f"reading {redact_uri(store.uri)}: found {other.folder}/, expected "
        f"{_PIPELINE_OF[rows.folder][0]}: this run {_PIPELINE_OF[other.folder][1]}; read its table "
        f"of {other.folder} as it is"
    )


def claimed_rows(
    store: OutputStore, index: Index, claims: Mapping[str, Claims], schema: pa.Schema
) -> Iterator[tuple[str, pa.Table, Claims]]:
    """Yield the rows of objects that the index names, a bounded number at a time.

    `schema` has the columns to read, `recording_id` among them.
    """
    ids = index.recordings["recording_id"].combine_chunks()
    seen = dict.fromkeys(claims, 0)
    for name, table in store.read_tables(claims, schema):
        whole, start = claims[name], seen[name]
        stop = seen[name] = start + table.num_rows
        theirs = Claims(whole.owners[start:stop], whole.counts[start:stop])
        if stop > len(whole.owners) or not _are_of(table, ids, theirs):
            raise _broken(store, name, whole, stop)
        yield name, table, theirs
    for name, whole in claims.items():
        if seen[name] != len(whole.owners):
            raise _broken(store, name, whole, seen[name])


def _are_of(table: pa.Table, ids: pa.Array, claims: Claims) -> bool:
    owners = pa.array(claims.owners[claims.counts])
    expected = pa.chunked_array([ids.take(owners)], pa.string())
    return bool(table["recording_id"].filter(pa.array(claims.counts)).equals(expected))


def _broken(store: OutputStore, name: str, claims: Claims, found: int) -> CorpusAsrError:
    return CorpusAsrError(
        f"reading {redact_uri(store.address(name))}: found {found} rows or more, or those of other "
        f"recordings, expected the {len(claims.owners)} that its outcomes say; restore it, or "
        "remove it to have its recordings transcribed again"
    )


class Corrector:
    """Applies corrections to rows of segments, and notes which were applied.

    `recordings` is a table with recording_id, etag and size_bytes; owners are positions in it.
    """

    def __init__(self, corrections: Corrections, recordings: pa.Table) -> None:
        self._by_position: dict[int, dict[SegmentKey, tuple[str, Correction]]] = {}
        self._stale: dict[int, dict[str, Correction]] = {}
        ids = pa.array(corrections.recording_ids, pa.string())
        places = pc.index_in(ids, value_set=recordings["recording_id"].combine_chunks())
        for at in places.drop_null().to_pylist():
            columns = recordings.select(["recording_id", "etag", "size_bytes"])
            row = columns.slice(at, 1).to_pylist()[0]
            self._by_position[at] = corrections.version(**row)
            self._stale[at] = dict(corrections.of(row["recording_id"]))
        keys = [key for of_one in self._by_position.values() for key in of_one]
        self._starts_ms = np.array([key.start_ms for key in keys], dtype=np.int64)

    def __bool__(self) -> bool:
        return bool(len(self._starts_ms))

    def matches(
        self, rows: pa.Table, owners: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any], str, Correction]]:
        """Yield number, row, name and correction of each row that has one.

        Rows have the columns of `key_of`, and perhaps more.
        """
        maybe = np.isin(owners, list(self._by_position))
        if maybe.any():
            starts_ms = np.rint(1000 * rows["start_s"].to_numpy()).astype(np.int64)
            maybe &= np.isin(starts_ms, self._starts_ms)
        numbers = np.flatnonzero(maybe)
        some = rows.take(pa.array(numbers)).to_pylist()
        for number, row in zip(numbers.tolist(), some, strict=True):
            owner = int(owners[number])
            found = self._by_position[owner].get(key_of(row))
            if found is not None:
                name, correction = found
                self._stale[owner].pop(name, None)
                yield number, row, name, correction

    def apply(self, rows: pa.Table, owners: np.ndarray) -> pa.Table:
        """Return rows with what was corrected in them, and a column `corrected`."""
        changed = [(at, corrected(row, each)) for at, row, _, each in self.matches(rows, owners)]
        order, marks = np.arange(rows.num_rows), np.zeros(rows.num_rows, dtype=bool)
        for position, (at, _) in enumerate(changed):
            order[at] = rows.num_rows + position
            marks[at] = True
        if changed:
            others = pa.Table.from_pylist([row for _, row in changed], schema=rows.schema)
            rows = pa.concat_tables([rows, others]).take(pa.array(order))
        return rows.append_column("corrected", pa.array(marks))

    def stale(self, wanted: np.ndarray | None = None) -> dict[str, Correction]:
        """Return those of (wanted) recordings that no row so far had: their segments changed."""
        return {
            name: each
            for at, of_one in self._stale.items()
            if wanted is None or wanted[at]
            for name, each in of_one.items()
        }
