"""Letters are found where the likeliest of all paths has them."""

from itertools import product

import numpy as np
import pytest

from corpus_asr.training.alignment import letter_positions

BLANK = 3


def collapsed(path: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return what a path says, and where each letter begins."""
    starts = [
        at for at, one in enumerate(path) if one != BLANK and (at == 0 or path[at - 1] != one)
    ]
    return [path[at] for at in starts], starts


def brute(scores: np.ndarray, spoken: list[int]) -> list[int] | None:
    """Try every path."""
    best, found = -np.inf, None
    for path in product(range(BLANK + 1), repeat=len(scores)):
        said, starts = collapsed(path)
        total = sum(float(scores[at, one]) for at, one in enumerate(path))
        if said == spoken and total > best:
            best, found = total, starts
    return found


@pytest.mark.parametrize("seed", range(8))
def test_every_passage_has_its_likeliest_path_whoever_is_beside_it(seed: int) -> None:
    draw = np.random.default_rng(seed)
    spoken = [[0], [1, 1], [0, 1, 2], [2, 0, 0], [1, 2]]
    lengths = [6, 4, 6, 5, 3]
    scores = draw.normal(size=(6, len(spoken), BLANK + 1)).astype(np.float32)
    found = letter_positions(scores, lengths, spoken, blank=BLANK)
    for row, (length, said) in enumerate(zip(lengths, spoken, strict=True)):
        positions = found[row]
        assert positions is not None
        assert positions.tolist() == brute(scores[:length, row], said)


def test_a_passage_too_short_for_its_letters_has_none() -> None:
    scores = np.zeros((4, 3, BLANK + 1), np.float32)
    found = letter_positions(scores, [2, 2, 1], [[0, 0], [0, 1], [2]], blank=BLANK)
    assert found[0] is None  # the same letter twice needs a blank between
    assert [None if one is None else one.tolist() for one in found[1:]] == [[0, 1], [0]]


def test_letters_stay_where_they_are_heard() -> None:
    scores = np.full((50, 1, BLANK + 1), -5.0, np.float32)
    scores[:, 0, BLANK] = 0.0
    for at, letter in ((7, 2), (20, 0), (33, 0)):
        scores[at, 0, letter] = 5.0
    [found] = letter_positions(scores, [50], [[2, 0, 0]], blank=BLANK)
    assert found is not None
    assert found.tolist() == [7, 20, 33]
