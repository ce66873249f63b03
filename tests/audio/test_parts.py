"""Parts lose and double nothing, whatever the chunks, and are cut where nobody speaks."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.audio.parts import AudioPart, PartCutter, language_window_starts, quietest_border
from corpus_asr.audio.vad import (
    BLOCK_SAMPLES,
    DEFAULT_CRITERIA,
    STEP_SAMPLES,
    SileroDetector,
    SpeechCriteria,
    true_runs,
)
from corpus_asr.units import LONG_SILENCE_S, MEBIBYTE, SAMPLE_RATE_HZ, WINDOW_S

SPEECH_LEVEL = 0.1
PART_S = 5.0
PADDED = SpeechCriteria(pad_s=0.2)


class LoudIsSpeech(SileroDetector):
    """Frames, blocks and streams as the real one; but speech is whatever has power."""

    def _score(self, samples: np.ndarray, memory: object) -> np.ndarray:
        num_steps = -(-samples.size // STEP_SAMPLES)
        steps = np.zeros(num_steps * STEP_SAMPLES, dtype=np.float32)
        steps[: samples.size] = samples
        power = np.square(steps.reshape(num_steps, STEP_SAMPLES)).mean(axis=1)
        return (power / (power + np.float32(0.1 * SPEECH_LEVEL**2))).astype(np.float32)


DETECTOR = LoudIsSpeech()


def alternating(stretches_s: list[float], seed: int = 0) -> np.ndarray:
    """Noise and silence in turns."""
    rng = np.random.default_rng(seed)
    pieces = [
        SPEECH_LEVEL * (index % 2 == 0) * rng.standard_normal(int(seconds * SAMPLE_RATE_HZ))
        for index, seconds in enumerate(stretches_s)
    ]
    return np.concatenate([np.zeros(0), *pieces]).astype(np.float32)


def cut(
    samples: np.ndarray,
    *,
    chunks: list[int] | None = None,
    part_s: float = PART_S,
    detector: SileroDetector | None = DETECTOR,
) -> list[AudioPart]:
    cutter = PartCutter(part_s=part_s, detector=detector, criteria=PADDED)
    parts: list[AudioPart] = []
    for chunk in np.split(samples, np.cumsum(chunks or [])):
        parts += cutter.feed(chunk)
    return [*parts, *cutter.finish()]


def recordings() -> st.SearchStrategy[np.ndarray]:
    stretches = st.lists(st.floats(0.01, 8.0), min_size=1, max_size=8)
    return st.builds(alternating, stretches, st.integers(0, 5))


DETECTORS = st.sampled_from([DETECTOR, None])


@given(
    samples=recordings(),
    detector=DETECTORS,
    chunks=st.lists(st.integers(0, 3 * BLOCK_SAMPLES), max_size=12),
)
def test_parts_joined_are_the_recording_whatever_the_chunks(
    samples: np.ndarray, detector: SileroDetector | None, chunks: list[int]
) -> None:
    parts = cut(samples, detector=detector)
    assert np.array_equal(np.concatenate([part.samples for part in parts]), samples)
    starts = np.cumsum([0, *(part.samples.size for part in parts)])
    assert [part.start_sample for part in parts] == starts[:-1].tolist()
    assert all(0 < part.samples.size <= PART_S * SAMPLE_RATE_HZ for part in parts)
    chunked = cut(samples, detector=detector, chunks=chunks)
    assert [(part.start_sample, part.samples.size, part.speech) for part in parts] == [
        (part.start_sample, part.samples.size, part.speech) for part in chunked
    ]


@given(samples=recordings())
def test_spans_lie_apart_inside_their_part_and_hold_all_speech(samples: np.ndarray) -> None:
    covered = np.zeros(samples.size, dtype=bool)
    for part in cut(samples):
        assert part.speech is not None
        bounds = [bound for span in part.speech for bound in span]
        assert all(before < after for before, after in pairwise(bounds))
        end = part.start_sample + part.samples.size
        assert all(part.start_sample <= bound <= end for bound in bounds)
        for first, last in part.speech:
            covered[first:last] = True
    # Zeros inside of noise are as unlikely as can be, so this is exactly the noise.
    for start, end in true_runs(samples != 0):
        if end - start > DEFAULT_CRITERIA.min_speech_s * SAMPLE_RATE_HZ + 2 * STEP_SAMPLES:
            # A step with little noise in it is silence, and padding ends where a part does.
            assert covered[start + STEP_SAMPLES : end - STEP_SAMPLES].all()


@given(
    speech_s=st.lists(st.floats(0.3, 2.0), min_size=6, max_size=12),
    silence_s=st.floats(0.3, 1.0),  # as long as power is looked at without a detector
    detector=DETECTORS,
)
def test_cuts_fall_into_silence(
    speech_s: list[float], silence_s: float, detector: SileroDetector | None
) -> None:
    # The last quarter of 10 s is searched: longer than any speech here with a pause around it.
    samples = alternating([stretch for speech in speech_s for stretch in (speech, silence_s)])
    for part in cut(samples, part_s=10.0, detector=detector)[1:]:
        around = samples[part.start_sample - STEP_SAMPLES // 2 :][:STEP_SAMPLES]
        assert not around.any()


def test_without_a_pause_the_cut_is_at_the_least_probable_step() -> None:
    samples = alternating([30.0])
    dip = int(8.7 * SAMPLE_RATE_HZ) // STEP_SAMPLES
    samples[dip * STEP_SAMPLES : (dip + 1) * STEP_SAMPLES] *= np.float32(0.4)
    first, second, *_ = cut(samples, part_s=10.0)
    assert second.start_sample == dip * STEP_SAMPLES
    assert first.speech == ((0, second.start_sample),)
    assert second.speech == ((second.start_sample, second.start_sample + second.samples.size),)


def test_a_word_cut_short_by_the_cut_is_kept() -> None:
    # Speech begins 64 ms before the only place to cut: alone, too short to count.
    samples = alternating([0.0, 7.552, 8.0])
    dip = int(7.616 * SAMPLE_RATE_HZ)
    samples[dip : dip + STEP_SAMPLES] *= np.float32(0.4)
    cutter = PartCutter(part_s=10.0, detector=DETECTOR, criteria=SpeechCriteria(pad_s=0.0))
    parts = [*cutter.feed(samples), *cutter.finish()]
    assert (
        sum(end - start for part in parts for start, end in part.speech or ())
        >= (samples != 0).sum()
    )


@pytest.mark.parametrize("detector", [DETECTOR, None])
def test_a_recording_of_exactly_one_part_is_not_cut(detector: SileroDetector | None) -> None:
    samples = alternating([PART_S])
    for recording, expected in (
        (samples[:0], []),
        (samples, [samples.size]),
        (np.append(samples, np.float32(0.1)), None),
    ):
        parts = cut(recording, detector=detector)
        assert [part.samples.size for part in parts] == expected or len(parts) == 2
        # Without a detector speech is unknown.
        assert all((part.speech is None) == (detector is None) for part in parts)


def test_broken_samples_count_as_zeros() -> None:
    samples = alternating([1.0])
    samples[[5, 50, 500, 5000]] = [np.nan, np.inf, -np.inf, 1e30]
    (part,) = cut(samples)
    kept = samples.copy()
    kept[[5, 50, 500, 5000]] = 0.0
    assert np.array_equal(part.samples, kept)
    assert part.speech == ((0, samples.size),)


def test_samples_are_taken_unasked_and_a_detector_left_in_the_middle_starts_afresh() -> None:
    samples = alternating([8.0, 1.0, 8.0])
    expected = cut(samples)
    DETECTOR.feed(samples[:12_345])
    cutter = PartCutter(part_s=PART_S, detector=DETECTOR, criteria=PADDED)
    cutter.feed(samples[:100_000])
    cutter.feed(samples[100_000:])
    parts = list(cutter.finish())
    assert np.array_equal(np.concatenate([part.samples for part in parts]), samples)
    assert [part.speech for part in parts] == [part.speech for part in expected]


def test_parts_shorter_than_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found part_s 1\.0, expected at least 2\.048"):
        PartCutter(part_s=1.0, detector=None)


@pytest.mark.parametrize("detector", [DETECTOR, None])
def test_memory_is_bounded_by_the_part(detector: SileroDetector | None) -> None:
    cutter = PartCutter(part_s=30.0, detector=detector)
    tracemalloc.start()
    for seed in range(120):  # 10 minutes
        for _ in cutter.feed(alternating([2.0, 1.0, 2.0], seed)):
            pass
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 5 * 30 * SAMPLE_RATE_HZ * 4 + MEBIBYTE


@given(
    scores=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), min_size=1, max_size=60),
    quiet_below=st.sampled_from([0.0, 0.35, 0.95]),
)
def test_the_border_is_inside_the_longest_quiet_run(
    scores: list[float], quiet_below: float
) -> None:
    values = np.array(scores, dtype=np.float32)
    border = quietest_border(values, quiet_below=quiet_below)
    assert 1 <= border <= len(scores)
    runs = true_runs(values < quiet_below)
    if runs:
        longest = max(end - start for start, end in runs)
        assert any(
            start < border <= end and abs(2 * border - start - end) <= 1
            for start, end in runs
            if end - start == longest
        )
    else:
        assert border == 1 or values[border] == values.min()


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
    assert all(right >= left + WINDOW_S for left, right in pairwise(starts))
    for start_s in starts[1:]:
        assert start_s + WINDOW_S <= end_s
    for start_s in starts if speech else starts[1:]:
        assert any(first - LONG_SILENCE_S <= start_s < last for first, last in speech)
