"""The temperature ladder and the silence rule, at and around every threshold."""

from typing import Any

import numpy as np
import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import Search, TokenRules, WindowJob, WindowResult
from corpus_asr.transcription.fallback import (
    DecodedWindow,
    compression_ratio,
    decode_window,
    is_silence,
    mean_logprob,
)

LADDER = (0.0, 0.4, 0.8)


def job_at(temperature: float) -> WindowJob:
    return WindowJob(
        features=np.zeros((2, 4), np.float16),
        window=(0,),
        prompt=(1,),
        rules=TokenRules(end=0),
        max_new_tokens=9,
        search=Search(temperature=temperature),
    )


def result(logprob: float, *, score: float = 0.0, tokens: int = 3) -> WindowResult:
    return WindowResult(
        tokens=tuple(range(1, tokens + 1)),
        logprobs=(logprob,) * tokens,
        end_logprob=logprob,
        score=score,
    )


def climb(
    results: list[WindowResult], *, text: str = "plain words", **settings: Any
) -> tuple[DecodedWindow, list[float]]:
    """Feed results to the ladder; returns what it took and the temperatures it asked for."""
    steps = decode_window(
        job_at, DecodingSettings(temperature=LADDER, **settings), lambda tokens: text
    )
    asked = [next(steps).search.temperature]
    for one in results:
        try:
            asked.append(steps.send(one).search.temperature)
        except StopIteration as stop:
            return stop.value, asked
    raise AssertionError("it asked for more results than there are")


def test_a_good_first_result_is_taken() -> None:
    taken, asked = climb([result(-0.5)])
    assert (taken.temperature, asked) == (0.0, [0.0])
    assert taken.avg_logprob == pytest.approx(-0.5)


def test_improbable_text_climbs_and_the_first_good_result_is_taken() -> None:
    taken, asked = climb([result(-1.5), result(-0.9), result(-0.1)])
    assert (taken.temperature, asked) == (0.4, [0.0, 0.4])


def test_the_last_result_is_taken_when_none_is_good() -> None:
    taken, asked = climb([result(-1.5), result(-1.2), result(-1.9)])
    assert (taken.temperature, asked) == (0.8, list(LADDER))


@pytest.mark.parametrize(("logprob", "climbs"), [(-1.0, False), (-1.0001, True)])
def test_the_threshold_itself_is_good_enough(logprob: float, climbs: bool) -> None:
    _, asked = climb([result(logprob), result(-0.1)])
    assert (len(asked) > 1) is climbs


def test_repetitive_text_climbs() -> None:
    _, asked = climb([result(-0.1)] * 3, text="and so " * 60)
    assert asked == list(LADDER)


def test_thresholds_that_are_off_never_climb() -> None:
    _, asked = climb(
        [result(-9.0)],
        text="and so " * 60,
        logprob_threshold=None,
        compression_ratio_threshold=None,
    )
    assert asked == [0.0]


def test_improbable_text_over_silence_does_not_climb() -> None:
    taken, asked = climb([result(-1.5, score=0.7)])
    assert asked == [0.0]
    assert taken.no_speech_prob == 0.7


@pytest.mark.parametrize(
    ("logprob", "score", "silent"),
    [(-1.5, 0.7, True), (-1.5, 0.6, False), (-0.9, 0.99, False), (-1.0, 0.7, True)],
)
def test_silence_is_probable_no_speech_and_improbable_text(
    logprob: float, score: float, silent: bool
) -> None:
    taken, _ = climb([result(logprob, score=score)] * 3)
    assert is_silence(taken, DecodingSettings()) is silent


def test_silence_by_no_speech_alone_and_never_without_its_threshold() -> None:
    taken, _ = climb([result(-0.1, score=0.7)])
    assert is_silence(taken, DecodingSettings(logprob_threshold=None))
    assert not is_silence(taken, DecodingSettings(no_speech_threshold=None))


def test_scores_follow_whisper_s_definitions() -> None:
    assert mean_logprob([-1.0, -2.0], -3.0) == pytest.approx(-2.0)
    assert mean_logprob([-1.0, -2.0], None) == pytest.approx(-1.0)
    assert mean_logprob([], -0.5) == pytest.approx(-0.5)
    assert compression_ratio("ab" * 100) > 2.4 > compression_ratio("The quick brown fox jumps.")
