"""Search over all segments of a run: filters, pages of hits with facets, all hits as a file.

Facets count hits in each folder, language and month. Folders and dates are trees: a facet shows
what is below the chosen place. A language can be exchanged for another, so its counts are those of
all languages under the other filters.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Generic, TypeVar

from corpus_asr.errors import ConfigError
from corpus_asr.report.text import cell
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.stores.uri import without_secrets
from corpus_asr.view.query import Query

PAGE_ROWS = 50
# To show a page, all before it are sorted: at most 10,000 hits.
MAX_PAGE = 200
# More values are a list that nobody reads; choosing a folder shows those below it.
MAX_VALUES = 40
_HITS_AT_A_TIME = 1_000


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
    label: str | None = None
    """Likeliest label of the recording."""
    min_confidence: float | None = None
    max_confidence: float | None = None
    folder: str = ""
    """Below the common folder of all recordings; with those below it."""
    date: str = ""
    """A year or month, as 2026-03."""
    unchecked: bool = False
    """Only what nobody has compared with the audio."""

    def __post_init__(self) -> None:
        for bound in (self.min_confidence, self.max_confidence):
            if bound is not None and not 0.0 <= bound <= 1.0:
                raise ConfigError(
                    f"filtering by confidence: found {bound:g}, expected a fraction between 0 and 1"
                )


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a facet."""

    name: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """The values of one facet, most frequent first; of dates latest first."""

    values: tuple[Value, ...] = ()
    others: int = 0
    """Values beyond `MAX_VALUES`."""


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
    facets: dict[str, Facet]


# Filters that are not set are null, or empty.
_MEANT = """
($id = '' or recording_id = $id) and ($name = '' or regexp_matches(uri, $name, 'i'))
and ($state is null or state = $state) and ($label is null or label = $label)
"""
_IN_FOLDER = "($folder = '' or folder = $folder or starts_with(folder, $folder || '/'))"
_IN_DATE = "($date = '' or month = $date or starts_with(month, $date || '-'))"
_IN_LANGUAGE = "($language is null or {of}language = $language)"
_INSIDE = f"{_IN_FOLDER} and {_IN_DATE} and {_IN_LANGUAGE.format(of='')}"
_SEGMENTS = f"""
select * from said where {{terms}}
  and ($min_confidence is null or confidence >= $min_confidence::float)
  and ($max_confidence is null or confidence <= $max_confidence::float)
  and not ($unchecked and coalesce(contains(correction, '"checked": true'), false))
  and number in (select number from shown where {_MEANT} and {{places}})
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
    matching = _SEGMENTS.format(terms=terms, places="true")
    found = f"select number, language, count(*) as n from ({matching}) group by all"
    total, recordings, facets = _counted(tables, found, values)
    query_of_page = _PAGE.format(found=_inside(terms), order=_ORDERS[order])
    rows = tables.table(query_of_page, most=PAGE_ROWS, skipped=page * PAGE_ROWS, **values)
    hits = [_hit(row) for row in rows.to_pylist()]
    return Page(total=total, recordings=recordings, rows=hits, facets=facets)


def find_all(
    tables: RunTables, query: Query, filters: Filters, *, order: Order = Order.recording
) -> Iterator[list[Hit]]:
    """Yield all hits in order, some at a time, without the texts around them."""
    terms, values = query.condition()
    found = _ALL.format(found=_inside(terms), order=_ORDERS[order])
    for batch in tables.batches(found, rows=_HITS_AT_A_TIME, **values, **_values(filters)):
        yield [_hit(row) for row in batch.to_pylist()]


def _inside(terms: str) -> str:
    segments = _SEGMENTS.format(terms=terms, places=f"{_IN_FOLDER} and {_IN_DATE}")
    return f"{segments} and {_IN_LANGUAGE.format(of='')}"


def recordings_page(
    tables: RunTables,
    filters: Filters,
    *,
    order: RecordingOrder = RecordingOrder.name,
    page: int = 0,
) -> Page[dict[str, Any]]:
    """Return a page of the recordings that match; facets count recordings."""
    _check_page(page)
    values = _values(filters)
    for of_segments in ("min_confidence", "max_confidence", "unchecked"):
        del values[of_segments]
    total, recordings, facets = _counted(tables, _LISTED, values)
    listing = _RECORDINGS.format(order=_ORDERS[order])
    rows = tables.table(listing, most=PAGE_ROWS, skipped=page * PAGE_ROWS, **values)
    return Page(total=total, recordings=recordings, rows=rows.to_pylist(), facets=facets)


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
_ALL = f"""
select {_HIT} from ({{found}}) hits join shown using (number) order by {{order}}
"""
_LISTED = f"select number, language, 1 as n from shown where {_MEANT}"
_RECORDINGS = f"""
select * from described
where number in (select number from shown where {_MEANT} and {_INSIDE}
                 order by {{order}} limit $most offset $skipped)
order by {{order}}
"""


def _hit(row: dict[str, Any]) -> Hit:
    said = row.pop("correction")
    return Hit(**row, correction=None if said is None else json.loads(said))


_COUNTS = f"""
with found as materialized ({{found}}),
placed as (
  select number, found.language, folder, month, n,
         {_IN_FOLDER} as in_folder, {_IN_DATE} as in_date,
         {_IN_LANGUAGE.format(of="found.")} as in_language
  from found join shown using (number)),
facets as (
  select 'folder' as facet, sum(n) as n,
         $above || split_part(substr(folder, length($above) + 1), '/', 1) as value
  from placed
  where in_date and in_language and folder != '' and starts_with(folder, $above) group by all
  union all
  select 'language', sum(n), language from placed
  where in_folder and in_date and language is not null group by all
  union all
  select 'date', sum(n), month from placed
  where in_folder and in_language and month is not null group by all
  union all
  select unnest(['hits', 'recordings']), unnest([coalesce(sum(n), 0), count(distinct number)]), ''
  from placed where in_folder and in_date and in_language)
select facet, value, n::bigint, count(*) over (partition by facet) from facets
qualify facet = 'date' or row_number() over (partition by facet order by n desc, value) <= $most
order by n desc, value
"""


def _counted(
    tables: RunTables, found: str, values: Mapping[str, Any]
) -> tuple[int, int, dict[str, Facet]]:
    """Return hits, recordings that have some, and facets, of rows number, language and n."""
    above = f"{values['folder']}/" if values["folder"] else ""
    counts = tables.rows(_COUNTS.format(found=found), above=above, most=MAX_VALUES, **values)
    totals = {facet: count for facet, _, count, _ in counts}
    facets = {}
    for name in ("folder", "language", "date"):
        own = [Value(value, count) for facet, value, count, _ in counts if facet == name]
        num_values = next((known for facet, *_, known in counts if facet == name), 0)
        facets[name] = Facet(values=tuple(own), others=max(0, num_values - MAX_VALUES))
    facets["date"] = _dates(facets["date"].values, values["date"])
    return totals["hits"], totals["recordings"], facets


def _dates(months: Sequence[Value], chosen: str) -> Facet:
    above = f"{chosen}-" if chosen else ""
    counts: Counter[str] = Counter()
    for month in months:
        if month.name.startswith(above):
            step = month.name.removeprefix(above).partition("-")[0]
            counts[above + step] += month.count
    if not above and len(counts) == 1:  # of a single year its months at once
        counts = Counter({month.name: month.count for month in months})
    values = [Value(*each) for each in sorted(counts.items(), reverse=True)]
    return Facet(values=tuple(values[:MAX_VALUES]), others=max(0, len(values) - MAX_VALUES))


# Names that programs read: only added to.
FIELDS = (
    "recording_id", "uri", "start_s", "end_s", "channel", "language", "confidence", "text",
    "corrected", "original",
)  # fmt: skip
MEDIA_TYPES = {"csv": "text/csv", "json": "application/json"}
_BYTE_ORDER_MARK = "\ufeff"  # without it Excel takes UTF-8 for the code page of the machine


Rows = Iterator[list[dict[str, Any]]]


def hit_rows(hits: Iterable[list[Hit]]) -> Rows:
    """Yield some rows at a time, with a value for each of `FIELDS`."""
    return ([_row(hit) for hit in some] for some in hits)


def _row(hit: Hit) -> dict[str, Any]:
    said = hit.correction
    return {
        "recording_id": hit.recording_id,
        "uri": without_secrets(hit.uri),
        "start_s": round(hit.start_s, 3),
        "end_s": round(hit.end_s, 3),
        "channel": hit.channel,
        "language": hit.language,
        "confidence": None if hit.confidence is None else round(hit.confidence, 4),
        "text": hit.text.strip(),
        "corrected": said is not None,
        "original": None if said is None else said["original"],
    }


def pieces_of(rows: Rows, kind: str) -> Iterator[bytes]:
    """Yield a file of rows; `kind` is one of `MEDIA_TYPES`."""
    texts = _csv(rows) if kind == "csv" else _json(rows)
    return (text.encode("utf-8", "replace") for text in texts)


def _csv(rows: Rows) -> Iterator[str]:
    yield _BYTE_ORDER_MARK + ",".join(FIELDS) + "\r\n"
    for some in rows:
        file = io.StringIO()
        csv.writer(file).writerows([_cell(row[name]) for name in FIELDS] for row in some)
        yield file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return cell(value) if isinstance(value, str) else value


def _json(rows: Rows) -> Iterator[str]:
    before = "["
    for some in rows:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in some]
        yield before + "\n" + ",\n".join(lines)
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"
