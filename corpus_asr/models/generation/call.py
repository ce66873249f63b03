"""What a call of `generate` tells search, whatever the family: settings, rules, the caller's own.

In: the arguments of the call. Out: a frozen `CallSettings`, and the `Search` that it asks for.
Combinations that cannot be meant are refused here, before anything is computed. Knows no audio.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from corpus_asr.decoding.protocols import LogitsProcessor, Search, StoppingCriterion, TokenRules
from corpus_asr.families.generation_config import GenerationConfig

_MAX_SEED = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """What every row needs to know."""

    config: GenerationConfig
    rules: TokenRules
    begin: Int[Tensor, "batch token"] | None
    """Whole prompts, where the caller gave them."""
    end: int
    pad: int
    vocab_size: int
    max_target_positions: int
    keep_scores: bool
    keep_logits: bool
    seed: int
    processors: tuple[LogitsProcessor, ...] = ()
    stopping: tuple[StoppingCriterion, ...] = ()
    allowed: Callable[[int, Tensor], Sequence[int]] | None = None
    """Row and tokens so far, to the tokens that may come next."""
    streamer: Any = None
    """Told every token as it is found."""
    tokenizer: Any = None
    """Reads the text where strings in it stop a window."""


def search_of(
    settings: CallSettings, *, temperature: float | None, num_beams: int, **more: Any
) -> Search:
    """Return how one text is searched.

    Args:
        settings: of the call.
        temperature: None to take the likeliest tokens.
        num_beams: side by side.
        more: further fields of a `Search`.
    """
    config = settings.config
    sampled = temperature is not None
    top_p = config.top_p if sampled and config.top_p is not None and config.top_p < 1 else None
    return Search(
        temperature=temperature or 0.0,
        top_k=config.top_k or None if sampled else None,
        top_p=top_p,
        repetition_penalty=config.repetition_penalty or 1.0,
        no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
        num_beams=num_beams,
        length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
        early_stopping=config.early_stopping or False,  # type: ignore[arg-type]
        keep_scores=settings.keep_scores,
        keep_logits=settings.keep_logits,
        **more,
    )


def check_outputs(config: GenerationConfig) -> None:
    """Refuse what search does not keep.

    Raises:
        ValueError: it is asked for.
    """
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name):
            raise ValueError(
                f"generating text: {name} is not offered here; call the model itself with the "
                "tokens found to get it"
            )


def allowed_tokens(tokens: Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    """Return those of some tokens that the model has; the others need no rule."""
    return tuple(token for token in tokens or () if 0 <= token < vocab_size)


def draw_seed(temperatures: Sequence[float | None]) -> int:
    """Draw from torch's generator, so that `torch.manual_seed` repeats a call that samples."""
    if all(not temperature for temperature in temperatures):
        return 0
    return int(torch.randint(_MAX_SEED, (1,)))


def streamer_of(streamer: Any, *, batch_size: int, config: GenerationConfig) -> Any:
    """Return who is told every token.

    Raises:
        ValueError: there are several recordings or beams to tell of.
    """
    if streamer is not None and (batch_size > 1 or (config.num_beams or 1) > 1):
        raise ValueError(
            f"generating text: a streamer takes one recording and one beam, found "
            f"{batch_size} and {config.num_beams}; leave it out"
        )
    return streamer


def tokenizer_of(rest: dict[str, Any], config: GenerationConfig) -> Any:
    """Return what reads the text so far.

    Raises:
        ValueError: strings stop the text and there is none.
    """
    if config.stop_strings is not None and "tokenizer" not in rest:
        raise ValueError(
            "generating text: stop_strings are given but no tokenizer to read the text with; pass "
            "tokenizer"
        )
    return rest.get("tokenizer")


def end_token(config: GenerationConfig) -> int:
    """The token that ends a text.

    Raises:
        ValueError: there is none, or several.
    """
    ends = config.eos_token_id
    if isinstance(ends, list | tuple) and len(ends) == 1:
        ends = ends[0]
    if not isinstance(ends, int):
        raise ValueError(
            f"generating text: eos_token_id is {ends!r}, expected one token; set it to the "
            "tokenizer's end token"
        )
    return ends


def pad_token(config: GenerationConfig) -> int:
    """The token that fills shorter rows; the end token where there is no other."""
    return end_token(config) if config.pad_token_id is None else config.pad_token_id
