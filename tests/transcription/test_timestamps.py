"""Cutting at timestamps, case by case as openai-whisper's `transcribe` does."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from corpus_asr.transcription.long_form import Clock, TokenSpan, split_at_timestamps

BEGIN = 100
CLOCK = Clock(
    timestamp_begin=BEGIN, input_stride=2, time_precision=0.02, time_precision_features=0.01
)


def split(
    tokens: list[int], content_frames: int, *, cut_short: bool = False
) -> tuple[list[TokenSpan], int]:
    return split_at_timestamps(
        tokens, CLOCK, content_frames=content_frames, content_s=content_frames / 100,
        cut_short=cut_short,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "frames", "spans", "advance"),
    [
        # Closed segments: past the window.
        ([100, 1, 2, 150, 150, 3, 200], 3000, [(0, 4, 0.0, 1.0), (4, 7, 1.0, 2.0)], 3000),
        # Text left open is decoded again from the last timestamp: 50 steps of two frames.
        ([100, 1, 2, 150, 160, 3, 4], 3000, [(0, 4, 0.0, 1.0)], 100),
        # A pair at the end: to it.
        ([100, 1, 150, 150], 3000, [(0, 3, 0.0, 1.0)], 100),
        # Without pairs one segment, to the last timestamp.
        ([100, 1, 2, 3, 170], 900, [(0, 5, 0.0, 1.4)], 900),
        # Without a second timestamp it lasts as long as the audio.
        ([1, 2, 3], 1234, [(0, 3, 0.0, 12.34)], 1234),
        ([100, 1, 2], 1234, [(0, 3, 0.0, 12.34)], 1234),
        ([], 1234, [(0, 0, 0.0, 12.34)], 1234),
    ],
)
def test_windows_are_cut_at_pairs_of_timestamps(
    tokens: list[int], frames: int, spans: list[tuple[int, int, float, float]], advance: int
) -> None:
    found, frames_on = split(tokens, frames)
    for span, expected in zip(found, spans, strict=True):
        assert (span.first, span.stop, span.start_s, span.end_s) == pytest.approx(expected)
    assert frames_on == advance


def test_a_text_that_was_cut_short_lasts_to_the_end_of_its_audio() -> None:
    spans, advance = split([105, 1, 1, 1], 438, cut_short=True)
    assert [(span.start_s, span.end_s) for span in spans] == [(0.0, 4.38)]
    assert advance == 438


@given(st.lists(st.integers(80, 119), max_size=14))
@example(tokens=[100, 100, 1])
def test_spans_share_out_a_windows_tokens_in_order(tokens: list[int]) -> None:
    spans, advance = split(tokens, 60)
    assert spans[0].first == 0
    assert all(one.stop == other.first for one, other in pairwise(spans))
    assert spans[-1].stop <= len(tokens)
    assert 0 <= advance <= 60
