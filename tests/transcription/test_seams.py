"""What a chunk leaves unfinished is said in its own window, or else decoded alone."""

from typing import Any

import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import WindowJob, WindowResult
from corpus_asr.segments import Segment
from corpus_asr.transcription.whisper import WhisperTranscriber
from tests.support.prompt_formats import BEGIN, END, ENGLISH, NO_SPEECH, START, part, prompt_format

REQUEST = (START, ENGLISH)


def said(*texts: float, more_s: float | None = None, logprob: float = -0.1) -> WindowResult:
    """Word, start and end in seconds of the window; `more_s` is where more is said to begin."""
    tokens = [
        token
        for word, start_s, end_s in zip(*[iter(texts)] * 3, strict=True)
        for token in (BEGIN + round(start_s * 50), int(word), BEGIN + round(end_s * 50))
    ]
    tokens += [] if more_s is None else [BEGIN + round(more_s * 50)]
    return WindowResult(
        tokens=tuple(tokens), logprobs=(logprob,) * len(tokens), end_logprob=logprob, score=0.0
    )


def following(word: int, end_s: float, **options: Any) -> WindowResult:
    """What comes after a timestamp that the prompt ends with."""
    result = said(word, 0.0, end_s, **options)
    return WindowResult(
        tokens=result.tokens[1:], logprobs=result.logprobs[1:], end_logprob=-0.1, score=0.0
    )


def decoded(
    *results: WindowResult, seconds: float = 20.0, **settings: Any
) -> tuple[list[tuple[str, float, float]], list[WindowJob]]:
    """What is kept of a part that is one chunk, and what was asked for."""
    chosen = DecodingSettings(**{"language": "en", "strategy": "chunked"} | settings)
    prompts = prompt_format(no_speech=NO_SPEECH, max_target_positions=448)
    steps: Any = WhisperTranscriber(prompts).transcribe(part(seconds, [(0.0, seconds)]), chosen)
    (loop,) = next(steps).tasks
    jobs = [next(loop)]
    for result in results:
        try:
            jobs.append(loop.send(result))
        except StopIteration as stop:
            found: list[Segment] = stop.value
            return [(one.text.strip(), one.start_s, one.end_s) for one in found], jobs
    raise AssertionError("it asked for more results than there are")


UNFINISHED = said(1, 0.0, 12.0, more_s=12.0)


def test_an_end_that_was_left_unfinished_is_said_in_the_same_window() -> None:
    texts, (first, second) = decoded(UNFINISHED, following(2, 19.8))
    assert texts == [("w1", 0.0, 12.0), ("w2", 12.0, 19.8)]
    assert first.window == second.window == (0, 2000)
    assert second.prompt == (*REQUEST, *UNFINISHED.tokens)
    assert second.prefix == UNFINISHED.tokens
    assert (first.rules.resumes, second.rules.resumes) == (False, True)
    assert first.rules.end == second.rules.end == END


def test_what_follows_may_be_left_unfinished_too() -> None:
    first = following(2, 16.0, more_s=16.0)
    texts, jobs = decoded(UNFINISHED, first, following(3, 19.8))
    assert texts == [("w1", 0.0, 12.0), ("w2", 12.0, 16.0), ("w3", 16.0, 19.8)]
    assert jobs[2].prefix == UNFINISHED.tokens + first.tokens


@pytest.mark.parametrize("doubtful", [following(2, 19.8, logprob=-1.5), said(logprob=-1.5)])
def test_an_end_whose_text_is_doubtful_is_decoded_alone(doubtful: WindowResult) -> None:
    texts, jobs = decoded(UNFINISHED, doubtful, said(3, 0.0, 7.8), beam_size=1)
    assert texts == [("w1", 0.0, 12.0), ("w3", 12.0, 19.8)]
    assert jobs[2].window == (1200, 2000)
    assert not jobs[2].num_prefix


def test_an_uncertain_end_is_searched_with_beams() -> None:
    uncertain = following(2, 19.8, logprob=-0.5)
    texts, jobs = decoded(UNFINISHED, uncertain, following(3, 19.8))
    assert texts[1] == ("w3", 12.0, 19.8)
    assert [job.search.num_beams for job in jobs] == [1, 1, 5]
    assert jobs[1].prompt == jobs[2].prompt


def test_less_than_half_a_second_says_nothing() -> None:
    texts, jobs = decoded(said(1, 0.0, 19.6, more_s=19.6))
    assert (texts, len(jobs)) == ([("w1", 0.0, 19.6)], 1)


def test_a_prefix_and_a_prompt_stay_before_what_is_resumed() -> None:
    _, jobs = decoded(
        said(2, 3.0, 12.0, more_s=12.0), following(4, 19.8), prefix="w1", initial_prompt="w5"
    )
    first, second = jobs
    assert second.prompt == (*first.prompt, *said(2, 3.0, 12.0, more_s=12.0).tokens)
    assert second.prefix == (*first.prefix, *said(2, 3.0, 12.0, more_s=12.0).tokens)


def test_a_decoder_that_is_full_resumes_nothing() -> None:
    full = said(*(each for n in range(149) for each in (1, n * 0.04, n * 0.04 + 0.04)), more_s=5.96)
    assert len(full.tokens) == 448
    _, jobs = decoded(full, said(3, 0.0, 13.9), compression_ratio_threshold=None)
    assert jobs[1].window == (596, 2000)


def test_sequential_windows_go_on_where_more_begins() -> None:
    _, jobs = decoded(UNFINISHED, said(3, 0.0, 7.8), strategy="sequential")
    assert jobs[1].window == (1200, 2000)
    assert not jobs[1].rules.resumes
