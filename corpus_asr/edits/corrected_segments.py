"""Segments as people see them: those of the model, with corrections in their places.

This is what `show`, `export`, `read_segments`, the viewer, `label` and `evaluate` read. Segments of
recordings that nobody corrected pass through; of the others all columns that corrections need are
read as well, whatever is asked for, so that a correction has the same place for every reader.

Corrections are applied in the order of their saves. Each replaces segments of the transcript as
left by earlier corrections, which may be another model's with other boundaries:

1. If the text that its author saw is found at the same times, it replaces these segments.
2. Else its words are those whose middle is within its time span. If at least half of them are words
   of the replaced or of the corrected text (`LEAST_SHARED`), it stands in their place: the model's
   segments lose these words, and what is left of a segment keeps the others, each once. Two models
   share most words of a span, unrelated spans hardly any, so that the exact threshold matters
   little. A segment that people edited is replaced whole, if its text is in what the author saw. A
   removal also stands if the model now has no words.
3. Otherwise nothing changes and the correction is listed as unplaced: displayed with the model's
   old and new text until someone edits that span.

Checked text is placed like any other: checking turns the model's words into a correction.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from corpus_asr.edits.corrections import (
    Correction,
    Corrections,
    EditedSegment,
    joined_text,
    spaced_once,
)
from corpus_asr.edits.words import (
    CORRECTED_CONFIDENCE,
    bare_word,
    clamped,
    part_of,
    pieces_of,
    split_words,
    timed_words,
)
from corpus_asr.schemas import SEGMENTS
from corpus_asr.storage.parquet import with_column
from corpus_asr.storage.run_state.current_rows import counting_rows
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import SEGMENT_ROWS
from corpus_asr.storage.run_state.tables import OutputStore, projected

LEAST_SHARED = 0.5
PLACED_COLUMNS = pa.schema([
    pa.field("corrected", pa.bool_(), metadata={"doc": "whether a person corrected or checked it"}),
    pa.field("checked", pa.bool_(), metadata={"doc": "whether it was compared with the audio"}),
    pa.field("original", pa.string(), metadata={"doc": "the model's text, in whose place it "
             "is; null: there is none, or nobody changed it"}),
    pa.field("speaker", pa.string(), metadata={"doc": "as a person set it: a label such as S1, or "
             "a name; null: by the turns"}),
])  # fmt: skip
SEEN_SEGMENTS = pa.schema([*SEGMENTS, *PLACED_COLUMNS])
"""Columns of segments as people see them."""
_NEEDED = ("recording_id", "part", "channel", "segment", "start_s", "end_s", "text", "words")
_HELD = "from held where recording_id = $id order by start_s, channel, part, segment"
_SCORES = ("tokens", "text_logprob", "avg_logprob", "no_speech_prob", "compression_ratio",
           "temperature")  # fmt: skip
_SAME_S = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedRow:
    """A segment made by a correction."""

    correction: Correction
    index: int
    original: str
    """Text of the model in whose place it is."""
    is_changed: bool
    """Whether its correction has other words than the model."""
    builds_on: frozenset[str]
    """IDs of the corrections whose segments it replaced."""

    @property
    def segment(self) -> EditedSegment:
        """The segment as the person edited it; a removed one has no text."""
        return self.correction.segments[self.index]

    @property
    def key(self) -> str:
        """Key of the segment, never reused by another one."""
        return f"{self.correction.id}.{self.index}"


@dataclass(frozen=True)
class CorrectedRows:
    """Segments of a recording with corrections applied."""

    rows: pa.Table
    """In time order; a removed segment has no text."""
    edits: Mapping[int, EditedRow] = field(default_factory=dict)
    """Edited segments by row."""
    unplaced: Sequence[Correction] = ()
    """Corrections that do not fit, and are not applied."""


def with_no_corrections(rows: pa.Table) -> pa.Table:
    """Return uncorrected rows with `PLACED_COLUMNS`."""
    no, null = pa.array(np.zeros(rows.num_rows, dtype=bool)), pa.nulls(rows.num_rows, pa.string())
    for column in PLACED_COLUMNS:
        rows = rows.append_column(column, no if column.type == pa.bool_() else null)
    return rows


def apply_corrections(rows: pa.Table, corrections: Sequence[Correction]) -> CorrectedRows:
    """Return the model's segments of one recording with corrections applied.

    Args:
        rows: all rows of a recording from the segments table, in time order.
        corrections: in the order of their saves.
    """
    starts, ends = (rows[name].to_numpy() for name in ("start_s", "end_s"))
    concerned = np.zeros(rows.num_rows, dtype=bool)
    for correction in corrections:
        start_s, end_s = correction.start_s - _SAME_S, correction.end_s + _SAME_S
        concerned |= (starts <= end_s) & (ends >= start_s)
    numbers, other_numbers = np.flatnonzero(concerned).tolist(), np.flatnonzero(~concerned).tolist()
    channels: defaultdict[int | None, _Channel] = defaultdict(_Channel)
    near_rows = rows.take(pa.array(numbers, pa.int64())).to_pylist()
    for number, row in zip(numbers, near_rows, strict=True):
        channels[row["channel"]].add(_piece_of(number, row, split_words(row)))
    for correction in corrections:
        channels[correction.channel].apply(correction)
    pieces = [piece for channel in channels.values() for piece in channel.pieces]
    rows = with_no_corrections(rows)
    names = rows.schema.names
    new_rows = [{name: row.get(name) for name in names} for row in map(_row_of, pieces)]
    rows = pa.concat_tables([
        rows.take(pa.array(other_numbers, pa.int64())), pa.Table.from_pylist(new_rows, rows.schema)
    ])  # fmt: skip
    # Sorted by time, as all readers do; equal start times keep their order.
    piece_numbers = [piece.number for piece in pieces]
    order = np.lexsort([[*other_numbers, *piece_numbers], rows["start_s"].to_numpy()])
    edits = [*(None for _ in other_numbers), *(piece.edit for piece in pieces)]
    rows = rows.take(pa.array(order))
    if sorted(piece_numbers) != numbers and {"part", "segment"} <= {*names}:
        rows = _numbered(rows)
    return CorrectedRows(
        rows,
        {at: edit for at, old in enumerate(order.tolist()) if (edit := edits[old]) is not None},
        [correction for channel in channels.values() for correction in channel.unplaced],
    )


def _numbered(rows: pa.Table) -> pa.Table:
    # Datasets name segments by part and number.
    counts: dict[Any, int] = {}
    numbers = []
    for part in rows["part"].to_pylist():
        numbers.append(counts.get(part, 0))
        counts[part] = numbers[-1] + 1
    return with_column(rows, "segment", numbers)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Piece:
    """A segment after some of the corrections: of the model, a part of one, or edited."""

    number: int
    """Of the model's row."""
    row: Mapping[str, Any]
    """The model's, or a part of it; of an edited segment the one that it overlaps most."""
    words: Sequence[Mapping[str, Any]]
    """The model's, in whose place it is."""
    start_s: float
    end_s: float
    text: str
    edit: EditedRow | None = None


_START = attrgetter("start_s")


def _piece_of(number: int, row: Mapping[str, Any], words: Sequence[Mapping[str, Any]]) -> _Piece:
    start_s, end_s, text = row["start_s"], row["end_s"], row["text"] or ""
    return _Piece(number=number, row=row, words=words, start_s=start_s, end_s=end_s, text=text)


class _Channel:
    """Segments of one channel, sorted by start, and corrections that fit none."""

    def __init__(self) -> None:
        self.pieces: list[_Piece] = []
        self.unplaced: list[Correction] = []
        self._longest_s = 0.0

    def add(self, piece: _Piece) -> None:
        """Add a segment."""
        insort(self.pieces, piece, key=_START)
        self._longest_s = max(self._longest_s, piece.end_s - piece.start_s)

    def apply(self, correction: Correction) -> None:
        """Apply a correction, or list it as unplaced."""
        start_s, end_s = correction.start_s - _SAME_S, correction.end_s + _SAME_S
        self.unplaced = [
            earlier for earlier in self.unplaced
            if earlier.start_s < start_s or earlier.end_s > end_s
        ]  # fmt: skip
        first = bisect_left(self.pieces, start_s - self._longest_s, key=_START)
        stop = bisect_right(self.pieces, end_s, key=_START)
        near = self.pieces[first:stop]
        if replaced := _as_it_was(near, correction):
            other_pieces = [piece for piece in near if piece not in replaced]
        else:
            replaced, other_pieces = _cut(near, correction)
            if not _fits(correction, replaced):
                self.unplaced.append(correction)
                return
        del self.pieces[first:stop]
        for piece in (*other_pieces, *_edited(correction, replaced)):
            self.add(piece)


def _as_it_was(pieces: Sequence[_Piece], correction: Correction) -> Sequence[_Piece]:
    """Return the segments that a correction replaced, if all still exist."""
    start_s, end_s = correction.start_s - _SAME_S, correction.end_s + _SAME_S
    within = [piece for piece in pieces if piece.start_s >= start_s and piece.end_s <= end_s]
    within.sort(key=lambda piece: (piece.start_s, piece.end_s))
    for first, piece in enumerate(within):
        if piece.start_s > correction.start_s + _SAME_S:
            break
        for stop in range(first + 1, len(within) + 1):
            run = within[first:stop]
            if (
                joined_text(piece.text for piece in run) == correction.original
                and max(piece.end_s for piece in run) >= correction.end_s - _SAME_S
            ):
                return run
    return ()


def _cut(pieces: Sequence[_Piece], correction: Correction) -> tuple[list[_Piece], list[_Piece]]:
    """Return the segments, or parts of them, within the span of a correction, and all others."""
    bounds_s = (-math.inf, correction.start_s, correction.end_s, math.inf)

    def zone_of(start_s: float, end_s: float) -> int:
        return bisect_right(bounds_s, (start_s + end_s) / 2) - 1

    own_words = _bare_words(correction.text)

    def zone_of_word(word: Mapping[str, Any]) -> int:
        zone = zone_of(word["start_s"], word["end_s"])
        is_across = word["start_s"] < correction.end_s and word["end_s"] > correction.start_s
        if is_across and zone != 1 and own_words:
            # Models differ in where a word ends: its own first or last is not doubled.
            own_word = own_words[0 if zone == 0 else -1]
            return 1 if bare_word(word["word"]) == own_word else zone
        return zone

    zones: tuple[list[_Piece], ...] = ([], [], [])
    for piece in pieces:
        if piece.edit:
            was_seen = piece.text in correction.original
            zones[zone_of(piece.start_s, piece.end_s) if was_seen else 0].append(piece)
            continue
        for zone, run in groupby(piece.words, zone_of_word):
            words, part = [*run], piece
            if len(words) < len(piece.words):
                row = part_of(piece.row, words, *bounds_s[zone : zone + 2])
                part = _piece_of(piece.number, row, words)
            zones[zone].append(part)
    return zones[1], [*zones[0], *zones[2]]


def _fits(correction: Correction, replaced: Sequence[_Piece]) -> bool:
    """Return whether a correction was made of these words, or has them."""
    words = [bare for piece in replaced for bare in _bare_words(piece.text)]
    if not words:
        return not correction.text
    for text in (correction.original, correction.text):
        text_words = _bare_words(text)
        matches = SequenceMatcher(None, words, text_words, autojunk=False).get_matching_blocks()
        shared = sum(match.size for match in matches)
        if shared >= LEAST_SHARED * max(len(words), len(text_words)):
            return True
    return False


def _bare_words(text: str) -> list[str]:
    return [*filter(None, map(bare_word, pieces_of(text)))]


def _edited(correction: Correction, replaced: Sequence[_Piece]) -> Iterator[_Piece]:
    """Yield the segments of a correction; none if it removed what is not there."""
    if not replaced:
        return
    words = [word for piece in replaced for word in piece.words]
    earlier = [piece.edit for piece in replaced if piece.edit]
    # Parts are joined with spaces, which some scripts do not use.
    letters, seen_letters, model_letters = ("".join(text.split()) for text in (
        correction.text, correction.original, "".join(word["word"] for word in words)
    ))  # fmt: skip
    was_changed = letters != seen_letters or any(edit.is_changed for edit in earlier)
    builds_on = frozenset(
        identity for edit in earlier for identity in (edit.correction.id, *edit.builds_on)
    )
    later_starts_s = [segment.start_s for segment in correction.segments[1:]]
    shares: list[list[Mapping[str, Any]]] = [[] for _ in correction.segments]
    for word in words:
        shares[bisect_right(later_starts_s, (word["start_s"] + word["end_s"]) / 2)].append(word)
    for index, (segment, share) in enumerate(zip(correction.segments, shares, strict=True)):
        nearest = max(replaced, key=lambda piece: min(piece.row["end_s"], segment.end_s)
                      - max(piece.row["start_s"], segment.start_s))  # fmt: skip
        edit = EditedRow(
            correction=correction,
            index=index,
            original="".join(word["word"] for word in share),
            is_changed=was_changed and letters != model_letters,
            builds_on=builds_on,
        )
        yield _Piece(
            number=nearest.number, row=nearest.row, words=share, start_s=segment.start_s,
            end_s=segment.end_s, text=segment.text, edit=edit,
        )  # fmt: skip


def _row_of(piece: _Piece) -> dict[str, Any]:
    """Return the values of a segment."""
    row, edit = dict(piece.row), piece.edit
    if edit is None:
        return row | {"corrected": False, "checked": False}
    segment, model_text = edit.segment, row["text"] or ""
    is_same = segment.text == spaced_once(edit.original) == spaced_once(model_text)
    is_vouched = segment.checked or edit.is_changed
    row |= {
        "start_s": segment.start_s, "end_s": segment.end_s, "speaker": segment.speaker,
        "corrected": is_vouched, "checked": segment.checked, "original": edit.original or None,
    }  # fmt: skip
    if not is_same:
        space = model_text[: len(model_text) - len(model_text.lstrip())]
        row |= {"text": space + segment.text if segment.text else ""} | dict.fromkeys(_SCORES)
    if is_vouched:
        row |= {"confidence": CORRECTED_CONFIDENCE, "known_hallucination": False}
    if (words := row.get("words")) is not None:
        if not is_same:
            words = timed_words(piece.words, row["text"], segment.start_s, segment.end_s)
        if is_vouched:
            words = [{**word, "probability": CORRECTED_CONFIDENCE} for word in words]
        row["words"] = clamped(words, segment.start_s, segment.end_s)
    return row


class SeenSegments:
    """Reads segments of the tables of a run, and notes which corrections have no place."""

    def __init__(
        self, store: OutputStore, tables: RunTables, corrections: Corrections | None = None
    ) -> None:
        self._store, self._tables = store, tables
        self._corrections = corrections or Corrections({})
        self.unplaced: list[Correction] = []
        """Corrections that do not fit; complete once all segments were read."""

    def batches(self, columns: Sequence[str], *, of: str = "parts") -> Iterator[pa.Table]:
        """Yield segments with `PLACED_COLUMNS`; those of a corrected recording at once, last.

        Args:
            columns: of the segments table.
            of: in SQL the outcomes whose segments are wanted, all of a recording.
        """
        store, tables = self._store, self._tables
        ids = pa.array(self._corrections.recording_ids, pa.string())
        tables.add("corrected_ids", pa.table({"recording_id": ids}))
        uncorrected = f"(from {of}) anti join corrected_ids using (recording_id)"
        for rows, _ in counting_rows(store, tables, SEGMENT_ROWS, columns, of=uncorrected):
            yield with_no_corrections(rows)
        corrected = f"(from {of}) semi join corrected_ids using (recording_id)"
        id_rows = tables.rows(f"select distinct recording_id from {corrected} order by all")
        if not id_rows:
            return
        needed_columns = tuple(dict.fromkeys((*columns, *_NEEDED)))
        schema = projected(SEGMENTS, needed_columns)
        tables.add("held", schema.empty_table())
        for rows, _ in counting_rows(store, tables, SEGMENT_ROWS, needed_columns, of=corrected):
            tables.execute("insert into held from arriving", rows)
        for (recording_id,) in id_rows:
            rows = tables.table(_HELD, id=recording_id).cast(schema)
            result = apply_corrections(rows, self._corrections.of(recording_id))
            self.unplaced += result.unplaced
            yield result.rows.select([*columns, *PLACED_COLUMNS.names])
        tables.execute("drop table held")
