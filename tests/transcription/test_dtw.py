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


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 60), (60, 2), (30, 200)])
def test_long_and_narrow_matrices_have_the_path_of_transformers(shape: tuple[int, int]) -> None:
    assert_same_path(np.random.default_rng(0).normal(size=shape))


def test_costs_that_are_not_numbers_take_the_path_of_transformers() -> None:
    cost = np.random.default_rng(1).normal(size=(6, 9))
    cost[2, 3] = np.nan
    assert_same_path(cost)
    assert_same_path(np.full((3, 4), np.nan))


def test_a_path_laid_out_by_hand_is_found() -> None:
    cost = np.ones((4, 10))
    way = [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (2, 5), (3, 6), (3, 7), (3, 8), (3, 9)]
    for token, position in way:
        cost[token, position] = -1.0
    tokens, positions = dynamic_time_warping(cost)
    assert list(zip(tokens.tolist(), positions.tolist(), strict=True)) == way


@given(TIED | ANY)
def test_paths_go_from_corner_to_corner_in_single_steps(cost: np.ndarray) -> None:
    tokens, positions = dynamic_time_warping(cost)
    assert (tokens[0], positions[0]) == (0, 0)
    assert (tokens[-1], positions[-1]) == (cost.shape[0] - 1, cost.shape[1] - 1)
    steps = set(zip(np.diff(tokens).tolist(), np.diff(positions).tolist(), strict=True))
    assert steps <= {(0, 1), (1, 0), (1, 1)}


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


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_row_too_short_to_reflect_comes_back_as_it_is(length: int) -> None:
    weights = np.random.default_rng(0).normal(size=(2, 3, length)).astype(np.float32)
    np.testing.assert_array_equal(median_filter(weights, 7), weights)
    np.testing.assert_array_equal(_median_filter(torch.from_numpy(weights), 7), weights)


def test_values_that_are_not_numbers_count_as_the_largest() -> None:
    weights = np.random.default_rng(2).normal(size=(1, 1, 12)).astype(np.float32)
    weights[..., 3:5] = np.nan
    wanted = _median_filter(torch.from_numpy(weights), 5).numpy()
    np.testing.assert_array_equal(median_filter(weights, 5), wanted)


@pytest.mark.parametrize("width", [-1, 0, 2, 8])
def test_a_median_needs_an_odd_width(width: int) -> None:
    with pytest.raises(ValueError, match=f"found width {width}, expected an odd one"):
        median_filter(np.zeros((1, 9), dtype=np.float32), width)
