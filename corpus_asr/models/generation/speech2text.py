"""`Speech2TextForConditionalGeneration`, with the interface of `generate` in transformers 5.23.

A padded batch is searched with one task per row, independent in time and result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.jobs import Steps, WindowJob, WindowResult
from corpus_asr.families.generation_config import DEFAULTS, GenerationConfig
from corpus_asr.families.speech2text.model import Speech2TextSeq2SeqLM
from corpus_asr.models.generation.call import Call, allowed_tokens, refuse_if, tensor_of
from corpus_asr.models.generation.inputs import PaddedBatch, seed_of
from corpus_asr.models.generation.long_form import with_end
from corpus_asr.models.generation.outputs import GenerateEncoderDecoderOutput, stacked
from corpus_asr.models.generation.rare_settings import (
    compute_transition_scores,
    rare_setting,
    transformers_generate,
)
from corpus_asr.models.generation.slots import changed_module, run


def _search(
    call: Call, batch: PaddedBatch, begin: Int[Tensor, "batch token"]
) -> Int[Tensor, "batch length"]:
    """Return the padded texts, starting with their prompts `begin`."""
    config = call.config
    refuse_if(
        bool(config.do_sample) and not (config.temperature or 0) > 0,
        f"found do_sample and temperature {config.temperature}, expected a temperature above 0; "
        "correct it, or remove do_sample",
    )
    temperature = config.temperature if config.do_sample else None
    first = allowed_tokens(config.begin_suppress_tokens, call.model.config.vocab_size)
    # A forced first token cannot be suppressed: the suppression applies to the next one.
    if begin.shape[1] == 1 and config.forced_bos_token_id is not None:
        call.suppressed_second, first = first, ()
    call.set_rules(temperatures=[temperature], suppress_first=first)
    beams = config.num_beams or 1
    if beams > 1 and not call.rules.is_endless:
        # transformers then treats a padding token of 0 as none.
        call.pad = call.pad or call.rules.end
    max_new_tokens = _max_new_tokens(call, begin.shape[1])
    encoded = batch.encoded()
    prompts = begin.tolist()
    tasks = [
        _row(call, batch, encoded[row], row, tuple(prompt), max_new_tokens, temperature)
        for row, prompt in enumerate(prompts)
    ]
    # As short as possible: with many beams these caches dominate memory.
    slots = batch.slots(max_tokens=begin.shape[1] + max_new_tokens)
    results: list[WindowResult] = run(call.model, tasks, model=slots, beams=beams)
    texts = [
        torch.tensor([*prompt, *with_end(result, call.end)])
        for prompt, result in zip(prompts, results, strict=True)
    ]
    return stacked(texts, call.pad).to(call.model.device)


def _max_new_tokens(call: Call, length: int) -> int:
    config = call.config
    # As a number of new tokens: the reference adds the prompt's length to its default.
    wanted = config.max_new_tokens or DEFAULTS["max_length"]
    if config.max_new_tokens is None and call.has_length_limit:
        assert config.max_length is not None
        wanted = config.max_length - length
        refuse_if(
            wanted < 1,
            f"the prompt has {length} tokens, but max_length is {config.max_length}; raise "
            "max_length or, better, set max_new_tokens",
        )
    # The last token has no position: no other is read after it.
    room = call.max_target_positions + 1
    refuse_if(
        wanted + length > room,
        f"{wanted} new tokens after a prompt of {length} were requested, expected at most {room}, "
        "max_target_positions + 1; lower max_new_tokens",
    )
    return int(wanted)


def _row(
    call: Call,
    batch: PaddedBatch,
    encoded: Float[Tensor, "pos width"],
    row: int,
    prompt: tuple[int, ...],
    max_new_tokens: int,
    temperature: float | None,
) -> Steps[WindowResult]:
    seed, beams = 0, call.config.num_beams or 1
    if temperature is not None:
        seed = seed_of(batch.sound(row), f"{call.seed} {temperature!r}")
    result: WindowResult = yield WindowJob(
        features=batch.placeholder,
        window=(row,),
        prompt=prompt,
        rules=call.rules,
        max_new_tokens=max_new_tokens,
        search=call.search(prompt, row=row, temperature=temperature, num_beams=beams),
        seed=seed,
        num_frames=batch.num_frames[row],
        encoded=encoded,
    )
    return result


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
    call = Call(locals())
    reason = rare_setting(model, call.setting) or changed_module(model)
    if reason is not None:
        return transformers_generate(model, reason, **call.options)
    features = call.only_given("inputs", "input_features")
    prompts = call.only_given("decoder_input_ids", "input_ids")
    call.refuse_unknown()
    batch = PaddedBatch.of(model, features, call["encoder_outputs"], call["attention_mask"])
    sequences = _search(call, batch, _prompts(call.config, prompts, batch.size))
    if call.config.return_dict_in_generate:
        return GenerateEncoderDecoderOutput(sequences=sequences)
    return sequences


class Speech2TextForConditionalGeneration(Speech2TextSeq2SeqLM):
    """Speech2Text with the arguments of `transformers`' `generate`."""

    generate = generate
    compute_transition_scores = compute_transition_scores


def _prompts(config: GenerationConfig, given: Any, batch_size: int) -> Int[Tensor, "batch token"]:
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    refuse_if(
        start is None,
        "found neither decoder_start_token_id nor bos_token_id in the generation settings, "
        "expected one; set decoder_start_token_id",
    )
    starts = torch.as_tensor(start).reshape(-1)
    refuse_if(
        len(starts) not in (1, batch_size),
        f"decoder_start_token_id names {len(starts)} tokens, expected one, or one for each of "
        f"{batch_size} rows",
    )
    starts = starts.expand(batch_size).unsqueeze(1)
    if given is None:
        return starts
    prompts = tensor_of("decoder_input_ids", given, batch_size, "tokens").cpu()
    # The reference prepends the start token to prompts that lack it.
    if not prompts.shape[1] or bool((prompts[:, :1] != starts).all()):
        prompts = torch.cat([starts, prompts], dim=1)
    return prompts
