"""Beam search is transformers', token for token, whatever sits in the other places."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from transformers.generation.utils import GenerationMixin

from corpus_asr.decoding.protocols import TokenRules, WindowJob, WindowResult
from tests.decoding.test_beam import SUPPRESSING, run
from tests.support.searches import GRAMMAR, PLAIN, job, small_whisper

# Sums of up to 40 float32 log-probabilities, from products in another order.
SCORE_TOLERANCE = 1e-3


class Pair:
    """The same weights here and there."""

    def __init__(self, folder: Path, seed: int, **changes: Any) -> None:
        self.model = small_whisper(folder, seed=seed, **changes).slot_model()
        self.oracle = transformers.WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return [Pair(tmp_path_factory.mktemp("checkpoint"), seed) for seed in range(3)]


@dataclass(frozen=True)
class Found:
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
    **options: Any,
) -> Found:
    """Search one window (mel, frame) with transformers' model."""
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
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            ),
            decoder_input_ids=torch.tensor([prompt]),
            logits_processor=processors,
        )
    sequence: list[int] = output.sequences[0, begin:].tolist()
    tokens = sequence[: sequence.index(rules.end)] if rules.end in sequence else sequence
    return Found(tuple(tokens), float(output.sequences_scores[0]))


def check(pair: Pair, jobs: list[WindowJob], found: list[WindowResult]) -> None:
    for one, result in zip(jobs, found, strict=True):
        search = one.search
        expected = beam_search(
            pair.oracle,
            torch.from_numpy(one.features),
            one.prompt,
            one.rules,
            max_new_tokens=one.max_new_tokens,
            num_beams=search.num_beams,
            length_penalty=search.length_penalty,
            early_stopping=search.early_stopping,
            repetition_penalty=search.repetition_penalty,
            no_repeat_ngram_size=search.no_repeat_ngram_size,
        )
        assert result.tokens == expected.tokens
        assert result.sequence_score == pytest.approx(expected.score, abs=SCORE_TOLERANCE)


@pytest.mark.parametrize(
    ("num_beams", "early_stopping", "length_penalty"),
    [(2, False, 1.0), (5, False, 1.0), (5, True, 1.0), (2, "never", 1.0), (5, "never", -1.0),
     (5, False, 0.0), (2, True, 2.0), (5, False, -1.0)],
)  # fmt: skip
def test_beams_are_those_of_transformers(
    pairs: list[Pair], num_beams: int, early_stopping: bool | str, length_penalty: float
) -> None:
    options: dict[str, Any] = {
        "num_beams": num_beams,
        "early_stopping": early_stopping,
        "length_penalty": length_penalty,
    }
    pair = pairs[num_beams % 2]
    kinds = enumerate((PLAIN, SUPPRESSING, GRAMMAR))
    jobs = [job(i, rules, prompt=(31, *range(3 * i), 32), **options) for i, rules in kinds]
    # Two places for three jobs: one waits, and starts beside one that is under way.
    check(pair, jobs, run(pair.model, jobs, places=2))
