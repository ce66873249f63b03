"""The cheapest way through a matrix of costs, and the filter that smooths such a matrix.

In: arrays of numbers. Out: arrays of numbers. Knows neither attention nor words nor seconds.
"""

import numpy as np
from jaxtyping import Float, Int

# Steps of a path, as the trace keeps them.
_BOTH, _TEXT, _TIME = 0, 1, 2

# Values filtered at once: their working copies stay within a core's cache.
_BLOCK = 1 << 16


def median_filter(
    weights: Float[np.ndarray, "*rows pos"], width: int
) -> Float[np.ndarray, "*rows pos"]:
    """Replace every value by the median of the `width` values around it along the last axis.

    The ends are reflected, without their outermost value. A last axis too short to reflect (at
    most half the width) comes back as it is. NaN counts as larger than any number.

    Raises:
        ValueError: `width` is not an odd positive number.

    Source: openai-whisper `timing.py`, `median_filter`.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"filtering weights by a median: found width {width}, expected an odd one")
    half = width // 2
    length = weights.shape[-1]
    if length <= half or half == 0:
        return weights
    rows = weights.reshape(-1, length)
    filtered = np.empty_like(rows)
    per_block = max(1, _BLOCK // length)
    for first in range(0, len(rows), per_block):
        block = np.pad(rows[first : first + per_block], ((0, 0), (half, half)), mode="reflect")
        filtered[first : first + per_block] = _medians(block, width, length)
    return filtered.reshape(weights.shape)


def _medians(padded: Float[np.ndarray, "row _"], width: int, length: int) -> np.ndarray:
    """Take the median of `width` neighbours by selection: few passes, each over whole rows.

    Sorting every window of 7 takes five times as long.
    """
    neighbours = [padded[:, at : at + length].copy() for at in range(width)]
    for rank in range(width // 2 + 1):
        smallest = neighbours[rank]
        for other in neighbours[rank + 1 :]:
            larger = np.maximum(smallest, other)
            np.fmin(smallest, other, out=smallest)
            other[...] = larger
    return neighbours[width // 2]


def dynamic_time_warping(
    cost: Float[np.ndarray, "token pos"],
) -> tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]:
    """Find the cheapest way from the first to the last corner, moving on by one in either or both.

    Where ways cost the same, the one that moves along `pos` is taken. Sums are kept in float32,
    as in the references, so that the path is theirs even where the sums are close.

    Args:
        cost: of token and position belonging together; neither axis is empty.

    Returns:
        The token indices and the position indices along the way, both from 0.

    Raises:
        ValueError: the matrix is empty.

    Source: Sakoe and Chiba 1978; equal to `_dynamic_time_warping` in transformers'
    generation_whisper.py and `dtw_cpu` in openai-whisper's timing.py, which go cell by cell.
    Here a whole anti-diagonal is done at a time: its cells do not depend on one another.
    """
    if cost.size == 0:
        raise ValueError(
            f"aligning tokens and positions: found a matrix of shape {cost.shape}, expected at "
            "least one of each"
        )
    return _backtrace(_trace(np.ascontiguousarray(cost, dtype=np.float64)))


def _trace(cost: Float[np.ndarray, "token pos"]) -> Int[np.ndarray, "_ _"]:
    """Tell for every cell (1-based) by which step the cheapest way reaches it."""
    tokens, positions = cost.shape
    trace = np.full((tokens + 1, positions + 1), _TIME, dtype=np.int8)
    trace[1:, 0] = _TEXT
    costs, steps = cost.reshape(-1), trace.reshape(-1)
    # Sums along the last two anti-diagonals and this one, by token; outside the matrix infinite.
    before, last, now = (np.full(tokens + 1, np.inf, dtype=np.float32) for _ in range(3))
    before[0] = 0.0
    for diagonal in range(2, tokens + positions + 1):  # token + position, both from 1
        low, high = max(1, diagonal - positions), min(tokens, diagonal - 1)
        both, text, time = before[low - 1 : high], last[low - 1 : high], last[low : high + 1]
        by_both = (both < text) & (both < time)
        by_text = (text < both) & (text < time)
        best = np.where(by_both, both, np.where(by_text, text, time))
        first = (low - 1) * positions + diagonal - low - 1
        here = costs[first :: max(1, positions - 1)][: high - low + 1]
        now[low : high + 1] = here + best
        cells = steps[low * positions + diagonal :: positions][: high - low + 1]
        cells[by_both] = _BOTH
        cells[by_text] = _TEXT
        before, last, now = last, now, before
        now[0] = np.inf
    return trace


def _backtrace(trace: Int[np.ndarray, "_ _"]) -> tuple[np.ndarray, np.ndarray]:
    """Walk back from the last cell to the first."""
    steps = trace.tolist()
    token, position = len(steps) - 1, len(steps[0]) - 1
    tokens, positions = [], []
    while token > 0 or position > 0:
        tokens.append(token - 1)
        positions.append(position - 1)
        step = steps[token][position]
        token -= step != _TIME
        position -= step != _TEXT
    return np.array(tokens[::-1]), np.array(positions[::-1])
