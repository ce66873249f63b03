"""What a speaking program tells of a text that it has spoken, and how manifests say it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Word(NamedTuple):
    """A word, from when to when it is said."""

    word: str
    start_s: float
    end_s: float


class SpokenText(NamedTuple):
    """A text as samples of 16 bits, mono, when it is said and when those words that are known."""

    samples: np.ndarray
    rate_hz: int
    start_s: float
    end_s: float
    words: tuple[Word, ...]

    def sooner(self, by_s: float) -> "SpokenText":
        """Return the same with earlier times; none is before the beginning."""
        words = (
            Word(each.word, max(0.0, each.start_s - by_s), each.end_s - by_s) for each in self.words
        )
        start_s = max(0.0, self.start_s - by_s)
        return self._replace(start_s=start_s, end_s=self.end_s - by_s, words=tuple(words))


def timed(words: Iterable[Word], offset_s: float) -> list[dict[str, Any]]:
    """Return words for a manifest.

    Args:
        words: of a text.
        offset_s: where in the recording the text begins.
    """
    return [
        {
            "word": each.word,
            "start_s": round(offset_s + each.start_s, 3),
            "end_s": round(offset_s + each.end_s, 3),
        }
        for each in words
    ]
