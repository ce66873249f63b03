"""A network whose next token depends on the window and the last token alone, with real logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.decoding.protocols import Slots

VOCAB, END, NO_TIMESTAMPS, BEGIN = 40, 20, 29, 30
LENGTH = 64
_TABLES = 4


class MarkovModel:
    """Meets `SlotModel`; a window's first value is the number of its table of logits.

    Greedy search soon falls into a loop, as any chain does, so it is good for testing what is
    done about repeats.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    vocab_size = VOCAB
    window_shape = (1, 1)
    frame_step = 100
    has_encoder = True

    def __init__(self, *, seed: int = 0, length: int = LENGTH) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(_TABLES, VOCAB, VOCAB, generator=generator)
        self.max_target_positions = length
        self.encoded: list[int] = []
        self.filled: list[int] = []

    def after(self, window: int, token: int) -> Tensor:
        """The raw logits of what comes after `token`."""
        return self.table[window, token].clone()

    def new_state(self, slots: int, *, beams: int = 1) -> Tensor:
        return torch.full((slots,), -1)

    def encode(self, features: Tensor, *, num_frames: Sequence[int] | None = None) -> Tensor:
        numbers = features[:, 0, 0]
        self.encoded.extend(int(number) for number in numbers)
        return numbers.reshape(-1, 1, 1)

    def fill(
        self,
        state: Tensor,
        slots: Slots,
        encoded: Tensor,
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        state[list(slots)] = encoded[:, 0, 0].long()
        self.filled.extend(int(number) for number in encoded[:, 0, 0])

    def prefill(
        self, state: Tensor, slots: Slots, tokens: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        window = state[list(slots)].unsqueeze(1).expand_as(tokens)
        return torch.stack([window, tokens], dim=2).float()

    def step(self, state: Tensor, tokens: Tensor, positions: Tensor, **options: Any) -> Tensor:
        assert int(positions.max()) < self.max_target_positions, "a step past the cache"
        return self.table[state[: len(tokens)], tokens].clone()

    def extend(
        self, state: Tensor, slots: Sequence[int], tokens: Tensor, positions: Tensor
    ) -> Tensor:
        return self.table[state[list(slots)].unsqueeze(1), tokens].clone()

    def align(
        self,
        state: Tensor,
        slots: Sequence[int],
        tokens: Tensor,
        lengths: Sequence[int],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Token number n listens at position n alone."""
        weights = torch.eye(tokens.shape[1], self.max_target_positions)
        hidden = self.prefill(state, slots, tokens, lengths)
        return weights.expand(len(slots), len(heads), -1, -1).clone(), hidden

    def reorder(self, state: Tensor, slots: Sequence[int], sources: Tensor) -> None:
        state[list(slots)] = state[sources]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.table[hidden[..., 0].long(), hidden[..., 1].long()].clone()

    def move(self, state: Tensor, source: int, target: int) -> None:
        state[target] = state[source]


def window(number: int) -> np.ndarray:
    """Features that make `MarkovModel` use table `number`."""
    return np.full((2, 4), number, dtype=np.float32)
