"""Greedy reading of CTC: the likeliest token of every position, runs joined, blanks left out."""

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.emissions import Emissions, gathered, positions_of


def collapse(
    logits: Float[Tensor, "batch pos vocab"], lengths: Int[Tensor, " batch"], *, blank: int
) -> Emissions:
    """Read the tokens off the first `lengths` positions of each row.

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
    # Every position of a run is counted where the run begins; all others in one place more.
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
