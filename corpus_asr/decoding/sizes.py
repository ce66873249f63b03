"""What a model may tell of its sizes: the memory it asks for, the lengths it can hear.

In: nothing. Out: the dataclass a slot model fills in, and protocols it may meet. Knows no device.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from corpus_asr.decoding.protocols import SlotModel


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


@runtime_checkable
class TellsFrameStep(Protocol):
    """A model that hears windows of finer lengths than whole seconds."""

    @property
    def frame_step(self) -> int:
        """Windows are heard up to any multiple of so many frames: 1 for all lengths."""


@runtime_checkable
class FitsWindows(Protocol):
    """A model that can be had for windows of several lengths; shorter ones take less memory."""

    window_frames: int
    """Of the windows it is for now."""

    def for_windows(self, num_frames: int) -> SlotModel:
        """Return the same model, sharing all weights, for windows of so many frames at most."""
