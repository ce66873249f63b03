"""Rules that look at the text so far, what ends a window early, and what listens to every token.

Their order decides the text, and is that of transformers: what settings name first, then Whisper's
own rules, which search applies itself, then the caller's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.decoding.protocols import LogitsProcessor, StoppingCriterion
from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.models.generation.settings import CallSettings, functions_of

_FORBIDDEN = float("-inf")

Tokens = Int[Tensor, "row token"]
Scores = Float[Tensor, "row vocab"]


def early_processors(
    settings: CallSettings, row: int, begin: int, limit: int
) -> tuple[LogitsProcessor, ...]:
    """The processors that come before Whisper's own rules, in order.

    A text is told by its `row` among all of the call; its prompt has `begin` tokens, and `limit`
    may follow.
    """
    config = settings.config
    found: list[LogitsProcessor] = []
    if config.bad_words_ids:
        words = tuple(tuple(word) for word in config.bad_words_ids)
        found.append(BadWords(tuple(word for word in words if word != (settings.end,))))
    if config.min_new_tokens:
        found.append(NotBefore(settings.end, begin + config.min_new_tokens))
    elif config.min_length:
        found.append(NotBefore(settings.end, config.min_length))
    if settings.allowed is not None:
        found.append(Allowed(settings.allowed, row))
    if config.forced_bos_token_id is not None:
        found.append(ForcedAt((config.forced_bos_token_id,), length=1))
    if config.forced_eos_token_id is not None:
        forced = config.forced_eos_token_id
        tokens = (forced,) if isinstance(forced, int) else tuple(forced)
        found.append(ForcedAt(tokens, length=begin + limit - 1))
    if config.remove_invalid_values:
        found.append(finite)
    return tuple(found)


def callers_processors(
    config: GenerationConfig, given: Sequence[Any] | None
) -> tuple[LogitsProcessor, ...]:
    """The caller's processors, checked, and the normalisation that settings may ask for last."""
    last = (normalised,) if config.renormalize_logits else ()
    return (*functions_of(given, what="logits_processor"), *last)


def late_processors(settings: CallSettings, begin: int) -> tuple[LogitsProcessor, ...]:
    """The caller's processors, told where a window's text begins."""
    return tuple(_begun(processor, begin) for processor in settings.processors)


def _begun(processor: LogitsProcessor, begin: int) -> LogitsProcessor:
    """Tell a processor that asks for it where text begins, whatever window was scored before."""
    tell = getattr(processor, "set_begin_index", None)
    if tell is None:
        return processor

    def told(tokens: Tensor, scores: Tensor) -> Tensor:
        tell(begin)
        return processor(tokens, scores)

    return told


@dataclass(frozen=True, slots=True)
class BadWords:
    """Forbids the last token of a sequence whose other tokens were just said."""

    words: tuple[tuple[int, ...], ...]

    def __call__(self, tokens: Tokens, scores: Scores) -> Scores:
        """Return scores with those tokens at minus infinity."""
        scores = scores.clone()
        for row, said in enumerate(tokens.tolist()):
            for *before, last in self.words:
                # A word as long as the whole text so far is never complete in it.
                if not before or (len(before) < len(said) and said[-len(before) :] == before):
                    scores[row, last] = _FORBIDDEN
        return scores


@dataclass(frozen=True, slots=True)
class NotBefore:
    """Forbids the end token while the sequence, prompt included, is shorter than `length`."""

    end: int
    length: int

    def __call__(self, tokens: Tokens, scores: Scores) -> Scores:
        """Return scores with the end token at minus infinity."""
        if tokens.shape[1] >= self.length:
            return scores
        scores = scores.clone()
        scores[:, self.end] = _FORBIDDEN
        return scores


@dataclass(frozen=True, slots=True)
class Allowed:
    """Allows only what a function of the row and the tokens so far returns."""

    choose: Callable[[int, Tensor], Sequence[int]]
    row: int

    def __call__(self, tokens: Tokens, scores: Scores) -> Scores:
        """Return scores with all other tokens at minus infinity."""
        masked = torch.full_like(scores, _FORBIDDEN)
        for row, said in enumerate(tokens):
            allowed = list(self.choose(self.row, said))
            if not allowed:
                raise ValueError(
                    f"generating text: prefix_allowed_tokens_fn returned no token for batch row "
                    f"{self.row} after {len(said)} tokens; it must return at least one"
                )
            masked[row, allowed] = scores[row, allowed]
        return masked


@dataclass(frozen=True, slots=True)
class ForcedAt:
    """Allows only these tokens once the sequence, prompt included, has `length` of them."""

    tokens: tuple[int, ...]
    length: int

    def __call__(self, tokens: Tokens, scores: Scores) -> Scores:
        """Return the scores, or at that length 0 for these tokens and minus infinity else."""
        if tokens.shape[1] != self.length:
            return scores
        forced = torch.full_like(scores, _FORBIDDEN)
        forced[:, list(self.tokens)] = 0.0
        return forced


@dataclass(frozen=True, slots=True)
class SuppressedAt:
    """Forbids these tokens once the sequence, prompt included, has `length` of them."""

    tokens: tuple[int, ...]
    length: int

    def __call__(self, tokens: Tokens, scores: Scores) -> Scores:
        """Return the scores, or at that length minus infinity for these tokens."""
        if tokens.shape[1] != self.length:
            return scores
        scores = scores.clone()
        scores[:, list(self.tokens)] = _FORBIDDEN
        return scores


def finite(tokens: Tokens, scores: Scores) -> Scores:
    """Make NaN 0 and infinities the largest finite numbers."""
    return torch.nan_to_num(scores)


def normalised(tokens: Tokens, scores: Scores) -> Scores:
    """Make scores log-probabilities."""
    return scores.log_softmax(dim=-1)


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
