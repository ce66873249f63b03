"""Interface between search and network: slot models, their sizes, models that draft for others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int

Slots = Sequence[int] | Int[Tensor, " batch"]
"""Slot numbers; on a GPU also as a device tensor, so that recorded calls can use other slots."""


class SlotModel(Protocol):
    """A decoder of encoded windows that keeps its caches in numbered slots.

    `state` is the return value of `new_state`: preallocated caches for self-attention
    (slot, head, max_target_positions, head_dim) and what slots keep of their windows: keys and
    values of cross-attention, or the encoded positions that a decoder-only model reads as a part
    of its prompts. Sizes are constant and slots are independent.
    """

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and caches."""

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the logits."""

    @property
    def max_target_positions(self) -> int:
        """Maximum number of tokens in a slot."""

    @property
    def window_shape(self) -> tuple[int, int]:
        """Positions and width of an encoded window."""

    @property
    def frame_step(self) -> int:
        """Encoded lengths are multiples of this number of frames; 1 for any length."""

    @property
    def has_encoder(self) -> bool:
        """False for a decoder that uses its main model's encoder output."""

    def new_state(self, slots: int, *, beams: int = 1) -> Any:
        """Allocate caches for `slots` sequences; each `beams` adjacent ones share a window.

        `step` then takes all slots of a window or none.
        """

    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode whole windows; of each only the first `num_frames` are used.

        None uses all frames. The result has the shape of whole windows in both cases.
        """

    def fill(
        self,
        state: Any,
        slots: Slots,
        encoded: Float[Tensor, "batch pos width"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        """Write `encoded` windows, or their keys and values, into `slots`, one per window.

        `num_frames` are those used for encoding. Recordings made before a state first had
        `num_frames` must not be replayed.
        """

    def prefill(
        self,
        state: Any,
        slots: Slots,
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "batch token width"]:
        """Run prompts, padded on the right, from position 0; `slots` must be empty.

        Hidden states after a row's length are undefined.
        """

    def step(
        self,
        state: Any,
        tokens: Int[Tensor, " slot"],
        positions: Int[Tensor, " slot"],
        *,
        reach: int | None = None,
    ) -> Float[Tensor, "slot vocab"]:
        """Advance the first `len(tokens)` slots by one token each, at its own position.

        On a GPU positions are not validated, which would synchronize; with `reach` only cache
        positions before it are read, which must include all slots.
        """

    def extend(
        self,
        state: Any,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch token vocab"]:
        """Run several tokens of each of `slots`, the first at `positions`; all are cached.

        A later call may start at an earlier position again: entries after it are overwritten
        before they are read.
        """

    def align(
        self,
        state: Any,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Float[Tensor, "batch head token pos"], Float[Tensor, "batch token width"]]:
        """Return cross-attention weights of these (layer, head) while `tokens` are read.

        In float32 after the softmax; also returns the hidden states. Tokens are padded on the
        right; values after a row's length are undefined. Uses the windows in `slots`; their
        self-attention caches are unchanged.
        """

    def reorder(self, state: Any, slots: Sequence[int], sources: Int[Tensor, " slot"]) -> None:
        """Copy the self-attention caches of `sources` to `slots`, not the windows (beam search)."""

    def logits(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Project hidden states to the vocabulary, in float32."""

    def move(self, state: Any, source: int, target: int) -> None:
        """Copy all caches of slot `source` to slot `target`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Dimensions of a slot model, and the bytes of its weights."""

    width: int
    """Size of an encoded position."""
    vocab_size: int
    tokens: int
    """Maximum sequence length of the decoder."""
    positions: int
    """Encoder positions of a window."""
    token_values: int
    """Values that a slot stores for a token: keys and values of all layers."""
    position_values: int
    """Values that a slot stores for an encoder position."""
    fused_values: int
    """Values of the fused copies of the decoder's linear maps."""
    encoder_values: int
    """Values of a window in the encoder at its peak, features included."""
    element_bytes: int
    """Bytes of a weight, a hidden state or a self-attention cache value."""
    window_element_bytes: int
    """Bytes of a value that a slot stores for an encoder position."""
    weight_bytes: int


def check_assistant(model: SlotModel, assistant: SlotModel) -> None:
    """Raise ValueError if the assistant cannot draft for the model."""
    if assistant.vocab_size != model.vocab_size:
        raise ValueError(
            f"drafting with an assistant of {assistant.vocab_size} tokens for a model of "
            f"{model.vocab_size}: expected one vocabulary; use an assistant of the same kind"
        )
    if assistant.max_target_positions < model.max_target_positions:
        raise ValueError(
            f"drafting with an assistant of {assistant.max_target_positions} positions for a model "
            f"of {model.max_target_positions}: expected as many at least; use another assistant"
        )
    if assistant.device != model.device:
        raise ValueError(
            f"drafting with an assistant on {assistant.device} for a model on {model.device}: "
            "expected one device; move the assistant"
        )
    if not assistant.has_encoder and model.window_shape != assistant.window_shape:
        raise ValueError(
            f"drafting with a decoder for windows of {assistant.window_shape} (positions, width) "
            f"for a model of {model.window_shape}: expected equal windows; use an assistant of "
            "this model, or with its own encoder"
        )
