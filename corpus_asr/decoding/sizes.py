"""How much memory a model asks for, in numbers that sizing can reckon with.

In: nothing. Out: the dataclass a slot model fills in. Knows no device.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The shape of an encoder-decoder, and the bytes of its weights."""

    layers: int
    """Of the decoder."""
    width: int
    """Of hidden states, in both towers."""
    inner_width: int
    """Of the encoder's feed-forward layers."""
    vocab_size: int
    tokens: int
    """Longest sequence of the decoder."""
    positions: int
    """Encoder positions of a window."""
    window_values: int
    """Values of a window's features."""
    element_bytes: int
    """Of a weight, a hidden state, a cached key."""
    weight_bytes: int


@runtime_checkable
class TellsSize(Protocol):
    """A model that can tell how large it is."""

    @property
    def size(self) -> ModelSize:
        """Its shape and weights."""
