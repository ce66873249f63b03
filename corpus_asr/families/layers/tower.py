"""What a stack of blocks does: it leaves out layers in training and records what is asked for.

In: a block and its input. Out: the block's output, or its input where the layer is left out.
Knows no model.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from corpus_asr.families.layers.blocks import AttentionWeights


@dataclass(slots=True, kw_only=True)
class Record:
    """What a call was asked to return beside the last states."""

    states: list[Tensor] | None
    """Before every block and after the last norm; None where nobody asks."""
    weights: AttentionWeights | None
    """Of attention; None where nobody asks."""

    @classmethod
    def asked(cls, config: Any, attentions: bool | None, states: bool | None) -> Self:
        """Make an empty one; None asks the configuration."""
        attentions = config.output_attentions if attentions is None else attentions
        states = config.output_hidden_states if states is None else states
        return cls(
            states=[] if states else None, weights=AttentionWeights() if attentions else None
        )

    def add(self, hidden: Float[Tensor, "batch pos width"]) -> None:
        """Keep states if they are asked for."""
        if self.states is not None:
            self.states.append(hidden)

    @property
    def hidden_states(self) -> tuple[Tensor, ...] | None:
        """All states kept."""
        return None if self.states is None else tuple(self.states)

    @property
    def attentions(self) -> tuple[Tensor, ...] | None:
        """Weights of self-attention."""
        return None if self.weights is None else tuple(self.weights.own)

    @property
    def cross_attentions(self) -> tuple[Tensor, ...] | None:
        """Weights of cross-attention."""
        return None if self.weights is None else tuple(self.weights.cross)


class Tower(nn.Module):
    """A stack of blocks.

    Args:
        layerdrop: probability of leaving out a block in training (Fan et al. 2019).
    """

    def __init__(self, layerdrop: float) -> None:
        super().__init__()
        self.layerdrop = layerdrop
        self.gradient_checkpointing = False
        """Whether training computes the states inside a block twice instead of keeping them."""

    def _through(
        self, block: nn.Module, hidden: Float[Tensor, "batch pos width"], *args: Any, **options: Any
    ) -> Float[Tensor, "batch pos width"]:
        # Drawn on the CPU, so that no host waits for a device to know what to run.
        if self.training and self.layerdrop > 0 and float(torch.rand([])) < self.layerdrop:
            return hidden
        if self.training and self.gradient_checkpointing:
            computed: Tensor = checkpoint(block, hidden, *args, use_reentrant=False, **options)
        else:
            computed = block(hidden, *args, **options)
        return computed

    def _freeze_parameters(self) -> None:
        """Keep training from changing this tower."""
        self.requires_grad_(False)


def head_masks(mask: Tensor | None, *, layers: int, heads: int, name: str) -> list[Tensor | None]:
    """Split a mask of (layer, head) into one per layer; without one there is None for each.

    Raises:
        ValueError: it is of another shape.
    """
    if mask is None:
        return [None] * layers
    if tuple(mask.shape) != (layers, heads):
        raise ValueError(
            f"reading {name}: found shape {tuple(mask.shape)}, expected {layers} layers x "
            f"{heads} heads"
        )
    return list(mask.float())
