"""Keys and values of many sequences side by side, allocated once.

In: keys and values as the layers compute them, and the slots they belong to. Out: views of what
each slot holds. Knows nothing of what the sequences mean; nothing grows, and no slot's content
depends on another's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# oneDNN compiles a bfloat16 product for every shape it meets and keeps a thousand of them: with a
# length of its own for every step these came to a gigabyte.
_LENGTH_STEP = 32


@dataclass(frozen=True, slots=True)
class StepView:
    """What one decoding step may see of the slots 0, 1, ...: the same for every layer."""

    rows: Int[Tensor, " slot"]
    positions: Int[Tensor, " slot"]
    """Where each slot's new token goes; it sees the tokens up to and including this one."""
    length: int
    """Cached positions looked at."""
    unseen: Bool[Tensor, "slot 1 1 token"]
    """The looked-at positions a slot's new token must not see."""

    @classmethod
    def at(cls, positions: Int[Tensor, " slot"], *, max_positions: int) -> "StepView":
        """Look a little past the furthest slot on a CPU, and at the whole cache elsewhere.

        A GPU keeps one shape for every step: so the step can be captured in a CUDA graph, and the
        host never waits to learn a length. For the same reason positions are checked on CPUs only.

        Raises:
            ValueError: on a CPU, a position lies outside the cache.
        """
        length = max_positions
        if positions.device.type == "cpu":
            first, last = int(positions.min()), int(positions.max())
            if first < 0 or last >= max_positions:
                raise ValueError(
                    f"decoding at positions {first} to {last}: the cache holds 0 to "
                    f"{max_positions - 1}; end or cut the sequence before"
                )
            length = min(max_positions, (last // _LENGTH_STEP + 1) * _LENGTH_STEP)
        cached = torch.arange(length, device=positions.device)
        unseen = cached > positions.unsqueeze(1)  # (slot, token)
        rows = torch.arange(len(positions), device=positions.device)
        return cls(rows, positions, length, unseen[:, None, None, :])


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's part of a `SlotCache`."""

    self_keys: Float[Tensor, "slot head token head_dim"]
    self_values: Float[Tensor, "slot head token head_dim"]
    cross_keys: Float[Tensor, "slot head pos head_dim"]
    cross_values: Float[Tensor, "slot head pos head_dim"]

    def write_window(
        self,
        slots: Sequence[int],
        keys: Float[Tensor, "batch head pos head_dim"],
        values: Float[Tensor, "batch head pos head_dim"],
    ) -> None:
        """Replace the cross-attention keys and values of `slots`."""
        rows = _rows(slots, device=keys.device)
        self.cross_keys[rows] = keys
        self.cross_values[rows] = values

    def read_window(
        self, slots: Sequence[int]
    ) -> tuple[Float[Tensor, "batch head pos head_dim"], Float[Tensor, "batch head pos head_dim"]]:
        """Return the cross-attention keys and values of `slots`; a view if they are adjacent."""
        rows = _rows(slots, device=self.cross_keys.device)
        return self.cross_keys[rows], self.cross_values[rows]

    def write_prompts(
        self,
        slots: Sequence[int],
        keys: Float[Tensor, "batch head token head_dim"],
        values: Float[Tensor, "batch head token head_dim"],
    ) -> None:
        """Start `slots` anew with what their prompts give."""
        rows = _rows(slots, device=keys.device)
        length = keys.shape[2]
        self.self_keys[rows, :, :length] = keys
        self.self_values[rows, :, :length] = values
        # Values at unseen positions are multiplied by 0: a nan left by the slot's last sequence
        # would get through.
        self.self_values[rows, :, length:] = 0

    def write_step(
        self,
        view: StepView,
        keys: Float[Tensor, "slot head head_dim"],
        values: Float[Tensor, "slot head head_dim"],
    ) -> None:
        """Add one token to each of the slots 0, 1, ..."""
        self.self_keys[view.rows, :, view.positions] = keys
        self.self_values[view.rows, :, view.positions] = values


class SlotCache:
    """The caches of all layers.

    Args:
        layers: decoder layers.
        slots: sequences side by side.
        heads: attention heads.
        head_dim: width of a head.
        tokens: longest sequence a slot can hold.
        positions: encoder positions of a window.
        dtype: of keys and values.
        device: where they are.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        heads: int,
        head_dim: int,
        tokens: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # One tensor over all layers each, so that moving a slot is four copies.
        self._whole = tuple(
            torch.zeros(layers, slots, heads, length, head_dim, dtype=dtype, device=device)
            for length in (tokens, tokens, positions, positions)
        )
        self.slots = slots
        self.layers = tuple(
            LayerCache(*(tensor[layer] for tensor in self._whole)) for layer in range(layers)
        )

    def move(self, source: int, target: int) -> None:
        """Copy everything slot `source` holds into slot `target`."""
        for tensor in self._whole:
            tensor[:, target].copy_(tensor[:, source])


def _rows(slots: Sequence[int], *, device: torch.device) -> slice | Tensor:
    """Index `slots` by a slice, which copies nothing, where they are adjacent and ascending."""
    first = slots[0]
    if list(slots) == list(range(first, first + len(slots))):
        return slice(first, first + len(slots))
    return torch.tensor(slots, device=device)
