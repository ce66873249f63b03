"""Search options of one text: rules on the text so far, and the caller's functions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.protocols import LogitsProcessor, Search
from corpus_asr.models.generation.settings import CallSettings

_FORBIDDEN = float("-inf")

# Search calls a processor for one row at a time, with copies that it may modify.
Tokens = Int[Tensor, "1 token"]
Scores = Float[Tensor, "1 vocab"]


def search_of(
    settings: CallSettings,
    prompt: Sequence[int],
    *,
    row: int,
    temperature: float | None,
    num_beams: int,
    **more: Any,
) -> Search:
    """Return the search settings of one text of the call.

    `row` is its index among all texts; a temperature of None selects the most likely tokens.
    """
    config, begin = settings.config, len(prompt)
    sampled = temperature is not None
    return Search(
        temperature=temperature or 0.0,
        top_k=(config.top_k or None) if sampled else None,
        top_p=config.top_p if sampled and (config.top_p or 1) < 1 else None,
        repetition_penalty=config.repetition_penalty or 1.0,
        no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
        num_beams=num_beams,
        length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
        early_stopping=config.early_stopping or False,  # type: ignore[arg-type]
        # The order affects the text, and is that of transformers: processors of settings, then
        # Whisper's own rules, which search applies itself, then the caller's.
        early_processors=_early_processors(settings, row, begin),
        processors=tuple(_with_begin(processor, begin) for processor in settings.processors),
        stopping=settings.stopping,
        **more,
    )


def _early_processors(settings: CallSettings, row: int, begin: int) -> tuple[LogitsProcessor, ...]:
    forced = settings.config.forced_bos_token_id
    processors: list[LogitsProcessor] = []
    if settings.allowed is not None:
        processors.append(_allowed(settings.allowed, row))
    if forced is not None:
        # Only if a text starts with its start token alone, as in the reference.
        processors.append(_forced(forced))
    if settings.suppressed_second:
        processors.append(_forbidden(settings.suppressed_second, length=begin + 1))
    return tuple(processors)


def _with_begin(processor: LogitsProcessor, begin: int) -> LogitsProcessor:
    # transformers calls it for processors whose rule applies from the text, not the prompt.
    set_begin = getattr(processor, "set_begin_index", None)
    if set_begin is None:
        return processor

    def process(tokens: Tensor, scores: Tensor) -> Tensor:
        set_begin(begin)  # set at every step: windows of other rows are scored in between
        return processor(tokens, scores)

    return process


# Lengths are of the whole sequence, prompt included.
def _forbidden(ids: Sequence[int], *, length: int) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        if tokens.shape[1] == length:
            scores[:, list(ids)] = _FORBIDDEN
        return scores

    return process


def _forced(token: int) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        if tokens.shape[1] != 1:
            return scores
        forced = torch.full_like(scores, _FORBIDDEN)
        forced[:, token] = 0.0
        return forced

    return process


def _allowed(choose: Callable[[int, Tensor], Sequence[int]], row: int) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        allowed = list(choose(row, tokens[0]))
        if not allowed:
            raise ValueError(
                f"generating text: prefix_allowed_tokens_fn returned no token for batch row {row} "
                f"after {tokens.shape[1]} tokens, expected at least one; correct it"
            )
        masked = torch.full_like(scores, _FORBIDDEN)
        masked[:, allowed] = scores[:, allowed]
        return masked

    return process
