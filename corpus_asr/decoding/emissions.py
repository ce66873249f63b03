"""Tokens emitted along an encoder's positions, with start, duration and log-probability.

Produced by a search for transducers (`transducer`), by collapsing the best tokens for CTC, or by
forced alignment for CTC: the most likely position of each token of a known text.

Scores of an alignment are stored only at the first position of each block: an hour of 45,000
positions and 4,000 tokens takes 25 MB instead of 3 GB. The backtrace recomputes blocks from the
last to the first, for the tokens that can occur in them.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Float64, Int
from corpus_asr.decoding.device import Download
from corpus_asr.errors import AlignmentError, ItemError
from corpus_asr.failure_kinds import NOT_A_NUMBER


@dataclass(frozen=True, slots=True)
class EmittedRow:
    """The tokens of one row, without blanks."""

    tokens: tuple[int, ...]
    frames: tuple[int, ...]
    """Encoder position of each token's start."""
    durations: tuple[int, ...]
    """Duration of each token in positions."""
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emissions:
    """The tokens of every row, padded with zeros."""

    tokens: Int[Tensor, "batch token"]
    frames: Int[Tensor, "batch token"]
    durations: Int[Tensor, "batch token"]
    logprobs: Float[Tensor, "batch token"]
    counts: Int[Tensor, " batch"]

    def rows(self) -> list[EmittedRow]:
        """Return the rows without padding, with a single device synchronization."""
        copies = Download(self.tokens, self.frames, self.durations, self.logprobs, self.counts)
        *copied, counted = copies.wait()
        counts = counted.tolist()
        longest = max(counts, default=0)
        columns = [column[:, :longest].tolist() for column in copied]
        return [
            EmittedRow(*(tuple(column[row][:count]) for column in columns))
            for row, count in enumerate(counts)
        ]


def gathered(
    kept: Bool[Tensor, "batch step"],
    *,
    tokens: Int[Tensor, "batch step"],
    frames: Int[Tensor, "batch step"],
    durations: Int[Tensor, "batch step"],
    logprobs: Float[Tensor, "batch step"],
) -> Emissions:
    """Compact each row to the steps that are `kept`."""
    places = kept.cumsum(dim=1) - 1
    # One spare column takes the dropped steps.
    places = places.masked_fill(~kept, kept.shape[1])
    counts = kept.sum(dim=1)

    def moved(values: Tensor) -> Tensor:
        room = values.new_zeros(len(values), values.shape[1] + 1)
        return room.scatter_(1, places, values)[:, :-1]

    return Emissions(
        tokens=moved(tokens),
        frames=moved(frames),
        durations=moved(durations),
        logprobs=moved(logprobs),
        counts=counts,
    )


def positions_of(values: Tensor) -> Int[Tensor, "batch step"]:
    """Return the indices along the second axis, as a view."""
    return torch.arange(values.shape[1], device=values.device).expand(values.shape[:2])


def collapse(
    logits: Float[Tensor, "batch pos vocab"], lengths: Int[Tensor, " batch"], *, blank: int
) -> Emissions:
    """Collapse the first `lengths` positions of each row to tokens.

    A token's log-probability is the mean over the positions of its run, its duration their number.

    Source: Graves et al. 2006, section 3.1.
    """
    scores = logits.float()
    best, tokens = scores.max(dim=2)
    logprobs = best - scores.logsumexp(dim=2)
    frames = positions_of(tokens)
    spoken = (tokens != blank) & (frames < lengths[:, None])
    begins = spoken.clone()
    begins[:, 1:] &= tokens[:, 1:] != tokens[:, :-1]
    # Positions of a run are added up at its first one; all others in a spare column.
    runs = (begins.cumsum(dim=1) - 1).masked_fill(~spoken, tokens.shape[1])
    room = (len(tokens), tokens.shape[1] + 1)
    durations = tokens.new_zeros(room).scatter_add_(1, runs, torch.ones_like(tokens))
    sums = logprobs.new_zeros(room).scatter_add_(1, runs, logprobs)
    means = sums / durations.clamp(min=1)
    return gathered(
        begins,
        tokens=tokens,
        frames=frames,
        durations=durations.gather(1, runs),
        logprobs=means.gather(1, runs),
    )


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
            f"ids from 0 to {logprobs.shape[1] - 1} without the blank {blank}, or the wildcard; "
            "spell the text with the checkpoint's own tokenizer"
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
            f"aligning a text of {len(wanted)} tokens: found scores that are not numbers, expected "
            "log-probabilities; set model.compute_type to float32",
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
                f"aligning a text of {count} tokens: found no way to say it that has a "
                "probability, expected one; check that the text is of this recording"
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
