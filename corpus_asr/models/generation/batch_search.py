"""Search of a padded batch: one task per row, and the resulting texts.

In: merged settings, a batch and its prompts. Out: the tokens, prompts included. Rows are
independent in time and result.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.protocols import (
    Job,
    Result,
    TokenRules,
    WindowJob,
    WindowResult,
)
from corpus_asr.families.generation_config import DEFAULTS, GenerationConfig
from corpus_asr.models.generation.inputs import PaddedBatch, seed_of
from corpus_asr.models.generation.long_form import with_end
from corpus_asr.models.generation.outputs import stacked
from corpus_asr.models.generation.processors import search_of
from corpus_asr.models.generation.settings import (
    CallSettings,
    allowed_tokens,
    common_settings,
    end_rules,
)
from corpus_asr.models.generation.slots import run

_DEFAULT_NEW_TOKENS = DEFAULTS["max_length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchSettings(CallSettings):
    """Settings common to all rows; `begin` has all prompts."""

    begin: Int[Tensor, "batch token"]
    temperature: float | None
    """None to select the most likely tokens."""
    max_new_tokens: int


def search_batch(
    model: Any,
    config: GenerationConfig,
    batch: PaddedBatch,
    begin: Int[Tensor, "batch token"],
    *,
    says_length: bool,
    logits_processor: Sequence[Any] | None,
    stopping_criteria: Sequence[Any] | None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None,
) -> Int[Tensor, "batch length"]:
    """Return the padded texts, starting with their prompts `begin`.

    `says_length` is whether the length limit is other than the default.
    """
    _check_mode(config)
    temperature = config.temperature if config.do_sample else None
    common = common_settings(
        model,
        config,
        temperatures=[temperature],
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
    )
    first = allowed_tokens(config.begin_suppress_tokens, common["vocab_size"])
    # A forced first token cannot be suppressed: the suppression applies to the next one.
    forced = begin.shape[1] == 1 and config.forced_bos_token_id is not None
    beams = config.num_beams or 1
    ends = end_rules(config)
    if beams > 1 and not ends["is_endless"]:
        # transformers then treats a padding token of 0 as none.
        common["pad"] = common["pad"] or ends["end"]
    settings = _BatchSettings(
        **common,
        rules=TokenRules(
            **ends,
            suppress=allowed_tokens(config.suppress_tokens, common["vocab_size"]),
            suppress_first=() if forced else first,
        ),
        begin=begin,
        temperature=temperature,
        max_new_tokens=_max_new_tokens(model, config, begin.shape[1], says_length=says_length),
        suppressed_second=first if forced else (),
        allowed=prefix_allowed_tokens_fn,
    )
    encoded = batch.encoded()
    tasks = [_row(batch, encoded, row, settings) for row in range(batch.size)]
    # As short as possible: with many beams these caches dominate memory.
    slots = batch.slots(max_tokens=begin.shape[1] + settings.max_new_tokens)
    results: list[WindowResult] = run(model, tasks, model=slots, beams=beams)
    texts = [
        torch.tensor([*prompt, *with_end(result, settings.end)])
        for prompt, result in zip(begin.tolist(), results, strict=True)
    ]
    return stacked(texts, settings.pad).to(model.device)


def _check_mode(config: GenerationConfig) -> None:
    if config.do_sample and not (config.temperature or 0) > 0:
        raise ValueError(
            f"generating text: found do_sample and temperature {config.temperature}, expected a "
            "temperature above 0; correct it, or remove do_sample"
        )


def _max_new_tokens(model: Any, config: GenerationConfig, length: int, *, says_length: bool) -> int:
    if config.max_new_tokens is not None:
        wanted = config.max_new_tokens
    elif not says_length:
        # As a number of new tokens: the reference adds the prompt's length to its default.
        wanted = _DEFAULT_NEW_TOKENS
    else:
        assert config.max_length is not None
        wanted = config.max_length - length
        if wanted < 1:
            raise ValueError(
                f"generating text: the prompt has {length} tokens, but max_length is "
                f"{config.max_length}; raise max_length or, better, set max_new_tokens"
            )
    room = model.config.max_target_positions
    if wanted + length > room:
        raise ValueError(
            f"generating text: {wanted} new tokens after a prompt of {length} were requested, "
            f"expected at most max_target_positions together, which is {room}; lower "
            "max_new_tokens or max_length"
        )
    return wanted


def _row(
    batch: PaddedBatch,
    encoded: Float[Tensor, "batch pos width"],
    row: int,
    settings: _BatchSettings,
) -> Generator[Job, Result, WindowResult]:
    prompt = tuple(settings.begin[row].tolist())
    temperature = settings.temperature
    seed = 0
    if temperature is not None:
        seed = seed_of(batch.sound(row), f"{settings.seed} {temperature!r}")
    result = yield WindowJob(
        features=batch.placeholder,
        window=(row,),
        prompt=prompt,
        rules=settings.rules,
        max_new_tokens=settings.max_new_tokens,
        search=search_of(
            settings,
            prompt,
            row=row,
            temperature=temperature,
            num_beams=settings.config.num_beams or 1,
        ),
        seed=seed,
        num_frames=batch.num_frames[row],
        encoded=encoded[row],
    )
    assert isinstance(result, WindowResult)
    return result
