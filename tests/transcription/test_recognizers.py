"""A user's own recognizer in place of Whisper: its windows, its segments, and what it cannot do."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.families.registry import SamplePartFeatures, users_family
from corpus_asr.segments import SpeechSpan
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.recognizers import LEVELS_PER_ONE, Counting

COUNTING = "tests.support.recognizers:Counting"
LEVELS = "tests.support.recognizers"
UNTIMED = "tests.support.recognizers:Untimed"


def part_of(
    samples: np.ndarray, speech: Sequence[tuple[float, float]] | None = None, **fields: Any
) -> PartRequest:
    features = SamplePartFeatures()(samples)
    spans = None if speech is None else tuple(SpeechSpan(start_s=a, end_s=b) for a, b in speech)
    usual: dict[str, Any] = {
        "recording_id": "r", "part": 0, "features": features.values,
        "num_samples": len(samples), "pad_value": features.pad_value, "start_s": 0.0,
        "speech": spans,
    }  # fmt: skip
    return PartRequest(**usual | fields)


def noise(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


def said(part: PartRequest, recognizer: str = COUNTING, **settings: Any) -> list[Any]:
    decoding = DecodingSettings(**settings)
    with Engine.from_recognizer(recognizer, None, decoding=decoding) as engine:
        return list(engine.submit(part).result(timeout=60).segments)


def test_samples_are_given_as_they_are_but_for_the_last_bits() -> None:
    features, samples = SamplePartFeatures(), noise(1.234567)
    given = features(samples)
    whole = features.window(given.values, 0, len(given.values))
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole[: len(samples)], samples, rtol=2**-11, atol=1e-7)
    assert not whole[len(samples) :].any()
    np.testing.assert_array_equal(features.window(given.values, 3, 50), whole[480:8000])


def test_segments_are_sentences_in_recording_time() -> None:
    part = part_of(noise(8), start_s=100.0)
    first, second = said(part, word_timestamps=True, language="de")
    assert (first.text, second.text) == (" one two, three.", " Four")
    assert (first.start_s, first.end_s) == pytest.approx((100.0, 105.8))
    assert (second.start_s, second.end_s) == pytest.approx((106.0, 107.8))
    assert [word.word for word in first.words] == [" one", " two,", " three."]
    assert (first.tokens, second.tokens) == ((0, 1, 2), (3,))
    assert {first.language, second.language} == {"de"}
    assert first.avg_logprob == -0.2
    assert first.text_logprob == pytest.approx(np.log(0.8))
    assert 0.5 < first.confidence < 1


def test_a_text_without_words_is_one_segment_of_its_window() -> None:
    (found,) = said(part_of(noise(7.5)), UNTIMED)
    assert (found.text, found.start_s, found.end_s) == (" 7 s", 0.0, 7.5)
    assert found.words is None
    assert found.language is None


def test_windows_are_cut_at_silences_and_no_longer_than_the_model_takes() -> None:
    samples = noise(50)
    samples[17 * SAMPLE_RATE_HZ : round(17.5 * SAMPLE_RATE_HZ)] = 0.001  # the least loud moment
    found = said(part_of(samples), UNTIMED)
    assert found[0].text == " 17 s"
    assert max(each.end_s - each.start_s for each in found) <= Counting.longest_window_s
    assert found[-1].end_s == 50.0
    spoken = said(part_of(samples, [(1, 4), (4.5, 9), (30, 33)]), UNTIMED)
    assert [(each.start_s, each.end_s) for each in spoken] == [(1, 9), (30, 33)]
    clipped = said(part_of(samples), UNTIMED, clip_timestamps=(2.0, 5.0))
    assert [(each.start_s, each.end_s) for each in clipped] == [(2, 5)]
    short = said(part_of(samples), UNTIMED, window_s=5.0)
    assert max(each.end_s - each.start_s for each in short) <= 5


def test_windows_share_what_lies_around_a_cut_and_no_word_is_lost_or_doubled() -> None:
    seconds = np.repeat(np.arange(1, 56), SAMPLE_RATE_HZ) / LEVELS_PER_ONE
    # Cuts lie within a second: a quarter of one comes before the first word.
    part = part_of(seconds[3 * SAMPLE_RATE_HZ // 4 :].astype(np.float32), start_s=10.0)
    told: list[str] = []
    part = replace(part, listener=lambda _, segments: told.extend(one.text for one in segments))
    found = said(part, f"{LEVELS}:Levels", word_timestamps=True)
    words = [word for segment in found for word in segment.words]
    assert [int(word.word) for word in words] == list(range(2, 56))
    assert told == [segment.text for segment in found]
    starts = [word.start_s for word in words]
    assert starts == pytest.approx([10.25 + at for at in range(54)], abs=0.51)
    assert all(a.end_s <= b.start_s for a, b in pairwise(words))
    lost = said(part, f"{LEVELS}:WithoutOverlap", word_timestamps=True)
    assert sum(len(segment.words) for segment in lost) < len(words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "translate"}, "decoding.task: found translate"),
        ({"initial_prompt": "x"}, "decoding.initial_prompt: found x"),
        ({"hotwords": ("x",)}, "decoding.hotwords"),
        ({"align": True}, "decoding.align"),
        ({"beam_size": 5}, "decoding.beam_size: found 5"),
        ({"language": "fr"}, "decoding.language: found fr, but .* knows de, en"),
        ({"language": ("de", "en")}, "decoding.language: found a choice of 2"),
        ({"window_s": 30.0}, "decoding.window_s: found 30"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine.from_recognizer(COUNTING, None, decoding=DecodingSettings(**settings))


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nowhere_at_all:Model", ConfigError, "importing the recognizer nowhere_at_all:Model"),
        ("tests.support.recognizers:Nobody", ConfigError, "AttributeError"),
        ("tests.support.recognizers:WORDS", ConfigError, "expected a subclass of corpus_asr"),
        ("tests.support.recognizers:WithoutLoad", ConfigError, "found no load"),
        ("tests.support.recognizers:Unloadable", EngineError, "no network in /models/x"),
        ("counting", ConfigError, r"expected package.module:Class, or a recognizer .* \(none"),
        ("a:b:c", ConfigError, "importing the recognizer a:b:c"),
    ],
)
def test_a_class_that_cannot_be_had_is_an_error_that_names_it(
    reference: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Engine.from_recognizer(reference, "/models/x", decoding=DecodingSettings())


def test_installed_packages_offer_recognizers_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("counting", COUNTING, "corpus_asr.recognizers")
    monkeypatch.setattr(
        "corpus_asr.families.registry.entry_points", lambda *, group: [point] if group else []
    )
    assert users_family("counting").recognizer == COUNTING
    with Engine.from_recognizer("counting", None, decoding=DecodingSettings()) as engine:
        assert engine.submit(part_of(noise(2))).result(timeout=60).segments
    with pytest.raises(ConfigError, match=r"\(counting\)"):
        users_family("other")
