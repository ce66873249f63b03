"""Corrections on the segments of a transcript: where they belong, and what is read there.

A group of corrections replaces segments of the model. It is placed on those of the current
transcript of its channel, which may be another model's, cut otherwise:

1. Where every replaced segment is there with the same times and text, the group replaces these.
2. Else its place is found by time and words. Of the segments within `MARGIN_S` of its span, those
   words are its own that are aligned with the words it replaced, or with the words it says;
   and words within its span, by their times. Case and punctuation are ignored. Words outside of the
   span are its own only where they are the same.
3. It fits if at least half of these words are the same (`LEAST_SHARED`): two models that transcribe
   one span share most words, two spans that have nothing in common share hardly any, so that the
   exact number matters little. Then what people said stands for exactly these words. A segment of
   which only some are replaced is cut between words, and the rest keeps the model's words, each
   once. A removal also fits where the model now has no words.
4. Else, and where another correction has its words, nothing is changed, and the group is `stale`:
   to be shown with the model's text then and now, until somebody applies or dismisses it.

A checked text is placed like any other: that somebody checked the model's words makes them theirs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from corpus_asr.storage.run_state.corrections import Group, Leaf, replaced_row, spaced_once
from corpus_asr.storage.run_state.timed_words import (
    CORRECTED_CONFIDENCE,
    bare_word,
    divided_words,
    timed_words,
)

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
_SCORES = ("tokens", "text_logprob", "avg_logprob", "no_speech_prob", "compression_ratio",
           "temperature")  # fmt: skip
# Scripts without spaces between words are compared by characters.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"\s*(?:[{_SPACELESS}]|[^\s{_SPACELESS}]+)")
# Skipping a word of the span costs more than replacing it, unless its time is an estimate.
_KNOWN, _ESTIMATED = 1.01, 0.6
_PER_S, _FURTHEST = 0.1, 0.5  # by its distance in time, taking a word that is the same


class _Token(NamedTuple):
    row: int
    text: str
    bare: str
    start_s: float
    end_s: float
    probability: float | None
    timed: bool


@dataclass(slots=True)
class Placed:
    """Where a group stands."""

    group: Group
    cut: list[dict[str, Any]] = field(default_factory=list)
    """The model's segments, or their pieces, in whose place people's are."""

    @property
    def original(self) -> str:
        """The model's text."""
        return "".join(row["text"] or "" for row in self.cut)

    @property
    def rewritten(self) -> bool:
        """Whether people have another text."""
        said, model = self.group.text, spaced_once(" ".join(row["text"] or "" for row in self.cut))
        if len(self.cut) == len(self.group.leaves) == 1:
            return said != model
        # Where pieces are joined there are blanks, which some scripts do not write.
        return said.replace(" ", "") != model.replace(" ", "")

    def has_changed(self, leaf: Leaf) -> bool:
        """Tell whether a segment has a person's words, which the model does not have."""
        return leaf.rewritten and self.rewritten


@dataclass(slots=True)
class Placing:
    """The segments of a recording as people see them."""

    rows: pa.Table
    """With `PLACED_COLUMNS`, in order of time; a removed segment is one without text."""
    leaves: dict[int, Leaf] = field(default_factory=dict)
    """By row."""
    placed: list[Placed] = field(default_factory=list)
    stale: list[Placed] = field(default_factory=list)
    """What could not be placed, with the segments of the model that are there now."""

    def by_stem(self) -> dict[str, Placed]:
        """Return the place of each correction's group."""
        return {stem: each for each in self.placed for stem in each.group.stems}


def with_no_corrections(rows: pa.Table) -> pa.Table:
    """Return rows that nobody corrected, with `PLACED_COLUMNS`."""
    no = pa.array(np.zeros(rows.num_rows, dtype=bool))
    for name in PLACED_COLUMNS.names:
        of = PLACED_COLUMNS.field(name)
        values = no if of.type == pa.bool_() else pa.nulls(rows.num_rows, of.type)
        rows = rows.append_column(of, values)
    return rows


def place(rows: pa.Table, groups: Sequence[Group]) -> Placing:
    """Return one recording's segments of the model with groups of corrections in their places.

    Args:
        rows: of the segments table, all of a recording, in order of time.
    """
    numbers = _concerned(rows, groups)
    some = list(zip(numbers.tolist(), rows.take(pa.array(numbers)).to_pylist(), strict=True))
    found = Placing(with_no_corrections(rows))
    changes: _Changes = {}
    for channel in dict.fromkeys(group.channel for group in groups):
        own = [(number, row) for number, row in some if row["channel"] == channel]
        theirs = [group for group in groups if group.channel == channel]
        changes |= _Channel(own).changes(theirs, found)
    if changes:
        _put(found, changes)
    return found


_Changes = dict[int, list[tuple[dict[str, Any], Leaf | None]]]
"""What stands in the place of rows, by their numbers."""


def _concerned(rows: pa.Table, groups: Sequence[Group]) -> np.ndarray:
    starts, ends = (rows[name].to_numpy() for name in ("start_s", "end_s"))
    marks = np.zeros(rows.num_rows, dtype=bool)
    for group in groups:
        start_s, end_s = group.span_s
        marks |= (starts <= end_s + MARGIN_S) & (ends >= start_s - MARGIN_S)
    return np.flatnonzero(marks)


def _put(found: Placing, changes: _Changes) -> None:
    rows, names = found.rows, found.rows.schema.names
    made = [(number, *one) for number, own in changes.items() for one in own]
    kept = np.setdiff1d(np.arange(rows.num_rows), list(changes))
    # What is left of a segment of which only some words were replaced, nobody corrected.
    nobody = {"corrected": False, "checked": False}
    others = [{name: (nobody | row).get(name) for name in names} for _, row, _ in made]
    joined = pa.concat_tables(
        [rows.take(pa.array(kept)), pa.Table.from_pylist(others, schema=rows.schema)]
    )
    places = np.concatenate([kept, [number for number, _, _ in made]]).astype(np.int64)
    # By time, as all readers sort; what begins at one time stays in order.
    order = np.lexsort([places, joined["start_s"].to_numpy()])
    leaves = [*[None] * len(kept), *[leaf for _, _, leaf in made]]
    found.leaves = {
        at: leaf for at, old in enumerate(order.tolist()) if (leaf := leaves[old]) is not None
    }
    found.rows = joined.take(pa.array(order))
    if any(len(own) != 1 for own in changes.values()) and {"part", "segment"} <= {*names}:
        found.rows = _numbered(found.rows)


def _numbered(rows: pa.Table) -> pa.Table:
    # Data sets name segments by part and number.
    counts: dict[Any, int] = {}
    numbers = []
    for part in rows["part"].to_pylist():
        numbers.append(counts.get(part, 0))
        counts[part] = numbers[-1] + 1
    at = rows.schema.get_field_index("segment")
    of = rows.schema.field(at)
    return rows.set_column(at, of, pa.array(numbers, of.type))


class _Channel:
    """Segments of one channel, whose words belong to groups or to nobody."""

    def __init__(self, rows: Sequence[tuple[int, dict[str, Any]]]) -> None:
        self._rows = rows
        self._nodes = {str(replaced_row(row).node): at for at, (_, row) in enumerate(rows)}
        self._tokens = [token for at, (_, row) in enumerate(rows) for token in _tokens(at, row)]
        self._owners: list[Placed | None] = [None] * len(self._tokens)
        self._empty: dict[int, Placed] = {}
        """Owners of rows without words."""
        self._of_row: dict[int, range] = {}
        for at, token in enumerate(self._tokens):
            first = self._of_row.get(token.row, range(at, at)).start
            self._of_row[token.row] = range(first, at + 1)

    def changes(self, groups: Sequence[Group], found: Placing) -> _Changes:
        """Place groups; return what stands in the places of rows."""
        standing = [group for group in groups if not group.in_conflict]
        placed = [self._as_it_was(group) for group in standing]
        placed = [one or self._by_words(group)
                  for one, group in zip(placed, standing, strict=True)]  # fmt: skip
        found.placed += [one for one in placed if one is not None]
        lost = [group for one, group in zip(placed, standing, strict=True) if one is None]
        for group in (*lost, *(group for group in groups if group.in_conflict)):
            start_s, end_s = group.span_s
            now = [row for _, row in self._rows
                   if row["start_s"] < end_s and row["end_s"] > start_s]  # fmt: skip
            found.stale.append(Placed(group, now))
        changes: _Changes = {}
        first: dict[int, int] = {}
        for at, (number, row) in enumerate(self._rows):
            own = self._of_row.get(at, range(0))
            owners = [self._empty.get(at)] if not own else [self._owners[one] for one in own]
            if all(owner is None for owner in owners):
                continue
            changes[number] = []
            runs = [list(run) for _, run in groupby(own, key=lambda one: id(self._owners[one]))]
            for run in runs or [[]]:
                owner = self._owners[run[0]] if run else owners[0]
                piece = row if len(runs) < 2 else _piece(row, [self._tokens[one] for one in run])
                if owner is None:
                    changes[number].append((self._clear(piece, run, own), None))
                    continue
                owner.cut.append(piece)
                first.setdefault(id(owner), number)
        for one in placed:
            if one is not None and one.cut:
                changes[first[id(one)]] += _people_rows(one)
        return changes

    def _clear(self, piece: dict[str, Any], run: list[int], own: range) -> dict[str, Any]:
        # What is left of a segment does not overlap what people have next to it.
        start_s, end_s = piece["start_s"], piece["end_s"]
        if run[0] > own.start and (before := self._owners[run[0] - 1]):
            start_s = max(start_s, min(end_s, before.group.leaves[-1].said.end_s))
        if run[-1] + 1 < own.stop and (after := self._owners[run[-1] + 1]):
            end_s = min(end_s, max(start_s, after.group.leaves[0].said.start_s))
        return piece | {
            "start_s": start_s, "end_s": end_s, "words": _within(piece.get("words"), start_s, end_s)
        }  # fmt: skip

    def _as_it_was(self, group: Group) -> Placed | None:
        """Place a group on the segments that it replaced, if all are there and free."""
        wanted = [self._nodes.get(str(one.node)) for one in group.replaced]
        rows = [at for at in wanted if at is not None]
        words = [one for at in rows for one in self._of_row.get(at, ())]
        if len(rows) < len(wanted) or any(self._owners[one] is not None for one in words):
            return None
        placed = Placed(group)
        self._empty.update((at, placed) for at in rows if at not in self._of_row)
        for one in words:
            self._owners[one] = placed
        return placed

    def _by_words(self, group: Group) -> Placed | None:
        start_s, end_s = group.span_s
        near = {
            at for at, (_, row) in enumerate(self._rows)
            if row["start_s"] <= end_s + MARGIN_S and row["end_s"] >= start_s - MARGIN_S
        }  # fmt: skip
        free = [at for at, token in enumerate(self._tokens)
                if token.row in near and self._owners[at] is None]  # fmt: skip
        runs = [
            [at for _, at in run]
            for _, run in groupby(enumerate(free), key=lambda pair: pair[1] - pair[0])
        ]
        shares = [self._shares_inside(run, start_s, end_s) for run in runs]
        texts = [
            [bare_word(one) for one in _pieces_of(text)] for text in (group.original, group.text)
        ]
        if not texts[1] and not any(share for own in shares for share in own):
            return Placed(group)  # the model has nothing there either
        best: tuple[float, float, list[int]] | None = None
        for run, inside in zip(runs, shares, strict=True):
            tokens = [self._tokens[at] for at in run]
            for text in filter(None, texts):
                cost, errors, first, stop = _aligned(text, tokens, inside, start_s, end_s)
                wrong = errors / max(len(text), stop - first)
                if stop > first and wrong <= 1.0 - LEAST_SHARED:
                    best = min(
                        best or (wrong, cost, run[first:stop]), (wrong, cost, run[first:stop])
                    )
        if best is None:
            return None
        placed = Placed(group)
        for at in best[2]:
            self._owners[at] = placed
        return placed

    def _shares_inside(self, run: Sequence[int], start_s: float, end_s: float) -> list[float]:
        """Return what leaving out each word costs: how much of it lies within a span."""
        shares = []
        for at in run:
            token, row = self._tokens[at], self._rows[self._tokens[at].row][1]
            if row["start_s"] >= start_s - _ROUNDED_S and row["end_s"] <= end_s + _ROUNDED_S:
                shares.append(_KNOWN)
                continue
            shared_s = min(token.end_s, end_s) - max(token.start_s, start_s)
            share = shared_s / max(token.end_s - token.start_s, 1e-6)
            if token.end_s <= token.start_s:
                share = float(start_s <= token.start_s < end_s)
            weight = _KNOWN if token.timed else _ESTIMATED
            shares.append(weight * min(1.0, max(0.0, share)))
        return shares


def around(
    rows: Sequence[dict[str, Any]], start_s: float, end_s: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return which segments have words within a span, and pieces of them before and after it."""
    within, before, after = (list[dict[str, Any]]() for _ in range(3))
    for row in rows:
        tokens = list(_tokens(0, row))
        places = [(token.start_s + token.end_s) / 2 for token in tokens]
        if not any(start_s <= place < end_s for place in places):
            continue
        within.append(row)
        placed = list(zip(tokens, places, strict=True))
        sides = (
            [token for token, place in placed if place < start_s],
            [token for token, place in placed if place >= end_s],
        )
        for pieces, side in zip((before, after), sides, strict=True):
            if side:
                pieces.append(_piece(row, side))
    return within, before, after


# Models place the ends of a segment to about this.
_ROUNDED_S = 0.3


def _aligned(
    text: Sequence[str], tokens: Sequence[_Token], skips: Sequence[float], start_s: float,
    end_s: float,
) -> tuple[float, int, int, int]:  # fmt: skip
    """Return cost, word errors, and the first and last place of the words that a text has.

    Leaving out a token before or after these costs its `skips`, else the costs are those of the
    edit distance, with more for words that are not within the span.
    """
    outside = [1.0 - min(1.0, skip) for skip in skips]
    same = [
        min(_FURTHEST, _PER_S * max(0.0, start_s - token.end_s, token.start_s - end_s))
        for token in tokens
    ]
    # By the number of tokens: cost, errors, and where the words begin.
    cells = [(0.0, 0, 0)]
    skipped = 0.0
    for at, skip in enumerate(skips):
        skipped += skip
        cost, errors, first = cells[-1]
        cells.append(min((skipped, 0, at + 1), (cost + 1.0, errors + 1, first)))
    for word in text:
        cost, errors, first = cells[0]
        row = [(cost + 1.0, errors + 1, first)]
        for at, token in enumerate(tokens):
            cost, errors, first = cells[at]
            if token.bare == word:
                options = [(cost + same[at], errors, first)]
            else:
                options = [(cost + 1.0 + outside[at] / 2, errors + 1, first)]
            for cost, errors, first in (cells[at + 1], row[at]):
                options.append((cost + 1.0, errors + 1, first))
            row.append(min(options))
        cells = row
    left = 0.0
    best = (*cells[-1], len(tokens))
    for at in range(len(tokens) - 1, -1, -1):
        left += skips[at]
        cost, errors, first = cells[at]
        best = min(best, (cost + left, errors, first, at))
    return best


def _pieces_of(text: str) -> list[str]:
    """Divide a text into words, which joined are the text."""
    pieces: list[str] = []
    for piece in _TOKEN.findall(text):
        if pieces and not any(map(str.isalnum, piece)):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    if pieces:
        pieces[-1] += text[sum(map(len, pieces)) :]
    return pieces


def _tokens(at: int, row: dict[str, Any]) -> Iterator[_Token]:
    text, words = row["text"] or "", row.get("words") or []
    pieces = _pieces_of(text)
    if "".join(word["word"] or "" for word in words) != text:
        words = []
    if not words:
        for word in divided_words(pieces, row["start_s"], row["end_s"]):
            yield _Token(at, word["word"], bare_word(word["word"]), word["start_s"], word["end_s"],
                         None, timed=False)  # fmt: skip
        return
    ends = np.cumsum([len(word["word"]) for word in words])
    place = 0
    for piece in pieces:
        # The words of its first character that is no space, and of its last one.
        first = place + len(piece) - len(piece.lstrip())
        place += len(piece)
        one, last = (words[int(np.searchsorted(ends, where, side="right"))]
                     for where in (first, place - 1))  # fmt: skip
        yield _Token(at, piece, bare_word(piece), one["start_s"], last["end_s"],
                     last["probability"], timed=True)  # fmt: skip


def _piece(row: dict[str, Any], tokens: Sequence[_Token]) -> dict[str, Any]:
    """Return a part of a segment, which has no token ids: these cannot be divided."""
    values = {
        "text": "".join(token.text for token in tokens),
        "start_s": tokens[0].start_s,
        "end_s": max(token.end_s for token in tokens),
        "tokens": [],
    }
    if row.get("words") is not None:
        values["words"] = [
            {"word": token.text, "start_s": token.start_s, "end_s": token.end_s,
             "probability": token.probability}
            for token in tokens
        ]  # fmt: skip
    return {**row, **{name: value for name, value in values.items() if name in row}}


def _within(words: Any, start_s: float, end_s: float) -> Any:
    if words is None:
        return None
    return [
        {**word, **{name: min(max(word[name], start_s), end_s) for name in ("start_s", "end_s")}}
        for word in words
    ]


def _people_rows(placed: Placed) -> Iterator[tuple[dict[str, Any], Leaf]]:
    """Yield rows of what people have in place of the model's segments."""
    group, cut = placed.group, placed.cut
    same = not placed.rewritten and len(cut) == len(group.leaves) == 1
    original = cut[0]["text"] or ""
    space = original[: len(original) - len(original.lstrip())]
    texts = [space + leaf.said.text if leaf.said.text else "" for leaf in group.leaves]
    words: list[list[dict[str, Any]]] | None = None
    if cut[0].get("words") is not None:
        words = _divided_among(group, texts, [word for row in cut for word in row["words"] or ()])
    for at, leaf in enumerate(group.leaves):
        said = leaf.said
        values = dict(max(cut, key=lambda row: min(row["end_s"], said.end_s)
                          - max(row["start_s"], said.start_s)))  # fmt: skip
        checked = leaf.correction.checked
        vouched = checked or placed.has_changed(leaf)
        own: dict[str, Any] = {
            "start_s": said.start_s, "end_s": said.end_s, "speaker": said.speaker,
            "corrected": vouched, "checked": checked,
            "original": placed.original if at == 0 else None,
        }  # fmt: skip
        if vouched:
            own |= {"confidence": CORRECTED_CONFIDENCE, "known_hallucination": False}
        if not same:
            own |= {"text": texts[at]} | dict.fromkeys(_SCORES)
        if words is not None:
            theirs = values["words"] if same else words[at]
            own["words"] = _within(theirs, said.start_s, said.end_s)
            if vouched:
                own["words"] = [
                    {**word, "probability": CORRECTED_CONFIDENCE} for word in own["words"] or ()
                ]
        added = PLACED_COLUMNS.names
        values |= {name: value for name, value in own.items() if name in values or name in added}
        yield values, leaf


def _divided_among(
    group: Group, texts: Sequence[str], words: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Return the words of each text with times."""
    start_s = min(leaf.said.start_s for leaf in group.leaves)
    end_s = max(leaf.said.end_s for leaf in group.leaves)
    timed = timed_words(words, "".join(texts), start_s, end_s)
    shares: list[list[dict[str, Any]]] = [[] for _ in texts]
    ends = np.cumsum([len(text) for text in texts])
    place = 0
    for word in timed:
        # A word that spans two texts, in scripts without spaces, is the first one's.
        at = int(np.searchsorted(ends, place, side="right"))
        shares[at].append(word)
        place += len(word["word"])
    return [
        own if "".join(word["word"] for word in own) == text
        else list(divided_words(_pieces_of(text), leaf.said.start_s, leaf.said.end_s))
        for own, text, leaf in zip(shares, texts, group.leaves, strict=True)
    ]  # fmt: skip
