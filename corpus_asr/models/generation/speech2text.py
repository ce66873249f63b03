"""`Speech2TextForConditionalGeneration`, with the interface of `generate` in transformers 5.23."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Int
from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.families.speech2text.model import Speech2TextSeq2SeqLM
from corpus_asr.models.generation.batch_search import search_batch
from corpus_asr.models.generation.inputs import PaddedBatch
from corpus_asr.models.generation.outputs import GenerateEncoderDecoderOutput
from corpus_asr.models.generation.rare_settings import compute_transition_scores, or_transformers
from corpus_asr.models.generation.settings import one_of, one_tensor, prepare


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
