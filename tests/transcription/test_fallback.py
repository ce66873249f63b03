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
from tests.support.prompt_formats import prompt_format
from tests.transcription.test_windows import part

LADDER = (0.0, 0.4, 0.8)


def result(logprob: float, *, score: float = 0.0, tokens: int = 3) -> WindowResult:
    return WindowResult(
        tokens=tuple(range(1, tokens + 1)),
        logprobs=(logprob,) * tokens,
        end_logprob=logprob,
        score=score,
    )


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


def test_a_good_first_result_is_taken() -> None:
    taken, asked = climb([result(-0.5)])
    assert (taken.temperature, asked) == (0.0, [0.0])
    assert taken.mean_logprob == pytest.approx(-0.5)


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
    assert taken.result.score == 0.7


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
