"""Which committed rows count, and what recordings came to, in SQL: the one fold of a folder.

The relations are those of `run_tables`, which has them made.

Settled is a complete recording without a failure, of one version, all parts of which are in tables,
that never moved and is not to be done again: its row in the recordings table stands for them.
`TABLES_NAME` names the objects that have rows of such recordings alone, until an object of outcomes
changes; those of others are in objects that each finish writes anew. Where it names none, or what
it names is damaged or of another folder, all recordings are folded from their outcomes.
"""

import logging
from collections.abc import Mapping
from enum import IntEnum

import pyarrow as pa

from corpus_asr.errors import CorpusAsrError, FetchError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.schemas import RECORDINGS
from corpus_asr.storage.run_state.table_names import RECORDINGS_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores.uri import REST, SIZE

logger = logging.getLogger(__name__)

# The same in every part; what only some parts know (a failed one has no codec) comes from those.
_FIRST_COLUMNS = (
    "uri", "size_bytes", "etag", "metadata", "codec", "sample_rate_hz", "channels",
    "header_duration_s", "audio_track", "audio_tracks",
)  # fmt: skip


class RemainingReason(IntEnum):
    """Reason why a listed recording remains to be processed."""

    new = 0
    changed = 1  # only other versions of it are committed
    retried = 2  # it failed, and is to be done again
    continued = 3  # some of its parts are committed, not all
    redone = 4  # it is done, and is to be done again


# What is unknown fits any version, and so does a size an ETag: these cannot be compared.
FITS = f"""
create macro by_size(version) as starts_with(version, '{SIZE}');
create macro plain(version) as if(by_size(version), split_part(version, '@', 1), version);
create macro fits(one, other) as
  coalesce(plain(one) = plain(other) or by_size(one) != by_size(other), true)
"""
# The same sum in whatever order, so that tables do not depend on threads: to the nanosecond.
SUM = "create macro exact_sum(x) as sum(try_cast(x as decimal(38, 9)))::double"

# Runs are named by the time that they began, also where rows were put into another object.
LISTED = """
create table listed (recording_id varchar, etag varchar, size_bytes bigint, metadata varchar);
create table seen (recording_id varchar);
create table unread (prefix varchar);
create table elsewhere (recording_id varchar, plan varchar);
"""
SMALL_TABLES = """
create or replace table objects (object integer, name varchar, is_commit boolean);
create or replace table origins (error_kind varchar, retryable boolean, origin varchar);
create or replace table redo (recording_id varchar, earlier_runs varchar[]);
create or replace table noted (recording_id varchar, gone_since timestamp_ms, metadata varchar);
create or replace table closed (id bigint);
"""
# What stood for all that could not be read of a folder or archive, as long as it was so.
CLOSED = f"""
insert into closed
select id from outcomes
where status = 'failed' and size_bytes is null
  and (ends_with(uri, '/{REST}') or ends_with(uri, '#{REST}')) and exists (from listed)
  and recording_id not in (select recording_id from listed union select recording_id from elsewhere)
"""
VERSIONS = """
create or replace table generations as
select recording_id, count(*) as generation from redo group by all;

create or replace table live as
with later as (
  select id, count(*) as generation from outcomes join redo using (recording_id)
  where not list_contains(earlier_runs, run_id) group by id)
select id, recording_id, plain(etag) as etag, size_bytes, content_digest,
       coalesce(generation, 0) as generation, part, last_part,
       status = 'failed' as failed, coalesce(segments_written, 0) > 0 as written, origin,
       row_number() over (order by coalesce(generation, 0), run_id, id) as age
from outcomes anti join closed using (id) left join later using (id)
left join origins on outcomes.error_kind is not distinct from origins.error_kind
  and outcomes.retryable is not distinct from origins.retryable;

create or replace table known as
select min(age) as version, recording_id, etag, size_bytes, content_digest, generation,
       max(age) as newest
from live group by all;

create or replace view committed as
select recording_id, etag, size_bytes from known
union all select recording_id, etag, size_bytes from settled;

create or replace table winners as
select version, id, part, last_part, failed, written, origin
from known join live using (recording_id, generation)
where (live.etag is null or live.etag = known.etag)
  and (live.size_bytes is null or live.size_bytes = known.size_bytes)
  and (live.content_digest is null or live.content_digest = known.content_digest)
qualify row_number() over (partition by version, part
                           order by failed, live.etag is null, if(failed, -id, id)) = 1;

create or replace table listing as
select recording_id, max(etag) as etag, max(size_bytes) as size_bytes,
       any_value(metadata) as metadata
from listed semi join known using (recording_id) group by recording_id;
"""

# Complete: all parts up to the first that was a last one; parts may lie beyond it, where that one
# failed. A version is included in another one that has its rows as well: where it is less complete,
# it has since been gone on with in the place of a failure of theirs.
RANKS = """
create or replace table ranks as
with reach as (
  select *, min(part) filter (last_part) over (partition by version) as until from winners),
held as (
  select version, coalesce(count(*) filter (part <= until) = any_value(until) + 1, false) as whole,
         bool_or(failed) as failed, bool_or(written) as written
  from reach group by version),
included as (
  select distinct one.version
  from (select * from known
        where etag is null or size_bytes is null or content_digest is null) one
  join known other on one.recording_id = other.recording_id and one.version != other.version
   and one.generation = other.generation
   and (one.etag is null or one.etag = other.etag)
   and (one.size_bytes is null or one.size_bytes = other.size_bytes)
   and (one.content_digest is null or one.content_digest = other.content_digest))
select known.*, held.whole, held.failed, included.version is not null as included,
       case when whole and not held.failed then 2
            when whole and written and included.version is null then 1 else 0 end as rank
from known join held using (version) left join included using (version);
"""

# For recordings that are not listed, the newest version stands for the listing. Of equals a
# listed version is better, then one that is not included, then a newer.
COUNTING = """
create or replace table versions as
with newest as (select recording_id, max_by({etag: etag, size: size_bytes}, newest) as v
                from ranks group by all)
select ranks.*, listing.recording_id is not null as listed,
       fits(ranks.etag, if(listing.recording_id is null, v.etag, listing.etag))
   and coalesce(ranks.size_bytes = if(listing.recording_id is null, v.size, listing.size_bytes),
                true)
   and not ranks.included
   and ranks.generation = coalesce(generations.generation, 0) as fresh
from ranks join newest using (recording_id) left join listing using (recording_id)
left join generations using (recording_id);

create or replace table chosen as
select recording_id, any_value(listed) as listed,
       arg_max(version, (rank, fresh, not included, newest)) as counting,
       arg_max(version, (rank, newest)) filter (fresh) as present,
       max(rank) > 0 as has_text
from versions group by recording_id;

create or replace table standing as
with mine as (select id from winners join chosen on version = counting),
theirs as (select id, failed from winners join chosen on version = present)
select live.id, mine.id is not null as counts,
       mine.id is null and coalesce(theirs.failed, false) as failing,
       case when mine.id is not null or theirs.failed then 1
            when theirs.id is not null then 2 else 0 end as place
from live left join mine using (id) left join theirs using (id);

create or replace view parts as
select * from outcomes semi join (select id from standing where counts) using (id);

create or replace view failing as
select * from outcomes semi join (select id from standing where failing) using (id);
"""

# Channels transcribed separately cover the same span of time; mixed ones, and a recording that
# failed before its channels were known, have no number. What only some parts know (a failed one has
# no codec) comes from the first of those. What a part that failed says is not known to be missing.
RECORDED = """
with mine as (select * from parts where hash(recording_id) % {slices} = {index}),
spoken as (
  select recording_id, list(language order by speech_s desc, language) as languages
  from (select recording_id, language, exact_sum(coalesce(speech_s, duration_s, 0)) as speech_s
        from mine where language is not null and segments_written > 0 group by all)
  group by all),
likely as (
  select recording_id, label, exact_sum(probability * coalesce(label_weight_s, 0)) as weighted
  from (select recording_id, label_weight_s, unnest(label_means, recursive := true) from mine)
  group by all),
labelled as (
  select recording_id,
         arg_min({{label: label, weighted: weighted}}, (-weighted, label)) as likeliest
  from likely group by all),
folded as (
  select recording_id, max(run_id) as run_id,
    {first},
    arg_min({{stage: error_stage, kind: error_kind, message: error_message,
             retryable: retryable}}, part) filter (status = 'failed') as error,
    bool_or(status = 'failed') as failed, bool_or(status != 'failed') as succeeded,
    max(decode_errors) as decode_errors, max(time_corrections) as time_corrections,
    max(clock_restarts) as clock_restarts,
    greatest(count(distinct channel), 1) as separate,
    exact_sum(duration_s) / separate as duration_s,
    exact_sum(speech_s) / separate as speech_s,
    exact_sum(speech_without_text_s) / separate as speech_without_text_s,
    max(part_end_s) as end_s, exact_sum(decode_s) as decode_s,
    exact_sum(transcribe_s) as transcribe_s,
    count(*) as parts, sum(segments_written) as segments, max(text_words) as text_words,
    if(failed, null, max(text_words)
       - coalesce(sum(list_sum([span.stop - span.first for span in text_spans])), 0))
      as missing_words, sum(extra_words) as extra_words,
    exact_sum(label_weight_s) as label_weight_s
  from mine group by recording_id)
select folded.* exclude (error, label_weight_s), coalesce(languages, []) as languages,
  case when failed then 'failed' when segments > 0 then 'ok' else 'no_speech' end as status,
  error.stage as error_stage, error.kind as error_kind, error.message as error_message,
  error.retryable as retryable, likeliest.label as label,
  likeliest.weighted / nullif(label_weight_s, 0) as label_probability,
  own.whole as complete, listed,
  not listed and elsewhere_id is not null as elsewhere,
  not listed and elsewhere_id is null
    and not exists (from unread where starts_with(uri, prefix)) as gone,
  own.whole and counting is not distinct from present as current,
  coalesce(listed and latest.whole and counting != present, false) as failed_since,
  listed and has_text and counting is distinct from present as earlier
from folded join chosen using (recording_id)
join (select version, whole from versions) own on own.version = counting
left join (select version, whole from versions) latest on latest.version = present
left join spoken using (recording_id) left join labelled using (recording_id)
left join (select distinct recording_id as elsewhere_id from elsewhere)
  on elsewhere_id = folded.recording_id
"""
FIRST = ",\n    ".join(f"arg_min({name}, part) as {name}" for name in _FIRST_COLUMNS)

COMPLETE = """
select {columns},
  if(gone, coalesce(noted.gone_since, $now::timestamp), null)::timestamp_ms as gone_since
from recordings left join (select recording_id, gone_since from noted) noted using (recording_id)
where complete and {which} order by recording_id
"""
# What another source lists was listed when that source was; what no finish knew, when it was
# committed.
GONE = """
select recordings.recording_id, uri, coalesce(segments, 0)::bigint as segments,
  coalesce(duration_s, 0.0) as audio_s, elsewhere,
  case when elsewhere then listed_at
       when noted.recording_id is not null then coalesce(noted.gone_since, $now::timestamp)
       else try_strptime(run_id[:16], '%Y%m%dT%H%M%SZ') end as gone_since
from recordings left join noted using (recording_id)
left join (
  select recording_id,
         make_timestamp_ns(try_cast(split_part(split_part(max(plan), '/', 3), '-', 1) as bigint))
           as listed_at
  from elsewhere group by recording_id) using (recording_id)
where gone or elsewhere order by uri, recording_id
"""

# What a run is to do of some files: the best of the versions that fit each, without what is tried
# again. What is included in a version is of its content, which may not fit. A failure that ended an
# incomplete recording may come again: its place has to be free.
LEFT = """
with open_files as (
  select files.*, settled.recording_id is not null as is_settled
  from files left join settled using (recording_id)
  where settled.recording_id is null
     or not (case when settled.etag is not distinct from files.etag then true
                  else fits(settled.etag, files.etag) end
             and coalesce(settled.size_bytes = files.size_bytes, true))),
asked as (
  select position, recording_id, version
  from open_files files join versions using (recording_id)
  left join generations using (recording_id)
  where versions.generation = coalesce(generations.generation, 0)
    and fits(versions.etag, files.etag) and not versions.included
    and coalesce(versions.size_bytes = files.size_bytes, true)
  qualify row_number() over (partition by position
                             order by rank desc, newest desc) = 1),
held as (
  select position, part, last_part, failed,
         failed and origin in (select unnest($tried))
           and (origin = 'environment' or recording_id not in (select unnest($spared))) as again
  from asked join winners using (version)),
reach as (
  select *, min(part) filter (last_part) over (partition by position) as until from held),
state as (
  select position, bool_or(again) as due,
         list(part order by part) filter (not again and not (failed and last_part)) as kept,
         coalesce(count(*) filter (part <= until) = any_value(until) + 1, false) as whole
  from reach group by position)
select open_files.* exclude (position, is_settled), coalesce(kept, []) as done_parts,
       case when due then {retried} when state.position is not null then {continued}
            when recording_id in (
              select recording_id from generations
              anti join versions using (recording_id, generation)) then {redone}
            when is_settled or recording_id in (select recording_id from known) then {changed}
            else {new} end as reason
from open_files left join state using (position)
where state.position is null or due or not whole
order by position
""".format(**{reason.name: int(reason) for reason in RemainingReason})


AGAIN = """
insert into redo
select recording_id, list(distinct run_id order by run_id)
from outcomes semi join arriving using (recording_id) group by all
"""

SETTLED_COLUMNS: tuple[str, ...] = ("recording_id", "etag", "size_bytes", "parts")
COUNTED_COLUMNS: tuple[str, ...] = (
    "run_id", "status", "segments", "duration_s", "speech_s", "metadata", "gone_since",
)  # fmt: skip
"""What a finish needs of them in addition; moments are in UTC."""
_NUMBER = pa.field("number", pa.int32())
_GONE_SINCE = pa.field("gone_since", pa.timestamp("ms"))
_ROWS = RECORDINGS.set(RECORDINGS.get_field_index("gone_since"), _GONE_SINCE)

# Without those that are to adopt the version of the listing (`finish`). What the listing has twice
# is here twice, too, and then found to have more parts than there are.
SETTLED = """
create or replace table settled as
select arriving.*, listed.recording_id is not null as listed, listed.metadata as listed_metadata,
  (listed.etag is null or arriving.etag = listed.etag)
  and coalesce(arriving.size_bytes = listed.size_bytes, true) as current
from arriving left join listed using (recording_id)
where case when arriving.etag is not distinct from listed.etag or listed.etag is null then true
           else not fits(arriving.etag, listed.etag) end
"""
# What something was committed of, is asked to be done again, or moved (`arriving`).
UNSETTLED = """
delete from settled where recording_id in (
  select recording_id from outcomes union all select recording_id from redo
  union all select recording_id from arriving)
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
create or replace view resting as
select settled.*, true as complete, false as failed_since, listed and not current as earlier,
  not listed and elsewhere_id is not null as elsewhere,
  not listed and elsewhere_id is null and not {unread} as gone
from settled left join (select distinct recording_id as elsewhere_id from elsewhere)
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
