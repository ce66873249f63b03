"""Greedy search of transducers against transformers' `generate`, and by itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.decoding import transducer
from corpus_asr.decoding.transducer import GreedySearch, State
from tests.support.parakeet import BLANK, Pair, features, parakeet_pair

KINDS = ("RNNT", "TDT")
LENGTHS = (400, 170, 250, 17, 8, 1)
SEEDS = (0, 2, 3)  # that say tokens and blanks


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Pair]:
    return {
        (kind, seed): parakeet_pair(kind, tmp_path_factory.mktemp(f"{kind}{seed}"), seed=seed)
        for kind in KINDS
        for seed in SEEDS
    }


@pytest.fixture(params=[(kind, seed) for kind in KINDS for seed in SEEDS])
def pair(request: pytest.FixtureRequest, pairs: dict[tuple[str, int], Pair]) -> Pair:
    return pairs[request.param]


def own_steps(output: Any, lengths: Tensor) -> list[list[tuple[int, int]]]:
    """Return each row's tokens and durations up to its end: later ones are of no meaning."""
    begins = output.durations.cumsum(dim=1) - output.durations
    return [
        [
            (token, duration)
            for token, duration, begin in zip(*columns, strict=True)
            if begin < length
        ]
        for *columns, length in zip(
            output.sequences.tolist(),
            output.durations.tolist(),
            begins.tolist(),
            lengths.tolist(),
            strict=True,
        )
    ]


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_steps_are_those_of_transformers(pair: Pair) -> None:
    values, mask = features(*LENGTHS, seed=1)
    theirs = pair.theirs.generate(values, attention_mask=mask)
    with torch.inference_mode():
        states, lengths = pair.ours.encoder.encode(values, num_frames=list(LENGTHS))
        steps = GreedySearch(pair.ours)(pair.ours.encoder_projector(states), lengths)
    # transformers' begin with the blank that is read first.
    found = [
        [(BLANK, 0), *zip(tokens[:count], durations[:count], strict=True)]
        for tokens, durations, count in zip(
            steps.tokens.tolist(), steps.durations.tolist(), steps.counts.tolist(), strict=True
        )
    ]
    assert found == own_steps(theirs, lengths)
    tokens = [token for row in found for token, _ in row]
    assert 5 < sum(token != BLANK for token in tokens) < len(tokens) - 2


def test_a_row_does_not_depend_on_the_others(pair: Pair) -> None:
    values, _ = features(*LENGTHS, seed=2)
    together = pair.ours.transcribe(values, num_frames=list(LENGTHS)).rows()
    for row, length in enumerate(LENGTHS):
        (alone,) = pair.ours.transcribe(values[row : row + 1, :length], num_frames=[length]).rows()
        names = ("tokens", "frames", "durations")
        assert all(getattr(alone, name) == getattr(together[row], name) for name in names)
        torch.testing.assert_close(
            torch.tensor(alone.logprobs), torch.tensor(together[row].logprobs), rtol=1e-4, atol=1e-4
        )


def test_rounds_of_any_size_give_the_same(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    values, _ = features(*LENGTHS, seed=3)
    found = []
    for ahead in (1, 2, 4, 32):
        monkeypatch.setattr(transducer, "_AHEAD_IN_FLOAT32_ON_CPU", ahead)
        found.append(pair.ours.transcribe(values, num_frames=list(LENGTHS)).rows())
    for others in found[1:]:
        for row, other in zip(found[0], others, strict=True):
            for name in ("tokens", "frames", "durations"):
                assert getattr(row, name) == getattr(other, name)
            assert row.logprobs == pytest.approx(other.logprobs, abs=1e-4)


class Scripted:
    """Says fixed tokens at fixed positions, whatever it said before."""

    blank, vocab_size = 0, 3

    def __init__(self, durations: tuple[int, ...], max_symbols: int) -> None:
        self.durations, self.max_symbols = durations, max_symbols

    def predict(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        count = torch.zeros(1, len(tokens), 1) if state is None else state[0] + 1
        return torch.zeros(len(tokens), 1), (count,)

    def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        return encoded + predicted


def test_tokens_at_one_position_are_bounded_and_times_are_positions() -> None:
    # Columns are scores of blank, two tokens, and durations of 0 and 2.
    stays, moves, blank = [0, 1, 0, 1, 0], [0, 0, 1, 0, 1], [1, 0, 0, 1, 0]
    encoded = torch.tensor([[stays, blank, moves, blank, moves]]).float()
    steps = GreedySearch(Scripted((0, 2), 3))(encoded, torch.tensor([5]))
    (row,) = steps.emissions(blank=0).rows()
    # Three times at 0, the last of which moves on; a blank that would stay moves on by one.
    assert row.tokens == (1, 1, 1, 2, 2)
    assert row.frames == (0, 0, 0, 2, 4)
    assert row.durations == (0, 0, 1, 2, 2)
    assert steps.counts.tolist() == [6]


def test_log_probabilities_are_of_tokens_alone() -> None:
    encoded = torch.tensor([[[0.0, 2.0, 0.0, 9.0, 0.0]]])
    steps = GreedySearch(Scripted((0, 2), 1))(encoded, torch.tensor([1]))
    (row,) = steps.emissions(blank=0).rows()
    expected = encoded[0, 0, :3].log_softmax(dim=0)[1]
    assert row.logprobs == pytest.approx([float(expected)], abs=1e-6)


def test_rows_without_positions_say_nothing() -> None:
    encoded = torch.rand(2, 4, 3)
    steps = GreedySearch(Scripted((), 2))(encoded, torch.tensor([0, 0]))
    rows = steps.emissions(blank=0).rows()
    assert [row.tokens for row in rows] == [(), ()]
