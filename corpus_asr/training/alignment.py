"""Where in the sound each letter is heard, by a network that was trained with CTC.

In: scores of letters by position, and the letters that are said. Out: a position for each letter.
Knows no network and no tokens.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

Positions = Int64[np.ndarray, " letter"]


def letter_positions(
    scores: Float32[np.ndarray, "pos passage symbol"],
    lengths: Sequence[int],
    spoken: Sequence[Sequence[int]],
    *,
    blank: int,
) -> list[Positions | None]:
    """Align passages that are said with what is heard, all side by side.

    Args:
        scores: logarithms of probabilities; those of shorter passages end with anything.
        lengths: positions of each passage.
        spoken: the symbols of each, at least one.
        blank: the symbol between letters.

    Returns:
        The first position of each letter on the likeliest path (Graves et al. 2006, figure 3), from
        0; None for a passage that is too short for its letters.
    """
    states, present = _states(spoken, blank)
    path, reached = _best_path(scores, np.asarray(lengths), states, present, blank)
    found: list[Positions | None] = []
    for row, symbols in enumerate(spoken):
        if not reached[row]:
            found.append(None)
            continue
        # States only grow, so the first position that is not before a letter's state is its own.
        letters = 2 * np.arange(len(symbols)) + 1
        found.append(np.searchsorted(path[: lengths[row], row], letters))
    return found


def _states(
    spoken: Sequence[Sequence[int]], blank: int
) -> tuple[Int64[np.ndarray, "passage state"], Int64[np.ndarray, " passage"]]:
    """Return the letters with blanks around each, filled up with blanks; and how many states."""
    count = np.array([2 * len(symbols) + 1 for symbols in spoken])
    states = np.full((len(spoken), int(count.max())), blank, np.int64)
    for row, symbols in enumerate(spoken):
        states[row, 1 : count[row] : 2] = symbols
    return states, count


def _best_path(
    scores: Float32[np.ndarray, "pos passage symbol"],
    lengths: Int64[np.ndarray, " passage"],
    states: Int64[np.ndarray, "passage state"],
    count: Int64[np.ndarray, " passage"],
    blank: int,
) -> tuple[Int64[np.ndarray, "pos passage"], np.ndarray]:
    """Return the state at each position, and for which passages there is a path at all."""
    rows = np.arange(len(states))
    said = scores[:, rows[:, None], states]  # (pos, passage, state)
    # From letter to letter without a blank between, unless it is the same twice.
    skips = np.full(states.shape, -np.inf, np.float32)
    skips[:, 2:][(states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])] = 0.0
    # Two states before the first one, in which nothing ever is.
    reached = np.full((len(states), states.shape[1] + 2), -np.inf, np.float32)
    best, one_before, two_before = reached[:, 2:], reached[:, 1:-1], reached[:, :-2]
    best[:, :2] = said[0, :, :2]
    moved, skipped = np.zeros((2, *said.shape), np.bool_)
    going = np.arange(len(said))[:, None] < lengths
    for at in range(1, len(said)):
        skipping = two_before + skips
        np.greater(one_before, best, out=moved[at])
        likeliest = np.maximum(one_before, best)
        np.greater(skipping, likeliest, out=skipped[at])
        np.maximum(likeliest, skipping, out=likeliest)
        likeliest += said[at]
        np.copyto(best, likeliest, where=going[at, :, None])
    came = np.where(skipped, np.int8(2), moved) * going[..., None]
    last, before = best[rows, count - 1], best[rows, count - 2]
    path = np.empty(said.shape[:2], np.int64)
    path[-1] = np.where(last >= before, count - 1, count - 2)
    for at in range(len(said) - 1, 0, -1):
        path[at - 1] = path[at] - came[at, rows, path[at]]
    return path, np.isfinite(np.maximum(last, before))
