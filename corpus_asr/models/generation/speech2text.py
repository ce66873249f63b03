"""`Speech2TextForConditionalGeneration`, whose `generate` is as transformers 5.23 has it."""

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
from corpus_asr.families.speech2text.model import Speech2TextSeq2SeqLM
from corpus_asr.models.generation.inputs import PaddedBatch, seed_of
from corpus_asr.models.generation.long_form import with_end
from corpus_asr.models.generation.outputs import (
    GenerateEncoderDecoderOutput,
    stack_outputs,
    text_output,
)
from corpus_asr.models.generation.processors import search_of
from corpus_asr.models.generation.scores import compute_transition_scores, of_all_beams
from corpus_asr.models.generation.settings import (
    CallSettings,
    allowed_tokens,
    check_cache,
    common_settings,
    end_rules,
    one_tensor,
    prepare,
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


def generate(
    model: Any,
    inputs: Any = None,
    generation_config: Any = None,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
    synced_gpus: bool | None = None,
    assistant_model: Any = None,
    streamer: Any = None,
    **kwargs: Any,
) -> Any:
    """Transcribe or translate a batch of recordings.

    Args:
        inputs: filter bank features (batch, frame, mel); `input_features` says the same.
        logits_processor, stopping_criteria: called with the tokens so far and the scores of the
            next; change the scores, or end a text.
        prefix_allowed_tokens_fn: row and tokens so far, to the tokens that may come next.
        synced_gpus: without effect here.
        assistant_model: not offered.
        streamer: gets every token of one recording by `put`, and then `end`.
        kwargs: settings of a `GenerationConfig` (`num_beams`, `max_new_tokens`,
            `forced_bos_token_id`, ...), and `input_features`, `attention_mask` (batch, frame),
            `encoder_outputs`, `decoder_input_ids`, `tokenizer`.

    Returns:
        Token ids from the start token to the end token, padded; with `return_dict_in_generate`
        what search found by name. Scores of a row after its end are those of padding alone.
    """
    own = getattr(model, "generation_config", None)
    mask = kwargs.pop("attention_mask", None)
    features = _one_of(inputs=inputs, input_features=kwargs.pop("input_features", None))
    prompts = _one_of(
        decoder_input_ids=kwargs.pop("decoder_input_ids", None),
        input_ids=kwargs.pop("input_ids", None),
    )
    says_length = kwargs.get("max_length") is not None or any(
        getattr(settings, "max_length", None) is not None for settings in (generation_config, own)
    )
    config, rest = prepare(GenerationConfig, own, generation_config, kwargs)
    wanted = WantedStates.of(config)
    _check_mode(config, assistant_model)
    batch = PaddedBatch.of(model, features, rest.get("encoder_outputs"), mask)
    begin = _prompts(config, prompts, batch.size)
    check_cache(rest.get("past_key_values"), begin)
    temperature = config.temperature if config.do_sample else None
    common = common_settings(
        model,
        config,
        rest | {"streamer": streamer},
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
    slots = batch.model.for_windows(
        batch.model.window_frames, max_tokens=begin.shape[1] + settings.max_new_tokens
    )
    results: list[WindowResult] = run(model, tasks, model=slots, beams=beams)
    stack = _stacked(results, settings, beams, model.device)
    if wanted is not None:
        stack |= batch_states(
            model,
            wanted,
            batch,
            rest.get("encoder_outputs"),
            stack["sequences"],
            [result.beams for result in results if result.beams is not None],
            prompt_length=begin.shape[1],
            beams=beams,
            pad=settings.pad,
        )
    if config.return_dict_in_generate:
        return GenerateEncoderDecoderOutput(**stack)
    return stack["sequences"]


class Speech2TextForConditionalGeneration(Speech2TextSeq2SeqLM):
    """Speech2Text with the arguments of `transformers`' `generate`."""

    generate = generate
    compute_transition_scores = compute_transition_scores


def _one_of(**given: Any) -> Any:
    values = {name: value for name, value in given.items() if value is not None}
    if len(values) > 1:
        raise ValueError(
            f"generating text: found {' and '.join(values)}, which mean the same; pass one of them"
        )
    return next(iter(values.values()), None)


def _check_mode(config: GenerationConfig, assistant: Any) -> None:
    if assistant is not None:
        raise ValueError(
            "generating text: assistant_model is not offered for this family; leave it out"
        )
    if config.do_sample and (config.num_beams or 1) > 1:
        raise ValueError(
            f"generating text: do_sample is set and num_beams is {config.num_beams}: beams are not "
            "sampled here; leave one of the two out"
        )
    if config.do_sample and not (config.temperature or 0) > 0:
        raise ValueError(
            f"generating text: do_sample is set and temperature is {config.temperature}, expected "
            "a number above 0; leave do_sample out to take the likeliest tokens"
        )


def _prompts(config: GenerationConfig, given: Any, batch_size: int) -> Int[Tensor, "batch token"]:
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    if start is None:
        raise ValueError(
            "generating text: the generation settings have neither decoder_start_token_id nor "
            "bos_token_id; set decoder_start_token_id to the token that starts a text"
        )
    starts = torch.as_tensor(start).reshape(-1)
    if len(starts) not in (1, batch_size):
        raise ValueError(
            f"generating text: decoder_start_token_id names {len(starts)} tokens, expected one, or "
            f"one for each of {batch_size} rows"
        )
    starts = starts.expand(batch_size).unsqueeze(1)
    if given is None:
        return starts
    hint = "pass token ids (batch, token)"
    prompts = one_tensor(given, what="decoder_input_ids", hint=hint).cpu()
    if prompts.ndim != 2 or prompts.is_floating_point() or prompts.shape[0] != batch_size:
        raise ValueError(
            f"generating text: decoder_input_ids have shape {tuple(prompts.shape)} and type "
            f"{prompts.dtype}, expected whole numbers ({batch_size}, token); {hint}"
        )
    # The reference puts the start token in front of prompts that lack it.
    if not prompts.shape[1] or bool((prompts[:, :1] != starts).all()):
        prompts = torch.cat([starts, prompts], dim=1)
    return prompts


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
        num_frames=batch.num_frames[row],
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
