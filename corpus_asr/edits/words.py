"""Words of transcripts and of corrected texts: split, aligned with one another, and timed.

Input: rows of the segments table, and texts of people. Words of a corrected text have the times of
the model's where both agree, and divide what is between these. Case and punctuation are ignored.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from corpus_asr.edits.corrections import EditedSegment

# A person vouches for it. The model's scores apply to the model's text.
CORRECTED_CONFIDENCE = 1.0
# Inserted words for which there is no pause borrow time from a neighbor.
_SHORTEST_WORD_S = 0.02
# Scripts without spaces between words are compared character by character.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"\s*(?:[{_SPACELESS}]|[^\s{_SPACELESS}]+)")


class Token(NamedTuple):
    """A word of a segment, or a character in scripts without spaces between words."""

    row: int
    text: str
    bare: str
    start_s: float
    end_s: float
    probability: float | None
    timed: bool


def same_words(words: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Yield runs of equal words as their places in both and their length; an empty one at last."""
    yield from SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()


def timed_words(
    words: Sequence[Mapping[str, Any]], text: str, start_s: float, end_s: float
) -> list[dict[str, Any]]:
    """Return the words of a corrected text with times, which joined are the text.

    Words that were kept keep their times; others divide by their lengths the time between these.
    Whether blanks are between words is seen from the model's.
    """
    spaced = len(words) < 2 or any(word["word"][:1].isspace() for word in words[1:])
    pieces = re.findall(r"\s*\S+", text) if spaced else list(text)
    words_before = [bare_word(word["word"]) for word in words]
    words_after = [bare_word(piece) for piece in pieces]
    timed: list[dict[str, Any]] = []
    stop = end = 0
    for first, start, size in same_words(words_before, words_after):
        new = pieces[end:start]
        if first > stop and new:  # in place of the model's
            from_s, to_s = words[stop]["start_s"], words[first - 1]["end_s"]
        else:
            from_s = _end_of(timed, start_s)
            to_s = words[first]["start_s"] if first < len(words) else end_s
        if new and to_s - from_s < _SHORTEST_WORD_S * len(new) and timed:
            new.insert(0, timed.pop()["word"])
            from_s = _end_of(timed, start_s)
        timed += divided_words(new, from_s, max(from_s, to_s))
        stop, end = first + size, start + size
        timed += [
            _word(piece, word["start_s"], word["end_s"])
            for piece, word in zip(pieces[start:end], words[first:stop], strict=True)
        ]
    return timed


def bare_word(word: str) -> str:
    """Return a word in its compared form: without case and punctuation."""
    letters = "".join(character for character in word.casefold() if character.isalnum())
    return letters or word.strip()


def _word(word: str, start_s: float, end_s: float) -> dict[str, Any]:
    return {"word": word, "start_s": start_s, "end_s": end_s, "probability": CORRECTED_CONFIDENCE}


def _end_of(timed: Sequence[Mapping[str, Any]], start_s: float) -> float:
    return float(timed[-1]["end_s"]) if timed else start_s


def divided_words(pieces: Sequence[str], start_s: float, end_s: float) -> Iterator[dict[str, Any]]:
    """Yield words that divide a time span by their lengths."""
    bounds = np.cumsum([0, *map(len, pieces)])
    times_s = (start_s + (end_s - start_s) * bounds / max(1, bounds[-1])).tolist()
    for piece, (from_s, to_s) in zip(pieces, pairwise(times_s), strict=True):
        yield _word(piece, from_s, to_s)


def pieces_of(text: str) -> list[str]:
    """Split a text into words, which concatenated are the text."""
    pieces: list[str] = []
    for piece in _TOKEN.findall(text):
        if pieces and not any(map(str.isalnum, piece)):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    if pieces:
        pieces[-1] += text[sum(map(len, pieces)) :]
    return pieces


def tokens_of(at: int, row: dict[str, Any]) -> Iterator[Token]:
    """Yield the words of a segment, of which `at` is the row number."""
    text, words = row["text"] or "", row.get("words") or []
    pieces = pieces_of(text) or [text]
    if "".join(word["word"] or "" for word in words) != text:
        words = []
    if not words:
        for word in divided_words(pieces, row["start_s"], row["end_s"]):
            yield Token(at, word["word"], bare_word(word["word"]), word["start_s"], word["end_s"],
                         None, timed=False)  # fmt: skip
        return
    ends = np.cumsum([len(word["word"]) for word in words])
    place = 0
    for piece in pieces:
        # The word of its first character other than a space, and of its last one.
        first = place + len(piece) - len(piece.lstrip())
        place += len(piece)
        first_word, last_word = (words[int(np.searchsorted(ends, where, side="right"))]
                                 for where in (first, place - 1))  # fmt: skip
        yield Token(at, piece, bare_word(piece), first_word["start_s"], last_word["end_s"],
                     last_word["probability"], timed=True)  # fmt: skip


def part_of(row: dict[str, Any], tokens: Sequence[Token]) -> dict[str, Any]:
    """Return part of a segment, without token IDs, which cannot be split."""
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


def clamped(words: Any, start_s: float, end_s: float) -> Any:
    """Return words with times within a span, in seconds; None for None."""
    if words is None:
        return None
    return [
        {**word, **{name: min(max(word[name], start_s), end_s) for name in ("start_s", "end_s")}}
        for word in words
    ]


def divided_among(
    segments: Sequence[EditedSegment], texts: Sequence[str], words: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Return each text's words with times."""
    start_s = min(segment.start_s for segment in segments)
    end_s = max(segment.end_s for segment in segments)
    timed = timed_words(words, "".join(texts), start_s, end_s)
    shares: list[list[dict[str, Any]]] = [[] for _ in texts]
    ends = np.cumsum([len(text) for text in texts])
    place = 0
    for word in timed:
        # In scripts without spaces, a word that spans two texts belongs to the first.
        at = int(np.searchsorted(ends, place, side="right"))
        shares[at].append(word)
        place += len(word["word"])
    return [
        share if "".join(word["word"] for word in share) == text
        else list(divided_words(pieces_of(text), segment.start_s, segment.end_s))
        for share, text, segment in zip(shares, texts, segments, strict=True)
    ]  # fmt: skip
