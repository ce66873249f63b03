"""Prompts of decoder-only models around an encoded window, and the reading of their answers.

A family has one class of these; slots and transcriber know no more of a family than this. Free of
torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROMPT_ROOM = 512
"""Most tokens of a prompt beside its window, a context included."""

# A second has 13 positions, so that is 26 tokens; texts of most languages have 3 to 8.
_TOKENS_PER_POSITION = 2
_SHORTEST_TEXT = 32


def text_room(positions: int) -> int:
    """Return the most tokens of a window's text; one that does not end before is cut there."""
    return _SHORTEST_TEXT + _TOKENS_PER_POSITION * positions


def sequence_room(positions: int) -> int:
    """Return the most tokens of a sequence: positions of a window, its prompt and its text."""
    return positions + PROMPT_ROOM + text_room(positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model's tokens say."""

    language: str | None
    """Code of the language that they name; None for none."""
    text: tuple[int, ...]
    """Indices of the tokens that are text."""


class AudioPrompts(ABC):
    """Prompts of one checkpoint."""

    languages: Mapping[str, str]
    """Name of each language in prompts by its code."""
    end: int
    """The token that ends a text."""

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the tokenizer and the sizes of a checkpoint; raises CheckpointError."""

    @abstractmethod
    def positions(self, num_frames: int) -> int:
        """Return the number of encoder positions of a window of 10 ms frames."""

    @abstractmethod
    def prompt(self, positions: int, *, language: str | None, context: str) -> tuple[int, ...]:
        """Return the prompt of a window, with a placeholder for each of its positions.

        `language` is a code of `languages`, or None to have the answer name it; `context` is text
        to expect, such as names. Raises ValueError for a context with control tokens.
        """

    @abstractmethod
    def answer(self, tokens: Sequence[int], *, language: str | None) -> Answer:
        """Read a window's tokens; `language` is that of the prompt."""

    @abstractmethod
    def encode(self, text: str) -> tuple[int, ...]:
        """Convert text to tokens; raises ValueError for control tokens."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Convert text tokens to text."""
