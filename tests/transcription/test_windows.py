from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.segments import SpeechSpan
from corpus_asr.transcription.windows import PartRequest, chunk_ranges
from corpus_asr.units import FRAMES_PER_SECOND, HOP_SAMPLES, TAIL_FRAMES, WINDOW_FRAMES


def part(
    seconds: float, speech: list[tuple[float, float]] | None = None, *, start_s: float = 0.0
) -> PartRequest:
    frames = round(seconds * FRAMES_PER_SECOND)
    noise = np.random.default_rng(0).standard_normal((frames + TAIL_FRAMES, 4))
    return PartRequest(
        recording_id="r",
        part=0,
        features=noise.astype(np.float16),
        num_samples=frames * HOP_SAMPLES,
        pad_value=-1.5,
        start_s=start_s,
        speech=None
        if speech is None
        else tuple(SpeechSpan(start_s=start, end_s=end) for start, end in speech),
    )


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
    own = part(100, [(12.0, 15.0), (40.0, 41.0)], start_s=0.0)
    end = own.num_frames
    assert own.next_speech(0, end) == 1200  # more than five seconds of silence are skipped
    assert own.next_speech(800, end) == 800  # less is decoded along
    assert own.next_speech(1400, end) == 1400
    assert own.next_speech(1500, end) == 4000
    assert own.next_speech(4100, end) is None
    assert own.next_speech(1500, 3000) is None


def test_a_span_that_reaches_into_the_last_incomplete_frame_ends_the_loop() -> None:
    own = part(5.85, [(0.0, 5.855)])
    assert own.next_speech(own.num_frames, own.num_frames) is None
    own = part(20.0, [(0.0, 1.0), (19.998, 20.005)])
    assert own.next_speech(200, own.num_frames) is None


def test_times_are_the_recording_s() -> None:
    own = part(20, [(605.0, 610.0)], start_s=600.0)
    assert own.next_speech(0, own.num_frames) == 0
    assert own.frame(605.0) == 500
    assert own.seconds(500) == pytest.approx(605.0)


def test_without_detection_everything_is_decoded() -> None:
    own = part(20)
    assert own.next_speech(700, own.num_frames) == 700
    assert own.next_speech(own.num_frames, own.num_frames) is None
    assert own.speech_fraction(0, 5) is None


def test_speech_fraction_is_the_share_of_overlap() -> None:
    own = part(20, [(1.0, 2.0), (4.0, 8.0)])
    assert own.speech_fraction(0.0, 10.0) == pytest.approx(0.5)
    assert own.speech_fraction(9.0, 10.0) == 0.0


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


def test_a_part_shorter_than_a_frame_has_no_chunks() -> None:
    assert chunk_ranges(part(0), [(0, 0)]) == []


def test_chunks_of_clips_stay_inside_them() -> None:
    own = part(300, [(5.0, 20.0), (30.0, 100.0)])
    chunks = chunk_ranges(own, [(1000, 4000), (9000, 30_000)])
    assert chunks == [(1000, 4000), (9000, 10_000)]
    assert chunk_ranges(part(300), [(100, 200), (500, 700)]) == [(100, 200), (500, 700)]
