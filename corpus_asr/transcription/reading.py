"""How the decoder is made to read a text again, to see where in the audio it looks meanwhile.

Made by a family's dialect, used by the timing of words. Knows no audio and no network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from corpus_asr.transcription.punctuation import Spelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a checkpoint reads around text in one language, and by what its words are timed."""

    prompt: tuple[int, ...]
    """Before the text."""
    end: int
    """The token after it."""
    room: int
    """Tokens that the decoder holds."""
    heads: tuple[tuple[int, int], ...]
    """Decoder layers and heads whose cross-attention follows the words in time."""
    filter_width: int
    """Positions of the median filter over that cross-attention."""
    frames_per_position: int
    """Feature frames that one position of the encoder stands for."""
    choices: int | None
    """Words' probabilities are among the ids below this; None for the whole vocabulary."""
    spell: Callable[[Sequence[int]], list[Spelled]]
    """Text tokens to words with their tokens, nothing lost."""


def upper_half(layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Return all heads of the upper half of the decoder's layers, where none are known to follow.

    Source: openai-whisper's `Whisper.alignment_heads`.
    """
    return tuple((at, head) for at in range(layers // 2, layers) for head in range(heads))
