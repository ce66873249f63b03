"""Where the language is listened for: spread out, on speech, and the same wherever it is asked."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.audio.language_windows import language_window_starts
from corpus_asr.units import LONG_SILENCE_S, WINDOW_S


@pytest.mark.parametrize(
    ("speech", "end_s", "starts"),
    [
        (None, 8.0, [0.0]),
        (None, 89.0, [0.0]),
        (None, 100.0, [0.0, 50.0]),
        (None, 600.0, [0.0, 200.0, 400.0]),
        ([(2.0, 90.0)], 60.0, [0.0]),
        ([(12.0, 90.0)], 60.0, [12.0]),
        ([(12.0, 30.0), (500.0, 512.0)], 612.0, [12.0, 500.0]),
        ([(12.0, 30.0), (590.0, 599.0)], 600.0, [12.0]),  # no whole window is left there
        ([], 600.0, [0.0, 200.0, 400.0]),
    ],
)
def test_windows_lie_where_speech_is(
    speech: list[tuple[float, float]] | None, end_s: float, starts: list[float]
) -> None:
    if speech == []:
        starts = [0.0]
    assert language_window_starts(speech, start_s=0.0, end_s=end_s) == starts


def test_times_are_the_recording_s() -> None:
    speech = [(612.0, 900.0)]
    assert language_window_starts(speech, start_s=600.0, end_s=702.0) == [612.0, 657.0]


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
