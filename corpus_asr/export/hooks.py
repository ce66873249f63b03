"""What users' functions made of transcripts: as a table, and the segments whose vectors are near.

In: the table of a hook. Out: its rows, or segments by the likeness of a column of vectors, of which
some are in memory at once.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.array_types import Float32
from corpus_asr.config.hooks import STATE
from corpus_asr.schemas import HOOKS
from corpus_asr.storage.run_state.hook_rows import folder_of, hooks_of, read_rows
from corpus_asr.storage.run_state.run_files import open_run
from corpus_asr.storage.run_state.tables import OutputStore

_MOMENT = ("recording_id", "channel", "start_s")


def read_hook(uri: str, name: str, *, endpoint_url: str | None = None) -> pa.Table:
    """Return what a hook of a run made of its recordings, as an Arrow table.

    Rows are known by `recording_id`, and by `part` and `segment` if the hook is one per segment:
    those of `read_segments`. Recordings for which the function failed or had nothing have none.

    Raises:
        ConfigError: there is no such table.
    """
    store = open_run(uri, endpoint_url=endpoint_url)
    tables = [*read_rows(store, name)] or [HOOKS.empty_table()]
    return with_values(pa.concat_tables(tables)).drop_columns([*STATE])


def with_values(rows: pa.Table) -> pa.Table:
    """Return the rows of a hook's table that tell something."""
    told = pa.array([False] * rows.num_rows, pa.bool_())
    for column in rows.schema.names:
        if column not in ("recording_id", "uri", *STATE):
            told = pc.or_(told, pc.is_valid(rows[column]))
    return rows.filter(told)


@dataclass(frozen=True, slots=True, order=True)
class Near:
    """A segment, and how like its vector is to another: the cosine of their angle."""

    likeness: float
    recording_id: str
    start_s: float
    channel: int | None


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """A column of a hook's table, per segment, that holds vectors."""

    hook: str
    column: str

    @classmethod
    def find(cls, store: OutputStore) -> "VectorColumn | None":
        """Return the first one by name of an output folder."""
        for hook in hooks_of(store):
            names = reversed(store.names(folder_of(hook)))  # one may have no rows left
            schema = next(filter(len, (_schema_of(store, name) for name in names)), pa.schema([]))
            for field in schema if {*_MOMENT} <= {*schema.names} else ():
                if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
                    return cls(hook, field.name)
        return None

    def nearest(
        self,
        store: OutputStore,
        recording_id: str,
        *,
        start_s: float,
        channel: int | None = None,
        count: int = 50,
    ) -> list[Near] | None:
        """Return the segments that are most like one, without it; None if it has no vector."""
        vector = self._vector_of(store, recording_id, start_s=start_s, channel=channel)
        if vector is None:
            return None
        best: list[Near] = []
        for rows in self._rows(store):
            likeness = _cosines(rows[self.column], vector)
            first = np.argsort(-likeness, kind="stable")[: count + 1]
            found = rows.select(_MOMENT).take(pa.array(first)).to_pylist()
            near = [Near(float(value), each["recording_id"], each["start_s"], each["channel"])
                    for value, each in zip(likeness[first], found, strict=True)]  # fmt: skip
            best = heapq.nlargest(count + 1, [*best, *near], key=lambda each: each.likeness)
        others = (
            each for each in best
            if (each.recording_id, each.channel) != (recording_id, channel)
            or abs(each.start_s - start_s) >= _SAME_S
        )  # fmt: skip
        return [*others][:count]

    def _vector_of(
        self, store: OutputStore, recording_id: str, *, start_s: float, channel: int | None
    ) -> Float32[np.ndarray, " value"] | None:
        for name in reversed(store.names(folder_of(self.hook))):  # the newest counts
            for number, batch in enumerate(store.batches(name, columns=_MOMENT)):
                if not pc.any(pc.equal(batch["recording_id"], recording_id)).as_py():
                    continue
                columns = (*_MOMENT, self.column)
                [rows] = islice(store.batches(name, columns=columns), number, number + 1)
                for row in rows.filter(pc.equal(rows["recording_id"], recording_id)).to_pylist():
                    same = row["channel"] == channel and row[self.column] is not None
                    if same and abs(row["start_s"] - start_s) < _SAME_S:
                        return np.array(row[self.column], dtype=np.float32)
        return None

    def _rows(self, store: OutputStore) -> Iterator[pa.Table]:
        for rows in read_rows(store, self.hook, (*_MOMENT, self.column)):
            column = rows[self.column]
            yield rows.filter(column.is_valid()) if column.null_count else rows


_SAME_S = 0.001


@lru_cache(maxsize=64)
def _schema_of(store: OutputStore, name: str) -> pa.Schema:
    # Objects do not change, and pages ask every few seconds.
    return next((batch.schema for batch in store.batches(name, batch_rows=1)), pa.schema([]))


def _cosines(column: pa.ChunkedArray, vector: np.ndarray) -> Float32[np.ndarray, " row"]:
    """Return the likeness of each row's vector; those of another length are not alike."""
    values = column.combine_chunks()
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    fits = lengths == len(vector)
    found = np.full(len(lengths), -1.0, dtype=np.float32)
    if fits.any():
        own = values if fits.all() else values.filter(pa.array(fits))
        flat = own.flatten().to_numpy(zero_copy_only=False)
        rows = flat.reshape(-1, len(vector)).astype(np.float32, copy=False)
        lengths = np.sqrt(np.einsum("rv,rv->r", rows, rows)) * np.linalg.norm(vector)
        with np.errstate(invalid="ignore"):
            cosines = rows @ vector / np.maximum(lengths, np.finfo(np.float32).tiny)
        found[fits] = np.where(np.isfinite(cosines), cosines, -1.0)
    return found
