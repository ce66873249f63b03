"""The temperature ladder and the silence rule, at and around every threshold."""

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import WindowResult
from corpus_asr.transcription.fallback import Attempt
from corpus_asr.transcription.whisper import WhisperLongForm
from corpus_asr.transcription.windows import Language, Window
from tests.support.prompt_formats import part, prompt_format

LADDER = (0.0, 0.4, 0.8)


def result(logprob: float, *, score: float = 0.0) -> WindowResult:
    return WindowResult(tokens=(1, 2, 3), logprobs=(logprob,) * 3, end_logprob=logprob, score=score)


def rules(text: str = "plain words", **settings: Any) -> WhisperLongForm:
    chosen = DecodingSettings(temperature=LADDER, **settings)
    return WhisperLongForm(
        part(1),
        chosen,
        prompt_format(text=lambda tokens: text),
        language=Language(code="en", probability=None),
    )


def climb(
    results: list[WindowResult], *, text: str = "plain words", **settings: Any
) -> tuple[Attempt, list[float]]:
    """Feed results to the ladder; returns what it took and the temperatures it asked for."""
    window = Window(
        seek=0,
        end=1,
        content_frames=1,
        features=np.zeros((2, 4), np.float16),
        num_frames=None,
        language=Language(code=None, probability=None),
        prompt=(1,),
        max_new_tokens=9,
    )
    steps: Generator[Any, Any, Attempt] = rules(text, **settings).decode(window)
    asked = [next(steps).search.temperature]
    for one in results:
        try:
            asked.append(steps.send(one).search.temperature)
        except StopIteration as stop:
            return stop.value, asked
    raise AssertionError("it asked for more results than there are")


REPETITIVE: dict[str, Any] = {"text": "and so " * 60}
OFF: dict[str, Any] = {"logprob_threshold": None, "compression_ratio_threshold": None}


@pytest.mark.parametrize(
    ("results", "settings", "asked"),
    [
        # A good first result, at the threshold too, is taken.
        ([result(-0.5)], {}, 1),
        ([result(-1.0)], {}, 1),
        # Improbable text climbs to the first good result, or to the last.
        ([result(-1.0001), result(-0.9), result(-0.1)], {}, 2),
        ([result(-1.5), result(-1.2), result(-1.9)], {}, 3),
        # So does repetitive text, unless the thresholds are off.
        ([result(-0.1)] * 3, REPETITIVE, 3),
        ([result(-9.0)], REPETITIVE | OFF, 1),
        # Improbable text over silence does not.
        ([result(-1.5, score=0.7)], {}, 1),
    ],
)
def test_temperatures_are_climbed_until_a_result_is_good(
    results: list[WindowResult], settings: dict[str, Any], asked: int
) -> None:
    taken, temperatures = climb(results, **settings)
    assert temperatures == list(LADDER[:asked])
    assert (taken.temperature, taken.result) == (LADDER[asked - 1], results[asked - 1])


@pytest.mark.parametrize(
    ("logprob", "score", "silent"),
    [(-1.5, 0.7, True), (-1.5, 0.6, False), (-0.9, 0.99, False), (-1.0, 0.7, True)],
)
def test_silence_is_probable_no_speech_and_improbable_text(
    logprob: float, score: float, silent: bool
) -> None:
    taken, _ = climb([result(logprob, score=score)] * 3)
    assert rules().is_silence(taken) is silent


def test_silence_by_no_speech_alone_and_never_without_its_threshold() -> None:
    taken, _ = climb([result(-0.1, score=0.7)])
    assert rules(logprob_threshold=None).is_silence(taken)
    assert not rules(no_speech_threshold=None).is_silence(taken)


def test_scores_follow_whisper_s_definitions() -> None:
    for logprobs, end, mean in [((-1.0, -2.0), -3.0, -2.0), ((-1.0, -2.0), None, -1.0),
                                ((), -0.5, -0.5)]:  # fmt: skip
        found = WindowResult(tokens=(), logprobs=logprobs, end_logprob=end, score=None)
        assert rules().mean_logprob(found) == pytest.approx(mean)
    repeated, plain = (
        rules(text).compression_ratio(found) for text in ("ab" * 100, "The quick brown fox jumps.")
    )
    assert repeated > 2.4 > plain
