"""Search over all segments of a run: filters, and pages of hits."""

import json
import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Generic, TypeVar

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.view.query import Query

PAGE_ROWS = 50
# To show a page, all before it are sorted: at most 10,000 hits.
MAX_PAGE = 200


class State(StrEnum):
    """The state of a recording."""

    done = "done"
    no_speech = "no_speech"
    failed = "failed"
    """At least a part of it."""
    unfinished = "unfinished"
    """Some of its parts are missing."""


class Order(StrEnum):
    """How hits are sorted."""

    recording = "recording"
    """By URI, then by time."""
    least_sure = "least_sure"
    most_sure = "most_sure"


class RecordingOrder(StrEnum):
    """How recordings are sorted."""

    name = "name"
    longest = "longest"
    shortest = "shortest"


_TIME = "number, start_s, place"
# Unknown confidence comes last, either way.
_ORDERS = {
    Order.recording: _TIME,
    Order.least_sure: f"confidence nulls last, {_TIME}",
    Order.most_sure: f"confidence desc nulls last, {_TIME}",
    RecordingOrder.name: "number",
    RecordingOrder.longest: "duration_s desc, number",
    RecordingOrder.shortest: "duration_s, number",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What recordings and segments have to match."""

    id: str = ""
    """Of the only recording."""
    name: str = ""
    """Part of the URI, case ignored; a star matches anything."""
    state: State | None = None
    language: str | None = None
    min_confidence: float | None = None
    max_confidence: float | None = None
    unchecked: bool = False
    """Only what nobody has compared with the audio."""

    def __post_init__(self) -> None:
        for bound in (self.min_confidence, self.max_confidence):
            if bound is not None and not 0.0 <= bound <= 1.0:
                raise ConfigError(
                    f"filtering by confidence: found {bound:g}, expected a fraction between 0 and 1"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A segment that matches."""

    recording_id: str
    uri: str
    start_s: float
    end_s: float
    text: str
    confidence: float | None
    language: str | None
    channel: int | None
    correction: dict[str, Any] | None
    """What a person said of it, as `said_of` has it; `text` has it, too."""
    before: str = ""
    """Text of the segment before it in the same channel, or empty."""
    after: str = ""
    copies: int = 0
    """Other recordings with the same audio."""


R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[R]):
    """One page of hits, or of recordings as `described` has them."""

    total: int
    recordings: int
    """With at least one hit."""
    rows: list[R]


# Filters that are not set are null, or empty.
_MEANT = """
($id = '' or recording_id = $id) and ($name = '' or regexp_matches(uri, $name, 'i'))
and ($state is null or state = $state)
"""
_IN_LANGUAGE = "($language is null or language = $language)"
_SEGMENTS = f"""
select * from said where {{terms}} and {_IN_LANGUAGE}
  and ($min_confidence is null or confidence >= $min_confidence::float)
  and ($max_confidence is null or confidence <= $max_confidence::float)
  and not ($unchecked and coalesce(contains(correction, '"checked": true'), false))
  and number in (select number from shown where {_MEANT})
"""


def _values(filters: Filters) -> dict[str, Any]:
    values = {field.name: getattr(filters, field.name) for field in fields(Filters)}
    return values | {"name": ".*".join(map(re.escape, filters.name.split("*")))}


def find(
    tables: RunTables,
    query: Query,
    filters: Filters,
    *,
    order: Order = Order.recording,
    page: int = 0,
) -> Page[Hit]:
    """Search all segments of a run."""
    _check_page(page)
    terms, values = query.condition()
    values |= _values(filters)
    segments_query = _SEGMENTS.format(terms=terms)
    [(total, recordings)] = tables.rows(_COUNT.format(found=segments_query), **values)
    query_of_page = _PAGE.format(found=segments_query, order=_ORDERS[order])
    rows = tables.table(query_of_page, most=PAGE_ROWS, skipped=page * PAGE_ROWS, **values)
    hits = [_hit(row) for row in rows.to_pylist()]
    return Page(total=total, recordings=recordings, rows=hits)


def recordings_page(
    tables: RunTables,
    filters: Filters,
    *,
    order: RecordingOrder = RecordingOrder.name,
    page: int = 0,
) -> Page[dict[str, Any]]:
    """Return a page of the recordings that match."""
    _check_page(page)
    values = _values(filters)
    for of_segments in ("min_confidence", "max_confidence", "unchecked"):
        del values[of_segments]
    [(total, recordings)] = tables.rows(_COUNT.format(found=_LISTED), **values)
    listing = _RECORDINGS.format(order=_ORDERS[order])
    rows = tables.table(listing, most=PAGE_ROWS, skipped=page * PAGE_ROWS, **values)
    return Page(total=total, recordings=recordings, rows=rows.to_pylist())


def _check_page(page: int) -> None:
    if not 0 <= page < MAX_PAGE:
        raise ConfigError(
            f"looking for page {page + 1}: expected one of the first {MAX_PAGE}; search for more "
            "words, or filter"
        )


_HIT = "recording_id, uri, start_s, end_s, text, confidence, hits.language, channel, correction"
# Texts are fetched of one page alone, with those around them: the next places of their objects.
_PAGE = f"""
with page as (
  select place from ({{found}}) order by {{order}} limit $most offset $skipped),
near as (
  select * from said
  semi join (select unnest([place - 1, place, place + 1]) as place from page) using (place)),
hits as (
  select *, coalesce(any_value(text) over (own range between 1 preceding and 1 preceding), '')
              as before,
            coalesce(any_value(text) over (own range between 1 following and 1 following), '')
              as after
  from near window own as (partition by number, channel order by place))
select {_HIT}, before, after,
  (select count(distinct other) from copied
   where copied.number = hits.number and copied.channel is not distinct from hits.channel
     and least(copied.end_s, hits.end_s) - greatest(copied.start_s, hits.start_s)
         > 0.5 * (hits.end_s - hits.start_s)) as copies
from hits semi join page using (place) join shown using (number) order by {{order}}
"""
_LISTED = f"select number from shown where {_MEANT} and {_IN_LANGUAGE}"
_COUNT = "select count(*), count(distinct number) from ({found})"
_RECORDINGS = f"""
select * from described
where number in ({_LISTED}
                 order by {{order}} limit $most offset $skipped)
order by {{order}}
"""


def _hit(row: dict[str, Any]) -> Hit:
    correction = row.pop("correction")
    return Hit(**row, correction=None if correction is None else json.loads(correction))
