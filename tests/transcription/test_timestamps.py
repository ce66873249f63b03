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
    tokens: list[int], *, content_frames: int = 3000, cut_short: bool = False
) -> tuple[list[TokenSpan], int]:
    return split_at_timestamps(
        tokens,
        CLOCK,
        content_frames=content_frames,
        content_s=content_frames / 100,
        cut_short=cut_short,
    )


def test_closed_segments_advance_past_the_window() -> None:
    pieces, advance = split([100, 1, 2, 150, 150, 3, 200])
    assert [(piece.first, piece.stop, piece.start_s, piece.end_s) for piece in pieces] == [
        (0, 4, 0.0, 1.0),
        (4, 7, 1.0, 2.0),
    ]
    assert advance == 3000


def test_text_left_open_is_decoded_again_from_the_last_timestamp() -> None:
    pieces, advance = split([100, 1, 2, 150, 160, 3, 4])
    assert [(piece.first, piece.stop) for piece in pieces] == [(0, 4)]
    assert advance == 100  # the end of the last closed segment: 50 steps of two frames


def test_a_window_without_pairs_is_one_segment_to_its_last_timestamp() -> None:
    pieces, advance = split([100, 1, 2, 3, 170], content_frames=900)
    assert len(pieces) == 1
    assert (pieces[0].start_s, pieces[0].end_s) == pytest.approx((0.0, 1.4))
    assert advance == 900


@pytest.mark.parametrize("tokens", [[1, 2, 3], [100, 1, 2], []])
def test_without_a_second_timestamp_the_segment_lasts_as_long_as_the_audio(
    tokens: list[int],
) -> None:
    pieces, advance = split(tokens, content_frames=1234)
    assert pieces == [TokenSpan(first=0, stop=len(tokens), start_s=0.0, end_s=12.34)]
    assert advance == 1234


def test_a_pair_at_the_end_advances_to_it() -> None:
    pieces, advance = split([100, 1, 150, 150])
    assert [(piece.first, piece.stop) for piece in pieces] == [(0, 3)]
    assert advance == 100


def test_a_text_that_was_cut_short_lasts_to_the_end_of_its_audio() -> None:
    pieces, advance = split([105, 1, 1, 1], content_frames=438, cut_short=True)
    assert [(piece.start_s, piece.end_s) for piece in pieces] == [(0.0, 4.38)]
    assert advance == 438


@given(st.lists(st.integers(80, 119), max_size=14))
@example(tokens=[100, 100, 1])
def test_spans_share_out_a_windows_tokens_in_order(tokens: list[int]) -> None:
    spans, advance = split(tokens, content_frames=60)
    assert spans[0].first == 0
    assert all(one.stop == other.first for one, other in pairwise(spans))
    assert spans[-1].stop <= len(tokens)
    assert 0 <= advance <= 60
