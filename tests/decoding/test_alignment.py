"""What a GPU aligns side by side is what NumPy aligns one by one."""

import numpy as np
import pytest
import torch

from corpus_asr.decoding import alignment
from corpus_asr.decoding.protocols import TokenTiming

HEADS = 3


def attention(rng: np.random.Generator, tokens: int, positions: int) -> np.ndarray:
    """Weights that follow the text through the window, with some noise."""
    places = np.sort(rng.uniform(0, positions, tokens))
    distance = np.arange(positions) - places[:, None]
    scores = -np.square(distance / 6) + rng.normal(0, 1, (HEADS, tokens, positions))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def side_by_side(windows: list[np.ndarray], timings: list[TokenTiming]) -> list[tuple[int, ...]]:
    longest = max(window.shape[1] for window in windows)
    padded = torch.full((len(windows), HEADS, longest, windows[0].shape[2]), torch.nan)
    for row, window in enumerate(windows):
        padded[row, :, : window.shape[1]] = torch.from_numpy(window)
    steps = alignment._steps_on_device(padded, [w.shape[1] for w in windows], timings)
    return [
        tuple(alignment._begins_in(own.numpy(), count=timing.count, end=timing.positions))
        for own, timing in zip(steps, timings, strict=True)
    ]


@pytest.mark.parametrize("width", [1, 3, 7])
def test_tokens_begin_where_they_do_alone(width: int) -> None:
    rng = np.random.default_rng(width)
    for _ in range(4):
        # Two of hardly any audio, where there is nothing to reflect.
        positions = [*rng.integers(4, 90, 5).tolist(), 1, 3]
        windows, timings = [], []
        for end in positions:
            tokens = int(rng.integers(4, 30))
            first = int(rng.integers(0, 3))
            windows.append(attention(rng, tokens, 90))
            timings.append(
                TokenTiming(first=first, count=tokens - first, positions=end, filter_width=width)
            )
        expected = [
            alignment.token_begins(window, timing)
            for window, timing in zip(windows, timings, strict=True)
        ]
        assert side_by_side(windows, timings) == expected
        assert all(begins == tuple(sorted(begins)) for begins in expected)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_where_all_ways_cost_the_same_it_is_the_one_along_the_positions(value: float) -> None:
    window = np.full((HEADS, 6, 20), value, dtype=np.float32)
    timing = TokenTiming(first=1, count=4, positions=17, filter_width=3)
    expected = alignment.token_begins(window, timing)
    assert side_by_side([window, window], [timing, timing]) == [expected] * 2


def test_steps_are_those_of_the_path() -> None:
    rng = np.random.default_rng(0)
    # Few values, so that many ways cost the same.
    for shape in ((1, 1), (1, 9), (9, 1), (5, 17), (17, 5)):
        cost = rng.choice(np.array([-1.0, 0.0, 0.5, 2.0], dtype=np.float32), shape)
        (found,) = alignment._warp_on_device(torch.from_numpy(cost).unsqueeze(0))
        assert np.array_equal(found.numpy(), alignment._last_steps(cost))
