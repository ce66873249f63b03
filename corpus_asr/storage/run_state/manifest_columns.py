"""Columns of a manifest that were corrected after its recordings were done.

They are written into the tables again, without transcription. Where a text is aligned, another
text, or other times of it, are another result: such a recording is done again, and keeps its
columns until then.
"""

import logging
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import AlignmentError
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.manifest import AlignedText, aligned_text
from corpus_asr.storage.run_state.claims import rows_with_owners
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import (
    PENDING,
    OutputStore,
    part_rows_named,
    time_ns_of,
)

logger = logging.getLogger(__name__)

_CHANGES = pa.schema([(name, pa.string()) for name in ("recording_id", "before", "now")])
_FOUND = """
select live.recording_id, outcomes.metadata as before, listed.metadata as now,
       live.generation = coalesce(generations.generation, 0) as latest
from live join outcomes using (id)
join {listed} listed on listed.recording_id = live.recording_id
left join generations on generations.recording_id = live.recording_id
where outcomes.metadata is distinct from listed.metadata group by all order by all
"""
_OBJECTS = """
select name, list(distinct changes) from outcomes join objects using (object)
join changes on outcomes.recording_id = changes.recording_id
 and outcomes.metadata is not distinct from changes.before
where not gone group by name order by name
"""


class ManifestChanges(NamedTuple):
    """What a manifest says otherwise than the tables do."""

    columns: pa.Table
    """recording_id, and the columns `before` and `now`, of what is rewritten."""
    texts: pa.Array
    """IDs of recordings that are to be aligned again."""

    @property
    def num_recordings(self) -> int:
        """Recordings whose columns are rewritten."""
        return len(self.columns["recording_id"].unique())


def changes(tables: RunTables, listed: str, *, aligns: bool) -> ManifestChanges:
    """Compare the metadata of outcomes with that of a table of FILES rows, without credentials."""
    columns, texts = [_CHANGES.empty_table()], dict[str, None]()
    for batch in tables.batches(_FOUND.format(listed=listed)):
        if not aligns:
            columns.append(pa.Table.from_batches([batch.select(_CHANGES.names)]))
            continue
        rows = []
        for row in batch.to_pylist():
            if _aligned(row["before"]) == _aligned(row["now"]):
                rows.append(row)
            elif row["latest"]:  # else it waits to be done again
                texts[row["recording_id"]] = None
        columns.append(pa.Table.from_pylist(rows, _CHANGES))
    return ManifestChanges(pa.concat_tables(columns), pa.array(list(texts), pa.string()))


def _aligned(metadata: str | None) -> AlignedText | None:
    try:
        return aligned_text("", metadata)
    except AlignmentError:  # it failed, or will
        return None


def write_columns(store: OutputStore, tables: RunTables, found: ManifestChanges) -> bool:
    """Write changed columns into the objects that hold them; tell whether there were any.

    May be repeated after being killed anywhere: what is written sorts before what it replaces.
    """
    if not found.columns.num_rows:
        return False
    tables.add("changes", found.columns)
    for name, own in tables.rows(_OBJECTS):
        now = {(each["recording_id"], each["before"]): each["now"] for each in own}
        outcomes = store.read_table(name, OUTCOMES)
        named = outcomes["segments_object"].unique().drop_null().to_pylist()
        kind = part_rows_named(named)
        claims = outcomes.filter(pc.greater(outcomes["segments_written"], 0))
        segments = rows_with_owners(store, claims, kind.schema)
        store.write_commit(
            _replaced(outcomes, now),
            (_replaced(rows, now) for rows, _ in segments),
            rows=kind,
            stem=store.stem(max(0, time_ns_of(name) - 1)),
            under=PENDING if name.startswith(PENDING) else "",
        )
        # As in `finish`: first the commit, then what it named.
        store.remove(name)
        store.remove_all(named)
    logger.info("columns rewritten recordings=%d", found.num_recordings)
    return True


def _replaced(rows: pa.Table, now: dict[tuple[str, str | None], str | None]) -> pa.Table:
    keys = zip(rows["recording_id"].to_pylist(), rows["metadata"].to_pylist(), strict=True)
    values = pa.array([now.get(key, key[1]) for key in keys], pa.string())
    place = rows.schema.get_field_index("metadata")
    return rows.set_column(place, rows.schema.field(place), values)
