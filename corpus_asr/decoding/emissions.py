"""Tokens emitted along an encoder's positions, with start, duration and log-probability.

Produced by a search for transducers (`transducer`), or by collapsing the best tokens for CTC.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding.device import Download


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
