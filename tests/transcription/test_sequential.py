"""The seek loop, fed by hand: what it asks for and what it makes of the answers."""

from typing import Any

import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import WindowJob, WindowResult
from corpus_asr.segments import Segment
from corpus_asr.transcription.language import Language, find_language
from corpus_asr.transcription.part_job import PartJob
from corpus_asr.transcription.sequential import transcribe_range
from tests.support.dialects import BEGIN, ENGLISH, GERMAN, NO_SPEECH, PREVIOUS, START, dialect
from tests.transcription.test_windows import part

ENGLISH_GIVEN = Language(code="en", probability=None)
TINY = {"max_target_positions": 448}


def said(*tokens: int, logprob: float = -0.1, score: float | None = None) -> WindowResult:
    return WindowResult(
        tokens=tokens, logprobs=(logprob,) * len(tokens), end_logprob=logprob, score=score
    )


def loop(
    results: list[WindowResult], *, seconds: float, speech: Any = None, **settings: Any
) -> tuple[list[Segment], list[WindowJob]]:
    own = part(seconds, speech)
    steps = transcribe_range(
        own,
        0,
        own.num_frames,
        language=ENGLISH_GIVEN,
        dialect=dialect(no_speech=NO_SPEECH, **TINY),
        settings=DecodingSettings(**settings),
    )
    jobs = [next(steps)]
    for one in results:
        try:
            jobs.append(steps.send(one))
        except StopIteration as stop:
            return stop.value, jobs
    raise AssertionError("it asked for more windows than were expected")


def test_windows_follow_one_another_where_the_text_ended() -> None:
    segments, jobs = loop(
        [
            said(BEGIN, 1, BEGIN + 50, BEGIN + 60, 2),  # 1.0 s closed, the rest left open
            said(BEGIN, 3, BEGIN + 100),
            said(BEGIN, 4, BEGIN + 20),
        ],
        seconds=40,
    )
    assert [job.window for job in jobs] == [(0, 4000), (100, 4000), (3100, 4000)]
    assert [(one.text, one.start_s, one.end_s) for one in segments] == [
        (" w1", 0.0, 1.0),
        (" w3", 1.0, pytest.approx(3.0)),
        (" w4", 31.0, pytest.approx(31.4)),
    ]


def test_long_silence_is_jumped_over() -> None:
    segments, jobs = loop([said(BEGIN, 1, BEGIN + 50)], seconds=200, speech=[(100.0, 102.0)])
    assert [job.window for job in jobs] == [(10_000, 20_000)]
    assert segments[0].start_s == 100.0
    assert segments[0].speech_fraction == 1.0


def test_windows_of_silence_are_dropped() -> None:
    segments, jobs = loop(
        [said(1, logprob=-2.0, score=0.9), said(BEGIN, 2, BEGIN + 50)], seconds=40
    )
    assert [job.window[0] for job in jobs] == [0, 3000]
    assert [one.text for one in segments] == [" w2"]
    assert jobs[0].score_token == NO_SPEECH


def test_text_in_the_padding_is_dropped_and_end_times_are_cut() -> None:
    segments, _ = loop(
        [said(BEGIN, 1, BEGIN + 100, BEGIN + 100, 2, BEGIN + 900, BEGIN + 900, 3, BEGIN + 950)],
        seconds=5,
    )
    assert [(one.text, one.end_s) for one in segments] == [(" w1", 2.0), (" w2", 5.0)]


@pytest.mark.parametrize(("conditioned", "temperature"), [(True, 0.0), (True, 0.8), (False, 0.0)])
def test_the_text_before_becomes_the_prompt_unless_it_is_uncertain(
    conditioned: bool, temperature: float
) -> None:
    _, jobs = loop(
        [said(BEGIN, 1, BEGIN + 50), said(BEGIN, 2, BEGIN + 50)],
        seconds=40,
        condition_on_prev_tokens=conditioned,
        temperature=temperature,
    )
    if conditioned and temperature == 0.0:
        assert jobs[1].prompt == (PREVIOUS, BEGIN, 1, BEGIN + 50, START, ENGLISH)
        assert jobs[1].score_position == 4
    else:
        assert jobs[1].prompt == (START, ENGLISH)


def test_seeds_name_recording_window_and_temperature() -> None:
    results = [said(BEGIN, 1, BEGIN + 50, logprob=-3.0)] * 4
    settings: dict[str, Any] = {"temperature": (0.2, 0.4)}
    first, again = (loop(results, seconds=40, **settings)[1] for _ in range(2))
    assert [job.seed for job in first] == [job.seed for job in again]
    assert len({job.seed for job in first}) == len(first)


def test_the_language_is_asked_for_in_the_first_speech() -> None:
    own = part(40, [(12.0, 20.0)])
    steps = find_language(own, dialect(), DecodingSettings())
    job = next(steps)
    assert (job.prompt, job.rules.only) == ((START,), (ENGLISH, GERMAN))
    with pytest.raises(StopIteration) as stop:
        steps.send(said(GERMAN, logprob=0.0))
    assert stop.value.value == Language(code="de", probability=1.0)


@pytest.mark.parametrize("language", ["de", ("de",)])
def test_a_language_that_is_given_is_not_asked_for(language: Any) -> None:
    steps = find_language(part(5), dialect(), DecodingSettings(language=language))
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == Language(code="de", probability=None)


def test_chunks_are_decoded_independently_and_come_out_in_order() -> None:
    own = part(200, [(0.0, 20.0), (50.0, 70.0), (100.0, 120.0)])
    tasks: list[tuple[Any, Any]] = []
    found: list[Segment] = []
    job = PartJob(
        own,
        dialect=dialect(**TINY),
        settings=DecodingSettings(language="en", strategy="chunked", condition_on_prev_tokens=True),
        add=lambda task, done: tasks.append((task, done)),
        done=lambda segments, language, error: found.extend(segments),
    )
    job.start()
    asked = [next(tasks[0][0])]  # the language is given: the first chunk's window at once
    asked += [next(task) for task, _ in tasks[1:]]
    assert [one.window for one in asked] == [(0, 2000), (5000, 7000), (10_000, 12_000)]
    for word, (task, done) in reversed(list(enumerate(tasks, start=1))):
        with pytest.raises(StopIteration) as stop:
            task.send(said(BEGIN, word, BEGIN + 999))
        assert not found
        done(stop.value.value, None)
    assert [(one.text, one.start_s) for one in found] == [
        (" w1", 0.0),
        (" w2", 50.0),
        (" w3", 100.0),
    ]
