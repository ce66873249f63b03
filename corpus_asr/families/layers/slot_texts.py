"""Which slots hold the same keys and values, token by token.

In: where new tokens were written, and which slots were copied. Out: the span that one slot must
copy to hold what another holds. Knows no keys, no values and no tokens.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


class SlotTexts:
    """A number for every token of every slot: equal ones stand for the same keys and values.

    Beams of one window mostly differ in their last few tokens alone.
    """

    def __init__(self, slots: int, tokens: int) -> None:
        self._written = torch.zeros(slots, tokens, dtype=torch.long)
        self._next = 1

    def start(self, slots: Sequence[int], length: int) -> None:
        """Note that `slots` hold so many new tokens, and nothing else."""
        held = torch.zeros(len(slots), self._written.shape[1], dtype=torch.long)
        held[:, :length] = self._new(len(slots) * length).view(len(slots), length)
        self._written[list(slots)] = held

    def write(self, slots: Int[Tensor, "*#shape"], positions: Int[Tensor, "*shape"]) -> None:
        """Note that `slots` hold new tokens at these positions."""
        self._written[slots, positions] = self._new(positions.numel()).view(positions.shape)

    def copy(self, slots: Sequence[int], sources: Sequence[int]) -> slice:
        """Note that `slots` hold what `sources` held, all at once.

        Returns:
            The positions at which any of them held something else.
        """
        held = self._written[list(sources)]
        differs = (self._written[list(slots)] != held).any(dim=0).nonzero()
        self._written[list(slots)] = held
        if not len(differs):
            return slice(0, 0)
        return slice(int(differs[0]), int(differs[-1]) + 1)

    def _new(self, count: int) -> Int[Tensor, " count"]:
        first = self._next
        self._next += count
        return torch.arange(first, self._next)
