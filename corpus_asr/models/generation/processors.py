"""How one text is searched: rules on the text so far, what ends it early, who gets its tokens."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.options import forbid_repeated_ngrams, penalise_repeats
from corpus_asr.decoding.protocols import LogitsProcessor, Search, StoppingCriterion
from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.models.generation.settings import CallSettings
from corpus_asr.models.generation.warpers import warpers_of

_FORBIDDEN = float("-inf")

# Search calls a processor for one row at a time, with copies that it may change.
Tokens = Int[Tensor, "1 token"]
Scores = Float[Tensor, "1 vocab"]


def search_of(
    settings: CallSettings,
    prompt: Sequence[int],
    *,
    row: int,
    max_new_tokens: int,
    temperature: float | None,
    num_beams: int,
    **more: Any,
) -> tuple[Search, "Stream | None"]:
    """Return how one text of the call is searched, and the stream that gets its tokens.

    `row` is its place among all texts; a temperature of None takes the likeliest tokens.
    """
    config, begin = settings.config, len(prompt)
    stopping = _stopping(settings, begin)
    stream = None
    if settings.streamer is not None:
        stream = Stream(settings.streamer, torch.tensor([list(prompt)]))
        stopping = (*stopping, stream)
    search = Search(
        temperature=temperature or 0.0,
        **_narrowing(
            config, sampled=temperature is not None, kept=len(settings.ends) + 1, beams=num_beams
        ),
        **_repetition(config),
        num_beams=num_beams,
        num_ends=max(1, len(settings.ends)),
        length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
        early_stopping=config.early_stopping or False,  # type: ignore[arg-type]
        keep_scores=settings.keep_scores,
        keep_logits=settings.keep_logits,
        # The order decides the text, and is that of transformers: what settings name, then
        # Whisper's own rules, which search applies itself, then the caller's.
        early_processors=_early_processors(settings, row, begin, begin + max_new_tokens),
        processors=tuple(_with_begin(processor, begin) for processor in settings.processors),
        stopping=stopping,
        **more,
    )
    return search, stream


def _narrowing(config: GenerationConfig, *, sampled: bool, kept: int, beams: int) -> dict[str, Any]:
    if not sampled:
        return {}
    if beams > 1:
        # Of beams something to go on with is kept where all tokens that end a text are.
        return {"warpers": warpers_of(config, narrow=True, kept=kept)}
    if config.top_h is not None:
        return {"warpers": warpers_of(config, narrow=True)}
    warpers = warpers_of(config)
    top_p = config.top_p if config.top_p is not None and config.top_p < 1 else None
    return {"warpers": warpers, "top_k": config.top_k or None, "top_p": top_p}


def _repetition(config: GenerationConfig) -> dict[str, Any]:
    if config.sequence_bias is not None:
        return {}  # comes before them, so that they are among the processors
    return {
        "repetition_penalty": config.repetition_penalty or 1.0,
        "no_repeat_ngram_size": config.no_repeat_ngram_size or 0,
    }


def _early_processors(
    settings: CallSettings, row: int, begin: int, limit: int
) -> tuple[LogitsProcessor, ...]:
    config = settings.config
    processors: list[LogitsProcessor] = []
    if config.sequence_bias is not None:
        processors += [_bias(config.sequence_bias, settings.vocab_size), *_repeats(config)]
    if config.bad_words_ids:
        # The reference, too, never forbids a text to end.
        kept = [[end] for end in settings.ends]
        processors.append(
            _bad_words([list(w) for w in config.bad_words_ids if list(w) not in kept])
        )
    least = begin + config.min_new_tokens if config.min_new_tokens else config.min_length
    if least and settings.ends:
        processors.append(_forbidden(settings.ends, lambda length: length < least))
    if settings.allowed is not None:
        processors.append(_allowed(settings.allowed, row))
    if config.forced_bos_token_id is not None:
        # Only where a text begins with its start token alone, as in the reference.
        processors.append(_forced([config.forced_bos_token_id], length=1))
    if config.forced_eos_token_id is not None:
        ends = config.forced_eos_token_id
        tokens = [ends] if isinstance(ends, int) else ends
        processors.append(_forced(tokens, length=limit - 1))
    if config.remove_invalid_values:
        processors.append(lambda tokens, scores: torch.nan_to_num(scores))
    if config.exponential_decay_length_penalty is not None and settings.ends:
        processors.append(
            _urged(settings.ends, config.exponential_decay_length_penalty, begin=begin)
        )
    if settings.suppressed_second:
        second = begin + 1
        processors.append(_forbidden(settings.suppressed_second, lambda length: length == second))
    return tuple(processors)


def _with_begin(processor: LogitsProcessor, begin: int) -> LogitsProcessor:
    # transformers has it for processors whose rule begins with the text, not with the prompt.
    set_begin = getattr(processor, "set_begin_index", None)
    if set_begin is None:
        return processor

    def process(tokens: Tensor, scores: Tensor) -> Tensor:
        set_begin(begin)  # again at every step: windows of other rows are scored in between
        return processor(tokens, scores)

    return process


def _bias(given: Any, vocab_size: int) -> LogitsProcessor:
    try:
        pairs = [
            ([int(token) for token in ids], float(bias))
            for ids, bias in (given.items() if isinstance(given, dict) else given)
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(_bad_bias(given)) from error
    if not pairs or any(not ids or min(ids) < 0 or max(ids) >= vocab_size for ids, _ in pairs):
        raise ValueError(f"{_bad_bias(given)}, of {vocab_size} tokens")

    def process(tokens: Tokens, scores: Scores) -> Scores:
        (text,) = tokens.tolist()
        for (*before, last), bias in pairs:
            if not before or text[-len(before) :] == before:
                scores[0, last] += bias
        return scores

    return process


def _bad_bias(given: Any) -> str:
    return (
        f"generating text: sequence_bias is {given!r}, expected sequences of token ids with a "
        "number each: a dictionary with tuples as keys, or a list of pairs"
    )


def _repeats(config: GenerationConfig) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = []
    penalty, size = config.repetition_penalty or 1.0, config.no_repeat_ngram_size or 0
    if penalty != 1.0:
        processors.append(
            lambda tokens, scores: penalise_repeats(
                scores, tokens, _length(tokens), scores.new_tensor([penalty])
            )
        )
    if size:
        processors.append(
            lambda tokens, scores: forbid_repeated_ngrams(
                scores, tokens, _length(tokens), torch.full_like(tokens[:, 0], size), longest=size
            )
        )
    return processors


def _length(tokens: Tokens) -> Int[Tensor, "1"]:
    return torch.full_like(tokens[:, 0], tokens.shape[1])


def _urged(ends: Sequence[int], penalty: Sequence[float], *, begin: int) -> LogitsProcessor:
    start, factor = penalty

    def process(tokens: Tokens, scores: Scores) -> Scores:
        beyond = tokens.shape[1] - begin - start
        if beyond > 0:
            score = scores[:, list(ends)]
            # What is forbidden stays so; a negative score, too, rises.
            more = (score.abs() * (factor**beyond - 1)).masked_fill(~score.isfinite(), 0.0)
            scores[:, list(ends)] = score + more
        return scores

    return process


def _bad_words(words: Sequence[Sequence[int]]) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        (text,) = tokens.tolist()
        for *before, last in words:
            # A word as long as the whole text so far is never complete in it.
            if not before or (len(before) < len(text) and text[-len(before) :] == before):
                scores[0, last] = _FORBIDDEN
        return scores

    return process


# Lengths are those of the whole sequence, prompt included.
def _forbidden(ids: Sequence[int], applies: Callable[[int], bool]) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        if applies(tokens.shape[1]):
            scores[:, list(ids)] = _FORBIDDEN
        return scores

    return process


def _forced(ids: Sequence[int], *, length: int) -> LogitsProcessor:
    def process(tokens: Tokens, scores: Scores) -> Scores:
        if tokens.shape[1] != length:
            return scores
        forced = torch.full_like(scores, _FORBIDDEN)
        forced[:, list(ids)] = 0.0
        return forced

    return process


def _allowed(choose: Callable[[int, Tensor], Sequence[int]], row: int) -> LogitsProcessor:
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


def _stopping(settings: CallSettings, begin: int) -> tuple[StoppingCriterion, ...]:
    criteria: list[StoppingCriterion] = []
    config = settings.config
    if others := set(settings.ends[1:]):
        criteria.append(lambda tokens, scores, **_: int(tokens[0, -1]) in others)
    if config.max_time is not None:
        end_s = time.monotonic() + config.max_time  # of each window, as windows are calls there
        criteria.append(lambda tokens, scores, **_: time.monotonic() >= end_s)
    if config.stop_strings is not None:
        strings = config.stop_strings
        wanted = (strings,) if isinstance(strings, str) else tuple(strings)

        def contains(tokens: Int[Tensor, "1 token"], scores: Any, **_: Any) -> bool:
            text = settings.tokenizer.decode(tokens[0, begin:].tolist())
            return any(string in text for string in wanted)

        criteria.append(contains)
    return (*criteria, *settings.stopping)


class Stream:
    """Hands tokens on as they are found, to an object with `put` and `end`."""

    def __init__(self, streamer: Any, prompt: Int[Tensor, "1 token"]) -> None:
        self._streamer = streamer
        self._streamed = 0
        streamer.put(prompt)

    def __call__(self, tokens: Int[Tensor, "1 token"], scores: Any, **_: Any) -> bool:
        """Hand on the newest token; never stops."""
        self._streamer.put(tokens[0, -1:].cpu())
        self._streamed += 1
        return False

    def close(self, tokens: Int[Tensor, " token"]) -> None:
        """Hand on what search ended with, and say that this was all."""
        # Tokens that end a search, drafts too, need not have passed through a call.
        for token in tokens[self._streamed :]:
            self._streamer.put(token[None])
        self._streamer.end()
