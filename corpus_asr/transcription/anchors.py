"""Where recognized words stand in a given text, by dynamic programming over words.

Knows words alone, nothing of audio. The recognized words are those of one part; the given ones are
of the whole recording, of which the part may say any span. Memory grows with the words of both, not
with their product.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from corpus_asr.array_types import Float

# Costs in words: one that only one side has costs 1, two that have nothing in common 2.
_DIFFERENT = 2.0
# Words of the text that are skipped in a row cost this at most: a page that was not read is as good
# as a sentence, and must not make the words after it give way.
_MAX_SKIP = 8.0
# Where a text says the same twice, what the part's place in the recording counts at most.
_PLACE = 2.0
# Recognized words before the first of the text, and after the last, cost so much less than those
# between: of equal ways the one is taken that has the text in one piece.
_OUTSIDE = 0.005
# Rows of the table that are kept while the way back is looked for; between them it is made again.
_ROWS_KEPT = 64
# Hashed pairs of letters; few collide among a word's ten.
_PAIR_KINDS = 512
# Words that share fewer of their pairs of letters are not taken for one another.
_SIMILAR = 0.3
_SAME = 0.999
# Forms of one word, such as jump and jumped, speak for a place as well, by what they share.
_NEAR = 0.6

# A pair of words is believed where at least this share of the words around it are the same: in an
# unrelated text it is about a quarter, where every third recognized word is wrong 0.6.
_AROUND = 5
_MIN_SUPPORT = 0.5
# Short words are the same by chance.
_SHORT_LETTERS, _SHORT_WEIGHT = 3, 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """A recognized word and the given one that stands in its place."""

    said: int
    given: int
    similarity: float
    """1 for the same word, in 0-1."""
    supported: bool
    """Whether the words around it fit as well: it marks a place of the text in the audio."""

    @property
    def is_anchor(self) -> bool:
        """Whether the given word is certainly said here."""
        return self.supported and self.similarity > _SAME


def folded(word: str) -> str:
    """Return a word's letters and digits, without case and accents."""
    plain = unicodedata.normalize("NFKD", word.casefold())
    return "".join(letter for letter in plain if letter.isalnum())


def find_pairs(
    said: Sequence[str], given: Sequence[str], *, place: tuple[float, float] | None = None
) -> list[Pair]:
    """Pair recognized words with those of a text, of which they may be any span, in order.

    `place` is the span of the text in which they are expected, as fractions of it; it decides only
    between spans that fit about equally well.

    Source: Sellers 1980 (the span of a text with the fewest edits), with substitutions priced by
    the letters that words share, and skipped spans at most at a fixed price.
    """
    spoken_words = [folded(word) for word in said]
    text_words = [folded(word) for word in given]
    if not any(spoken_words) or not any(text_words):
        return []
    table = _Table(spoken_words, text_words, place)
    steps = table.steps()
    return _supported(steps, spoken_words, text_words)


def _similarities(
    said: Sequence[str], given: Sequence[str]
) -> Float[np.ndarray, "said_kind given_kind"]:
    # Sorensen-Dice of pairs of letters, the word's edges among them.
    recognized_pairs, text_pairs = _has_pairs(said), _has_pairs(given)
    common = recognized_pairs @ text_pairs.T
    total = recognized_pairs.sum(axis=1)[:, None] + text_pairs.sum(axis=1)[None, :]
    similarity = (2 * common / np.maximum(total, 1)).astype(np.float32)
    same = np.array(said)[:, None] == np.array(given)[None, :]
    # Words of other letters may have the same pairs; nothing is the same as nothing.
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


class _Table:
    """The cheapest ways of each row of recognized words to each place of the text."""

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
        # What a way costs that begins or ends at each place of the text.
        if place is None:
            return np.zeros_like(self._at), np.zeros_like(self._at)
        fraction = self._at / max(1, len(self._given))
        first, last = (_PLACE / 2 * np.abs(fraction - wanted) for wanted in place)
        return first, last

    def steps(self) -> list[tuple[int, int, float]]:
        """Return the cheapest way: (said, given, similarity), -1 for a word without the other."""
        kept, costs = {0: self._first}, self._first
        rows = len(self._said)
        for row in range(rows):
            costs, _, _ = self._row(row, costs)
            if (row + 1) % _ROWS_KEPT == 0:
                kept[row + 1] = costs
        at = int(np.argmin(costs + self._last))
        steps: list[tuple[int, int, float]] = []
        for start in sorted(kept, reverse=True):
            # Made again from a kept row; the last block may be empty.
            at = self._back(start, min(start + _ROWS_KEPT, rows), kept[start], at, steps)
        return steps[::-1]

    def _row(self, row: int, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the costs after a recognized word, whence each comes along the text, and how."""
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
    # Also where it stands: of equal ones the last, so that no step is made for nothing.
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
    # A run of skipped text beyond a few words tells no more than the few do.
    skipped = np.array([step[0] < 0 for step in steps])
    run = 0
    for at in range(len(steps)):
        run = run + 1 if skipped[at] else 0
        if run > _AROUND:
            weights[at] = 0.0
    # Nor does what is said before the first word of the text and after its last: it is not of it.
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
