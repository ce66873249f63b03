"""What was heard lately comes back by seed, in batches of about the same length."""

import numpy as np
import torch

from corpus_asr.training.memory import Heard, HeardBatch, Memory, stretch


def heard(length: int, tokens: int = 3) -> Heard:
    return Heard(
        states=torch.full((length, 4), float(length), dtype=torch.float16),
        inputs=torch.arange(1, tokens + 1),
        labels=torch.arange(2, tokens + 2),
        places=torch.zeros(tokens, 2, dtype=torch.int64),
    )


def filled(windows: int = 50) -> Memory:
    memory = Memory(windows)
    for length in range(10, 110):
        memory.add([heard(length), heard(length + 200)])
    return memory


def lengths(found: list[Heard]) -> list[int]:
    return [len(one.states) for one in found]


def test_what_was_heard_first_is_forgotten() -> None:
    memory = filled(windows=2)
    seen = {n for seed in range(20) for n in lengths(memory.draw(900, np.random.default_rng(seed)))}
    assert seen == {108, 109, 308, 309}


def test_batches_are_full_and_of_about_the_same_length() -> None:
    memory = filled()
    for seed in range(50):
        found = lengths(memory.draw(2_000, np.random.default_rng(seed)))
        assert max(found) * len(found) <= 2_000
        assert max(found) * (len(found) + 1) > 2_000 * 0.8
        assert max(found) - min(found) <= 25
        assert len(set(found)) == len(found)  # none twice


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    once, again, other = (
        lengths(filled().draw(2_000, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert once == again != other


def test_one_that_is_longer_than_a_batch_comes_alone() -> None:
    memory = Memory(3)
    assert memory.draw(100, np.random.default_rng(0)) == []
    memory.add([heard(400)])
    assert lengths(memory.draw(100, np.random.default_rng(0))) == [400]


def test_rows_are_filled_up_with_what_is_not_learnt() -> None:
    batch = HeardBatch.joined([heard(5, tokens=2), heard(7, tokens=4)])
    assert batch.states.shape == (2, 7, 4)
    assert batch.states.dtype == torch.float32
    assert batch.states[0, :, 0].tolist() == [5.0] * 5 + [0.0] * 2
    assert batch.inputs.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch.labels.tolist() == [[2, 3, -100, -100], [2, 3, 4, 5]]
    assert batch.places[0].tolist() == [[0, 0], [0, 0], [-1, -1], [-1, -1]]


def test_a_stretch_does_not_hold_its_window() -> None:
    window = torch.zeros(1500, 8, dtype=torch.float16)
    kept = stretch(window, 3, 10)
    assert kept.untyped_storage().nbytes() == 7 * 8 * 2
    window.fill_(1.0)
    assert not kept.any()
