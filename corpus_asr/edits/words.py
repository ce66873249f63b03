"""Words of transcripts and of corrected texts: split, aligned with one another, and timed.

In and out: rows of the segments table, their `words`, and texts of people. Words of a corrected
text have the times of the model's where both agree, and divide what is between these. Case and
punctuation are ignored.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import numpy as np

# A person vouches for it. The model's scores apply to the model's text.
CORRECTED_CONFIDENCE = 1.0
# Inserted words for which there is no pause borrow time from a neighbor.
_SHORTEST_WORD_S = 0.02
# Scripts without spaces between words are compared character by character: Thai, Lao, Tibetan,
# Burmese, Khmer, Japanese and Chinese.
_SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"\s*(?:[{_SPACELESS}]|[^\s{_SPACELESS}]+)")


def timed_words(
    words: Sequence[Mapping[str, Any]], text: str, start_s: float, end_s: float
) -> list[dict[str, Any]]:
    """Return the words of a corrected text with times, which joined are the text.

    Words that were kept keep their times; others divide by their lengths the time between these.
    """
    pieces = pieces_of(text)
    words_before = [bare_word(word["word"]) for word in words]
    words_after = [bare_word(piece) for piece in pieces]
    timed: list[dict[str, Any]] = []
    stop = end = 0
    matcher = SequenceMatcher(None, words_before, words_after, autojunk=False)
    for first, start, size in matcher.get_matching_blocks():
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


def split_words(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the words of a segment with times, which joined are its text.

    In scripts without spaces between words, each character is one. Without the model's times, words
    divide the segment by their lengths.
    """
    text, words = row["text"] or "", row.get("words") or []
    pieces = pieces_of(text) or [text]
    if not words or "".join(word["word"] or "" for word in words) != text:
        return list(divided_words(pieces, row["start_s"], row["end_s"]))
    ends = np.cumsum([len(word["word"]) for word in words])
    split: list[dict[str, Any]] = []
    place = 0
    for piece in pieces:
        # The word of its first character other than a space, and of its last one.
        first = place + len(piece) - len(piece.lstrip())
        place += len(piece)
        first_word, last_word = (words[int(np.searchsorted(ends, where, side="right"))]
                                 for where in (first, place - 1))  # fmt: skip
        split.append({**last_word, "word": piece, "start_s": first_word["start_s"]})
    return split


def part_of(
    row: Mapping[str, Any], words: Sequence[Mapping[str, Any]], least_s: float, most_s: float
) -> dict[str, Any]:
    """Return a segment with some of its words, of times within a span, without token IDs."""
    part = {**row, "text": "".join(word["word"] for word in words), "tokens": []}
    part["start_s"] = max(words[0]["start_s"], least_s)
    part["end_s"] = min(words[-1]["end_s"], most_s)
    if row.get("words") is not None:
        part["words"] = clamped(words, least_s, most_s)
    return part


def clamped(words: Any, start_s: float, end_s: float) -> list[dict[str, Any]]:
    """Return words with times within a span, in seconds."""
    return [
        {**word, **{name: min(max(word[name], start_s), end_s) for name in ("start_s", "end_s")}}
        for word in words
    ]
