"""Arguments of `generate` of another type; those of another value: tests/models/whisper."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.families.tensors import BatchFeature
from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.models.generation import settings as arguments
from corpus_asr.models.generation.long_form import starts

FEATURES = torch.zeros(2, 3, 4)
CONFIG = GenerationConfig(decoder_start_token_id=1, lang_to_id={"<|en|>": 2}, task_to_id={})


def start(language: Any) -> Any:
    config = GenerationConfig.from_dict(CONFIG.to_dict())
    config.language = language
    return starts(config, None, batch_size=1, timestamps=False)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a list of tensors": (
        lambda: arguments.features_of([FEATURES], 3),
        "found a list as input_features, expected one tensor; pass inputs.input_features",
    ),
    "all that was extracted": (
        lambda: arguments.features_of(BatchFeature({"input_features": FEATURES}), 3),
        r"found a BatchFeature as input_features, .* or \*\*inputs",
    ),
    "a mask that is none": (lambda: arguments.lengths_of("1100", 2), "found a str as attention_m"),
    "a prompt as text": (lambda: arguments.prompt_of("hello"), "found a str as prompt_ids.*get_pr"),
    "a temperature as text": (
        lambda: arguments.temperatures_of("0.5"),
        "temperature '0.5', expected",
    ),
    "one of several as text": (lambda: arguments.temperatures_of((0.0, "1")), "temperature '1'"),
    "no function": (
        lambda: arguments.functions_of([5], what="logits_processor"),
        "found '5' of type int as logits_processor, expected a list of functions",
    ),
    "a function alone": (
        lambda: arguments.functions_of(max, what="stopping_criteria"),
        "builtin_function_or_method as stopping_criteria, .*put it into a list",
    ),
    "a name as assistant": (lambda: arguments.draft_of("tiny"), "found a str as assistant_model"),
    "a number as language": (lambda: start(5), "`language` is 5 with 5 in it"),
    "a gap among languages": (lambda: start(["en", None]), "with None in it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_type_is_named(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TypeError, match=message):
        call()


def test_arrays_and_lists_are_tensors_too() -> None:
    for given in (FEATURES, FEATURES.numpy(), FEATURES.tolist()):
        assert torch.equal(arguments.features_of(given, 3), FEATURES)
    for prompt in (torch.tensor([4, 5]), np.array([4, 5]), [4, 5], (4, 5)):
        assert arguments.prompt_of(prompt) == (4, 5)
    assert arguments.lengths_of([[1, 1], [1, 0]], 2) == [2, 1]


def test_what_was_not_given_says_nothing() -> None:
    assert arguments.prompt_of(None) is None
    assert arguments.prompt_of([]) == ()
    assert arguments.temperatures_of(None) == (None,)
    assert arguments.functions_of(None, what="stopping_criteria") == ()
