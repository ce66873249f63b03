"""The path and the filter, beside the cell-by-cell ones of transformers and SciPy's filter."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from corpus_asr.transcription.words import dynamic_time_warping, median_filter

SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=9)
# Few values, so that many ways cost the same.
TIED = arrays(np.float64, SHAPES, elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
ANY = arrays(np.float64, SHAPES, elements=st.floats(-1e3, 1e3))


def assert_same_path(cost: np.ndarray) -> None:
    for found, wanted in zip(dynamic_time_warping(cost), _dynamic_time_warping(cost), strict=True):
        np.testing.assert_array_equal(found, wanted)


@given(TIED | ANY)
def test_the_path_is_that_of_transformers(cost: np.ndarray) -> None:
    assert_same_path(cost)


def test_long_and_narrow_matrices_and_no_numbers_have_the_path_of_transformers() -> None:
    for shape in [(1, 1), (1, 40), (40, 1), (2, 60), (60, 2), (30, 200)]:
        assert_same_path(np.random.default_rng(0).normal(size=shape))
    cost = np.random.default_rng(1).normal(size=(6, 9))
    cost[2, 3] = np.nan
    assert_same_path(cost)
    assert_same_path(np.full((3, 4), np.nan))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_matrix_has_no_path(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"found a matrix of shape \(\d, \d\), expected at least"):
        dynamic_time_warping(np.zeros(shape))


@pytest.mark.parametrize("width", [1, 3, 7, 13])
@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 3, 17), (2, 1, 300, 301)])
def test_the_median_is_that_of_scipy_and_transformers(shape: tuple[int, ...], width: int) -> None:
    weights = np.random.default_rng(width).normal(size=shape).astype(np.float32)
    before = weights.copy()
    found = median_filter(weights, width)
    window = (1,) * (len(shape) - 1) + (width,)
    np.testing.assert_array_equal(
        found, scipy.ndimage.median_filter(weights, window, mode="mirror")
    )
    np.testing.assert_array_equal(weights, before)
    if len(shape) >= 3:
        wanted = _median_filter(torch.from_numpy(weights), width)
        np.testing.assert_array_equal(found, wanted.numpy())


def test_rows_too_short_to_reflect_and_no_numbers_are_filtered_as_transformers_does() -> None:
    # A short row comes back as it is; what is no number counts as the largest.
    for length, width in ((1, 7), (2, 7), (3, 7), (12, 5)):
        weights = np.random.default_rng(length).normal(size=(1, 3, length)).astype(np.float32)
        weights[..., 3:5] = np.nan
        wanted = _median_filter(torch.from_numpy(weights), width).numpy()
        np.testing.assert_array_equal(median_filter(weights, width), wanted)


@pytest.mark.parametrize("width", [-1, 0, 2, 8])
def test_a_median_needs_an_odd_width(width: int) -> None:
    with pytest.raises(ValueError, match=f"found width {width}, expected an odd one"):
        median_filter(np.zeros((1, 9), dtype=np.float32), width)
