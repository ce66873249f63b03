from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.transcription.windows import chunk_ranges
from corpus_asr.units import TAIL_FRAMES, WINDOW_FRAMES
from tests.support.prompt_formats import part


def test_a_window_holds_the_features_and_then_silence() -> None:
    own = part(10)
    window = own.window(300, own.num_frames)
    assert window.shape == (4, WINDOW_FRAMES)
    assert np.array_equal(window[:, : 700 + TAIL_FRAMES], own.features[300:].T)
    assert (window[:, 700 + TAIL_FRAMES :] == np.float16(-1.5)).all()


def test_a_window_ends_with_its_range() -> None:
    window = part(20).window(0, 500)
    assert (window[:, 500 + TAIL_FRAMES :] == np.float16(-1.5)).all()
    window = part(60).window_in_silence(0, 500)
    assert (window[:, 500 + TAIL_FRAMES :] == np.float16(-1.5)).all()


@pytest.mark.parametrize(
    ("seconds", "start_s", "fits"), [(30, 0, True), (30.01, 0, False), (10, 600, False)]
)
def test_the_last_window_of_a_longer_recording_is_cut_at_its_frame_and_filled_with_zeros(
    seconds: float, start_s: float, fits: bool
) -> None:
    own = part(seconds, start_s=start_s)
    assert own.fits_one_window is fits
    window = own.window(500, own.num_frames)
    content = own.num_frames - 500
    assert np.array_equal(window[:, :content], own.features[500 : 500 + content].T)
    if fits:
        assert (window[:, content + TAIL_FRAMES :] == np.float16(-1.5)).all()
        assert np.array_equal(window, own.window_in_silence(500, own.num_frames))
    else:
        assert not window[:, content:].any()


def test_decoding_goes_on_where_speech_is() -> None:
    own = part(100, [(12.0, 15.0), (40.0, 41.0)])
    for frame, end, expected in [
        (0, 10_000, 1200),  # more than five seconds of silence are skipped
        (800, 10_000, 800),  # less is decoded along
        (1400, 10_000, 1400),
        (1500, 10_000, 4000),
        (4100, 10_000, None),
        (1500, 3000, None),
    ]:
        assert own.next_speech(frame, end) == expected, frame
    # A span that reaches into the last incomplete frame ends the loop.
    assert part(5.85, [(0.0, 5.855)]).next_speech(585, 585) is None
    assert part(20.0, [(0.0, 1.0), (19.998, 20.005)]).next_speech(200, 2000) is None
    # Without detection everything is decoded.
    assert [part(20).next_speech(frame, 2000) for frame in (700, 2000)] == [700, None]


def test_times_are_the_recording_s() -> None:
    own = part(20, [(605.0, 610.0)], start_s=600.0)
    assert own.next_speech(0, own.num_frames) == 0
    assert own.frame(605.0) == 500
    assert own.seconds(500) == pytest.approx(605.0)


def test_speech_fraction_is_the_share_of_overlap() -> None:
    own = part(20, [(1.0, 2.0), (4.0, 8.0)])
    assert own.speech_fraction(0.0, 10.0) == pytest.approx(0.5)
    assert own.speech_fraction(9.0, 10.0) == 0.0
    assert part(20).speech_fraction(0, 5) is None


spans = st.lists(st.integers(0, 3000), min_size=0, max_size=24, unique=True).map(
    lambda points: [
        (start / 10, end / 10)
        for start, end in zip(sorted(points)[::2], sorted(points)[1::2], strict=False)
    ]
)


@given(speech=spans)
def test_chunks_fit_windows_keep_all_speech_and_never_overlap(
    speech: list[tuple[float, float]],
) -> None:
    own = part(300, speech)
    chunks = chunk_ranges(own, [(0, own.num_frames)])
    assert all(0 < end - start <= WINDOW_FRAMES for start, end in chunks)
    assert all(left[1] <= right[0] for left, right in pairwise(chunks))
    covered = np.zeros(own.num_frames, dtype=bool)
    for start, end in chunks:
        covered[start:end] = True
    for start_s, end_s in speech:
        assert covered[own.frame(start_s) : own.frame(end_s)].all()


def test_without_detection_chunks_cover_everything_and_cut_at_quiet_moments() -> None:
    own = part(70)
    own.features[2700] = -9.0
    chunks = chunk_ranges(own, [(0, own.num_frames)])
    assert chunks[0] == (0, 2700)
    assert chunks[-1][1] == own.num_frames
    assert all(left[1] == right[0] for left, right in pairwise(chunks))


def test_chunks_of_clips_stay_inside_them() -> None:
    own = part(300, [(5.0, 20.0), (30.0, 100.0)])
    chunks = chunk_ranges(own, [(1000, 4000), (9000, 30_000)])
    assert chunks == [(1000, 4000), (9000, 10_000)]
    assert chunk_ranges(part(300), [(100, 200), (500, 700)]) == [(100, 200), (500, 700)]
    assert chunk_ranges(part(0), [(0, 0)]) == []  # shorter than a frame
