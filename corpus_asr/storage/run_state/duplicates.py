"""Audio that several recordings have: the table `duplicates/`, made of fingerprints in outcomes.

Each pair of recordings is compared once, whichever comes first: a finish compares those that are
new with all, whose fingerprints it passes over, an object at a time. Words that a new recording has
as well are places where the two may be aligned; what counts is how many bits are equal around them.
Of two recordings with the same audio that whose URI sorts first is the original, whatever the order
in which they were transcribed.

The table is one object, replaced as a whole; of two, after a kill, the newest counts. A row without
`other_uri` says that a recording was compared.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.array_types import Int64, UInt8, UInt32
from corpus_asr.logs import event
from corpus_asr.schemas import DUPLICATES
from corpus_asr.storage.parquet import BATCH_ROWS
from corpus_asr.storage.run_state.recording_rows import portions_of, rows_at
from corpus_asr.storage.run_state.recording_rows import wanted as not_made
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.table_names import DUPLICATES_FOLDER, SUFFIX
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import FINGERPRINT_SPAN_S as SPAN_S
from corpus_asr.units import FINGERPRINT_WORDS_PER_SECOND as WORDS_PER_SECOND

# New recordings that are compared at once, some 500 hours: 40 bytes a word while they are indexed.
WORDS_AT_ONCE = 16_000_000
# Places of one word that are looked at, the first by URI: more is a jingle of a whole archive.
MAX_PLACES = 64
MIN_DUPLICATE_S = 5.0
# Originals kept of one span, the first by URI.
MAX_OTHERS = 8
# The likest 5 s of one reader's speech differ in 31 % of their bits (docs/how-to/duplicates.md).
MAX_DIFFERENT = 0.2
_NEAR = 12  # words on both sides of a place that are compared first
_MOST_NEAR, _LEAST_NEAR = 0.25, 8
# A span grows while fewer bits differ than this, through at most 2 s in which half of them do.
_BREAK_EVEN, _DROP = 0.3, 3.2
# A recording is a copy of another that has this share of it.
MOSTLY = 0.5
# A word at the edge of a copy counts as equal if most of its seconds are equal.
_EDGE_S = 0.35 * SPAN_S
# Pieces of one copy, which parts or a pause divide.
_GAP_S, _SHIFT_S = 5.0, 0.5
_SLACK_S = 1.0
_HITS_AT_ONCE = 65_536
_COLUMNS = ("recording_id", "uri", "channel", "part_start_s", "fingerprint")
_LOG = logging.getLogger(__name__)
_OBJECTS = """
select name, list(row order by row) from parts join objects using (object)
semi join whole using (recording_id) group by name order by name
"""
# The state of recordings that keep all their pairs: others that lost one are compared again.
_MADE = """
create or replace table made as
select recording_id, made_of, 0 as number from duplicates
where other_uri is null and recording_id not in (
  select recording_id from duplicates
  where other_uri is not null and other_recording_id not in (from whole))
"""
_KEPT = """
with compared as (from whole except select recording_id from wanted)
from duplicates where recording_id in (from compared)
  and (other_recording_id is null or other_recording_id in (from compared))
order by all
"""
_BITS: UInt8[np.ndarray, " value"] = np.array([each.bit_count() for each in range(1 << 16)], "u1")

Words = UInt32[np.ndarray, " word"]
Numbers = Int64[np.ndarray, " number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPrint:
    """The fingerprint of one part."""

    recording_id: str
    uri: str
    channel: int | None
    start_s: float
    words: Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A span of a recording that an earlier one has as well; earlier is what sorts first by URI."""

    channel: int | None
    start_s: float
    end_s: float
    other_recording_id: str


def find_duplicates(store: OutputStore) -> int | None:
    """Compare new recordings; return their number, or None if there are none.

    Held in memory: words of new recordings and of one object, the table, and a number per part of
    the archive.
    """
    names = store.names(DUPLICATES_FOLDER)
    duplicates = store.read_table(names[-1], DUPLICATES) if names else DUPLICATES.empty_table()
    with RunTables(store, columns=VERSION_COLUMNS, opened="false") as tables:
        tables.add("whole", tables.table("select recording_id from recorded"))
        tables.add("duplicates", duplicates)
        tables.execute(_MADE)
        wanted = tables.table(not_made(), settings=str(MIN_DUPLICATE_S))
        tables.add("wanted", wanted)
        kept = tables.table(_KEPT).cast(DUPLICATES)
        if not wanted.num_rows and kept.num_rows == duplicates.num_rows and names:
            store.remove_all(names[:-1])
            return None
        tables.open(tables.table("from whole")["recording_id"])
        objects: list[tuple[str, Sequence[int]]] = [*tables.rows(_OBJECTS)]
        compared: set[str] = set()
        made_of, parts = dict[str, str](), list[PartPrint]()
        portions = portions_of(tables, "wanted")
        portion = next(portions, None)
        while portion is not None:
            made_of |= {
                recording_id: made for recording_id, (made, _) in portion.recordings.items()
            }
            addresses = dict[str, str]()
            for name, rows in sorted(portion.rows.items()):
                for row in rows_at(store, name, rows, _COLUMNS):
                    addresses[row["recording_id"]] = row["uri"]
                    parts += _prints([row])
            portion = next(portions, None)
            printed_ids = {part.recording_id for part in parts}
            kept = pa.concat_tables([kept, _state_rows(addresses, made_of, printed_ids)])
            if portion is None or sum(len(part.words) for part in parts) >= WORDS_AT_ONCE:
                index = _Index(parts)
                pairs = list[dict[str, Any]]()
                for name, rows in objects:
                    for part_print in _prints(rows_at(store, name, rows, _COLUMNS)):
                        if part_print.recording_id not in compared:
                            pairs += index.copies(part_print)
                kept = _with_pairs(kept, pairs)
                _replace(store, kept)
                compared |= index.recording_ids
                parts = []
        if not wanted.num_rows:
            _replace(store, kept)
    event(_LOG, logging.INFO, "duplicates_found", recordings=wanted.num_rows,
          spans=pc.sum(pc.is_valid(kept["other_uri"])).as_py() or 0,
          unknown=pc.sum(pc.invert(kept["compared"])).as_py() or 0)  # fmt: skip
    return int(wanted.num_rows)


def without_losers(table: pa.Table, kept: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return the selected rows, without the compared state of recordings that lose a pair.

    Only the first originals of a span are kept: if one goes, others are found by comparing.
    """
    losers = table.filter(pc.invert(kept))["recording_id"]
    loses = pc.is_in(table["recording_id"], value_set=losers.combine_chunks())
    return table.filter(pc.and_(kept, pc.invert(pc.and_(loses, pc.is_null(table["other_uri"])))))


def _replace(store: OutputStore, table: pa.Table) -> None:
    names = store.names(DUPLICATES_FOLDER)
    store.write_table(f"{DUPLICATES_FOLDER}/{store.stem()}{SUFFIX}", table)
    store.remove_all(names)


def _prints(rows: Iterable[Mapping[str, Any]]) -> Iterator[PartPrint]:
    for row in rows:
        # Older objects lack the column.
        if row.get("fingerprint") is not None:
            yield PartPrint(
                recording_id=row["recording_id"],
                uri=row["uri"],
                channel=row["channel"],
                start_s=row["part_start_s"],
                words=np.frombuffer(row["fingerprint"], "<u4").astype(np.uint32),
            )


def _state_rows(
    addresses: Mapping[str, str], made_of: Mapping[str, str], known: set[str]
) -> pa.Table:
    rows = [
        {
            "recording_id": recording_id,
            "uri": uri,
            "made_of": made_of[recording_id],
            "compared": recording_id in known,
        }
        for recording_id, uri in addresses.items()
    ]
    return pa.Table.from_pylist(rows, DUPLICATES)


def _different(
    one: UInt32[np.ndarray, "..."], other: UInt32[np.ndarray, "..."]
) -> Int64[np.ndarray, "..."]:
    """Return the number of different bits."""
    bits = one ^ other
    num_bits: np.ndarray = _BITS[bits & 0xFFFF].astype(np.int64) + _BITS[bits >> 16]
    return num_bits


class _Index:
    """Index of word positions in recordings."""

    def __init__(self, parts: Iterable[PartPrint]) -> None:
        self._parts = sorted(parts, key=_order)
        self.recording_ids = {part.recording_id for part in self._parts}
        lengths = [len(part.words) + 2 * _NEAR for part in self._parts]
        # Zeros separate parts: the neighborhood of a word never reaches into another part.
        self._words = np.concatenate(
            [np.zeros(0, np.uint32), *(np.pad(part.words, _NEAR) for part in self._parts)]
        )
        self._starts = np.cumsum([0, *lengths])[: len(lengths)]
        order = np.argsort(self._words, kind="stable")
        words = self._words[order]
        silent = int(np.searchsorted(words, 0, "right"))
        self._places, words = order[silent:].astype(np.uint32), words[silent:]
        self._first = np.flatnonzero(np.append(True, words[1:] != words[:-1])[: len(words)])
        self._keys = words[self._first]
        counts = np.diff(self._first, append=len(words))
        self._counts = np.minimum(counts, MAX_PLACES)
        self._there = np.zeros(1 << 24, bool)
        self._there[_hashes(self._keys)] = True

    def copies(self, other: PartPrint) -> Iterator[dict[str, Any]]:
        """Yield spans shared with a part; only those of earlier recordings, if it is indexed."""
        at, places = self._hits(other)
        if not len(at):
            return
        numbers = np.searchsorted(self._starts, places, "right") - 1
        spans: dict[int, list[tuple[int, int, int, float]]] = defaultdict(list)
        shifts = places - self._starts[numbers] - _NEAR - at
        for number, shift, hit in sorted(
            {*zip(*(array.tolist() for array in (numbers, shifts, at)), strict=True)}
        ):
            part_spans = spans[number]
            if any(abs(s - shift) <= 2 and first <= hit < stop for s, first, stop, _ in part_spans):
                continue
            part = self._parts[number]
            span = _span(part.words, other.words, shift, hit)
            if span is not None:
                part_spans.append((shift, *span))
        for number, part_spans in spans.items():
            for shift, first, stop, alike in _best(part_spans):
                row = _row(self._parts[number], other, shift, first, stop, alike)
                if row["end_s"] - row["start_s"] >= MIN_DUPLICATE_S:
                    yield row

    def _hits(self, other: PartPrint) -> tuple[Numbers, Numbers]:
        """Return words of a part and their positions here, where the neighborhoods match."""
        words = other.words
        hits = np.flatnonzero((words != 0) & self._there[_hashes(words)])
        if not len(hits) or not len(self._keys):
            return hits[:0], hits[:0]
        key_places = np.minimum(np.searchsorted(self._keys, words[hits]), len(self._keys) - 1)
        equal = self._keys[key_places] == words[hits]
        hits, key_places = hits[equal], key_places[equal]
        counts = self._counts[key_places]
        at = np.repeat(hits, counts)
        within = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self._places[np.repeat(self._first[key_places], counts) + within].astype(np.int64)
        padded = np.pad(words, _NEAR)
        around = np.arange(-_NEAR, _NEAR + 1)
        alike = np.zeros(len(at), bool)
        for start in range(0, len(at), _HITS_AT_ONCE):
            part = slice(start, start + _HITS_AT_ONCE)
            other_words = padded[at[part, None] + _NEAR + around]
            ours = self._words[places[part, None] + around]
            both = (other_words != 0) & (ours != 0)
            number = both.sum(axis=1)
            errors = np.where(both, _different(other_words, ours), 0).sum(axis=1)
            alike[part] = (number >= _LEAST_NEAR) & (errors <= 32 * _MOST_NEAR * number)
        at, places = at[alike], places[alike]
        of = np.searchsorted(self._starts, places, "right") - 1
        other_order = _order(other)
        allowed = np.zeros(len(self._parts), bool)
        for number in np.unique(of).tolist():
            part_print = self._parts[number]
            allowed[number] = part_print.recording_id != other.recording_id and (
                other.recording_id not in self.recording_ids or _order(part_print) < other_order
            )
        return at[allowed[of]], places[allowed[of]]


def _order(part: PartPrint) -> tuple[str, str, int, float]:
    channel = -1 if part.channel is None else part.channel
    return part.uri, part.recording_id, channel, part.start_s


def _hashes(words: Words) -> Words:
    return (words * np.uint32(2654435761)) >> np.uint32(8)


def _span(
    ours: Words, theirs: UInt32[np.ndarray, " other"], shift: int, hit: int
) -> tuple[int, int, float] | None:
    """Return first word, end word and similarity of the copy around an equal word."""
    low, high = max(0, -shift), min(len(theirs), len(ours) - shift)
    our_words, other_words = ours[low + shift : high + shift], theirs[low:high]
    both = (our_words != 0) & (other_words != 0)
    errors = np.where(both, _different(our_words, other_words), 0) / 32
    scores = np.where(both, _BREAK_EVEN - errors, 0.0)
    first = hit - low - _grown(scores[: hit - low + 1][::-1]) + 1
    stop = hit - low + _grown(scores[hit - low :])
    number = int(both[first:stop].sum())
    if 2 * number < stop - first:
        return None
    different = float(errors[first:stop].sum()) / number
    return None if different > MAX_DIFFERENT else (first + low, stop + low, 1 - different)


def _grown(scores: np.ndarray) -> int:
    """Return the number of scores with the largest sum, before the sum drops too far."""
    sums = np.cumsum(scores)
    fallen = np.maximum.accumulate(sums) - sums > _DROP
    until = int(np.argmax(fallen)) if fallen.any() else len(sums)
    return int(np.argmax(sums[:until])) + 1


def _best(
    spans: Iterable[tuple[int, int, int, float]],
) -> Iterator[tuple[int, int, int, float]]:
    """Yield the most similar of spans that overlap at nearly the same shift."""
    chosen: list[tuple[int, int, int, float]] = []
    for span in sorted(spans, key=lambda span: (-(span[2] - span[1]) * (span[3] - 0.5), span)):
        shift, first, stop, _ = span
        if not any(abs(s - shift) <= 2 and first < e and b < stop for s, b, e, _ in chosen):
            chosen.append(span)
            yield span


def _row(
    part: PartPrint, other: PartPrint, shift: int, first: int, stop: int, alike: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"likeness": alike, "compared": True}
    sides = sorted([(part, first + shift), (other, first)], key=lambda side: _order(side[0]))
    # The recording whose URI sorts first is the other one of the row.
    for prefix, (part_print, at) in zip(("other_", ""), sides, strict=True):
        start_s = part_print.start_s + at / WORDS_PER_SECOND + _EDGE_S
        row |= {
            f"{prefix}recording_id": part_print.recording_id,
            f"{prefix}uri": part_print.uri,
            f"{prefix}channel": part_print.channel,
            f"{prefix}start_s": start_s,
            f"{prefix}end_s": start_s
            + (stop - first - 1) / WORDS_PER_SECOND
            + SPAN_S
            - 2 * _EDGE_S,
        }
    return row


def _with_pairs(table: pa.Table, found: Iterable[dict[str, Any]]) -> pa.Table:
    """Add pairs of spans; of spans in many recordings, keep the first originals."""
    pairs = pc.is_valid(table["other_uri"])
    rows_by_id: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        rows_by_id[row["recording_id"]].append(row)
    ids = pa.array(rows_by_id, pa.string())
    changed = pc.and_(pairs, pc.is_in(table["recording_id"], value_set=ids))
    for row in table.filter(changed).to_pylist():
        rows_by_id[row["recording_id"]].append(row)
    kept = [row for rows in rows_by_id.values() for row in _first_originals(_joined(rows))]
    unchanged_rows = table.filter(pc.invert(changed))
    return pa.concat_tables([unchanged_rows, pa.Table.from_pylist(kept, DUPLICATES)])


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    channels = (-1 if row[name] is None else row[name] for name in ("channel", "other_channel"))
    return row["other_uri"], row["other_recording_id"], *channels, row["start_s"]


def _joined(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge spans of one copy."""
    joined: list[dict[str, Any]] = []
    for row in sorted(rows, key=_place):
        last = joined[-1] if joined else row
        shifts = (span["other_start_s"] - span["start_s"] for span in (row, last))
        near = row["start_s"] - last["end_s"] <= _GAP_S and abs(np.subtract(*shifts)) <= _SHIFT_S
        if joined and _place(row)[:-1] == _place(last)[:-1] and near:
            lengths = [span["end_s"] - span["start_s"] for span in (last, row)]
            alike = np.average([last["likeness"], row["likeness"]], weights=lengths)
            ends = {name: max(last[name], row[name]) for name in ("end_s", "other_end_s")}
            joined[-1] = last | ends | {"likeness": float(alike)}
        else:
            joined.append(row)
    return joined


def _first_originals(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for row in rows:  # sorted by URI of the other recording
        holding = [
            span for span in kept
            if span["channel"] == row["channel"]
            and span["start_s"] <= row["start_s"] + _SLACK_S
            and span["end_s"] >= row["end_s"] - _SLACK_S
        ]  # fmt: skip
        if len(holding) < MAX_OTHERS:
            kept.append(row)
    return kept


def read_pairs(store: OutputStore) -> pa.Table:
    """Return the pairs of spans; empty if no run searched for them."""
    names = store.names(DUPLICATES_FOLDER)
    table = store.read_table(names[-1], DUPLICATES) if names else DUPLICATES.empty_table()
    return table.filter(pc.is_valid(table["other_uri"]))


def read_copies(store: OutputStore) -> dict[str, list[Copy]] | None:
    """Return the spans of each compared recording that also occur in earlier ones.

    None: no run compared any.
    """
    names = store.names(DUPLICATES_FOLDER)
    if not names:
        return None
    table = store.read_table(names[-1], DUPLICATES)
    compared = table.filter(pc.fill_null(table["compared"], False))["recording_id"]
    copies: dict[str, list[Copy]] = {recording_id: [] for recording_id in compared.to_pylist()}
    columns = ["recording_id", "channel", "start_s", "end_s", "other_recording_id"]
    for row in read_pairs(store).select(columns).to_pylist():
        copies.setdefault(row.pop("recording_id"), []).append(Copy(**row))
    return copies


def originals(store: OutputStore, seconds: Mapping[str, float | None]) -> dict[str, str]:
    """Return the original of each recording that is mostly a copy.

    A copy points to the first recording by URI that has at least `MOSTLY` of it, which may point to
    another; the end of this chain is the original. In a cycle it is the first by URI. Audio of many
    recordings, such as a jingle, links a recording to one other and never joins two groups.
    """
    follows: dict[str, str] = {}
    address = dict[str, str]()
    for (recording_id, uri, _, other_id), spans in groupby(
        _both_ways(read_pairs(store)), key=_ENDS
    ):
        address[recording_id] = uri
        lasts_s = seconds.get(recording_id)
        if recording_id not in follows and lasts_s:
            # On any channel.
            copies = [Copy(channel=None, start_s=span["start_s"], end_s=span["end_s"],
                           other_recording_id=other_id) for span in spans]  # fmt: skip
            if copied_fraction(copies, channel=None, start_s=0.0, end_s=lasts_s) >= MOSTLY:
                follows[recording_id] = other_id
    for recording_id in [*follows]:
        path, next_id = {recording_id: None}, follows[recording_id]
        while next_id not in path:
            path[next_id] = None
            next_id = follows.get(next_id, next_id)
        # The end of the chain, which points to itself or nothing, or the first of a cycle.
        around = [*path][[*path].index(next_id) :]
        original = min(around, key=lambda name: (address[name], name))
        follows |= dict.fromkeys(path, original)
    return {
        recording_id: original
        for recording_id, original in follows.items()
        if recording_id != original
    }


_ENDS = itemgetter("recording_id", "uri", "other_uri", "other_recording_id")


def _both_ways(pairs: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the spans of both recordings of each pair, by recording and then by other URI."""
    names = ["recording_id", "uri", "start_s", "end_s", "other_recording_id", "other_uri"]
    turned = [
        name.removeprefix("other_") if name.startswith("other_") else f"other_{name}"
        for name in names
    ]
    both = pa.concat_tables([pairs.select(names), pairs.select(turned).rename_columns(names)])
    keys = [(name, "ascending") for name in ("recording_id", "other_uri", "other_recording_id")]
    # Indices only: a sorted table would be a copy.
    order = pc.sort_indices(both, sort_keys=keys)
    for start in range(0, len(order), BATCH_ROWS):
        yield from both.take(order[start : start + BATCH_ROWS]).to_pylist()


def copied_fraction(
    copies: Iterable[Copy], *, channel: int | None, start_s: float, end_s: float
) -> float:
    """Return the fraction of a span, 0 to 1, that earlier recordings also have."""
    covered_s, until = 0.0, start_s
    for copy in sorted(copies, key=lambda copy: copy.start_s):
        if copy.channel == channel:
            begin, stop = max(copy.start_s, until), min(copy.end_s, end_s)
            covered_s += max(0.0, stop - begin)
            until = max(until, stop)
    return min(1.0, covered_s / (end_s - start_s)) if end_s > start_s else 0.0
