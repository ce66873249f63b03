import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.transcription.confidence import OFFSET, SLOPE, confidence

LOGPROBS = st.lists(st.floats(-1e6, 0.0) | st.just(-math.inf), min_size=1, max_size=9)


@given(LOGPROBS)
def test_it_is_a_share_and_never_more_than_was_ever_measured(logprobs: list[float]) -> None:
    assert 0.0 <= confidence(logprobs) <= 0.9


def test_it_is_nothing_without_text() -> None:
    assert confidence([]) == 0.0


def test_surer_tokens_make_a_surer_segment() -> None:
    means = [-math.inf, -1e6, -200.0, -3.0, -1.0, -0.5, -0.25, -0.01, 0.0]
    found = [confidence([mean]) for mean in means]
    assert all(less <= more for less, more in pairwise(found))
    assert found[0] == 0.0
    assert found[-1] == pytest.approx(0.898, abs=1e-3)


def test_the_curve_is_logistic_in_the_mean_of_all_tokens() -> None:
    found = confidence([-0.2, -0.4, -0.6])
    assert math.log(found / (1 - found)) == pytest.approx(OFFSET + SLOPE * -0.4)
    assert found == pytest.approx(confidence([-0.4]))


def test_half_the_words_are_expected_right_at_a_mean_probability_of_a_half() -> None:
    assert confidence([math.log(0.51)]) == pytest.approx(0.5, abs=0.01)
