"""Search of a batch whose windows are encoded or padded: a task for each row, and what they found.

In: settings that are merged, a batch and its prompts. Out: the results by name, as transformers
5.23 has them. Rows neither wait for one another nor change one another's text.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
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
from corpus_asr.models.generation.inputs import EncodedBatch, PaddedBatch, seed_of
from corpus_asr.models.generation.long_form import with_end
from corpus_asr.models.generation.outputs import stack_outputs, text_output
from corpus_asr.models.generation.processors import search_of
from corpus_asr.models.generation.scores import of_all_beams
from corpus_asr.models.generation.settings import (
    CallSettings,
    allowed_tokens,
    check_cache,
    common_settings,
    end_rules,
)
from corpus_asr.models.generation.slots import run
from corpus_asr.models.generation.states import WantedStates, batch_states

_DEFAULT_NEW_TOKENS = DEFAULTS["max_length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings(CallSettings):
    """What every row needs to know; `begin` holds all prompts."""

    begin: Int[Tensor, "batch token"]
    temperature: float | None
    """None to take the likeliest tokens."""
    max_new_tokens: int
    num_return_sequences: int
    """Of each search: beams, where there are several."""
    keep_beams: bool
    """Whether all beams are kept, those that were given up among them."""


def search_batch(
    model: Any,
    config: GenerationConfig,
    keywords: Mapping[str, Any],
    batch: PaddedBatch | EncodedBatch,
    begin: Int[Tensor, "batch token"],
    *,
    says_length: bool,
    logits_processor: Sequence[Any] | None,
    stopping_criteria: Sequence[Any] | None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None,
) -> dict[str, Any]:
    """Return the results by name; `begin` are the prompts, which sequences begin with.

    `says_length` tells whether anybody but the defaults says how long a sequence may be.
    """
    _check_mode(config)
    wanted = WantedStates.of(config)
    check_cache(keywords.get("past_key_values"), begin)
    temperature = config.temperature if config.do_sample else None
    common = common_settings(
        model,
        config,
        keywords,
        batch_size=batch.size,
        temperatures=[temperature],
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
    )
    first = allowed_tokens(config.begin_suppress_tokens, common["vocab_size"])
    # A forced first token is none to suppress: what is meant is then the one after it.
    forced = begin.shape[1] == 1 and config.forced_bos_token_id is not None
    beams, returned = config.num_beams or 1, config.num_return_sequences or 1
    if beams > 1:  # transformers then takes a padding token of 0 for none
        common["pad"] = common["pad"] or (*common["ends"], 0)[0]
    settings = _Settings(
        **common,
        rules=TokenRules(
            **end_rules(config),
            suppress=allowed_tokens(config.suppress_tokens, common["vocab_size"]),
            suppress_first=() if forced else first,
        ),
        begin=begin,
        temperature=temperature,
        max_new_tokens=_max_new_tokens(model, config, begin.shape[1], says_length=says_length),
        num_return_sequences=returned if beams > 1 else 1,
        keep_beams=beams > 1
        and (common["keep_scores"] or common["keep_logits"] or wanted is not None),
        suppressed_second=first if forced else (),
        allowed=prefix_allowed_tokens_fn,
    )
    copies = 1 if beams > 1 else returned
    encoded = batch.encoded()
    tasks = [
        _row(batch, encoded, row, copy, copies, settings)
        for row in range(batch.size)
        for copy in range(copies)
    ]
    # No longer than needed: with many beams these caches are what takes memory.
    slots = batch.slots(max_tokens=begin.shape[1] + settings.max_new_tokens)
    results: list[WindowResult] = run(model, tasks, model=slots, beams=beams)
    stack = _stacked(results, settings, beams, model.device)
    if wanted is not None:
        stack |= batch_states(
            model,
            wanted,
            batch,
            keywords.get("encoder_outputs"),
            stack["sequences"],
            [result.beams for result in results if result.beams is not None],
            prompt_length=begin.shape[1],
            beams=beams,
            pad=settings.pad,
        )
    return stack


def _check_mode(config: GenerationConfig) -> None:
    if config.do_sample and not (config.temperature or 0) > 0:
        raise ValueError(
            f"generating text: do_sample is set and temperature is {config.temperature}, expected "
            "a number above 0; leave do_sample out to take the likeliest tokens"
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
    batch: PaddedBatch | EncodedBatch,
    encoded: Float[Tensor, "batch pos width"],
    row: int,
    copy: int,
    copies: int,
    settings: _Settings,
) -> Generator[Job, Result, WindowResult]:
    prompt = tuple(settings.begin[row].tolist())
    search, stream = search_of(
        settings,
        prompt,
        row=row * copies + copy,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        num_beams=settings.config.num_beams or 1,
        num_return_sequences=settings.num_return_sequences,
        keep_beams=settings.keep_beams,
    )
    seed = 0
    if settings.temperature is not None:
        name = f"{settings.seed} {settings.temperature!r} {copy}"
        seed = seed_of(batch.sound(row), name)
    result = yield WindowJob(
        features=batch.placeholder,
        window=(row,),
        prompt=prompt,
        rules=settings.rules,
        max_new_tokens=settings.max_new_tokens,
        search=search,
        seed=seed,
        num_frames=batch.frames(row),
        encoded=encoded[row],
    )
    assert isinstance(result, WindowResult)
    if stream is not None:
        stream.close(torch.tensor(with_end(result, settings.end)))
    return result


def _stacked(
    results: Sequence[WindowResult], settings: _Settings, beams: int, device: torch.device
) -> dict[str, Any]:
    copies = len(results) // len(settings.begin)
    outputs = []
    for number, result in enumerate(results):
        prompt = settings.begin[number // copies].tolist()
        for text in (result, *result.others):
            output = text_output(prompt, with_end(text, settings.end), text, settings)
            if "beam_indices" in output:
                output["beam_indices"] += number * beams
            outputs.append(output)
    stack = stack_outputs(outputs, pad=settings.pad, device=device)
    traces = [result.beams for result in results if result.beams is not None]
    for name in ("scores", "logits"):
        if traces and (steps := of_all_beams(traces, name, settings.pad)) is not None:
            stack[name] = tuple(step.to(device) for step in steps)
    return stack
