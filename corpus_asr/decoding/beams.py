"""The sequences that beam search keeps for many windows side by side.

In: candidates and scores as tensors over places and beams. Out: the same, picked and merged. Knows
no model, no rules and no jobs.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corpus_asr.decoding.loops import LONGEST_PHRASE, MIN_REPEATED_TOKENS, MIN_REPEATS

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
    looped: Bool[Tensor, "place beam"]
    """Whether it was ended because it repeated itself."""

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
            torch.zeros((places, beams), dtype=torch.bool, device=device),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything held, place by place."""
        return self.score, self.length, self.text, self.logprob, self.parent, self.looped

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
        return replace(self, score=score, length=self.length + 1)

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


def repeats_itself(
    texts: Int[Tensor, "batch token"],
    lengths: Int[Tensor, " batch"],
    *,
    starts: Int[Tensor, " batch"],
    alike_from: Int[Tensor, " batch"],
) -> Bool[Tensor, " batch"]:
    """Tell which texts end in a loop, as `loops.LoopWatch` defines it.

    Looks at the texts alone, where beams that take each other's place could keep no count.

    Args:
        texts: prompt and text.
        lengths: tokens in each.
        starts: of them in the prompts.
        alike_from: tokens from here on, the timestamps, count as one.
    """
    device = texts.device
    period = torch.arange(1, LONGEST_PHRASE + 1, device=device).unsqueeze(1)
    needed = (MIN_REPEATS * period).clamp(min=MIN_REPEATED_TOKENS)
    back = torch.arange(1, int(needed.max()) + 1, device=device)  # from the end of the text
    alike = texts.minimum(alike_from.unsqueeze(1))
    now = lengths.view(-1, 1, 1) - back  # (batch, 1, back)
    before = now - period  # (batch, period, back)
    rows = torch.arange(len(texts), device=device).view(-1, 1, 1)
    same = alike[rows, now.clamp(min=0)] == alike[rows, before.clamp(min=0)]
    same &= before >= starts.view(-1, 1, 1)
    return (same | (back > needed)).all(dim=2).any(dim=1)
