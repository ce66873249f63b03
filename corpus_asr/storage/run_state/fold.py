"""Which attempt of each recording counts, and what recordings came to, in SQL.

The relations are those of `run_tables`, which has them made. A recording has at most one attempt in
the tables, whole, and one that waits in commits: it takes the place of the one in the tables as
soon as it is whole and not worse. So the row of a recording in the recordings table stands for its
parts, which are read only of recordings that commits have rows of, or that are asked for.
"""

from enum import IntEnum

from corpus_asr.storage.stores.uri import REST, SIZE

# The same in every part; what only some parts know (a failed one has no codec) comes from those.
_FIRST_COLUMNS = (
    "uri", "metadata", "codec", "sample_rate_hz", "channels",
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

LISTED = """
create table listed (recording_id varchar, etag varchar, size_bytes bigint, metadata varchar);
create table seen (recording_id varchar);
create table unread (prefix varchar);
create table elsewhere (recording_id varchar, plan varchar);
"""
SMALL_TABLES = """
create or replace table objects (object integer, name varchar, is_commit boolean, settled boolean);
create or replace table origins (error_kind varchar, retryable boolean, origin varchar);
create or replace table redo (recording_id varchar, begun_by varchar);
create or replace table closed (id bigint);
create or replace table opened (recording_id varchar);
"""
# What stood for all that could not be read of a folder or archive, as long as it was so.
CLOSED = f"""
insert into closed
select id from outcomes
where status = 'failed' and size_bytes is null
  and (ends_with(uri, '/{REST}') or ends_with(uri, '#{REST}')) and exists (from listed)
  and recording_id not in (select recording_id from listed union select recording_id from elsewhere)
"""

# Of several rows of one part the oldest that did not fail counts, else the newest failure, which
# knows most. Whole: all parts up to the first that was a last one; parts may lie beyond it, where
# that one failed. What is in the tables is whole, also while some of it is done again.
ATTEMPTS = """
create or replace table part_rows as
select id, recording_id, coalesce(begun_by, run_id) as begun_by, etag, size_bytes, content_digest,
       part, last_part, status = 'failed' as failed, coalesce(segments_written, 0) > 0 as written,
       origin, settled
from outcomes join objects using (object) anti join closed using (id)
left join origins on outcomes.error_kind is not distinct from origins.error_kind
  and outcomes.retryable is not distinct from origins.retryable;

create or replace table winners as
select * from part_rows
qualify row_number() over (partition by recording_id, begun_by, part
                           order by failed, if(failed, -id, id)) = 1;

create or replace table attempts as
with reach as (
  select *, min(part) filter (last_part) over (partition by recording_id, begun_by) as until
  from winners),
states as (
  select recording_id, begun_by, bool_or(failed) as failed, bool_or(written) as written,
         coalesce(count(*) filter (part <= until) = any_value(until) + 1, false) as ended
  from reach group by all),
versions as (
  select recording_id, begun_by, arg_max(etag, id) as etag, arg_max(size_bytes, id) as size_bytes,
         arg_max(content_digest, id) as content_digest,
         bool_or(settled) as settled, bool_or(settled and written) as had_text
  from part_rows group by all)
select recording_id, begun_by, coalesce(present.etag, versions.etag) as etag,
       coalesce(present.size_bytes, versions.size_bytes) as size_bytes,
       versions.content_digest as content_digest, {waits: not settled, run: begun_by} as age,
       settled, ended,
       ended or settled as whole, failed,
       case when ended then if(failed, written::int, 2) when settled then had_text::int
            else 0 end as rank,
       redo.begun_by is not null as redone
from versions join states using (recording_id, begun_by)
left join present using (recording_id, content_digest)
left join redo using (recording_id, begun_by);

create or replace view committed as
select recording_id, etag, size_bytes from attempts
union all select recording_id, etag, size_bytes from unopened;

create or replace table listing as
select recording_id, max(etag) as etag, max(size_bytes) as size_bytes,
       any_value(metadata) as metadata
from listed semi join attempts using (recording_id) group by recording_id;
"""

# The attempt that counts, and the present one: of the listed version, that a run would go on with.
# For recordings that are not listed that is the newest.
COUNTING = """
create or replace table chosen as
with ranked as (
  select *, row_number() over (partition by recording_id
                               order by rank desc, whole desc, age desc) = 1 as counts,
         row_number() over (partition by recording_id order by age desc) = 1 as is_newest
  from attempts),
fresh as (
  select ranked.*, listing.recording_id is not null as listed,
         not redone and if(listing.recording_id is null, is_newest,
           fits(ranked.etag, listing.etag)
           and coalesce(ranked.size_bytes = listing.size_bytes, true)) as is_present
  from ranked left join listing using (recording_id))
select recording_id, any_value(listed) as listed,
       any_value(begun_by) filter (counts) as counting,
       arg_max(begun_by, {counts: counts, age: age}) filter (is_present) as present,
       max(rank) > 0 as has_text
from fresh group by recording_id;

create or replace table row_states as
with mine as (
  select part_rows.id, whole
  from part_rows join (
    select recording_id, begun_by, whole, ended or not settled as is_newest
    from attempts semi join (select recording_id, counting as begun_by from chosen)
      using (recording_id, begun_by)) using (recording_id, begun_by)
  where if(is_newest, id in (select id from winners), settled)),
theirs as (
  select id, failed, begun_by = counting as goes_on
  from winners join (select recording_id, present as begun_by, counting from chosen)
    using (recording_id, begun_by))
select part_rows.id, mine.id is not null as counts,
       mine.id is null and coalesce(theirs.failed and not goes_on, false) as failing,
       mine.id is not null and mine.whole as enters,
       mine.id is not null and not mine.whole or mine.id is null and theirs.id is not null as waits
from part_rows left join mine using (id) left join theirs using (id);

create or replace view parts as
select * from outcomes semi join (select id from row_states where counts) using (id);

create or replace view failing as
select * from outcomes semi join (select id from row_states where failing) using (id);
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
  counting as begun_by, own.content_digest as content_digest,
  coalesce(if(counting = present, listing.etag, null), own.etag) as etag,
  coalesce(if(counting = present, listing.size_bytes, null), own.size_bytes) as size_bytes,
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
join (select recording_id, begun_by as counting, whole, etag, size_bytes, content_digest
      from attempts) own using (recording_id, counting)
left join (select recording_id, begun_by as present, whole from attempts) latest
  using (recording_id, present)
left join listing using (recording_id)
left join spoken using (recording_id) left join labelled using (recording_id)
left join (select distinct recording_id as elsewhere_id from elsewhere)
  on elsewhere_id = folded.recording_id
"""
FIRST = ",\n    ".join(f"arg_min({name}, part) as {name}" for name in _FIRST_COLUMNS)

# What another source lists was listed when that source was; what no finish knew, when it was
# committed.
GONE = """
select recordings.recording_id, uri, coalesce(segments, 0)::bigint as segments,
  coalesce(duration_s, 0.0) as audio_s, elsewhere,
  case when elsewhere then listed_at
       when noted.recording_id is not null then coalesce(noted.gone_since, $now::timestamp)
       else try_strptime(run_id[:16], '%Y%m%dT%H%M%SZ') end as gone_since
from recordings left join (select recording_id, gone_since from noted) noted using (recording_id)
left join (
  select recording_id,
         make_timestamp_ns(try_cast(split_part(split_part(max(plan), '/', 3), '-', 1) as bigint))
           as listed_at
  from elsewhere group by recording_id) using (recording_id)
where gone or elsewhere order by uri, recording_id
"""

# What a run is to do of some files: the attempt that fits each, without what is tried again. A
# failure that ended an incomplete recording may come again: its place has to be free.
LEFT = """
with open_files as (
  select files.* from files left join unopened using (recording_id)
  where unopened.recording_id is null or redone or not (
    fits(unopened.etag, files.etag)
    and coalesce(unopened.size_bytes = files.size_bytes, true))),
asked as (
  select position, recording_id, begun_by
  from open_files files join attempts using (recording_id) join chosen using (recording_id)
  where not redone and fits(attempts.etag, files.etag)
    and coalesce(attempts.size_bytes = files.size_bytes, true)
  qualify row_number() over (partition by position
                             order by begun_by = counting desc, age desc) = 1),
held as (
  select position, begun_by, part, last_part, failed,
         failed and origin in (select unnest($tried))
           and (origin = 'environment' or recording_id not in (select unnest($spared))) as again
  from asked join winners using (recording_id, begun_by)),
reach as (
  select *, min(part) filter (last_part) over (partition by position) as until from held),
state as (
  select position, any_value(begun_by) as begun_by, bool_or(again) as due,
         list(part order by part) filter (not again and not (failed and last_part)) as kept,
         coalesce(count(*) filter (part <= until) = any_value(until) + 1, false) as whole
  from reach group by position),
done_again as (
  select recording_id from redo except (
    select recording_id from attempts where not redone
    union all select recording_id from unopened where not redone))
select open_files.* exclude (position), begun_by, coalesce(kept, []) as done_parts,
       case when due then {retried} when state.position is not null then {continued}
            when recording_id in (from done_again) then {redone}
            when recording_id in (select recording_id from committed) then {changed}
            else {new} end as reason
from open_files left join state using (position)
where state.position is null or due or not whole
order by position
""".format(**{reason.name: int(reason) for reason in RemainingReason})


AGAIN = """
insert into redo
select recording_id, begun_by from attempts semi join arriving using (recording_id)
except from redo
"""

# What is read of the recordings table; moments are in UTC.
RECORDED_COLUMNS = (
    "recording_id", "begun_by", "etag", "size_bytes", "content_digest", "run_id", "status", "parts",
    "segments", "duration_s", "speech_s", "metadata", "gone_since", "uri",
)  # fmt: skip
# A row that differs in these is another.
_COMPARED = (
    "run_id", "begun_by", "etag", "size_bytes", "status", "parts", "segments", "metadata",
)  # fmt: skip

# Recordings whose row stands for their parts; of those that moved, with the present version.
UNOPENED = """
create or replace view unopened as
select recorded.* exclude (etag, size_bytes, metadata, uri),
  recorded.etag as recorded_etag, recorded.size_bytes as recorded_bytes,
  coalesce(present.etag, recorded.etag) as etag,
  coalesce(present.size_bytes, recorded.size_bytes) as size_bytes,
  recorded.metadata as metadata, listed.recording_id is not null as listed,
  listed.metadata as listed_metadata, redo.begun_by is not null as redone,
  listed.etag as listed_etag, listed.size_bytes as listed_bytes,
  coalesce(addresses.uri, recorded.uri) as uri, recorded.uri as recorded_uri
from recorded anti join opened using (recording_id)
left join present using (recording_id, content_digest)
left join present addresses on addresses.recording_id = recorded.recording_id
left join listed using (recording_id)
left join redo using (recording_id, begun_by);

create or replace view noted as from recorded semi join opened using (recording_id);

create or replace view resting as
select unopened.*, true as complete, false as failed_since,
  not redone and fits(etag, listed_etag)
    and coalesce(size_bytes = listed_bytes, true) as current,
  listed and segments > 0 and not current as earlier,
  not listed and elsewhere_id is not null as elsewhere,
  not listed and elsewhere_id is null and not {unread} as gone
from unopened left join (select distinct recording_id as elsewhere_id from elsewhere)
  on elsewhere_id = recording_id;
"""
COUNTED = """
create or replace view counted as
select {counted} from recordings union all select {counted} from resting
""".replace(
    "{counted}",
    "recording_id, begun_by, run_id, status, parts, segments, duration_s, speech_s, complete, "
    "listed, current, failed_since, earlier, elsewhere, gone",
)
# What a finish writes anew of these.
RENEWED = """
select recording_id, object, newest_etag as etag, newest_bytes as size_bytes,
  newest as metadata, since as gone_since, uri
from (select *, if(listed and $has_columns, listed_metadata, metadata) as newest,
        coalesce(if(listed and current, listed_etag, null), etag) as newest_etag,
        coalesce(if(listed and current, listed_bytes, null), size_bytes) as newest_bytes,
        if(gone, coalesce(gone_since, $now::timestamp), null)::timestamp_ms as since from resting)
where (newest, newest_etag, newest_bytes, since, uri)
  is distinct from (metadata, recorded_etag, recorded_bytes, gone_since, recorded_uri)
"""

_SINCE = "if(gone, coalesce(noted.gone_since, $now::timestamp), null)::timestamp_ms"
_NEW, _OLD = (", ".join(f"{of}.{name}" for name in _COMPARED) for of in ("recordings", "noted"))
# Complete recordings whose row is not in the recordings table, and rows there that go.
CHANGED = f"""
create or replace table changed as
select recordings.*, {_SINCE} as gone_since
from recordings left join noted using (recording_id)
where complete and (noted.recording_id is null
                    or ({_NEW}, {_SINCE}) is distinct from ({_OLD}, noted.gone_since)
                    or recordings.uri != noted.uri)
"""
OUTDATED = """
create or replace table outdated as
select recording_id, object from noted
where recording_id in (select recording_id from changed)
   or recording_id not in (select recording_id from recordings where complete)
"""
