"""Segments as people see them: those of the model, with corrections in their places.

This is what `show`, `export`, `read_segments`, the viewer, `label` and `evaluate` read. Segments of
recordings that nobody corrected pass through; of the others all columns that corrections need are
read as well, whatever is asked for, so that a correction has the same place for every reader.

Corrections are applied in the order of their saves. Each replaces segments of the transcript as
left by earlier corrections, which may be another model's with other boundaries:

1. If the text that its author saw is found at the same times, it replaces these segments.
2. Else its words are those within its time span, plus adjacent ones up to `MARGIN_S` away that
   continue the text it replaced or contains. Other words at its edges are included only if they are
   certainly within the span. Case and punctuation are ignored.
3. It fits if at least half of these words match (`LEAST_SHARED`): two models share most words of a
   span, unrelated spans hardly any, so that the exact threshold matters little. Its text then
   replaces exactly these words. A segment that is replaced in part is cut between words, and the
   rest keeps the model's words, each once. A removal also fits if the model now has no words.
4. Otherwise, or if another correction owns its words, nothing changes and the correction is listed
   as stale: displayed with the model's old and new text until someone edits that span.

Checked text is placed like any other: checking turns the model's words into a correction.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.edits.corrections import (
    Correction,
    Corrections,
    EditedSegment,
    joined_text,
)
from corpus_asr.edits.words import (
    CORRECTED_CONFIDENCE,
    Token,
    bare_word,
    clamped,
    divided_among,
    part_of,
    pieces_of,
    same_words,
    tokens_of,
)
from corpus_asr.schemas import SEGMENTS
from corpus_asr.storage.parquet import with_column
from corpus_asr.storage.run_state.current_rows import counting_rows
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import SEGMENT_ROWS, OutputStore, projected

MARGIN_S = 1.0
LEAST_SHARED = 0.5
PLACED_COLUMNS = pa.schema([
    pa.field("corrected", pa.bool_(), metadata={"doc": "whether a person corrected or checked it"}),
    pa.field("checked", pa.bool_(), metadata={"doc": "whether it was compared with the audio"}),
    pa.field("original", pa.string(), metadata={"doc": "the model's text, in the first of the "
             "segments that a person has in its place; null: nobody changed it"}),
    pa.field("speaker", pa.string(), metadata={"doc": "as a person set it: a label such as S1, or "
             "a name; null: by the turns"}),
])  # fmt: skip
SEEN_SEGMENTS = pa.schema([*SEGMENTS, *PLACED_COLUMNS])
"""Columns of segments as people see them."""
_NEEDED = ("recording_id", "part", "channel", "segment", "start_s", "end_s", "text", "words")
_ORDER = "order by recording_id, start_s, channel, part, segment"
_SCORES = ("tokens", "text_logprob", "avg_logprob", "no_speech_prob", "compression_ratio",
           "temperature")  # fmt: skip
# Accuracy of segment boundaries of models, in seconds.
_ROUNDED_S = 0.3
_SAME_S = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A segment made by a correction."""

    correction: Correction
    index: int
    rewritten: bool
    """Whether one of its corrections has other words than it replaced."""
    builds_on: frozenset[str] = frozenset()
    """IDs of the corrections from which it stems."""

    @property
    def segment(self) -> EditedSegment:
        """The segment as the person edited it."""
        return self.correction.segments[self.index]

    @property
    def key(self) -> str:
        """Key of the segment, never reused by another one."""
        return f"{self.correction.id}.{self.index}"


@dataclass(slots=True, eq=False)
class Block:
    """Edited segments that replace some of the model's."""

    made: list[Made]
    """In time order; a removed segment has no text."""
    cut: list[dict[str, Any]] = field(default_factory=list)
    """The model's segments, or parts of them."""
    tokens: list[int] = field(default_factory=list)
    """Indices of the model's words in the channel."""

    @property
    def text(self) -> str:
        """Text of the edited segments."""
        return joined_text(made.segment.text for made in self.made)

    @property
    def original(self) -> str:
        """Text of the model."""
        return "".join(row["text"] or "" for row in self.cut)

    @property
    def checked(self) -> bool:
        """Whether people compared all of it with the audio."""
        return all(made.segment.checked for made in self.made)

    @property
    def rewritten(self) -> bool:
        """Whether the text differs from the model's."""
        model = joined_text(row["text"] or "" for row in self.cut)
        if len(self.cut) == len(self.made) == 1:
            return self.text != model
        # Parts are joined with spaces, which some scripts do not use.
        return self.text.replace(" ", "") != model.replace(" ", "")

    def has_changed(self, made: Made) -> bool:
        """Return whether a segment has words that the model does not have."""
        return made.rewritten and self.rewritten


@dataclass(frozen=True, slots=True)
class Stale:
    """A correction that could not be placed, and earlier ones whose segments it replaced."""

    correction: Correction
    replaced_ids: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """IDs of all of these corrections."""
        return (*self.replaced_ids, self.correction.id)


@dataclass(slots=True)
class Placing:
    """Segments of a recording with corrections applied."""

    rows: pa.Table
    """With `PLACED_COLUMNS`, in time order; a removed segment has no text."""
    made: dict[int, Made] = field(default_factory=dict)
    """Edited segments by row."""
    blocks: list[Block] = field(default_factory=list)
    stale: list[Stale] = field(default_factory=list)

    def by_key(self) -> dict[str, Block]:
        """Return the block of each segment made by a correction."""
        return {made.key: block for block in self.blocks for made in block.made}


def with_no_corrections(rows: pa.Table) -> pa.Table:
    """Return uncorrected rows with `PLACED_COLUMNS`."""
    no = pa.array(np.zeros(rows.num_rows, dtype=bool))
    for name in PLACED_COLUMNS.names:
        of = PLACED_COLUMNS.field(name)
        values = no if of.type == pa.bool_() else pa.nulls(rows.num_rows, of.type)
        rows = rows.append_column(of, values)
    return rows


def place(rows: pa.Table, corrections: Sequence[Correction]) -> Placing:
    """Return the model's segments of one recording with corrections applied.

    Args:
        rows: all rows of a recording from the segments table, in time order.
        corrections: in the order of their saves.
    """
    numbers = _concerned(rows, corrections)
    numbered_rows = list(
        zip(numbers.tolist(), rows.take(pa.array(numbers)).to_pylist(), strict=True)
    )
    placing = Placing(with_no_corrections(rows))
    changes: _Changes = {}
    for number in dict.fromkeys(correction.channel for correction in corrections):
        channel = _Channel([(at, row) for at, row in numbered_rows if row["channel"] == number])
        for correction in corrections:
            if correction.channel == number:
                channel.apply(correction)
        changes |= channel.changes()
        placing.blocks += channel.blocks
        placing.stale += channel.stale
    if changes:
        _put(placing, changes)
    return placing


_Changes = dict[int, list[tuple[dict[str, Any], Made | None]]]
"""Replacements of rows, by row number."""


def _concerned(rows: pa.Table, corrections: Sequence[Correction]) -> np.ndarray:
    starts, ends = (rows[name].to_numpy() for name in ("start_s", "end_s"))
    marks = np.zeros(rows.num_rows, dtype=bool)
    for correction in corrections:
        marks |= (starts <= correction.end_s + MARGIN_S) & (ends >= correction.start_s - MARGIN_S)
    return np.flatnonzero(marks)


def _put(placing: Placing, changes: _Changes) -> None:
    rows, names = placing.rows, placing.rows.schema.names
    new = [(number, *change) for number, pieces in changes.items() for change in pieces]
    kept = np.setdiff1d(np.arange(rows.num_rows), list(changes))
    # The rest of a partly replaced segment counts as uncorrected.
    nobody = {"corrected": False, "checked": False}
    new_rows = [{name: (nobody | row).get(name) for name in names} for _, row, _ in new]
    joined = pa.concat_tables(
        [rows.take(pa.array(kept)), pa.Table.from_pylist(new_rows, schema=rows.schema)]
    )
    places = np.concatenate([kept, [number for number, _, _ in new]]).astype(np.int64)
    # Sorted by time, as all readers do; equal start times keep their order.
    order = np.lexsort([places, joined["start_s"].to_numpy()])
    made_by = [*[None] * len(kept), *[made for _, _, made in new]]
    placing.made = {
        at: made for at, old in enumerate(order.tolist()) if (made := made_by[old]) is not None
    }
    placing.rows = joined.take(pa.array(order))
    if any(len(pieces) != 1 for pieces in changes.values()) and {"part", "segment"} <= {*names}:
        placing.rows = _numbered(placing.rows)


def _numbered(rows: pa.Table) -> pa.Table:
    # Datasets name segments by part and number.
    counts: dict[Any, int] = {}
    numbers = []
    for part in rows["part"].to_pylist():
        numbers.append(counts.get(part, 0))
        counts[part] = numbers[-1] + 1
    return with_column(rows, "segment", numbers)


class _Piece(NamedTuple):
    """A segment at this stage of corrections: of the model, or edited."""

    start_s: float
    end_s: float
    text: str
    tokens: Sequence[int]
    key: str = ""
    """Set for an edited segment."""


class _Word(NamedTuple):
    token: int
    bare: str
    inside: bool
    """Whether its middle is within the time span of a correction."""
    surely: bool
    """Whether it is entirely within, judged by its times or those of its segment."""


class _Channel:
    """Segments of one channel, whose words belong to blocks or to none."""

    def __init__(self, rows: Sequence[tuple[int, dict[str, Any]]]) -> None:
        self._rows = [row for _, row in rows]
        self._numbers = [number for number, _ in rows]
        self._starts_s = [row["start_s"] for row in self._rows]
        self._longest_s = max((row["end_s"] - row["start_s"] for row in self._rows), default=0.0)
        self._tokens: list[Token] = []
        self._of_row: list[range] = []
        for at, row in enumerate(self._rows):
            first = len(self._tokens)
            self._tokens += tokens_of(at, row)
            self._of_row.append(range(first, len(self._tokens)))
        self._owners: list[Block | None] = [None] * len(self._tokens)
        self._made: dict[str, tuple[Made, Block]] = {}
        self._made_starts: list[tuple[float, str]] = []
        self.stale: list[Stale] = []

    @property
    def blocks(self) -> list[Block]:
        """Edited segments, unordered."""
        return list({id(block): block for _, block in self._made.values()}.values())

    def apply(self, correction: Correction) -> None:
        """Apply a correction, or list it as stale."""
        within = [stale for stale in self.stale if _is_within(stale.correction, correction)]
        self.stale = [stale for stale in self.stale if stale not in within]
        pieces = self._as_it_was(correction)
        if pieces is None:
            tokens = self._by_words(correction)
            if tokens is None:
                ids = [identity for stale in within for identity in stale.ids]
                self.stale.append(Stale(correction, tuple(ids)))
                return
            pieces = [_Piece(0.0, 0.0, "", tokens)]
        self._replace(correction, pieces)

    def _replace(self, correction: Correction, pieces: Sequence[_Piece]) -> None:
        replaced = [self._made.pop(piece.key) for piece in pieces if piece.key]
        texts = "".join(correction.text.split()), "".join(correction.original.split())
        rewritten = texts[0] != texts[1] or any(made.rewritten for made, _ in replaced)
        builds_on = frozenset(
            identity for made, _ in replaced for identity in (made.correction.id, *made.builds_on)
        )
        touched = list({id(block): block for _, block in replaced}.values())
        all_made = [made for block in touched for made in block.made if made.key in self._made]
        all_made += [
            Made(correction=correction, index=index, rewritten=rewritten, builds_on=builds_on)
            for index in range(len(correction.segments))
        ]
        block = Block(sorted(all_made, key=lambda made: (made.segment.start_s, made.key)))
        for made in all_made:
            if made.key not in self._made:
                insort(self._made_starts, (made.segment.start_s, made.key))
            self._made[made.key] = made, block
        block.tokens = [at for old_block in touched for at in old_block.tokens]
        block.tokens += [at for piece in pieces for at in piece.tokens]
        for at in block.tokens:
            self._owners[at] = block

    def _near(self, start_s: float, end_s: float) -> Iterator[int]:
        """Yield indices of rows that overlap a span."""
        first = bisect_left(self._starts_s, start_s - self._longest_s)
        for at in range(first, bisect_right(self._starts_s, end_s)):
            if self._rows[at]["end_s"] >= start_s:
                yield at

    def _as_it_was(self, correction: Correction) -> list[_Piece] | None:
        """Return the segments that a correction replaced, if all still exist."""
        start_s, end_s = correction.start_s - _SAME_S, correction.end_s + _SAME_S
        near = [piece for piece in self._pieces(start_s, end_s)
                if piece.start_s >= start_s and piece.end_s <= end_s]  # fmt: skip
        within = sorted(near, key=itemgetter(0, 1))
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
        return None

    def _pieces(self, start_s: float, end_s: float) -> Iterator[_Piece]:
        first = bisect_left(self._made_starts, (start_s, ""))
        for _, key in self._made_starts[first : bisect_right(self._made_starts, (end_s, "~"))]:
            if key in self._made:
                segment = self._made[key][0].segment
                yield _Piece(segment.start_s, segment.end_s, segment.text, (), key)
        for at in self._near(start_s, end_s):
            for owner, run in groupby(self._of_row[at], key=self._owners.__getitem__):
                if owner is None:
                    tokens = list(run)
                    piece = self._cleared(at, tokens)
                    yield _Piece(piece["start_s"], piece["end_s"], piece["text"] or "", tokens)

    def _by_words(self, correction: Correction) -> list[int] | None:
        """Return the words that a correction replaces; None if it does not fit."""
        words = list(self._words(correction))
        # Words of other corrections lie between two runs.
        runs = [
            [word for _, word in run]
            for _, run in groupby(enumerate(words), key=lambda pair: pair[1].token - pair[0])
        ]
        fits = [
            _fit(run, [bare_word(word) for word in pieces_of(text)])
            for run in runs for text in (correction.original, correction.text) if text
        ]  # fmt: skip
        shared, replaced = max(fits, key=itemgetter(0), default=(0.0, []))
        if shared >= LEAST_SHARED:
            return [word.token for word in replaced]
        is_silent = not correction.text and not any(word.inside for word in words)
        return [] if is_silent else None

    def _words(self, correction: Correction) -> Iterator[_Word]:
        start_s, end_s = correction.start_s, correction.end_s
        for place in self._near(start_s - MARGIN_S, end_s + MARGIN_S):
            row = self._rows[place]
            rounded = row["start_s"] >= start_s - _ROUNDED_S and row["end_s"] <= end_s + _ROUNDED_S
            for at in self._of_row[place]:
                token = self._tokens[at]
                if self._owners[at] is not None or not (
                    token.end_s >= start_s - MARGIN_S and token.start_s <= end_s + MARGIN_S
                ):
                    continue
                inside = start_s <= (token.start_s + token.end_s) / 2 < end_s
                timed = token.timed and start_s <= token.start_s and token.end_s <= end_s
                yield _Word(at, token.bare, inside, rounded or timed)

    def changes(self) -> _Changes:
        """Return the replacements of rows."""
        changes: _Changes = {}
        first: dict[int, int] = {}
        for at, number in enumerate(self._numbers):
            runs = [(owner, list(run)) for owner, run in
                    groupby(self._of_row[at], key=self._owners.__getitem__)]  # fmt: skip
            if all(owner is None for owner, _ in runs):
                continue
            changes[number] = []
            for owner, run in runs:
                if owner is None:
                    changes[number].append((self._cleared(at, run), None))
                    continue
                owner.cut.append(self._cut(at, run))
                first.setdefault(id(owner), number)
        for block in self.blocks:
            if block.cut:
                changes[first[id(block)]] += _people_rows(block)
        return changes

    def _cut(self, at: int, run: Sequence[int]) -> dict[str, Any]:
        row = self._rows[at]
        whole = len(run) == len(self._of_row[at])
        return row if whole else part_of(row, [self._tokens[token] for token in run])

    def _cleared(self, at: int, run: Sequence[int]) -> dict[str, Any]:
        """Return the rest of a row, trimmed to not overlap adjacent edited segments."""
        piece, tokens = self._cut(at, run), self._of_row[at]
        start_s, end_s = piece["start_s"], piece["end_s"]
        if run[0] > tokens.start and (earlier_block := self._owners[run[0] - 1]):
            start_s = max(start_s, min(end_s, earlier_block.made[-1].segment.end_s))
        if run[-1] + 1 < tokens.stop and (later_block := self._owners[run[-1] + 1]):
            end_s = min(end_s, max(start_s, later_block.made[0].segment.start_s))
        words = clamped(piece.get("words"), start_s, end_s)
        return piece | {"start_s": start_s, "end_s": end_s, "words": words}


def _is_within(earlier: Correction, later: Correction) -> bool:
    """Return whether a later correction covers the whole span of an earlier one."""
    return all(
        later.start_s - _SAME_S <= segment.start_s and segment.end_s <= later.end_s + _SAME_S
        for segment in earlier.segments
    )


def _fit(words: Sequence[_Word], text: Sequence[str]) -> tuple[float, Sequence[_Word]]:
    """Return the fraction of a text's words found among `words`, and the matching words."""
    inside = [at for at, word in enumerate(words) if word.inside]
    if not inside:
        return 0.0, []
    first, stop = inside[0], inside[-1] + 1
    runs = same_words([word.bare for word in words[first:stop]], text)
    pairs = [(first + place + at, other + at) for place, other, size in runs for at in range(size)]
    if not pairs:
        return 0.0, []
    count = len(pairs)
    (at, text_first), (last, text_last) = pairs[0], pairs[-1]
    while first < at and not words[first].surely:
        first += 1
    while stop - 1 > last and not words[stop - 1].surely:
        stop -= 1
    while first == at > 0 < text_first and words[at - 1].bare == text[text_first - 1]:
        first, at, text_first, count = first - 1, at - 1, text_first - 1, count + 1
    while (
        stop < len(words)
        and stop - 1 == last
        and text[text_last + 1 : text_last + 2] == [words[stop].bare]
    ):
        stop, last, text_last, count = stop + 1, last + 1, text_last + 1, count + 1
    return count / max(len(text), stop - first), words[first:stop]


def _people_rows(block: Block) -> Iterator[tuple[dict[str, Any], Made]]:
    """Yield rows of edited segments."""
    cut = block.cut
    same = not block.rewritten and len(cut) == len(block.made) == 1
    original = cut[0]["text"] or ""
    space = original[: len(original) - len(original.lstrip())]
    segments = [made.segment for made in block.made]
    texts = [space + segment.text if segment.text else "" for segment in segments]
    words: list[list[dict[str, Any]]] | None = None
    if cut[0].get("words") is not None:
        words = divided_among(segments, texts, [word for row in cut for word in row["words"] or ()])
    for at, made in enumerate(block.made):
        segment = made.segment
        values = dict(max(cut, key=lambda row: min(row["end_s"], segment.end_s)
                          - max(row["start_s"], segment.start_s)))  # fmt: skip
        vouched = segment.checked or block.has_changed(made)
        people_columns: dict[str, Any] = {
            "start_s": segment.start_s, "end_s": segment.end_s, "speaker": segment.speaker,
            "corrected": vouched, "checked": segment.checked,
            "original": block.original if at == 0 else None,
        }  # fmt: skip
        if vouched:
            people_columns |= {"confidence": CORRECTED_CONFIDENCE, "known_hallucination": False}
        if not same:
            people_columns |= {"text": texts[at]} | dict.fromkeys(_SCORES)
        if words is not None:
            segment_words = values["words"] if same else words[at]
            people_columns["words"] = clamped(segment_words, segment.start_s, segment.end_s)
            if vouched:
                people_columns["words"] = [
                    {**word, "probability": CORRECTED_CONFIDENCE}
                    for word in people_columns["words"] or ()
                ]
        added = PLACED_COLUMNS.names
        values |= {
            name: value for name, value in people_columns.items() if name in values or name in added
        }
        yield values, made


class SeenSegments:
    """Reads segments of the tables of a run, and notes which corrections have no place."""

    def __init__(
        self, store: OutputStore, tables: RunTables, corrections: Corrections | None = None
    ) -> None:
        self._store, self._tables = store, tables
        self._corrections = corrections or Corrections({})
        self.stale: list[Stale] = []
        """Complete once all segments were read."""

    def batches(self, columns: Sequence[str], *, of: str = "parts") -> Iterator[pa.Table]:
        """Yield segments with `PLACED_COLUMNS`; those of a corrected recording at once, last.

        Args:
            columns: of the segments table.
            of: in SQL the outcomes whose segments are wanted, all of a recording.
        """
        groups = self._groups(of)
        tables = self._tables
        tables.add("corrected_ids", pa.table({"recording_id": pa.array(groups, pa.string())}))
        uncorrected = f"(from {of}) anti join corrected_ids using (recording_id)"
        for rows, _ in counting_rows(self._store, tables, SEGMENT_ROWS, columns, of=uncorrected):
            yield with_no_corrections(rows)
        for _, placing in self._placings(groups, columns, of):
            yield placing.rows.select([*columns, *PLACED_COLUMNS.names])

    def _groups(self, of: str) -> Mapping[str, Sequence[Correction]]:
        ids = self._corrections.recording_ids
        id_rows = self._tables.rows(
            f"select distinct recording_id from (from {of}) "
            "where recording_id in (select unnest($ids::varchar[])) order by all", ids=ids,
        ) if ids else []  # fmt: skip
        return {recording_id: self._corrections.of(recording_id) for (recording_id,) in id_rows}

    def _placings(
        self, groups: Mapping[str, Sequence[Correction]], columns: Sequence[str], of: str
    ) -> Iterator[tuple[str, Placing]]:
        if not groups:
            return
        columns = tuple(dict.fromkeys((*columns, *_NEEDED)))
        schema = projected(SEGMENTS, columns)
        self._tables.add("held", schema.empty_table())
        corrected = f"(from {of}) semi join corrected_ids using (recording_id)"
        for rows, _ in counting_rows(
            self._store, self._tables, SEGMENT_ROWS, columns, of=corrected
        ):
            self._tables.execute("insert into held from arriving", rows)
        silent = dict(groups)
        for rows in _by_recording(self._tables.batches(f"from held {_ORDER}"), schema):
            recording_id = rows["recording_id"][0].as_py()
            yield recording_id, self._placed(rows, silent.pop(recording_id))
        self._tables.execute("drop table held")
        for recording_id, recording_corrections in silent.items():
            yield recording_id, self._placed(schema.empty_table(), recording_corrections)

    def _placed(self, rows: pa.Table, corrections: Sequence[Correction]) -> Placing:
        placing = place(rows, corrections)
        self.stale += placing.stale
        return placing


def _by_recording(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting = schema.empty_table()
    for batch in batches:
        rows = pa.Table.from_batches([batch]).cast(schema)
        waiting = pa.concat_tables([waiting, rows])
        ids = waiting["recording_id"]
        for recording_id in ids.unique().to_pylist()[:-1]:
            yield waiting.filter(pc.equal(ids, recording_id))
        waiting = waiting.filter(pc.equal(ids, ids[-1])) if len(ids) else waiting
    if waiting.num_rows:
        yield waiting
