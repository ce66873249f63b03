"""What the parts of `generate` do alone, where comparing whole calls would hide it."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.families.whisper.generation_config import GenerationConfig
from corpus_asr.models.generation.inputs import Row
from corpus_asr.models.generation.long_form import DETECT, starts
from corpus_asr.models.generation.processors import BadWords


def test_a_bad_word_is_forbidden_where_its_beginning_was_just_said() -> None:
    rule = BadWords(((3,), (1, 2), (4, 5, 6)))
    masked = rule(torch.tensor([[0, 1], [4, 5]]), torch.zeros(2, 8))
    assert torch.isinf(masked).nonzero().tolist() == [[0, 2], [0, 3], [1, 3]]


def test_a_start_names_language_and_task_only_where_asked() -> None:
    config = GenerationConfig(
        decoder_start_token_id=1,
        lang_to_id={"<|en|>": 2, "<|de|>": 3},
        task_to_id={"transcribe": 4, "translate": 5},
        no_timestamps_token_id=6,
    )

    def start(**settings: Any) -> tuple[int, ...]:
        changed = copy.deepcopy(config)
        changed.update(**settings)
        return starts(changed, None, batch_size=1, timestamps=False)[0]

    assert start() == (1, DETECT, 6)
    assert start(language="German") == (1, 3, 4, 6)
    assert start(task="translate") == (1, DETECT, 5, 6)
    assert start(forced_decoder_ids=[[1, None], [2, 5]]) == (1, DETECT, 5, 6)
    assert start(forced_decoder_ids=[[1, 3], [2, 5], [3, 6]]) == (1, 3, 5, 6)
    with pytest.raises(ValueError, match="not among the 2 languages"):
        start(language="fr")
    with pytest.raises(TypeError, match="None in it"):
        start(language=[None])


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
