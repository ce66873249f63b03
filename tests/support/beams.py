"""transformers' beam search over a tiny checkpoint, with Whisper's rules, to compare with."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from transformers.generation.utils import GenerationMixin

from corpus_asr.decoding.protocols import TokenRules


@dataclass(frozen=True)
class Found:
    """One sequence and its score."""

    tokens: tuple[int, ...]
    """New tokens, without the end."""
    score: float


def beam_search(
    model: Any,
    features: Tensor,
    prompt: tuple[int, ...],
    rules: TokenRules,
    *,
    max_new_tokens: int,
    num_return_sequences: int = 1,
    **options: Any,
) -> list[Found]:
    """Search one window (mel, frame) with transformers' model; best first."""
    begin = len(prompt)
    processors = transformers.LogitsProcessorList()
    if rules.suppress:
        processors.append(SuppressTokensLogitsProcessor(list(rules.suppress)))
    if rules.suppress_first:
        first = SuppressTokensAtBeginLogitsProcessor(list(rules.suppress_first), begin)
        processors.append(first)
    if rules.timestamp_begin is not None:
        config: Any = SimpleNamespace(
            eos_token_id=rules.end,
            bos_token_id=rules.end,
            no_timestamps_token_id=rules.no_timestamps,
            max_initial_timestamp_index=rules.max_initial_timestamp,
        )
        processors.append(WhisperTimeStampLogitsProcessor(config, begin_index=begin))
    with torch.inference_mode():
        output: Any = GenerationMixin.generate(
            model,
            features.unsqueeze(0),
            generation_config=transformers.GenerationConfig(
                eos_token_id=rules.end,
                pad_token_id=rules.end,
                bos_token_id=rules.end,
                decoder_start_token_id=prompt[0],
                max_new_tokens=max_new_tokens,
                num_return_sequences=num_return_sequences,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            ),
            decoder_input_ids=torch.tensor([prompt]),
            logits_processor=processors,
        )
    found = []
    scores = output.sequences_scores.tolist()
    for sequence, score in zip(output.sequences[:, begin:].tolist(), scores, strict=True):
        tokens = sequence[: sequence.index(rules.end)] if rules.end in sequence else sequence
        found.append(Found(tuple(tokens), score))
    return found
