"""`Speech2TextForConditionalGeneration`, with the interface of `generate` in transformers 5.23.

`search_batch` searches a padded batch: one task per row, independent in time and result. In: merged
settings, a batch and its prompts. Out: the tokens, prompts included.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.jobs import Job, Result, TokenRules, WindowJob, WindowResult
from corpus_asr.families.generation_config import DEFAULTS, GenerationConfig
from corpus_asr.families.speech2text.model import Speech2TextSeq2SeqLM
from corpus_asr.models.generation.inputs import PaddedBatch, seed_of
from corpus_asr.models.generation.long_form import with_end
from corpus_asr.models.generation.outputs import GenerateEncoderDecoderOutput, stacked
from corpus_asr.models.generation.rare_settings import compute_transition_scores, or_transformers
from corpus_asr.models.generation.settings import (
    CallSettings,
    allowed_tokens,
    common_settings,
    end_rules,
    one_of,
    one_tensor,
    prepare,
    search_of,
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
    # The last token has no position: no other is read after it.
    room = model.config.max_target_positions + 1
    if wanted + length > room:
        raise ValueError(
            f"generating text: {wanted} new tokens after a prompt of {length} were requested, "
            f"expected at most {room}, max_target_positions + 1; lower max_new_tokens"
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


@or_transformers
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
        inputs: filter bank features (batch, frame, mel); alias of `input_features`.
        logits_processor, stopping_criteria: called with the tokens so far and the scores of the
            next; change the scores, or end a text.
        prefix_allowed_tokens_fn: returns the allowed next tokens for a row and its tokens so far.
        synced_gpus: without effect here.
        assistant_model: without effect: drafts do not change the text.
        streamer: receives every token of one recording by `put`, and then `end`.
        kwargs: settings of a `GenerationConfig` (`num_beams`, `max_new_tokens`,
            `forced_bos_token_id`, ...), and `input_features`, `attention_mask` (batch, frame),
            `encoder_outputs`, `decoder_input_ids`. Those of `rare_settings` need transformers, as
            does a streamer.

    Returns:
        Token IDs from the start token to the end token, padded; with `return_dict_in_generate`
        as `sequences`.
    """
    model_settings = getattr(model, "generation_config", None)
    mask = kwargs.pop("attention_mask", None)
    features = one_of(inputs=inputs, input_features=kwargs.pop("input_features", None))
    prompts = one_of(
        decoder_input_ids=kwargs.pop("decoder_input_ids", None),
        input_ids=kwargs.pop("input_ids", None),
    )
    says_length = kwargs.get("max_length") is not None or any(
        getattr(settings, "max_length", None) is not None
        for settings in (generation_config, model_settings)
    )
    config, rest = prepare(GenerationConfig, model_settings, generation_config, kwargs)
    batch = PaddedBatch.of(model, features, rest.get("encoder_outputs"), mask)
    begin = _prompts(config, prompts, batch.size)
    sequences = search_batch(
        model,
        config,
        batch,
        begin,
        says_length=says_length,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
    )
    if config.return_dict_in_generate:
        return GenerateEncoderDecoderOutput(sequences=sequences)
    return sequences


class Speech2TextForConditionalGeneration(Speech2TextSeq2SeqLM):
    """Speech2Text with the arguments of `transformers`' `generate`."""

    generate = generate
    compute_transition_scores = compute_transition_scores


def _prompts(config: GenerationConfig, given: Any, batch_size: int) -> Int[Tensor, "batch token"]:
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    if start is None:
        raise ValueError(
            "generating text: found neither decoder_start_token_id nor bos_token_id in the "
            "generation settings, expected one; set decoder_start_token_id"
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
    # The reference prepends the start token to prompts that lack it.
    if not prompts.shape[1] or bool((prompts[:, :1] != starts).all()):
        prompts = torch.cat([starts, prompts], dim=1)
    return prompts
