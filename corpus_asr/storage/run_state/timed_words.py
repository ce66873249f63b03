"""Words of corrected texts with times, which are taken from the model's words where they agree."""

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
    matcher = SequenceMatcher(None, words_before, words_after, autojunk=False)
    timed: list[dict[str, Any]] = []
    for tag, first, stop, start, end in matcher.get_opcodes():
        if tag == "equal":
            timed += [
                _word(pieces[start + at], words[first + at]["start_s"], words[first + at]["end_s"])
                for at in range(stop - first)
            ]
            continue
        new = pieces[start:end]
        from_s = words[first]["start_s"] if tag == "replace" else _end_of(timed, start_s)
        to_s = words[stop - 1]["end_s"] if tag == "replace" else None
        if to_s is None:
            to_s = words[stop]["start_s"] if stop < len(words) else end_s
        if new and to_s - from_s < _SHORTEST_WORD_S * len(new) and timed:
            new.insert(0, timed.pop()["word"])
            from_s = _end_of(timed, start_s)
        timed += divided_words(new, from_s, max(from_s, to_s))
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
