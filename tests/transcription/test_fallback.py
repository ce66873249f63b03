"""Noise that sampling draws: named by the recording, or by a seed under any name."""

from dataclasses import replace

import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.transcription.fallback import OpenAIRules
from corpus_asr.transcription.windows import Window
from tests.support.prompt_formats import part

PART = part(3.0, [(0.0, 3.0)], recording_id="a")


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_a_seed_takes_the_place_of_the_recordings_name(seed: int | None) -> None:
    window = Window.__new__(Window)
    object.__setattr__(window, "seek", 0)

    def seeds(settings: DecodingSettings) -> list[int]:
        rules = (
            OpenAIRules(replace(PART, recording_id=name), settings, str) for name in ("a", "b")
        )
        return [each.seed(window, 0.4) for each in rules]

    first, second = seeds(DecodingSettings(seed=seed))
    assert (first == second) == (seed is not None)
    assert seeds(DecodingSettings(seed=8)) != [first, second]
    assert 0 <= first < 2**56
