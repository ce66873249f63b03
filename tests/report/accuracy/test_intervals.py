"""Intervals of error rates hold the true rate, know speakers, and are not given for too little."""

from collections.abc import Sequence

import numpy as np
import pytest

from corpus_asr.report.accuracy import intervals
from corpus_asr.report.accuracy.intervals import LEAST_BLOCKS, interval, resampled

CLIPS = 100


def test_intervals_are_as_wide_as_rates_scatter() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(5, 30, size=(200, CLIPS))
    errors = rng.binomial(words, rng.beta(0.6, 3.4, size=words.shape))  # 15 % of words
    rates = errors.sum(axis=1) / words.sum(axis=1)
    found = interval(errors[0].tolist(), words[0].tolist(), [None] * CLIPS)
    assert found
    low, high = found
    assert low < rates[0] < high
    assert (high - low) / 2 == pytest.approx(1.96 * rates.std(), rel=0.25)


def test_recordings_of_a_speaker_are_drawn_together_if_there_are_enough() -> None:
    each = CLIPS // LEAST_BLOCKS
    # Every second speaker is hard to understand.
    errors = [5 * (clip // each % 2) for clip in range(CLIPS)]
    words = [10] * CLIPS

    def width(speakers: Sequence[str | None]) -> float:
        low, high = interval(errors, words, speakers) or (0.0, 0.0)
        return high - low

    alone = width([None] * CLIPS)
    together = width([str(clip // each) for clip in range(CLIPS)])
    few = width(["one"] * CLIPS)
    assert together == pytest.approx(alone * each**0.5, rel=0.2)
    # Of one speaker there is nothing else to draw.
    assert few == alone


def test_too_little_has_no_interval() -> None:
    enough = [1] * LEAST_BLOCKS
    nobody = [None] * LEAST_BLOCKS
    assert interval(enough, [2] * LEAST_BLOCKS, nobody) == (0.5, 0.5)
    assert interval(enough[1:], enough[1:], nobody[1:]) is None
    # Nothing in such a sample says how often errors are.
    assert interval([0] * LEAST_BLOCKS, enough, nobody) is None
    assert interval(enough, [0] * LEAST_BLOCKS, nobody) is None


def test_draws_without_a_word_are_replaced_and_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silence = [0] * 3
    whole = resampled([1, *silence], [2, *silence], [None] * 4)
    assert len(whole) == intervals.NUM_RESAMPLES
    assert set(whole) == {0.5}
    rates = resampled([1, 2, 3], [4, 4, 4], [None] * 3)
    monkeypatch.setattr(intervals, "_MOST_AT_ONCE", 30)
    assert np.array_equal(resampled([1, 2, 3], [4, 4, 4], [None] * 3), rates)
