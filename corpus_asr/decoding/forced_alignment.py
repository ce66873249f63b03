"""CTC forced alignment: the most likely position of each token of a known text.

Scores are stored only at the first position of each block: an hour of 45,000 positions and 4,000
tokens takes 25 MB instead of 3 GB. The backtrace recomputes blocks from the last to the first, for
the tokens that can occur in them.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from corpus_asr.array_types import Float, Float64, Int
from corpus_asr.decoding.emissions import EmittedRow
from corpus_asr.errors import AlignmentError, ItemError
from corpus_asr.failure_kinds import NOT_A_NUMBER

WILDCARD = -1
"""Token for characters outside the vocabulary: at each position as likely as the best token."""

_Scores = tuple[Float64[np.ndarray, " silence"], Float64[np.ndarray, " token"]]
"""Scores of the best path that is in each silence, and at each token."""


def align_tokens(
    logprobs: Float[np.ndarray, "pos vocab"], tokens: Sequence[int], *, blank: int
) -> EmittedRow:
    """Align `tokens`, and nothing else, with these positions.

    A blank separates two equal tokens, or two wildcards. A token's log-probability is the mean
    over its positions.

    Raises:
        AlignmentError: the tokens do not fit, or have zero probability.
        ItemError: scores are not finite numbers.
        ValueError: a token is the blank, or not in the vocabulary.

    Source: Graves et al. 2006, section 4.1, with the best path instead of the sum.
    """
    wanted = np.asarray(tokens, dtype=np.int64)
    wrong = (wanted < WILDCARD) | (wanted >= logprobs.shape[1]) | (wanted == blank)
    if wrong.any():
        raise ValueError(
            f"aligning a text of {len(wanted)} tokens: found token {wanted[wrong][0]}, expected "
            f"ids from 0 to {logprobs.shape[1] - 1} except the blank {blank}, or the wildcard; "
            "use the checkpoint's tokenizer"
        )
    again = wanted[1:] == wanted[:-1]
    needed = len(wanted) + int(again.sum())
    if needed > len(logprobs):
        raise AlignmentError(
            f"aligning a text of {len(wanted)} tokens: found {len(logprobs)} positions of audio, "
            f"expected at least {needed}; check that the text is of this recording"
        )
    best = _without_blank(logprobs, blank)
    # -inf is a probability of zero; NaN is not less than anything.
    if not ((best < np.inf).all() and (logprobs[:, blank] < np.inf).all()):
        raise ItemError(
            f"aligning a text of {len(wanted)} tokens: found scores that are not numbers, "
            "expected log-probabilities; set model.compute_type to float32",
            kind=NOT_A_NUMBER,
        )
    way = _AlignmentPath(logprobs, best, wanted, np.where(again, -np.inf, 0.0), blank).places()
    positions = np.flatnonzero(way >= 0)
    spoken = way[positions]
    scores = np.where(
        wanted[spoken] == WILDCARD, best[positions], logprobs[positions, wanted[spoken]]
    ).astype(np.float64)
    durations = np.bincount(spoken, minlength=len(wanted))
    sums = np.bincount(spoken, weights=scores, minlength=len(wanted))
    firsts = positions[np.searchsorted(spoken, np.arange(len(wanted)))]
    return EmittedRow(
        tokens=tuple(wanted.tolist()),
        frames=tuple(firsts.tolist()),
        durations=tuple(durations.tolist()),
        logprobs=tuple((sums / durations).tolist()),
    )


def _without_blank(
    logprobs: Float[np.ndarray, "pos vocab"], blank: int
) -> Float[np.ndarray, " pos"]:
    """Return the score of the most likely non-blank token at each position."""
    best_below = logprobs[:, :blank].max(axis=1, initial=-np.inf)
    best: Float[np.ndarray, " pos"] = logprobs[:, blank + 1 :].max(axis=1, initial=-np.inf)
    np.maximum(best_below, best, out=best)
    return best


class _AlignmentPath:
    """The most likely path: a silence or a token at each position.

    Silence `i` precedes token `i`; the last one follows all tokens.
    """

    def __init__(
        self,
        logprobs: Float[np.ndarray, "pos vocab"],
        best: Float[np.ndarray, " pos"],
        tokens: Int[np.ndarray, " token"],
        skips: Float64[np.ndarray, " between"],
        blank: int,
    ) -> None:
        """`skips` are 0 between tokens that need no blank between them, else -inf."""
        self._logprobs, self._best = logprobs, best
        self._tokens, self._skips, self._blank = tokens, skips, blank
        self._block = max(1, math.isqrt(len(logprobs)))

    def places(self) -> Int[np.ndarray, " pos"]:
        """Return the index of the token at each position, -1 for silence."""
        count = len(self._tokens)
        edges = range(0, len(self._logprobs), self._block)
        scores = (np.full(count + 1, -np.inf), np.full(count, -np.inf))
        scores[0][0] = 0.0
        starts = []
        for first in edges:
            starts.append(scores)
            (scores,) = deque(self._steps(first, scores, 0, count), maxlen=1)
        ends = float(scores[0][count]), float(scores[1][count - 1]) if count else -math.inf
        silent = ends[0] > ends[1]
        if len(self._logprobs) and max(ends) == -math.inf:
            raise AlignmentError(
                f"aligning a text of {count} tokens: found no path with a probability, expected "
                "one; check that the text is of this recording"
            )
        places = np.full(len(self._logprobs), -1)
        token = count if silent else count - 1
        for first, start in zip(reversed(edges), reversed(starts), strict=True):
            token, silent = self._back(first, start, token, silent, places)
        return places

    def _steps(self, first: int, scores: _Scores, low: int, high: int) -> Iterator[_Scores]:
        """Yield the scores after each position of a block, for tokens `low` to `high`."""
        block = slice(first, first + self._block)
        tokens, skips = self._tokens[low:high], self._skips[low : max(low, high - 1)]
        spoken = self._logprobs[block].take(tokens, axis=1).astype(np.float64)
        spoken[:, tokens == WILDCARD] = self._best[block, None]
        silence, token = scores
        for position_scores, blank in zip(spoken, self._logprobs[block, self._blank], strict=True):
            next_token = np.maximum(token, silence[:-1])
            next_token[1:] = np.maximum(next_token[1:], token[:-1] + skips)
            next_token += position_scores
            silence = silence.copy()
            silence[1:] = np.maximum(silence[1:], token)
            silence += blank
            token = next_token
            yield silence, token

    def _back(
        self, first: int, start: _Scores, token: int, silent: bool, places: Int[np.ndarray, " pos"]
    ) -> tuple[int, bool]:
        """Backtrace through one block from its end, filling in `places`."""
        # The token index decreases by at most one per position.
        low, high = max(0, token - self._block), min(len(self._tokens), token + 1)
        start = (start[0][low : high + 1], start[1][low:high])
        passed = [start, *self._steps(first, start, low, high)]
        at = token - low
        for position in range(len(passed) - 2, -1, -1):
            silence, spoken = passed[position]
            if silent:
                if at and spoken[at - 1] > silence[at]:
                    at, silent = at - 1, False
                continue
            places[first + position] = low + at
            skipped = spoken[at - 1] + self._skips[low + at - 1] if at else -np.inf
            if max(silence[at], skipped) >= spoken[at]:
                silent = bool(silence[at] >= skipped)
                at -= not silent
        return low + at, silent
