"""Aligns recognized words with a given text, by dynamic programming over words.

Uses words only, no audio. The recognized words are those of one part; the given ones are those of
the whole recording, of which the part may contain any span. Memory is linear in both lengths, not
in their product.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from corpus_asr.array_types import Float

# Costs in words: an insertion or deletion costs 1, a pair without common letters 2.
_DIFFERENT = 2.0
# Maximum cost of skipping consecutive words of the text: a page that was not read costs no more
# than a sentence, so that the words after it still align.
_MAX_SKIP = 8.0
# Maximum cost of deviating from the part's expected place, to choose between repeated passages.
_PLACE = 2.0
# Discount for recognized words before the first and after the last word of the text: among equal
# alignments, the one with contiguous text wins.
_OUTSIDE = 0.005
# Checkpoint interval in rows; the backtrace recomputes the rows between.
_ROWS_KEPT = 64
# Number of hash values of letter pairs; the roughly ten pairs of a word rarely collide.
_PAIR_KINDS = 512
# Minimum similarity of words that may be paired.
_SIMILAR = 0.3
SAME = 0.999
"""Equal words are more similar than this, others less."""
# Minimum similarity that supports neighboring pairs, as between jump and jumped.
_NEAR = 0.6

# A pair is supported if at least this fraction of the words around it match: for an unrelated text
# it is about 0.25, with every third recognized word wrong 0.6.
_AROUND = 5
_MIN_SUPPORT = 0.5
# Short words match by chance.
_SHORT_LETTERS, _SHORT_WEIGHT = 3, 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """A recognized word and the word of the text aligned with it."""

    said: int
    given: int
    similarity: float
    """Similarity in 0-1; 1 for equal words."""
    supported: bool
    """Whether the surrounding words match too, so that the pair locates the text in the audio."""

    @property
    def is_anchor(self) -> bool:
        """Whether the word of the text is certainly spoken at this point."""
        return self.supported and self.similarity > SAME


def folded(word: str) -> str:
    """Return a word's letters and digits, without case and accents."""
    plain = unicodedata.normalize("NFKD", word.casefold())
    return "".join(letter for letter in plain if letter.isalnum())


def find_pairs(
    said: Sequence[str], given: Sequence[str], *, place: tuple[float, float] | None = None
) -> list[Pair]:
    """Pair recognized words with words of a text, of which they may be any span, in order.

    `place` is the expected span as fractions of the text; it only decides between spans that fit
    almost equally well.

    Source: Sellers 1980 (the span of a text with the fewest edits), with substitutions priced by
    the letters that words share, and skipped spans at most at a fixed price.
    """
    spoken_words = [folded(word) for word in said]
    text_words = [folded(word) for word in given]
    if not any(spoken_words) or not any(text_words):
        return []
    table = _AlignmentTable(spoken_words, text_words, place)
    steps = table.steps()
    return _supported(steps, spoken_words, text_words)


def _similarities(
    said: Sequence[str], given: Sequence[str]
) -> Float[np.ndarray, "said_kind given_kind"]:
    # Sorensen-Dice coefficient of letter pairs, including word edges.
    recognized_pairs, text_pairs = _has_pairs(said), _has_pairs(given)
    common = recognized_pairs @ text_pairs.T
    total = recognized_pairs.sum(axis=1)[:, None] + text_pairs.sum(axis=1)[None, :]
    similarity = (2 * common / np.maximum(total, 1)).astype(np.float32)
    same = np.array(said)[:, None] == np.array(given)[None, :]
    # Different words may have the same pairs; empty words match nothing.
    similarity = np.where(same, np.float32(1), np.minimum(similarity, np.float32(0.99)))
    empty = (np.array(said) == "")[:, None] | (np.array(given) == "")[None, :]
    return np.where(empty, np.float32(0), similarity)


def _has_pairs(words: Sequence[str]) -> Float[np.ndarray, "word pair"]:
    has = np.zeros((len(words), _PAIR_KINDS), dtype=np.float32)
    for row, word in enumerate(words):
        edged = f" {word} "
        for first, second in pairwise(edged):
            has[row, (ord(first) * 31 + ord(second)) % _PAIR_KINDS] = 1
    return has


class _AlignmentTable:
    """Minimum alignment costs; rows are recognized words, columns are positions in the text."""

    def __init__(
        self, said: Sequence[str], given: Sequence[str], place: tuple[float, float] | None
    ) -> None:
        said_kinds, self._said = np.unique(np.array(said, dtype=object), return_inverse=True)
        given_kinds, self._given = np.unique(np.array(given, dtype=object), return_inverse=True)
        self._similarity = _similarities(said_kinds.tolist(), given_kinds.tolist())
        self._at = np.arange(len(given) + 1, dtype=np.float64)
        self._first, self._last = self._edges(place)
        self._alone = np.ones(len(given) + 1)
        self._alone[[0, -1]] -= _OUTSIDE

    def _edges(self, place: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
        # Cost of starting or ending an alignment at each text position.
        if place is None:
            return np.zeros_like(self._at), np.zeros_like(self._at)
        fraction = self._at / max(1, len(self._given))
        first, last = (_PLACE / 2 * np.abs(fraction - wanted) for wanted in place)
        return first, last

    def steps(self) -> list[tuple[int, int, float]]:
        """Return the cheapest alignment as (said, given, similarity), with -1 if unpaired."""
        kept, costs = {0: self._first}, self._first
        rows = len(self._said)
        for row in range(rows):
            costs, _, _ = self._row(row, costs)
            if (row + 1) % _ROWS_KEPT == 0:
                kept[row + 1] = costs
        at = int(np.argmin(costs + self._last))
        steps: list[tuple[int, int, float]] = []
        for start in sorted(kept, reverse=True):
            # Recomputed from a kept row; the last block may be empty.
            at = self._back(start, min(start + _ROWS_KEPT, rows), kept[start], at, steps)
        return steps[::-1]

    def _row(self, row: int, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return costs after a recognized word, the columns they come from, and which are pairs."""
        similarity = self._similarity[self._said[row]][self._given]
        price = np.where(similarity >= _SIMILAR, _DIFFERENT * (1 - similarity), np.inf)
        both, alone = costs[:-1] + price, costs + self._alone
        paired = np.concatenate([[False], both <= alone[1:]])
        best = alone.copy()
        best[1:] = np.minimum(both, alone[1:])
        one_by_one, first_of_it = _running_minimum(best - self._at)
        one_by_one += self._at
        at_once, first_at_once = _running_minimum(best)
        at_once += _MAX_SKIP
        jumps = at_once < one_by_one
        came = np.where(jumps, first_at_once, first_of_it)
        return np.where(jumps, at_once, one_by_one), came, paired

    def _back(
        self, start: int, stop: int, costs: np.ndarray, at: int, steps: list[tuple[int, int, float]]
    ) -> int:
        made = []
        for row in range(start, stop):
            costs, came, paired = self._row(row, costs)
            made.append((came.astype(np.int32), paired))
        for row in range(stop - 1, start - 1, -1):
            came, paired = made[row - start]
            steps += [(-1, skipped, 0.0) for skipped in range(at - 1, int(came[at]) - 1, -1)]
            at = int(came[at])
            if paired[at]:
                at -= 1
                kinds = self._said[row], self._given[at]
                steps.append((row, at, float(self._similarity[kinds])))
            else:
                steps.append((row, -1, 0.0))
        return at


def _running_minimum(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Also its position: of equal values the last one, to avoid needless steps.
    least = np.minimum.accumulate(values)
    at = np.where(values <= least, np.arange(len(values)), 0)
    return least, np.maximum.accumulate(at)


def _supported(
    steps: Sequence[tuple[int, int, float]], said: Sequence[str], given: Sequence[str]
) -> list[Pair]:
    def weight(step: tuple[int, int, float]) -> float:
        word = said[step[0]] if step[0] >= 0 else given[step[1]]
        return _SHORT_WEIGHT if len(word) <= _SHORT_LETTERS else 1.0

    weights = np.array([weight(step) for step in steps])
    # In a run of skipped text only the first few words count.
    skipped = np.array([step[0] < 0 for step in steps])
    run = 0
    for at in range(len(steps)):
        run = run + 1 if skipped[at] else 0
        if run > _AROUND:
            weights[at] = 0.0
    # Recognized words before the first and after the last word of the text do not count.
    given_at = [at for at, step in enumerate(steps) if step[1] >= 0]
    if given_at and steps[given_at[0]][1] == 0:
        weights[: given_at[0]] = 0.0
    if given_at and steps[given_at[-1]][1] == len(given) - 1:
        weights[given_at[-1] + 1 :] = 0.0
    same = weights * np.array([step[2] if step[2] >= _NEAR else 0.0 for step in steps])
    sums, hits = (np.concatenate([[0.0], np.cumsum(values)]) for values in (weights, same))
    pairs = []
    for at, (said_at, text_at, similarity) in enumerate(steps):
        if said_at < 0 or text_at < 0:
            continue
        low, high = max(0, at - _AROUND), min(len(steps), at + _AROUND + 1)
        around = sums[high] - sums[low]
        supported = hits[high] - hits[low] >= _MIN_SUPPORT * around
        pairs.append(Pair(said_at, text_at, similarity, bool(supported)))
    return pairs
