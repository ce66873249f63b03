"""The keys and values of earlier calls, kept by growing tensors.

In: keys and values as attention computes them. Out: all of them so far. For whole-sequence calls
with `past_key_values`; decoding in slots has caches of fixed size of its own. Knows no model.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


class KeyValues:
    """Keys and values of one attention, of every token so far; empty at first."""

    def __init__(self, pair: tuple[Tensor, Tensor] | None = None) -> None:
        self.pair = pair
        """Each (batch, head, token, head_dim)."""

    @property
    def length(self) -> int:
        """Tokens so far."""
        return 0 if self.pair is None else self.pair[0].shape[2]

    def append(
        self,
        keys: Float[Tensor, "batch head token head_dim"],
        values: Float[Tensor, "batch head token head_dim"],
    ) -> tuple[Float[Tensor, "batch head pos head_dim"], Float[Tensor, "batch head pos head_dim"]]:
        """Add the keys and values of further tokens and return all.

        Raises:
            ValueError: those kept are of another batch, or of other heads.
        """
        if self.pair is not None:
            kept, new = self.pair[0].shape, keys.shape
            if (*kept[:2], kept[3]) != (*new[:2], new[3]):
                raise ValueError(
                    f"continuing with past_key_values: found keys of batch {kept[0]}, {kept[1]} "
                    f"heads and head_dim {kept[3]} in them, expected {new[0]}, {new[1]} and "
                    f"{new[3]}; pass what the same model returned for the same batch"
                )
            keys = torch.cat([self.pair[0], keys], dim=2)
            values = torch.cat([self.pair[1], values], dim=2)
        self.pair = keys, values
        return self.pair

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by what `function` makes of them."""
        if self.pair is not None:
            self.pair = function(self.pair[0]), function(self.pair[1])


class LayerPast:
    """What one decoder block keeps."""

    def __init__(self) -> None:
        self.own = KeyValues()
        """Of the tokens so far."""
        self.cross = KeyValues()
        """Of the window, computed once."""
