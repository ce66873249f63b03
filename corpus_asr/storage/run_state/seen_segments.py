"""Segments as people see them: those of the model, with corrections in their places.

This is what `show`, `export`, `read_segments`, the viewer, `label` and `evaluate` read. Segments of
recordings that nobody corrected pass through; of the others all columns that corrections need are
read as well, whatever is asked for, so that a correction has the same place for every reader.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.schemas import SEGMENTS
from corpus_asr.storage.run_state.corrections import Correction, Corrections
from corpus_asr.storage.run_state.part_rows import counting_rows
from corpus_asr.storage.run_state.placing import (
    PLACED_COLUMNS,
    Placing,
    Stale,
    place,
    with_no_corrections,
)
from corpus_asr.storage.run_state.result_rows import SEGMENT_ROWS
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore, projected

SEEN_SEGMENTS = pa.schema([*SEGMENTS, *PLACED_COLUMNS])
"""Columns of segments as people see them."""
_NEEDED = ("recording_id", "part", "channel", "segment", "start_s", "end_s", "text", "words")
_ORDER = "order by recording_id, start_s, channel, part, segment"


class SeenSegments:
    """Reads segments of the tables of a run, and notes which corrections have no place."""

    def __init__(
        self, store: OutputStore, tables: RunTables, corrections: Corrections | None = None
    ) -> None:
        self._store, self._tables = store, tables
        self._corrections = corrections or Corrections({})
        self.stale: list[Stale] = []
        """Complete once all segments were read."""

    def batches(self, columns: Sequence[str], *, of: str = "parts") -> Iterator[pa.Table]:
        """Yield segments with `PLACED_COLUMNS`; those of a corrected recording at once, last.

        Args:
            columns: of the segments table.
            of: in SQL the outcomes whose segments are wanted, all of a recording.
        """
        groups = self._groups(of)
        tables = self._tables
        tables.add("corrected_ids", pa.table({"recording_id": pa.array(groups, pa.string())}))
        uncorrected = f"(from {of}) anti join corrected_ids using (recording_id)"
        for rows, _ in counting_rows(self._store, tables, SEGMENT_ROWS, columns, of=uncorrected):
            yield with_no_corrections(rows)
        for _, placing in self._placings(groups, columns, of):
            yield placing.rows.select([*columns, *PLACED_COLUMNS.names])

    def _groups(self, of: str) -> Mapping[str, Sequence[Correction]]:
        ids = self._corrections.recording_ids
        id_rows = self._tables.rows(
            f"select distinct recording_id from (from {of}) "
            "where recording_id in (select unnest($ids::varchar[])) order by all", ids=ids,
        ) if ids else []  # fmt: skip
        return {recording_id: self._corrections.of(recording_id) for (recording_id,) in id_rows}

    def _placings(
        self, groups: Mapping[str, Sequence[Correction]], columns: Sequence[str], of: str
    ) -> Iterator[tuple[str, Placing]]:
        if not groups:
            return
        columns = tuple(dict.fromkeys((*columns, *_NEEDED)))
        schema = projected(SEGMENTS, columns)
        self._tables.add("held", schema.empty_table())
        corrected = f"(from {of}) semi join corrected_ids using (recording_id)"
        for rows, _ in counting_rows(
            self._store, self._tables, SEGMENT_ROWS, columns, of=corrected
        ):
            self._tables.execute("insert into held from arriving", rows)
        silent = dict(groups)
        for rows in _by_recording(self._tables.batches(f"from held {_ORDER}"), schema):
            recording_id = rows["recording_id"][0].as_py()
            yield recording_id, self._placed(rows, silent.pop(recording_id))
        self._tables.execute("drop table held")
        for recording_id, recording_corrections in silent.items():
            yield recording_id, self._placed(schema.empty_table(), recording_corrections)

    def _placed(self, rows: pa.Table, corrections: Sequence[Correction]) -> Placing:
        placing = place(rows, corrections)
        self.stale += placing.stale
        return placing


def _by_recording(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting = schema.empty_table()
    for batch in batches:
        rows = pa.Table.from_batches([batch]).cast(schema)
        waiting = pa.concat_tables([waiting, rows])
        ids = waiting["recording_id"]
        for recording_id in ids.unique().to_pylist()[:-1]:
            yield waiting.filter(pc.equal(ids, recording_id))
        waiting = waiting.filter(pc.equal(ids, ids[-1])) if len(ids) else waiting
    if waiting.num_rows:
        yield waiting
