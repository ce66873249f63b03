"""Recordings that are settled: no finish or plan folds their outcomes again.

Settled is a complete recording without a failure, of one version, all parts of which are in tables,
that never moved and is not to be done again: its row in the recordings table stands for them.
`TABLES_NAME` names the objects that have rows of such recordings alone, until an object of outcomes
changes; those of others are in objects that each finish writes anew. Where it names none, or what
it names is damaged or of another folder, all recordings are folded from their outcomes.
"""

import logging
from collections.abc import Mapping

import pyarrow as pa

from corpus_asr.errors import CorpusAsrError, FetchError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.schemas import RECORDINGS
from corpus_asr.storage.run_state.tables import RECORDINGS_FOLDER, OutputStore, projected

logger = logging.getLogger(__name__)

SETTLED_COLUMNS: tuple[str, ...] = ("recording_id", "etag", "size_bytes", "parts")
COUNTED_COLUMNS: tuple[str, ...] = (
    "run_id", "status", "segments", "duration_s", "speech_s", "metadata", "gone_since",
)  # fmt: skip
"""What a finish needs of them in addition; moments are in UTC."""
_NUMBER = pa.field("number", pa.int32())
_GONE_SINCE = pa.field("gone_since", pa.timestamp("ms"))
_ROWS = RECORDINGS.set(RECORDINGS.get_field_index("gone_since"), _GONE_SINCE)

# What something was committed of, is asked to be done again, moved (`arriving`), or is to adopt the
# version of the listing (`finish`).
UNSETTLED = """
delete from settled where recording_id in (
  select recording_id from outcomes union all select recording_id from redo
  union all select recording_id from arriving
  union all select recording_id from settled join listing using (recording_id)
  where case when settled.etag is not distinct from listing.etag or listing.etag is null
        then false else fits(settled.etag, listing.etag) end)
"""

# Recordings of which a finish leaves one version, whole and without a failure, that never moved.
SETTLING = """
create or replace table settling as
select recording_id from outcomes join standing using (id)
where place != 0
  and recording_id in (select recording_id from recordings where complete and status != 'failed')
  and recording_id not in (select recording_id from redo)
  and recording_id not in (select recording_id from arriving)
group by recording_id having bool_and(counts) and count(distinct (etag, size_bytes)) = 1
"""

# A settled recording has one version: it is the present one, or another is listed.
COUNTED = """
create or replace table resting as
with placed as (
  select settled.*, listing.recording_id is not null as listed,
    listing.metadata as listed_metadata,
    case when listing.recording_id is null or settled.etag is not distinct from listing.etag
         then true
         else fits(settled.etag, listing.etag) end
      and coalesce(listing.recording_id is null or settled.size_bytes = listing.size_bytes, true)
      as current
  from settled left join listing using (recording_id))
select placed.*, true as complete, false as failed_since, listed and not current as earlier,
  not listed and elsewhere_id is not null as elsewhere,
  not listed and elsewhere_id is null and not {unread} as gone
from placed left join (select distinct recording_id as elsewhere_id from elsewhere)
  on elsewhere_id = recording_id;

create or replace view counted as
select {counted} from recordings union all select {counted} from resting
""".replace(
    "{counted}",
    "recording_id, run_id, status, segments, duration_s, speech_s, complete, listed, current, "
    "failed_since, earlier, elsewhere, gone",
)
# What a finish writes anew of settled recordings.
RENEWED = """
select recording_id, number, newest as metadata, since as gone_since
from (select *, if(listed and $has_columns, listed_metadata, metadata) as newest,
        if(gone, coalesce(gone_since, $now::timestamp), null)::timestamp_ms as since from resting)
where newest is distinct from metadata or since is distinct from gone_since
"""


def read_settled(
    store: OutputStore | None, columns: tuple[str, ...]
) -> tuple[Mapping[str, int], pa.Table]:
    """Return the rows of settled recordings, and how many each object has, by its name.

    The `number` of a row is that of its object. Without any, recordings are folded from outcomes.
    """
    schema = projected(_ROWS, columns).remove_metadata()
    none = schema.append(_NUMBER).empty_table()
    names = [] if store is None else store.settled_names()
    if store is None or names is None:
        if store is not None and store.names(RECORDINGS_FOLDER):
            logger.info("recordings folded again: found=outcomes changed since they were made")
        return {}, none
    number = {name: index for index, name in enumerate(names)}
    num_rows, tables = dict.fromkeys(names, 0), [none]
    try:
        for name, rows in store.read_tables(names, schema):
            numbers = pa.repeat(pa.scalar(number[name], pa.int32()), len(rows))
            tables.append(rows.append_column(_NUMBER, numbers))
            num_rows[name] += len(rows)
    except (CorpusAsrError, ValueError) as error:
        if isinstance(error, FetchError) and error.kind != NOT_FOUND:
            raise
        logger.warning("recordings folded again: found=%s", error)
        return {}, none
    return num_rows, pa.concat_tables(tables)
