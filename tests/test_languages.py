"""Languages against the table in transformers."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper import tokenization_whisper as oracle

from corpus_asr.languages import (
    ALIASES,
    CODES_BY_NAME,
    LANGUAGES,
    language_window_starts,
    resolve_language,
)
from corpus_asr.units import LONG_SILENCE_S, WINDOW_S


def test_codes_names_and_their_order_are_those_of_the_reference():
    assert list(LANGUAGES.items()) == list(oracle.LANGUAGES.items())
    assert CODES_BY_NAME == oracle.TO_LANGUAGE_CODE


def test_every_name_leads_to_its_language():
    for text in ("de", "DE", "German", "german", "<|de|>", " <|DE|> "):
        assert resolve_language(text) == "de", text
    assert {name: resolve_language(name.title()) for name in ALIASES} == ALIASES


def test_an_unknown_language_is_refused_with_the_nearest_one():
    for text, nearest in (
        ("englsh", r"en \(english\)"),
        ("gernam", r"de \(german\)"),
        ("dee", "de"),
    ):
        with pytest.raises(ValueError, match=f"choosing the language '{text}'.*nearest: {nearest}"):
            resolve_language(text)
    with pytest.raises(ValueError, match=r"cantonese \(yue\) is not among the 2 languages"):
        resolve_language("Cantonese", known=("en", "zh"))
    with pytest.raises(ValueError, match="nearest: none"):
        resolve_language("en", known=())


@given(st.text())
def test_any_text_is_a_known_language_or_a_value_error(text):
    try:
        assert resolve_language(text) in LANGUAGES
    except ValueError as error:
        assert "nearest: " in str(error)  # noqa: PT017  (either outcome is right)


def test_windows_lie_where_speech_is() -> None:
    for speech, start_s, end_s, starts in (
        (None, 0.0, 8.0, [0.0]),
        (None, 0.0, 89.0, [0.0]),
        (None, 0.0, 100.0, [0.0, 50.0]),
        (None, 0.0, 600.0, [0.0, 200.0, 400.0]),
        ([(2.0, 90.0)], 0.0, 60.0, [0.0]),
        ([(12.0, 90.0)], 0.0, 60.0, [12.0]),
        ([(12.0, 30.0), (500.0, 512.0)], 0.0, 612.0, [12.0, 500.0]),
        ([(12.0, 30.0), (590.0, 599.0)], 0.0, 600.0, [12.0]),  # no whole window is left there
        ([], 0.0, 600.0, [0.0]),
        ([(612.0, 900.0)], 600.0, 702.0, [612.0, 657.0]),  # times are the recording's
    ):
        assert language_window_starts(speech, start_s=start_s, end_s=end_s) == starts, speech


@given(
    points=st.lists(st.integers(0, 6000), max_size=24, unique=True).map(sorted),
    length=st.integers(1, 6000),
)
def test_windows_do_not_overlap_and_hold_speech(points: list[int], length: int) -> None:
    end_s = 100 + length / 10
    speech = [
        (100 + first / 10, 100 + last / 10)
        for first, last in zip(points[::2], points[1::2], strict=False)
        if last <= length
    ]
    starts = language_window_starts(speech, start_s=100.0, end_s=end_s)
    assert 1 <= len(starts) <= 3
    assert all(right - left >= WINDOW_S for left, right in pairwise(starts))
    for start_s in starts[1:]:
        assert start_s + WINDOW_S <= end_s
    for start_s in starts if speech else starts[1:]:
        assert any(first - LONG_SILENCE_S <= start_s < last for first, last in speech)
