"""Rules that look at the text so far, for what vectorised rules do not cover.

In: settings of a call. Out: functions from tokens and scores to scores. Their order decides the
text, and is that of transformers: what settings name first, then Whisper's own rules, which search
applies itself, then the caller's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.decoding.protocols import LogitsProcessor
from corpus_asr.models.generation.call import CallSettings

_FORBIDDEN = float("-inf")

Tokens = Int[Tensor, "row token"]
Scores = Float[Tensor, "row vocab"]


def early_processors(
    settings: CallSettings, row: int, begin: int, limit: int
) -> tuple[LogitsProcessor, ...]:
    """The processors that come before Whisper's own rules, in order.

    Args:
        settings: of the call.
        row: the text's place among all rows of the call.
        begin: length of the window's prompt.
        limit: most new tokens.
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
        """Return scores with all other tokens at minus infinity.

        Raises:
            ValueError: the function allows nothing.
        """
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
