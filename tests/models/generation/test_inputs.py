"""What the inputs of `generate` become, where comparing whole calls would hide it."""

from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.models.generation import settings
from corpus_asr.models.generation.inputs import Row
from corpus_asr.models.generation.long_form import starts


def test_arrays_and_lists_are_tensors_too() -> None:
    features = torch.zeros(2, 3, 4)
    for given in (features, features.numpy(), features.tolist()):
        assert torch.equal(settings.features_of(given, 3), features)
    for prompt in (torch.tensor([4, 5]), np.array([4, 5]), [4, 5], (4, 5)):
        assert settings.prompt_of(prompt) == (4, 5)
    assert settings.lengths_of([[1, 1], [1, 0]], 2) == [2, 1]


def test_another_type_is_named() -> None:
    config: Any = GenerationConfig(decoder_start_token_id=1, lang_to_id={"<|en|>": 2})
    config.language = ["en", None]
    for call, message in (
        (lambda: starts(config, None, batch_size=2, timestamps=False), "with None in it"),
        (lambda: settings.temperatures_of((0.0, "1")), "temperature '1'"),
        (lambda: settings.lengths_of("1100", 2), "found a str as attention_mask"),
        (lambda: settings.temperatures_of("0.5"), "temperature '0.5', expected"),
        (lambda: settings.functions_of(max, what="those"), "method as those, .*put it into a list"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_a_seed_names_sound_window_temperature_and_copy() -> None:
    def seed(
        value: float = 1.0,
        base: int = 5,
        seek: int = 0,
        temperature: float = 0.2,
        copy: int = 0,
        index: int = 0,
        later: float = 0.0,
    ) -> int:
        window = np.full((2, 3), value, dtype=np.float32)
        features = np.concatenate([window, np.full((2, 4), later, dtype=np.float32)], axis=1)
        row = Row(index=index, copy=copy, number=index, features=features, encoded=None, frames=7)
        return row.seed(base, seek, temperature, window)

    assert seed(index=4) == seed()
    # What is said of a window does not hang on what comes after it.
    assert seed(later=3.0) == seed()
    others = {seed(2.0), seed(copy=1), seed(base=6), seed(seek=1), seed(temperature=0.4)}
    assert len(others | {seed()}) == 6
