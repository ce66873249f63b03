"""What search needs from a network, and the jobs and results it deals in.

Token ids and tensors only: nothing here knows text, audio or a particular model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class SlotModel(Protocol):
    """An encoder-decoder whose decoder keeps its caches in numbered slots.

    `state` is whatever `new_state` returned: preallocated caches for self-attention
    (slot, head, max_target_positions, head_dim) and cross-attention (slot, head, pos, head_dim).
    Nothing grows and no slot's content depends on another's.
    """

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and caches."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def max_target_positions(self) -> int:
        """Longest token sequence a slot can hold."""

    def new_state(self, slots: int) -> Any:
        """Allocate caches for `slots` sequences."""

    def encode(
        self, features: Float[Tensor, "batch mel frame"]
    ) -> Float[Tensor, "batch pos width"]:
        """Encode full windows (always the model's whole window length)."""

    def fill(
        self, state: Any, slots: Sequence[int], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Write the cross-attention keys and values of `encoded` into `slots`."""

    def prefill(
        self,
        state: Any,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "batch token width"]:
        """Run prompts from position 0, filling the self-attention cache of `slots`.

        Prompts are padded on the right; hidden states past a row's length are meaningless, and so
        is what they leave in the cache, which later steps overwrite before they can see it.
        """

    def step(
        self, state: Any, tokens: Int[Tensor, " slot"], positions: Int[Tensor, " slot"]
    ) -> Float[Tensor, "slot vocab"]:
        """Advance the first `len(tokens)` slots by one token each, at its own position."""

    def logits(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Project hidden states to the vocabulary, in float32."""

    def move(self, state: Any, source: int, target: int) -> None:
        """Copy everything slot `source` holds into slot `target`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a window may say; ids and positions only.

    Sampling positions are counted from the first token after the prompt.
    """

    end: int
    """The token that ends a sequence."""
    suppress: tuple[int, ...] = ()
    """Never sampled."""
    suppress_first: tuple[int, ...] = ()
    """Not sampled at the first position."""
    only: tuple[int, ...] = ()
    """If not empty, the only tokens allowed (language detection)."""
    timestamp_begin: int | None = None
    """First timestamp token; None switches the timestamp grammar off."""
    no_timestamps: int | None = None
    """The token that asks for text without timestamps; never sampled under the grammar."""
    max_initial_timestamp: int | None = None
    """Largest first timestamp, in steps after `timestamp_begin`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowJob:
    """One window to decode."""

    features: Float[np.ndarray, "mel frame"]
    """A whole window, padded; any float type."""
    window: tuple[int, ...]
    """Names the window among its task's jobs; a job like the one before reuses its encoding."""
    prompt: tuple[int, ...]
    rules: TokenRules
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    """Seeds the noise when `temperature` > 0; must name recording, window and temperature."""
    score_token: int | None = None
    """A token (no-speech) whose raw probability is wanted, as said after `score_position`."""
    score_position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowResult:
    """What was found."""

    tokens: tuple[int, ...]
    """New tokens, end token left out."""
    logprobs: tuple[float, ...]
    """Log-probability of each new token under the rules, before temperature."""
    end_logprob: float | None
    """That of the end token; None when the length limit came first."""
    score: float | None
    """Probability of `score_token`, where asked for."""
