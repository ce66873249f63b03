"""A page's table of single recordings: which of them it lists, and what it says of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from corpus_asr.storage.run_state.run_tables import RunTables

# Of each list; up to so many recordings as all lists together, all are listed. With 200 rows of
# 400 bytes the table takes 80 kB, whatever the size of the corpus.
LISTED = 50
LISTS: Mapping[str, tuple[str, str]] = {
    "confidence": ("confidence", "asc"),
    "longest": ("duration_s", "desc"),
    "slowest": ("extract_s + transcribe_s", "desc"),
    # None are no reason to be looked at.
    "missing": ("nullif(missing_words, 0) / text_words", "desc"),
    "gaps": ("nullif(speech_without_text_s, 0)", "desc"),
}
"""Lists by name, each with the number and the order that choose its recordings."""
STARTED = "partly done"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRow:
    """A recording and what became of it."""

    recording_id: str
    uri: str
    size_bytes: int | None
    etag: str | None
    """With the size, the version that was transcribed."""
    status: str
    """As in the recordings table, or `STARTED`."""
    language: str | None
    """That of most speech; in a classification the likeliest label."""
    duration_s: float
    segments: int
    """Or labels."""
    confidence: float | None
    """Mean of its segments over time; None without any."""
    decode_errors: int
    extract_s: float
    transcribe_s: float
    """From submission to result, summed over parts."""
    speech_without_text_s: float = 0.0
    """Detected speech in gaps between segments."""
    speakers: int | None = None
    """None where they were not looked for."""
    most_share: float | None = None
    """Of speech, that of the speaker who speaks most; None without any."""
    missing_words: int | None = None
    """Words of its text that are not in the audio; None where no text was aligned."""
    text_words: int | None = None
    """Words of its text."""
    lists: tuple[str, ...] = ()
    """Of `LISTS`, those that it is in."""


_SHOWN = f"""
create or replace view shown as
select recording_id, uri, size_bytes, etag, if(complete, status, '{STARTED}') as status,
  coalesce(label, languages[1]) as language, coalesce(duration_s, 0) as duration_s,
  coalesce(segments, 0)::bigint as segments, confidence,
  coalesce(decode_errors, 0) as decode_errors, coalesce(decode_s, 0) as extract_s,
  coalesce(transcribe_s, 0) as transcribe_s,
  coalesce(speech_without_text_s, 0) as speech_without_text_s,
  speakers, most_s / nullif(speech_of_all_s, 0) as most_share,
  if(complete and text_words > 0, missing_words, null)::bigint as missing_words,
  if(complete and missing_words is not null, nullif(text_words, 0), null) as text_words
from recordings left join confidences using (recording_id)
left join (select recording_id, speakers, most_s, speech_s as speech_of_all_s from speaking) spoken
  using (recording_id)
"""
_LIST = """
select recording_id, {place} as list, '{name}' as name,
  row_number() over (order by number {order}, recording_id) as rank
from (select recording_id, {number} as number from shown where number is not null
      order by number {order}, recording_id limit $most)
"""
_CHOSEN = """
select recording_id, list(name order by list) as lists from ({lists})
group by all order by min((list, rank))
"""


def list_recordings(tables: RunTables) -> list[RecordingRow]:
    """Return the first of each of `LISTS`; all of them if they are few."""
    lists = " union all ".join(
        _LIST.format(place=place, name=name, number=number, order=order)
        for place, (name, (number, order)) in enumerate(LISTS.items())
    )
    tables.execute(_SHOWN)
    chosen = dict(tables.rows(_CHOSEN.format(lists=lists), most=LISTED))
    if num_recordings(tables) <= len(LISTS) * LISTED:
        for (identity,) in tables.rows("select recording_id from recordings order by all"):
            chosen.setdefault(identity, [])
    found = recordings_of(tables, chosen)
    return [found[identity] for identity in chosen]


def recordings_of(
    tables: RunTables, identities: Mapping[str, Iterable[str]]
) -> dict[str, RecordingRow]:
    """Return recordings by their identities, which come with the lists that they are in."""
    tables.execute(_SHOWN)
    query = "select * from shown where recording_id in (select unnest($ids))"
    rows = tables.table(query, ids=list(identities)).to_pylist()
    return {
        row["recording_id"]: RecordingRow(**row, lists=tuple(identities[row["recording_id"]]))
        for row in rows
    }


def num_recordings(tables: RunTables) -> int:
    """Return how many recordings have any outcome."""
    [(number,)] = tables.rows("select count(*) from recordings")
    return int(number)


def count_lengths(tables: RunTables, edges_s: Sequence[float]) -> tuple[int, ...]:
    """Return how many recordings there are in each bin of length between ascending edges."""
    query = """select len(list_filter($edges, lambda edge: edge <= duration_s)), count(*)
               from recordings where duration_s > 0 group by all"""
    counts = dict(tables.rows(query, edges=list(edges_s)))
    return tuple(counts.get(number, 0) for number in range(len(edges_s) + 1))
