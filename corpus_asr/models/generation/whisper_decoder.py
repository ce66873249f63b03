"""`WhisperForCausalLM`, whose `generate` is as transformers 5.23 has it for decoders."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from corpus_asr.families.whisper.config import GenerationConfig
from corpus_asr.families.whisper.model import WhisperForCausalLM as _WhisperDecoderLM
from corpus_asr.models.generation.batch_search import search_batch
from corpus_asr.models.generation.inputs import EncodedBatch
from corpus_asr.models.generation.outputs import GenerateDecoderOnlyOutput
from corpus_asr.models.generation.scores import compute_transition_scores
from corpus_asr.models.generation.settings import one_of, one_tensor, prepare


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
    """Continue token ids over windows that are encoded, or by themselves.

    Args:
        inputs: token ids (batch, token); `input_ids` says the same. None begins with the start.
        logits_processor, stopping_criteria: called with the tokens so far and the scores of the
            next; change the scores, or end a text.
        prefix_allowed_tokens_fn: row and tokens so far, to the tokens that may come next.
        synced_gpus: without effect here.
        assistant_model: not offered.
        streamer: gets every token of one row by `put`, and then `end`.
        kwargs: settings of a `GenerationConfig`, `encoder_outputs`, `tokenizer`.

    Returns:
        Token ids, those that were given first, padded; with `return_dict_in_generate` what search
        found by name.
    """
    if assistant_model is not None:
        raise ValueError(
            "generating text: assistant_model is not offered for a decoder alone; leave it out"
        )
    own = getattr(model, "generation_config", None)
    mask = kwargs.pop("attention_mask", None)
    if mask is not None and not bool(torch.as_tensor(mask).all()):
        raise ValueError(
            "generating text: attention_mask hides tokens of the prompts, expected all ones; pass "
            "prompts of one length"
        )
    ids = one_of(inputs=inputs, input_ids=kwargs.pop("input_ids", None))
    config, rest = prepare(GenerationConfig, own, generation_config, kwargs)
    batch = EncodedBatch.of(model, rest.get("encoder_outputs"), 1 if ids is None else len(ids))
    found = search_batch(
        model,
        config,
        rest | {"streamer": streamer},
        batch,
        _prompts(config, ids, batch.size),
        says_length=True,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
    )
    found.pop("encoder_attentions", None)
    found.pop("encoder_hidden_states", None)
    if config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(**found)
    return found["sequences"]


class WhisperForCausalLM(_WhisperDecoderLM):
    """Whisper's decoder with the arguments of `transformers`' `generate`."""

    generate = generate
    compute_transition_scores = compute_transition_scores


def _prompts(config: GenerationConfig, given: Any, rows: int) -> Tensor:
    if given is None:
        start = config.bos_token_id
        if start is None:
            raise ValueError(
                "generating text: found no input_ids and no bos_token_id, expected one of them"
            )
        return torch.full((rows, 1), start)
    ids = one_tensor(given, what="input_ids", hint="pass token ids (batch, token)").cpu()
    if ids.ndim != 2 or ids.is_floating_point() or len(ids) != rows or not ids.numel():
        raise ValueError(
            f"generating text: input_ids have shape {tuple(ids.shape)} and type {ids.dtype}, "
            f"expected whole numbers ({rows}, token), a row for each of encoder_outputs, if any"
        )
    return ids
