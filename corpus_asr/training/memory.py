"""What was heard lately, for a decoder that writes while the encoder stays as it is.

In: passages and windows with their encodings, as they are heard. Out: some of about the same
length, drawn by seed. Hearing costs more than writing, so what is heard is written several times.
Knows no networks.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from corpus_asr.models.vocabulary import IGNORED_LABEL

_CANDIDATES = 8
"""Drawn for each that is needed, so that some are of about the same length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A stretch of an encoding and what the decoder is to write of it."""

    states: Tensor
    """(pos, width), in 16 bits"""
    inputs: Tensor
    """(token,): what the decoder reads."""
    labels: Tensor
    """(token,): what comes next; -100 where nothing is learnt."""
    places: Tensor
    """(token, 2): first and last position at which what comes next is heard; -1 unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardBatch:
    """Stretches side by side, filled up with zeros as if nothing were heard."""

    states: Tensor
    """(row, pos, width)"""
    inputs: Tensor
    labels: Tensor
    places: Tensor

    @classmethod
    def joined(cls, heard: list[Heard]) -> "HeardBatch":
        """Join stretches; what fills rows of tokens up is neither learnt nor seen by the rest."""
        return cls(
            states=pad_sequence([one.states.float() for one in heard], batch_first=True),
            inputs=pad_sequence([one.inputs for one in heard], batch_first=True),
            labels=pad_sequence(
                [one.labels for one in heard], batch_first=True, padding_value=IGNORED_LABEL
            ),
            places=pad_sequence([one.places for one in heard], batch_first=True, padding_value=-1),
        )


class Memory:
    """Holds what was heard in the last windows.

    Args:
        windows: whose passages are held.
    """

    def __init__(self, windows: int) -> None:
        self._windows: deque[list[Heard]] = deque(maxlen=windows)

    def add(self, heard: list[Heard]) -> None:
        """Take in what one window holds; what was heard first is forgotten."""
        self._windows.append(heard)

    def forget(self) -> None:
        """Let everything go."""
        self._windows.clear()

    def draw(self, positions: int, draw: np.random.Generator) -> list[Heard]:
        """Return stretches of about the same length; none if nothing was heard.

        Args:
            positions: at most so many of all together, filled up to the longest; one stretch is
                returned however long it is.
            draw: by which they are chosen.
        """
        held = [one for window in self._windows for one in window]
        if not held:
            return []
        first = held[draw.integers(len(held))]
        wanted = max(1, positions // len(first.states))
        others = draw.permutation(len(held))[: _CANDIDATES * wanted]
        near = sorted(others, key=lambda at: abs(len(held[at].states) - len(first.states)))
        found, longest = [first], len(first.states)
        for at in near:
            longest = max(longest, len(held[at].states))
            if longest * (len(found) + 1) > positions:
                break
            if held[at] is not first:
                found.append(held[at])
        return found


def stretch(window: Tensor, first: int, end: int) -> Tensor:
    """Return a copy of part of a window's states in 16 bits, which does not hold the rest."""
    return window[first:end].to(torch.float16, copy=True)
