"""Rules that look at the text so far, what ends a window early, and what listens to every token.

Their order decides the text, and is that of transformers: what settings name first, then Whisper's
own rules, which search applies itself, then the caller's.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.decoding.protocols import LogitsProcessor, StoppingCriterion
from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.models.generation.settings import CallSettings, functions_of

_FORBIDDEN = float("-inf")

# Search calls a processor for one row at a time, with copies that it may change.
Tokens = Int[Tensor, "1 token"]
Scores = Float[Tensor, "1 vocab"]


def early_processors(
    settings: CallSettings, row: int, begin: int, limit: int
) -> tuple[LogitsProcessor, ...]:
    """The processors that come before Whisper's own rules, in order.

    A text is told by its `row` among all of the call; its prompt has `begin` tokens, and `limit`
    may follow.
    """
    config = settings.config
    processors: list[LogitsProcessor] = []
    if config.bad_words_ids:
        end = [settings.end]
        processors.append(_bad_words([w for w in config.bad_words_ids if list(w) != end]))
    least = begin + config.min_new_tokens if config.min_new_tokens else config.min_length
    if least:
        processors.append(_forbidden([settings.end], lambda length: length < least))
    if settings.allowed is not None:
        processors.append(_allowed(settings.allowed, row))
    if config.forced_bos_token_id is not None:
        processors.append(_forced([config.forced_bos_token_id], length=1))
    if config.forced_eos_token_id is not None:
        ends = config.forced_eos_token_id
        tokens = [ends] if isinstance(ends, int) else ends
        processors.append(_forced(tokens, length=begin + limit - 1))
    if config.remove_invalid_values:
        processors.append(_finite)
    return tuple(processors)


def callers_processors(
    config: GenerationConfig, given: Sequence[Any] | None
) -> tuple[LogitsProcessor, ...]:
    """The caller's processors, checked, and the normalization that settings may ask for last."""
    last = (_normalized,) if config.renormalize_logits else ()
    return (*functions_of(given, what="logits_processor"), *last)


def late_processors(settings: CallSettings, begin: int) -> tuple[LogitsProcessor, ...]:
    """The caller's processors; those that ask for it are told where a window's text begins."""

    def with_begin(processor: LogitsProcessor) -> LogitsProcessor:
        set_begin = getattr(processor, "set_begin_index", None)
        if set_begin is None:
            return processor

        def process(tokens: Tensor, scores: Tensor) -> Tensor:
            set_begin(begin)  # again at every step: windows of other rows are scored in between
            return processor(tokens, scores)

        return process

    return tuple(with_begin(processor) for processor in settings.processors)


def _bad_words(words: Sequence[Sequence[int]]) -> LogitsProcessor:
    """Forbid the last token of a sequence whose other tokens were just said."""
    wanted = [list(word) for word in words]

    def process(tokens: Tokens, scores: Scores) -> Scores:
        (said,) = tokens.tolist()
        for *before, last in wanted:
            # A word as long as the whole text so far is never complete in it.
            if not before or (len(before) < len(said) and said[-len(before) :] == before):
                scores[0, last] = _FORBIDDEN
        return scores

    return process


def _forbidden(ids: Sequence[int], applies: Callable[[int], bool]) -> LogitsProcessor:
    """Forbid tokens while the length of the sequence, prompt included, is one that `applies`."""

    def process(tokens: Tokens, scores: Scores) -> Scores:
        if applies(tokens.shape[1]):
            scores[:, list(ids)] = _FORBIDDEN
        return scores

    return process


def not_at(ids: Sequence[int], *, length: int) -> LogitsProcessor:
    """Forbid tokens once the sequence, prompt included, has `length` of them."""
    return _forbidden(ids, lambda found: found == length)


def _forced(ids: Sequence[int], *, length: int) -> LogitsProcessor:
    """Allow only these tokens once the sequence, prompt included, has `length` of them."""

    def process(tokens: Tokens, scores: Scores) -> Scores:
        if tokens.shape[1] != length:
            return scores
        forced = torch.full_like(scores, _FORBIDDEN)
        forced[:, list(ids)] = 0.0
        return forced

    return process


def _allowed(choose: Callable[[int, Tensor], Sequence[int]], row: int) -> LogitsProcessor:
    """Allow only what a function of the row and the tokens so far returns."""

    def process(tokens: Tokens, scores: Scores) -> Scores:
        allowed = list(choose(row, tokens[0]))
        if not allowed:
            raise ValueError(
                f"generating text: prefix_allowed_tokens_fn returned no token for batch row "
                f"{row} after {tokens.shape[1]} tokens; it must return at least one"
            )
        masked = torch.full_like(scores, _FORBIDDEN)
        masked[:, allowed] = scores[:, allowed]
        return masked

    return process


def _finite(tokens: Tokens, scores: Scores) -> Scores:
    return torch.nan_to_num(scores)


def _normalized(tokens: Tokens, scores: Scores) -> Scores:
    return scores.log_softmax(dim=-1)


def stopping_for(settings: CallSettings, begin: int) -> tuple[StoppingCriterion, ...]:
    """The criteria of one window whose prompt has `begin` tokens."""
    criteria: list[StoppingCriterion] = []
    config = settings.config
    if config.max_time is not None:
        end_s = time.monotonic() + config.max_time
        criteria.append(lambda tokens, scores, **_: time.monotonic() >= end_s)
    if config.stop_strings is not None:
        strings = config.stop_strings
        wanted = (strings,) if isinstance(strings, str) else tuple(strings)

        def says(tokens: Int[Tensor, "1 token"], scores: Any, **_: Any) -> bool:
            text = settings.tokenizer.decode(tokens[0, begin:].tolist())
            return any(string in text for string in wanted)

        criteria.append(says)
    return (*criteria, *settings.stopping)


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
