"""Detected speech that a window's text leaves out is decoded once more; what stays is counted.

What a chunk leaves unfinished is said in its own window, or else decoded alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.jobs import AlignResult, WindowJob, WindowResult
from corpus_asr.report.scoring import normalized
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.segments import PartTranscript, Segment, SpeechSpan
from corpus_asr.transcription.whisper import WhisperTranscriber
from corpus_asr.transcription.windows import (
    KnownText,
    PartRequest,
    seconds_of,
    speech_without_text,
    speech_without_text_s,
)
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip, read_manifest
from tests.support.prompt_formats import BEGIN, END, ENGLISH, NO_SPEECH, START, part, prompt_format
from tests.support.tables import segment

DATA = Path(__file__).parents[1] / "data"
Speech = Sequence[tuple[float, float]]
Text = tuple[int, float, float]
"""A word, where it starts and where it ends, in seconds of its window."""


def window(
    *texts: Text, more_s: float | None = None, logprob: float = -0.1, no_speech: float = 0.0
) -> WindowResult:
    """`more_s` is where more is said to begin."""
    tokens = [
        token
        for word, start_s, end_s in texts
        for token in (BEGIN + round(start_s * 50), word, BEGIN + round(end_s * 50))
    ]
    tokens += [] if more_s is None else [BEGIN + round(more_s * 50)]
    return WindowResult(
        tokens=tuple(tokens), logprobs=(logprob,) * len(tokens), end_logprob=logprob,
        score=no_speech,
    )  # fmt: skip


def decoded(
    results: list[WindowResult], *, seconds: float, speech: Speech | None, **settings: Any
) -> tuple[list[tuple[str, float, float]], list[tuple[float, float]]]:
    """What is kept of windows that are decoded to `results`, and where they lie."""
    found, jobs = decoded_jobs(results, seconds=seconds, speech=speech, **settings)
    texts = [(one.text.strip(), one.start_s, one.end_s) for one in found]
    return texts, [(job.window[0] / 100, job.window[1] / 100) for job in jobs]


def decoded_jobs(
    results: Sequence[WindowResult | AlignResult],
    *,
    seconds: float,
    speech: Speech | None,
    **settings: Any,
) -> tuple[list[Segment], list[WindowJob]]:
    chosen = DecodingSettings(**{"language": "en", "strategy": "sequential"} | settings)
    prompts = prompt_format(no_speech=NO_SPEECH, max_target_positions=448)
    steps: Any = WhisperTranscriber(prompts).transcribe(part(seconds, speech), chosen)
    # One range alone is what it gathers here.
    (loop,) = next(steps).tasks
    jobs = [next(loop)]
    for result in results:
        try:
            jobs.append(loop.send(result))
        except StopIteration as stop:
            assert result is results[-1], "more windows were expected"
            return stop.value, jobs
    raise AssertionError(f"a window at {jobs[-1].window} was not expected")


def test_speech_behind_a_window_s_text_begins_the_next_window() -> None:
    texts, windows = decoded(
        [window((1, 0, 9)), window((2, 0, 5)), window((3, 0, 25))],
        seconds=39, speech=[(0.0, 39.0)],
    )  # fmt: skip
    assert windows == [(0, 39), (9, 39), (14, 39)]
    assert texts == [("w1", 0, 9), ("w2", 9, 14), ("w3", 14, 39)]


def test_where_nothing_is_found_decoding_goes_on_as_without_a_second_try() -> None:
    for again in (
        window(),
        window((2, 0, 5), logprob=-1.2),  # improbable
        window((2, 0, 5), no_speech=0.7),  # which alone is no silence the first time
    ):
        texts, windows = decoded(
            [window((1, 0, 9)), again, window((3, 0, 10))], seconds=40, speech=[(0.0, 40.0)]
        )
        assert windows == [(0, 40), (9, 40), (30, 40)]
        assert texts == [("w1", 0, 9), ("w3", 30, 40)]


def test_a_second_try_has_no_fallback_and_the_next_window_has_it_again() -> None:
    _, jobs = decoded_jobs(
        [
            window((1, 0, 9)),
            window((2, 0, 5), logprob=-3.0),
            window((3, 0, 10), logprob=-3.0),
            window((3, 0, 10)),
        ],
        seconds=40, speech=[(0.0, 40.0)], temperature=(0.0, 0.4), beam_size=1,
    )  # fmt: skip
    assert [(job.window[0], job.search.temperature) for job in jobs] == [
        (0, 0.0), (900, 0.0), (3000, 0.0), (3000, 0.4)
    ]  # fmt: skip


def test_speech_before_and_between_texts_is_a_range_of_its_own_and_stays_in_order() -> None:
    texts, windows = decoded(
        [
            window((4, 5, 8), (5, 20, 30)),
            window((1, 0, 2)),  # and 2 s behind it
            window((2, 0, 3)),
            window((3, 0, 11)),
        ],
        seconds=30, speech=[(0.5, 30.0)],
    )  # fmt: skip
    assert windows == [(0, 30), (0.5, 5), (2.5, 5), (8, 20)]
    assert texts == [
        ("w1", 0.5, 2.5), ("w2", 2.5, 5), ("w4", 5, 8), ("w3", 8, 19), ("w5", 20, 30)
    ]  # fmt: skip


def test_what_lies_before_text_is_decoded_again_once() -> None:
    # The second window leaves out what the first one did.
    texts, windows = decoded(
        [window((3, 10, 20), (4, 20, 30)), window((1, 5, 8), (2, 8, 10)), window((5, 0, 10))],
        seconds=40, speech=[(0.0, 40.0)],
    )  # fmt: skip
    assert windows == [(0, 40), (0, 10), (30, 40)]
    assert texts == [
        ("w1", 5, 8), ("w2", 8, 10), ("w3", 10, 20), ("w4", 20, 30), ("w5", 30, 40)
    ]  # fmt: skip


def test_text_found_later_is_in_no_prompt_of_what_follows() -> None:
    _, jobs = decoded_jobs(
        [window((4, 10, 20), (5, 20, 22)), window((1, 0, 10)), window((2, 0, 8))],
        seconds=30, speech=[(0.0, 30.0)], condition_on_prev_tokens=True,
    )  # fmt: skip
    words = [[token for token in job.prompt if token < 10] for job in jobs]
    assert words == [[], [], [4, 5]]


@pytest.mark.parametrize(
    "speech",
    [
        None,  # speech was not looked for
        [(0.0, 9.0)],
        [(0.0, 9.0), (11.0, 12.9)],  # less than 2 s
        [(0.0, 10.9), (20.0, 20.0)],
    ],
)
def test_without_speech_enough_a_window_is_decoded_once(speech: Speech | None) -> None:
    texts, windows = decoded([window((1, 0, 9))], seconds=30, speech=speech)
    assert (texts, windows) == ([("w1", 0, 9)], [(0, 30)])


def test_a_window_without_text_is_not_decoded_at_the_same_place_again() -> None:
    assert decoded([window()], seconds=30, speech=[(0.9, 30.0)])[1] == [(0, 30)]
    texts, windows = decoded([window(), window((1, 0, 3))], seconds=30, speech=[(4.0, 7.0)])
    assert (texts, windows) == ([("w1", 4, 7)], [(0, 30), (4, 30)])


def following(word: int, end_s: float, **options: Any) -> WindowResult:
    """What comes after a timestamp that the prompt ends with."""
    result = window((word, 0.0, end_s), **options)
    return replace(result, tokens=result.tokens[1:], logprobs=result.logprobs[1:])


def chunk(
    *results: WindowResult, **settings: Any
) -> tuple[list[tuple[str, float, float]], list[WindowJob]]:
    """What is kept of 20 s that are one chunk, and what was asked for."""
    options: dict[str, Any] = {"seconds": 20.0, "speech": [(0.0, 20.0)], "strategy": "chunked"}
    found, jobs = decoded_jobs([*results], **options | settings)
    return [(one.text.strip(), one.start_s, one.end_s) for one in found], jobs


@pytest.fixture(autouse=True)
def words_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted texts are single words, however long they last: none is stretched."""
    monkeypatch.setattr("corpus_asr.transcription.windows._LEAST_BYTES_PER_S", 1e-6)


UNFINISHED = window((1, 0.0, 12.0), more_s=12.0)


def test_an_end_that_was_left_unfinished_is_said_in_the_same_window() -> None:
    texts, (first, second) = chunk(UNFINISHED, following(2, 19.8))
    assert texts == [("w1", 0.0, 12.0), ("w2", 12.0, 19.8)]
    assert first.window == second.window == (0, 2000)
    assert second.prompt == (START, ENGLISH, *UNFINISHED.tokens)
    assert second.prefix == UNFINISHED.tokens
    assert (first.rules.resumes, second.rules.resumes) == (False, True)
    assert first.rules.end == second.rules.end == END


@pytest.mark.parametrize("doubtful", [following(2, 19.8, logprob=-1.5), window(logprob=-1.5)])
def test_an_end_whose_text_is_doubtful_is_decoded_alone(doubtful: WindowResult) -> None:
    texts, jobs = chunk(UNFINISHED, doubtful, window((3, 0.0, 7.8)), beam_size=1)
    assert texts == [("w1", 0.0, 12.0), ("w3", 12.0, 19.8)]
    assert jobs[2].window == (1200, 2000)
    assert not jobs[2].num_prefix


def test_an_uncertain_end_is_searched_with_beams() -> None:
    uncertain = following(2, 19.8, logprob=-1.4)
    texts, jobs = chunk(UNFINISHED, uncertain, following(3, 19.8), logprob_threshold=None)
    assert texts[1] == ("w3", 12.0, 19.8)
    assert [job.search.num_beams for job in jobs] == [1, 1, 5]
    assert jobs[1].prompt == jobs[2].prompt


def test_less_than_half_a_second_says_nothing() -> None:
    texts, jobs = chunk(window((1, 0.0, 19.6), more_s=19.6))
    assert (texts, len(jobs)) == ([("w1", 0.0, 19.6)], 1)


@pytest.mark.parametrize("closed", [window((1, 0.0, 19.6)), window((1, 0.0, 19.6), more_s=19.6)])
def test_words_before_a_cut_in_speech_are_resumed(closed: WindowResult) -> None:
    # Of a recording's end nothing is known: detected speech is padded up to it.
    cut: dict[str, Any] = {"seconds": 30.0, "clip_timestamps": (0.0, 20.0), "speech": [(0.0, 30.0)]}
    texts, jobs = chunk(closed, following(2, 19.9), **cut)
    assert texts == [("w1", 0.0, 19.6), ("w2", 19.6, pytest.approx(19.9))]
    assert jobs[1].prefix[-2:] == (BEGIN + 980, BEGIN + 980)
    texts, jobs = chunk(closed, following(2, 19.9, logprob=-1.5), beam_size=1, **cut)
    assert texts == [("w1", 0.0, 19.6)]
    assert len(jobs) == 2


def test_a_text_that_is_closed_near_a_cut_is_not_resumed() -> None:
    texts, jobs = chunk(window((1, 0.0, 19.8)))
    assert (texts, len(jobs)) == ([("w1", 0.0, 19.8)], 1)


@pytest.mark.parametrize(
    ("strategy", "speech"),
    [("chunked", [(0.0, 20.0)]), ("sequential", [(0.0, 20.0)]), ("chunked", None), ("auto", None)],
)
def test_speech_under_a_stretched_text_is_decoded_again(
    monkeypatch: pytest.MonkeyPatch, strategy: str, speech: Speech | None
) -> None:
    monkeypatch.setattr("corpus_asr.transcription.windows._LEAST_BYTES_PER_S", 0.12)
    words_at = AlignResult(logprobs=(-0.1,) * 4, begins=(0, 100))
    texts, _ = decoded_jobs(
        [window((1, 0.0, 20.0)), words_at, window((2, 0.0, 17.8))],
        seconds=20.0, speech=speech, strategy=strategy, beam_size=1,
    )  # fmt: skip
    assert [one.text for one in texts] == [" w1", " w2"]
    assert [one.words for one in texts] == [None, None]
    assert texts[0].end_s <= texts[1].start_s < 5


def test_a_prefix_and_a_prompt_stay_before_what_is_resumed() -> None:
    _, jobs = chunk(
        window((2, 3.0, 12.0), more_s=12.0), following(4, 19.8), prefix="w1", initial_prompt="w5"
    )
    first, second = jobs
    assert second.prompt == (*first.prompt, *window((2, 3.0, 12.0), more_s=12.0).tokens)
    assert second.prefix == (*first.prefix, *window((2, 3.0, 12.0), more_s=12.0).tokens)


def test_a_decoder_that_is_full_resumes_nothing() -> None:
    full = window(*((1, n * 0.04, n * 0.04 + 0.04) for n in range(149)), more_s=5.96)
    assert len(full.tokens) == 448
    _, jobs = chunk(full, window((3, 0.0, 13.9)), compression_ratio_threshold=None)
    assert jobs[1].window == (596, 2000)


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6)


@given(speech=spans, texts=spans, start=st.integers(0, 30), length=st.integers(0, 40))
def test_what_counts_is_speech_in_long_gaps_second_by_second(
    speech: list[tuple[int, int]], texts: list[tuple[int, int]], start: int, length: int
) -> None:
    spoken = [any(a <= at < b for a, b in speech) for at in range(60)]
    written = [any(a <= at < b for a, b in texts) for at in range(60)]
    stop = min(60, start + length)
    gaps: list[int] = [0]
    for at in range(start, stop):
        if written[at]:
            gaps.append(0)
        else:
            gaps[-1] += spoken[at]
    own = [SpeechSpan(start_s=float(at), end_s=at + 1.0) for at in range(60) if spoken[at]]
    given_texts = [(float(a), float(b)) for a, b in texts if a < b]
    found = speech_without_text(own, given_texts, float(start), float(stop))
    assert sum(map(seconds_of, found)) == sum(gap for gap in gaps if gap >= 2)


def uncovered_s(
    own: PartRequest, *texts: tuple[float, float], cuts_s: tuple[float, ...] = (), **settings: Any
) -> float | None:
    segments = tuple(segment("w", start_s, end_s) for start_s, end_s in texts)
    transcript = PartTranscript(segments=segments, cuts_s=cuts_s)
    return speech_without_text_s(own, transcript, DecodingSettings(**settings))


def test_speech_that_nobody_asked_to_transcribe_does_not_count() -> None:
    own = part(60, [(0.0, 60.0)])
    assert uncovered_s(own) == pytest.approx(60)
    assert uncovered_s(own, clip_timestamps=(10, 20, 50)) == pytest.approx(20)
    assert uncovered_s(part(60)) is None
    known = KnownText(text="w1", name="r", clip=(10.0, 20.0))
    assert uncovered_s(replace(own, known_text=known)) == pytest.approx(10)


def test_a_word_without_text_counts_at_a_cut_within_speech_and_where_audio_ends() -> None:
    own = part(60, [(0.0, 30.0), (31.0, 60.0)])
    texts = (0.0, 19.5), (20.5, 29.0), (31.0, 40.0), (41.9, 60.0)
    assert uncovered_s(own, *texts) == 0
    assert uncovered_s(own, *texts, cuts_s=(20.0,)) == pytest.approx(1)
    assert uncovered_s(own, (0.9, 30.0), (31.0, 59.1)) == pytest.approx(1.8)
    assert uncovered_s(own, (0.7, 30.0), (31.0, 59.3)) == 0  # speech is padded
    assert uncovered_s(part(60, [(1.0, 59.0)]), (2.0, 58.0)) == 0  # it may be a noise
    assert uncovered_s(own, (11.0, 19.0), clip_timestamps=(10, 20)) == pytest.approx(2)


def test_a_transcript_says_where_its_windows_were_cut_within_speech() -> None:
    steps: Any = WhisperTranscriber(prompt_format(max_target_positions=448)).transcribe(
        part(70, [(0.0, 50.0), (52.0, 70.0)]), DecodingSettings(language="en")
    )
    num_windows = len(list(next(steps).tasks))
    with pytest.raises(StopIteration) as ended:
        steps.send([[]] * num_windows)
    assert num_windows == 3
    (cut_s,) = ended.value.value.cuts_s
    assert 20 <= cut_s <= 30


@pytest.mark.long
def test_what_tiny_en_leaves_out_after_the_first_sentence_is_transcribed() -> None:
    # With these first words its first window ends at 2 s; 9 s of speech follow.
    with Transcriber("whisper-tiny.en", num_threads=1) as transcriber:
        path = DATA / "spoken" / "inaugural.flac"
        found = transcriber.transcribe(path, prefix="Good evening to all of you")
    assert "ask what you can do for your country" in normalized(found.text, "en")
    starts = [segment.start_s for segment in found.segments]
    assert starts == sorted(starts)
    assert found.speech_without_text_s == 0.0


@pytest.mark.parametrize("options", [{}, {"strategy": "sequential"}, {"word_timestamps": True}])
def test_a_second_language_in_one_window_is_not_lost(
    whisper_base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    clips = DATA / "speech" / "english_short"
    english = next(item for item in read_manifest(clips) if item["id"].startswith("LJ002"))
    german = read_clip(DATA / "clips" / "german.opus")
    audio = np.concatenate([read_clip(clips / english["path"]), german])
    with Transcriber(str(whisper_base), num_threads=1) as transcriber:
        found = transcriber.transcribe(
            audio, sampling_rate=SAMPLE_RATE_HZ, language_mode="window", **options
        )
    assert {segment.language for segment in found.segments} == {"en", "de"}
    assert found.segments[-1].end_s > len(audio) / SAMPLE_RATE_HZ - 2
    assert found.speech_without_text_s == 0.0
    words = normalized(found.text, "de").split()
    assert all(before != after for before, after in pairwise(words))
