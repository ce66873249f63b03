"""The seek loop, fed by hand: what it asks for and what it makes of the answers."""

import math
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.decoding import DecodingSettings, Hotword
from corpus_asr.decoding.jobs import Gather, Search, WindowJob, WindowResult
from corpus_asr.segments import Segment
from corpus_asr.transcription import fallback
from corpus_asr.transcription.fallback import Attempt
from corpus_asr.transcription.long_form import Clock, TokenSpan, split_at_timestamps
from corpus_asr.transcription.whisper import WhisperLongForm, WhisperTranscriber
from corpus_asr.transcription.whisper_prompt import find_language, spoken_most
from corpus_asr.transcription.windows import (
    Language,
    PartRequest,
    Window,
    clip_ranges,
    holds_the_beginning,
)
from tests.support.prompt_formats import (
    BEGIN,
    ENGLISH,
    GERMAN,
    NO_SPEECH,
    PREVIOUS,
    START,
    part,
    prompt_format,
)

ENGLISH_GIVEN = Language(code="en", probability=None)
TINY = {"max_target_positions": 448}


def said(*tokens: int, logprob: float = -0.1, score: float | None = None) -> WindowResult:
    return WindowResult(
        tokens=tokens, logprobs=(logprob,) * len(tokens), end_logprob=logprob, score=score
    )


FRENCH = 28


def language_said(*logits: float) -> WindowResult:
    """What comes back when English and German have these logits, and nothing else is allowed."""
    scores = torch.full((2, 50), -torch.inf)
    scores[0, [ENGLISH, GERMAN, FRENCH][: len(logits)]] = torch.tensor(logits)
    return WindowResult(tokens=(ENGLISH,), logprobs=(0.0,), end_logprob=0.0, score=None,
                        scores=scores)  # fmt: skip


@pytest.fixture(autouse=True)
def words_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted texts are single words, however long they last: none is stretched."""
    monkeypatch.setattr("corpus_asr.transcription.windows._LEAST_BYTES_PER_S", 1e-6)


def loop(
    results: list[WindowResult],
    *,
    seconds: float,
    speech: Any = None,
    language: Language | None = ENGLISH_GIVEN,
    start_s: float = 0.0,
    number: int = 0,
    hotwords: tuple[Hotword, ...] = (),
    **settings: Any,
) -> tuple[list[Segment], list[WindowJob]]:
    own = part(seconds, speech, start_s=start_s, seed=number)
    chosen = DecodingSettings(**{"strategy": "sequential"} | settings)
    steps = WhisperLongForm(
        own,
        chosen,
        prompt_format(no_speech=NO_SPEECH, **TINY),
        language=language,
        at_beginning=holds_the_beginning(own, chosen.clip_timestamps),
        hotwords=hotwords,
    ).run(clip_ranges(own, chosen.clip_timestamps))
    jobs: list[Any] = [next(steps)]
    for one in results:
        try:
            jobs.append(steps.send(one))
        except StopIteration as stop:
            return stop.value, jobs
    raise AssertionError("it asked for more windows than were expected")


def test_text_in_the_padding_is_dropped_and_end_times_are_cut() -> None:
    segments, _ = loop(
        [said(BEGIN, 1, BEGIN + 100, BEGIN + 100, 2, BEGIN + 900, BEGIN + 900, 3, BEGIN + 950)],
        seconds=5,
    )
    assert [(one.text, one.end_s) for one in segments] == [(" w1", 2.0), (" w2", 5.0)]


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_seeds_name_recording_or_setting_window_and_temperature(seed: int | None) -> None:
    results = [said(BEGIN, 1, BEGIN + 50, logprob=-3.0)] * 4

    def seeds(number: int, seed: int | None = seed) -> list[int]:
        settings: dict[str, Any] = {"temperature": (0.2, 0.4), "seed": seed}
        return [job.seed for job in loop(results, seconds=40, number=number, **settings)[1]]

    first = seeds(0)
    assert first == seeds(0) != seeds(0, 8)
    assert (first == seeds(1)) == (seed is not None)
    assert len(set(first)) == len(first)
    assert all(0 <= drawn < 2**56 for drawn in first)


def test_the_language_is_asked_for_in_the_first_speech() -> None:
    own = part(40, [(12.0, 20.0)])
    job = next(find_language(own, prompt_format(), DecodingSettings()))
    assert (job.prompt, job.rules.only) == ((START,), (ENGLISH, GERMAN))
    found = answers(own, [(0.0, math.log(3))])
    assert found.code == "de"
    assert found.probability == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("logits", "heard"),
    [((0.0, 0.1, 0.2), [1300, None]), ((0.0, 0.1, 3.0), [1300])],
    ids=["uncertain", "certain"],
)
def test_an_uncertain_language_is_also_asked_for_in_the_whole_window(
    logits: tuple[float, ...], heard: list[int | None]
) -> None:
    languages = {"en": ENGLISH, "de": GERMAN, "fr": FRENCH}
    steps = find_language(
        part(8.0, [(1.0, 7.0)]), prompt_format(languages=languages), DecodingSettings()
    )

    def said(job: WindowJob) -> WindowResult:
        # The whole window says French for certain.
        return language_said(*((0.0, 0.0, 9.0) if job.num_frames is None else logits))

    jobs = [next(steps)]
    for _ in heard[1:]:
        jobs.append(steps.send(said(jobs[-1])))
    with pytest.raises(StopIteration) as stop:
        steps.send(said(jobs[-1]))
    assert [job.num_frames for job in jobs] == heard
    language: Language = stop.value.value
    assert language.code == "fr"
    if len(heard) == 2:  # the mean of both
        assert language.probability == pytest.approx((0.367 + 1) / 2, abs=0.01)
        assert not language.is_uncertain


@pytest.mark.parametrize(("probability", "frames"), [(0.49, None), (0.5, 1000), (None, 1000)])
def test_a_text_in_an_uncertain_language_is_decoded_in_the_whole_window(
    probability: float | None, frames: int | None
) -> None:
    language = Language(code="en", probability=probability)
    rules = WhisperLongForm(
        part(5.0, [(1.0, 4.0)]), DecodingSettings(), prompt_format(), language=language
    )
    assert rules.frames_encoded(500) == frames


def answers(own: PartRequest, logits: list[tuple[float, float]], **settings: Any) -> Language:
    steps = find_language(own, prompt_format(), DecodingSettings(**settings))
    next(steps)
    results = [language_said(*one) for one in logits]
    for result in results[:-1]:
        steps.send(result)
    with pytest.raises(StopIteration) as stop:
        steps.send(results[-1])
    found: Language = stop.value.value
    return found


def test_windows_vote_and_their_probabilities_are_averaged() -> None:
    # An English beginning does not decide over two German windows.
    found = answers(part(300), [(9.0, 0.0), (0.0, 9.0), (0.0, 9.0)])
    assert found.code == "de"
    assert found.probability == pytest.approx(2 / 3, abs=1e-3)


def test_all_parts_of_a_recording_ask_in_the_windows_they_were_given() -> None:
    windows = np.concatenate([np.full((3000, 4), n, np.float16) for n in (1, 2)])
    own = replace(part(300, start_s=600.0), language_features=windows)
    steps = find_language(own, prompt_format(), DecodingSettings())
    first = next(steps)
    second = steps.send(language_said(0.0, 1.0))
    assert [job.features.shape for job in (first, second)] == [(4, 3000)] * 2
    assert [float(job.features.mean()) for job in (first, second)] == [1.0, 2.0]
    assert first.window != second.window
    # Asked for itself, the part looks at its own windows.
    assert answers(own, [(1.0, 0.0)] * 3, language_mode="part").code == "en"


def test_each_window_may_have_a_language_of_its_own() -> None:
    segments, jobs = loop(
        [language_said(0.0, 9.0), said(BEGIN, 1, BEGIN + 1500),
         language_said(9.0, 0.0), said(BEGIN, 2, BEGIN + 100)],
        seconds=40, language=None, language_mode="window",
    )  # fmt: skip
    assert [job.prompt for job in jobs] == [
        (START,), (START, GERMAN), (START,), (START, ENGLISH)
    ]  # fmt: skip
    # Asking and decoding share the window's encoding.
    assert jobs[0].window == jobs[1].window
    assert [(one.language, one.text) for one in segments] == [("de", " w1"), ("en", " w2")]
    assert segments[0].language_probability == pytest.approx(1.0, abs=1e-3)
    most = spoken_most(segments)
    assert most is not None
    assert most.code == "de"
    assert most.probability == pytest.approx(1.0, abs=1e-3)
    assert spoken_most([]) is None


@given(
    edges=st.lists(st.integers(0, 4000), max_size=8, unique=True).map(sorted),
    part_s=st.sampled_from([30, 70, 130]),
)
def test_parts_share_clips_without_loss_or_overlap(edges: list[int], part_s: int) -> None:
    clips = [edge / 10 for edge in edges]
    wanted = np.zeros(40_000, dtype=bool)
    for first, last in zip(clips[::2] or [0.0], [*clips[1::2], 400.0], strict=False):
        wanted[round(first * 100) : round(last * 100)] = True
    transcribed = np.zeros(40_000, dtype=bool)
    beginnings = 0
    for start in range(0, 400, part_s):
        own = part(min(part_s, 400 - start), start_s=float(start))
        beginnings += holds_the_beginning(own, clips)
        for first, last in clip_ranges(own, clips):
            assert not transcribed[start * 100 + first : start * 100 + last].any()
            transcribed[start * 100 + first : start * 100 + last] = True
    assert (transcribed == wanted).all()
    assert beginnings == (not clips or clips[0] < 400)


def test_prompts_hotwords_and_the_prefix() -> None:
    windows = [said(1, BEGIN + 50), *[said(BEGIN, 1, BEGIN + 50)] * 2]
    settings: dict[str, Any] = {
        "initial_prompt": "w7 w8", "hotwords": (Hotword("w9"),), "prefix": "w6"
    }  # fmt: skip
    segments, jobs = loop(windows, seconds=80, **settings)
    assert [(one.text, one.start_s, one.end_s) for one in segments[:2]] == [
        (" w6 w1", 0.0, 1.0), (" w1", 30.0, 31.0)
    ]  # fmt: skip
    assert [job.prompt for job in jobs] == [
        (PREVIOUS, 7, 8, START, ENGLISH, BEGIN, 6),  # hotwords give way to the prefix
        (PREVIOUS, 9, START, ENGLISH),
        (PREVIOUS, 9, START, ENGLISH),
    ]
    assert [job.score_position for job in jobs] == [3, 2, 2]
    assert [job.num_prefix for job in jobs] == [2, 0, 0]
    _, jobs = loop(windows, seconds=80, condition_on_prev_tokens=True, **settings)
    first, text = (BEGIN, 6, 1, BEGIN + 50), (BEGIN, 1, BEGIN + 50)
    assert [job.prompt for job in jobs[1:]] == [
        (PREVIOUS, 9, 7, 8, *first, START, ENGLISH),
        (PREVIOUS, 9, 7, 8, *first, *text, START, ENGLISH),
    ]
    _, jobs = loop(windows, seconds=80, start_s=600.0, **settings)
    assert jobs[0].prompt == (PREVIOUS, 9, 7, 8, START, ENGLISH)  # not where the recording begins


def test_search_options_reach_every_window_and_beams_temperature_0_alone() -> None:
    _, jobs = loop(
        [said(1, logprob=-3.0), said(BEGIN, 1, BEGIN + 50)],
        seconds=20,
        temperature=(0.0, 0.4),
        beam_size=5,
        length_penalty=0.8,
        repetition_penalty=1.2,
        no_repeat_ngram_size=3,
        stop_loops=False,
    )
    common: dict[str, Any] = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    assert jobs[0].search == Search(num_beams=5, length_penalty=0.8, **common)
    assert jobs[1].search == Search(temperature=0.4, **common)
    _, jobs = loop([said(BEGIN, 1, BEGIN + 50)], seconds=20)
    assert jobs[0].search == Search(stop_loops=True, stops_at_repeat=True)
    _, jobs = loop([said(BEGIN, 1, BEGIN + 50)], seconds=20, beam_size=1)
    assert jobs[0].search == Search(stop_loops=True)


def test_a_window_that_was_ended_in_a_loop_is_retried() -> None:
    looped = replace(said(BEGIN, 1, 2), looped=True)
    segments, jobs = loop([looped, said(BEGIN, 1, BEGIN + 50)], seconds=20, beam_size=1)
    assert [job.search.temperature for job in jobs] == [0.0, 0.2]
    assert [one.temperature for one in segments] == [0.2]
    segments, _ = loop([looped], seconds=20, compression_ratio_threshold=None)
    assert [one.text for one in segments] == [" w1 w2"]


def test_a_loop_at_the_last_temperature_is_cut_and_uncertain() -> None:
    looped = said(BEGIN, *(5, 6, 7, 8) * 20, logprob=-0.1)
    (segment,), _ = loop([looped], seconds=20, temperature=(0.0,), beam_size=1)
    assert segment.text.startswith(" w5 w6 w7 w8")
    assert len(segment.text) < 60
    assert segment.compression_ratio > 2.4
    assert segment.confidence < 0.5


def test_a_clip_with_more_letters_than_anybody_says_has_no_text() -> None:
    segments, _ = loop([said(BEGIN, *range(1, 9), logprob=-0.1)], seconds=0.3, beam_size=1)
    assert not segments
    segments, _ = loop([said(BEGIN, 1, 2, logprob=-0.1)], seconds=0.3, beam_size=1)
    assert [one.text for one in segments] == [" w1 w2"]


def test_punctuation_alone_is_no_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = prompt_format(text=lambda ids: "".join(" .\u266a5"[one] for one in ids if one < 4))
    monkeypatch.setattr(f"{__name__}.prompt_format", lambda **_: changed)
    window = said(*(token for one in range(4) for token in (BEGIN + one, one, BEGIN + one + 1)))
    assert [one.text for one in loop([window], seconds=20)[0]] == ["\u266a", "5"]


@pytest.mark.parametrize(("highest", "is_prompt"), [(0.4, True), (0.8, False)])
def test_a_text_of_failed_temperatures_above_a_half_is_no_prompt(
    highest: float, is_prompt: bool
) -> None:
    likely, unlikely = (said(BEGIN, 1, BEGIN + 50, logprob=-logprob) for logprob in (1.2, 1.4))
    segments, jobs = loop(
        [likely, unlikely, said(BEGIN, 2, BEGIN + 50)],
        seconds=40, temperature=(0.0, highest), beam_size=1, condition_on_prev_tokens=True,
    )  # fmt: skip
    assert [(one.text, one.temperature) for one in segments] == [(" w1", highest), (" w2", 0.0)]
    assert (PREVIOUS in jobs[2].prompt) == is_prompt


def test_segments_outside_speech_are_dropped_when_that_is_asked_for() -> None:
    window = said(BEGIN, 1, BEGIN + 100, BEGIN + 150, 2, BEGIN + 250)  # 0-2 s and 3-5 s
    kept, _ = loop([window], seconds=20, speech=[(0.0, 2.2)])
    assert [one.text for one in kept] == [" w1", " w2"]
    kept, jobs = loop(
        [window, said(BEGIN, 3, BEGIN + 100)],
        seconds=40,
        speech=[(0.0, 2.2), (31.0, 33.0)],
        drop_nonspeech=True,
        condition_on_prev_tokens=True,
    )
    assert [one.text for one in kept] == [" w1", " w3"]
    assert 2 not in jobs[1].prompt
    kept, _ = loop([window], seconds=20, drop_nonspeech=True)  # it was not looked for
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("speech", "span", "expected"),
    [
        ([(0.0, 9.5), (18.6, 23.0)], (6.8, 19.2), (6.8, 9.5)),  # it touches what comes next
        ([(30.6, 35.0)], (28.0, 35.0), (30.6, 35.0)),
        ([(0.0, 5.0), (8.0, 20.0)], (4.6, 12.0), (8.0, 12.0)),
        ([(0.0, 5.0), (8.0, 20.0)], (3.0, 12.0), (3.0, 12.0)),  # two sentences
        ([(0.0, 5.0), (8.0, 8.6)], (3.0, 9.0), (3.0, 9.0)),  # a short word of its own
        ([(0.0, 5.0)], (4.0, 5.4), (4.0, 5.4)),  # no long silence
        ([(0.0, 5.0)], (6.0, 9.0), (6.0, 9.0)),
        ([], (1.0, 2.0), (1.0, 2.0)),
        (None, (1.0, 2.0), (1.0, 2.0)),
    ],
)
def test_spans_end_and_begin_with_detected_speech(
    speech: Any, span: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert part(40, speech).without_silence(*span) == expected


def test_a_segment_is_not_held_over_silence() -> None:
    window = said(BEGIN, 1, BEGIN + 600, BEGIN + 600, 2, BEGIN + 900)  # 0-12 s and 12-18 s
    speech = [(0.0, 5.0), (11.6, 18.0)]
    kept, _ = loop([window], seconds=20, speech=speech)
    assert [(one.text, one.start_s, one.end_s) for one in kept] == [
        (" w1", 0.0, 5.0), (" w2", 12.0, 18.0),
    ]  # fmt: skip


def test_known_hallucinations_are_marked_and_dropped_only_when_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fallback, "is_known_hallucination", lambda text: text == " w2")
    window = said(BEGIN, 1, BEGIN + 100, BEGIN + 150, 2, BEGIN + 250)
    kept, _ = loop([window], seconds=20)
    assert [(one.text, one.known_hallucination) for one in kept] == [(" w1", False), (" w2", True)]
    kept, jobs = loop(
        [window, said(BEGIN, 3, BEGIN + 100)],
        seconds=40,
        drop_known_hallucinations=True,
        condition_on_prev_tokens=True,
    )
    assert [one.text for one in kept] == [" w1", " w3"]
    assert 2 not in jobs[1].prompt


def chunked(own: PartRequest, **settings: Any) -> tuple[Any, list[Any]]:
    """A part's task, and the tasks of its chunks; the language is given, so it gathers at once."""
    transcriber = WhisperTranscriber(prompt_format(**TINY))
    chosen = DecodingSettings(**{"language": "en", "strategy": "chunked"} | settings)
    task = transcriber.transcribe(own, chosen)
    gathered = next(task)
    assert isinstance(gathered, Gather)
    return task, list(gathered.tasks)


def test_chunks_are_as_long_as_asked_for() -> None:
    own = part(60, [(0.0, 4.0), (5.0, 9.0), (10.0, 14.0), (20.0, 24.0)])
    by_language = {"language": "auto", "language_mode": "window"}
    for chosen, windows in (
        ({"window_s": 10}, [(0, 400), (500, 1400), (2000, 2500)]), ({}, [(0, 2500)]),
        (by_language, [(0, 400), (500, 900), (1000, 1400), (2000, 2500)]),
    ):  # fmt: skip
        assert [next(one).window for one in chunked(own, **chosen)[1]] == windows


def test_without_detection_windows_follow_one_another_unless_their_length_is_given() -> None:
    for settings, chunks in (({}, 1), ({"window_s": 20}, 4), ({"strategy": "chunked"}, 3)):
        _, found = chunked(part(70), **{"strategy": "auto"} | settings)
        assert len(found) == chunks, settings
    _, found = chunked(part(70, [(0.0, 70.0)]), strategy="auto")
    assert len(found) == 3


@pytest.mark.parametrize(
    ("speech", "windows"),
    [
        ([(0.5, 4.0), (40.0, 69.5), (99.0, 99.8)], [(0, 400), (4000, 6950), (9900, 10_000)]),
        ([(20.0, 49.5)], [(1950, 4950)]),
        ([(20.0, 50.0)], [(2000, 5000)]),
    ],
)
def test_what_is_said_first_and_last_keeps_a_second_of_silence(
    speech: list[tuple[float, float]], windows: list[tuple[int, int]]
) -> None:
    own = part(100, speech)
    _, chunks = chunked(own)
    assert [next(one).window for one in chunks] == windows


def test_chunks_are_decoded_independently_and_come_out_in_order() -> None:
    task, chunks = chunked(part(200, [(0.0, 20.0), (50.0, 70.0), (100.0, 120.0)]))
    windows = [next(one).window for one in chunks]
    assert windows == [(0, 2000), (5000, 7000), (10_000, 12_100)]
    results: list[list[Segment]] = [[], [], []]
    for index, chunk in reversed(list(enumerate(chunks))):
        with pytest.raises(StopIteration) as stop:
            chunk.send(said(BEGIN, index + 1, BEGIN + 999))
        results[index] = stop.value.value
    with pytest.raises(StopIteration) as stop:
        task.send(results)
    assert [(one.text, one.start_s) for one in stop.value.value.segments] == [
        (" w1", 0.0),
        (" w2", 50.0),
        (" w3", 100.0),
    ]


CLOCK = Clock(
    timestamp_begin=100, input_stride=2, time_precision=0.02, time_precision_features=0.01
)


def split(
    tokens: list[int], content_frames: int, *, cut_short: bool = False
) -> tuple[list[TokenSpan], int]:
    return split_at_timestamps(
        tokens, CLOCK, content_frames=content_frames, content_s=content_frames / 100,
        cut_short=cut_short,
    )  # fmt: skip


def test_a_text_that_was_cut_short_lasts_to_the_end_of_its_audio() -> None:
    spans, advance = split([105, 1, 1, 1], 438, cut_short=True)
    assert [(span.start_s, span.end_s) for span in spans] == [(0.0, 4.38)]
    assert advance == 438


LADDER = (0.0, 0.4, 0.8)


def result(logprob: float, *, score: float = 0.0) -> WindowResult:
    tokens = (1, 2, 3) * 10
    logprobs = (logprob,) * len(tokens)
    return WindowResult(tokens=tokens, logprobs=logprobs, end_logprob=logprob, score=score)


def rules(text: str = "plain words", **settings: Any) -> WhisperLongForm:
    chosen = DecodingSettings(temperature=LADDER, **{"beam_size": 1} | settings)
    return WhisperLongForm(
        part(1),
        chosen,
        prompt_format(text=lambda tokens: text),
        language=Language(code="en", probability=None),
    )


def searched(
    results: list[WindowResult], *, text: str = "plain words", **settings: Any
) -> tuple[Attempt, list[Search]]:
    """Feed results to a window; returns what it took and how it was searched."""
    taken, jobs = decoded(results, text=text, **settings)
    return taken, [job.search for job in jobs]


def decoded(
    results: list[WindowResult],
    *,
    num_frames: int | None = None,
    text: str = "plain words",
    **settings: Any,
) -> tuple[Attempt, list[WindowJob]]:
    """Feed results to a window; returns what it took, and the jobs for it."""
    window = Window(
        seek=0,
        end=1,
        content_frames=1,
        features=np.zeros((2, 4), np.float16),
        num_frames=num_frames,
        language=Language(code=None, probability=None),
        prompt=(1,),
        max_new_tokens=9,
    )
    steps: Generator[Any, Any, Attempt] = rules(text, **settings).decode(window)
    jobs = [next(steps)]
    for one in results:
        try:
            jobs.append(steps.send(one))
        except StopIteration as stop:
            return stop.value, jobs
    raise AssertionError("it asked for more results than there are")


GREEDY, BEAMS, SAMPLED = (0.0, 1), (0.0, 5), (LADDER[1], 1)
CERTAIN, UNCERTAIN, POOR = result(-0.2), result(-0.6), result(-1.5)
TWICE = 2 * " French transferred to Springfield Commonwealth Academy following his freshman year."


@pytest.mark.parametrize(
    ("results", "settings", "asked"),
    [
        ([CERTAIN], {}, [GREEDY]),
        ([UNCERTAIN, CERTAIN], {}, [GREEDY, BEAMS]),
        ([UNCERTAIN, UNCERTAIN], {}, [GREEDY, BEAMS]),
        # What the beams make good need not be sampled; what they do not is, with one token.
        ([POOR, CERTAIN], {}, [GREEDY, BEAMS]),
        ([POOR, POOR, UNCERTAIN], {}, [GREEDY, BEAMS, SAMPLED]),
        ([UNCERTAIN, CERTAIN], {"logprob_threshold": None}, [GREEDY, BEAMS]),
        # Over silence nothing is searched for.
        ([result(-1.5, score=0.7)], {}, [GREEDY]),
        ([UNCERTAIN], {"beam_size": 1}, [GREEDY]),
        ([UNCERTAIN], {"beam_size": 5}, [BEAMS]),
    ],
)
def test_beams_are_followed_where_the_likeliest_text_is_uncertain(
    results: list[WindowResult], settings: dict[str, Any], asked: list[tuple[float, int]]
) -> None:
    taken, searches = searched(results, **{"beam_size": "auto"} | settings)
    assert [(one.temperature, one.num_beams) for one in searches] == asked
    assert taken.result is results[-1] or taken.result == results[-1]


@pytest.mark.parametrize(
    ("results", "settings", "asked"),
    [
        ([CERTAIN], {}, [600]),
        ([POOR, CERTAIN], {}, [600, None]),
        # All that follows is decoded whole, too.
        ([POOR, POOR, CERTAIN], {}, [600, None, None]),
        ([UNCERTAIN], {}, [600]),
        ([UNCERTAIN, CERTAIN], {"beam_size": "auto"}, [600, None]),
        ([result(-0.4), UNCERTAIN], {"beam_size": "auto"}, [600, 600]),
        ([POOR, CERTAIN], {"beam_size": "auto"}, [600, None]),
        ([POOR, CERTAIN], {"beam_size": 5}, [600, None]),
        ([POOR, CERTAIN], {"padding_s": 5.0}, [600, 600]),
        ([CERTAIN, CERTAIN], {"text": TWICE}, [600, None]),
    ],
)
def test_a_short_window_that_fails_or_says_all_twice_is_decoded_with_all_its_padding(
    results: list[WindowResult], settings: dict[str, Any], asked: list[int | None]
) -> None:
    taken, jobs = decoded(results, num_frames=600, **settings)
    assert [job.num_frames for job in jobs] == asked
    assert taken.window.num_frames == asked[-1]


def test_of_attempts_that_all_fail_the_likeliest_that_does_not_repeat_is_kept() -> None:
    likely, unlikely, loop = result(-1.2), result(-1.4), replace(result(-0.1), looped=True)
    for results in ([likely, unlikely, POOR], [POOR, loop, likely], [loop, likely, unlikely]):
        taken, _ = searched(results)
        assert taken.result == likely
        assert (taken.number, taken.temperature) == (len(LADDER) - 1, LADDER[-1])
    taken, _ = searched([loop, replace(POOR, looped=True), replace(unlikely, looped=True)])
    assert taken.result == loop


def test_beams_that_fail_give_way_to_the_likeliest_text() -> None:
    taken, searches = searched([UNCERTAIN, POOR], beam_size="auto")
    assert [one.num_beams for one in searches] == [1, 5]
    assert taken.result == UNCERTAIN
