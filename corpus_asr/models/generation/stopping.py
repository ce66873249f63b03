"""What ends a window early, and what listens in on every token.

In: prompt and text so far, as search calls stopping criteria. Out: whether to stop.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from corpus_asr.decoding.protocols import StoppingCriterion
from corpus_asr.models.generation.call import CallSettings


def stopping_for(settings: CallSettings, begin: int) -> tuple[StoppingCriterion, ...]:
    """The criteria of one window whose prompt has `begin` tokens."""
    found: list[StoppingCriterion] = []
    config = settings.config
    if config.max_time is not None:
        found.append(TimeIsUp(time.monotonic() + config.max_time))
    if config.stop_strings is not None:
        strings = config.stop_strings
        wanted = (strings,) if isinstance(strings, str) else tuple(strings)
        found.append(Says(wanted, settings.tokenizer, begin))
    return (*found, *settings.stopping)


@dataclass(frozen=True, slots=True)
class TimeIsUp:
    """Stops at a moment of the monotonic clock."""

    at_s: float

    def __call__(self, tokens: Tensor, scores: Any, **_: Any) -> bool:
        """Tell whether that moment has passed."""
        return time.monotonic() >= self.at_s


@dataclass(frozen=True, slots=True)
class Says:
    """Stops when the text contains one of some strings."""

    strings: Sequence[str]
    tokenizer: Any
    begin: int

    def __call__(self, tokens: Int[Tensor, "1 token"], scores: Any, **_: Any) -> bool:
        """Tell whether the text since the prompt contains one of them."""
        text = self.tokenizer.decode(tokens[0, self.begin :].tolist())
        return any(string in text for string in self.strings)


class Stream:
    """Hands tokens on as they are found, to an object with `put` and `end`."""

    def __init__(self, streamer: Any, prompt: Int[Tensor, "1 token"]) -> None:
        self._streamer = streamer
        self._told = 0
        streamer.put(prompt)

    def __call__(self, tokens: Int[Tensor, "1 token"], scores: Any, **_: Any) -> bool:
        """Hand on the newest token; never stops."""
        self._streamer.put(tokens[0, -1:].cpu())
        self._told += 1
        return False

    def close(self, said: Int[Tensor, " token"]) -> None:
        """Hand on what search ended with, and say that this was all."""
        for token in said[self._told :]:
            self._streamer.put(token[None])
        self._streamer.end()
