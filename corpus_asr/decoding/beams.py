"""The sequences that beam search keeps for many windows side by side.

In: candidates and scores as tensors over places and beams. Out: the same, picked and merged. Knows
no model, no rules and no jobs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# A score nothing real has, where minus infinity would make 0 * score not a number. The value of
# transformers, so that ties fall alike.
OUT = -1e9


@dataclass(frozen=True, slots=True)
class Beams:
    """Sequences of every place, one beside the other: running, finished or considered."""

    score: Float[Tensor, "place beam"]
    """Sum of log-probabilities; of finished ones with their length penalty."""
    length: Int[Tensor, "place beam"]
    """Tokens of prompt and text."""
    text: Int[Tensor, "place beam token"]
    """Prompt and text."""
    logprob: Float[Tensor, "place beam token"]
    """Of each token under the rules."""
    parent: Int[Tensor, "place beam token"]
    """The beam each token was appended to."""

    @classmethod
    def new(cls, places: int, beams: int, max_length: int, device: torch.device) -> "Beams":
        """Allocate beams that hold nothing."""
        shape = (places, beams, max_length)
        return cls(
            torch.full((places, beams), OUT, device=device),
            torch.zeros((places, beams), dtype=torch.long, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything held, place by place."""
        return self.score, self.length, self.text, self.logprob, self.parent

    def of(self, places: Int[Tensor, " place"]) -> "Beams":
        """Copy what `places` hold."""
        return Beams(*(tensor[places] for tensor in self.tensors()))

    def pick(self, beams: Int[Tensor, "place choice"]) -> "Beams":
        """Copy some beams of each place, possibly several times."""
        return Beams(*(pick(tensor, beams) for tensor in self.tensors()))

    def beside(self, other: "Beams") -> "Beams":
        """Put the beams of `other` after these."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return Beams(*(torch.cat(pair, dim=1) for pair in pairs))

    def with_scores(self, score: Float[Tensor, "place beam"]) -> "Beams":
        """Replace the scores."""
        return Beams(score, self.length, self.text, self.logprob, self.parent)

    def with_token(
        self,
        token: Int[Tensor, "place beam"],
        *,
        score: Float[Tensor, "place beam"],
        logprob: Float[Tensor, "place beam"],
        parent: Int[Tensor, "place beam"],
    ) -> "Beams":
        """Append a token to each sequence, in place."""
        at = self.length.unsqueeze(2)
        for held, new in ((self.text, token), (self.logprob, logprob), (self.parent, parent)):
            held.scatter_(2, at, new.unsqueeze(2))
        return Beams(score, self.length + 1, self.text, self.logprob, self.parent)

    def write(
        self,
        places: Int[Tensor, " place"],
        new: "Beams",
        *,
        where: Bool[Tensor, " place"],
    ) -> None:
        """Replace what `places` hold, in place, where `where` is true."""
        for held, values in zip(self.tensors(), new.tensors(), strict=True):
            keep = where.view(-1, *[1] * (values.ndim - 1))
            held[places] = torch.where(keep, values, held[places])


def pick(values: Tensor, beams: Int[Tensor, "place choice"]) -> Tensor:
    """Copy some beams' values of each place."""
    index = beams.view(*beams.shape, *[1] * (values.ndim - 2))
    return torch.take_along_dim(values, index, dim=1)
