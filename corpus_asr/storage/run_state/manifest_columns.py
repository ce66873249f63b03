"""Manifest columns: outcomes keep those of their run, the recordings table has the latest.

A changed manifest rewrites nothing else; readers join the recordings table. For alignment, a
changed text or time changes the result: such a recording is reprocessed.
"""

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import AlignmentError
from corpus_asr.storage.manifest import AlignedText, aligned_text
from corpus_asr.storage.run_state.part_rows import without_credentials
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore

_NEWEST = """
update {table} set metadata = {newest}.metadata from {newest}
where {table}.recording_id = {newest}.recording_id
  and {table}.metadata is distinct from {newest}.metadata
"""
_OF = "select recording_id, metadata from recordings where recording_id in (select unnest($ids))"
_OTHERS = """
select distinct outcomes.recording_id, outcomes.metadata as before, shard.metadata as now
from outcomes join shard using (recording_id)
semi join (select id from part_rows semi join (from attempts where not redone)
             using (recording_id, begun_by)) using (id)
where outcomes.metadata is distinct from shard.metadata order by all
"""


def join_columns(store: OutputStore, tables: RunTables, table: str = "recordings") -> None:
    """Replace a table's metadata by that of the last finish."""
    for batch in store.recordings(("recording_id", "metadata")):
        tables.execute(_NEWEST.format(table=table, newest="arriving"), pa.table(batch))


def join_noted(tables: RunTables, *, listed: bool) -> None:
    """Replace the metadata of recordings by what is noted; if `listed`, by the listing's."""
    tables.execute(_NEWEST.format(table="recordings", newest="noted"))
    if listed:
        tables.execute(_NEWEST.format(table="recordings", newest="listing"))


def columns_of(tables: RunTables, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the metadata of recordings as JSON text, for each of these IDs."""
    rows = tables.table(_OF, ids=ids.unique().to_pylist())
    return rows["metadata"].take(pc.index_in(ids, value_set=rows["recording_id"]))


def other_texts(tables: RunTables, files: pa.Table) -> pa.Array:
    """Return the IDs of FILES rows whose text or its times differ from the aligned ones."""
    tables.add("shard", without_credentials(files))
    rows = (row for batch in tables.batches(_OTHERS) for row in batch.to_pylist())
    ids = {row["recording_id"] for row in rows if _aligned(row["before"]) != _aligned(row["now"])}
    return pa.array(sorted(ids), pa.string())


def _aligned(metadata: str | None) -> AlignedText | None:
    try:
        return aligned_text("", metadata)
    except AlignmentError:  # it failed, or will fail
        return None
