"""CTC collapse against a loop, and alignments against all ways to say a text and CTC's loss."""

from collections.abc import Sequence
from itertools import groupby, product

import numpy as np
import pytest
import torch

from corpus_asr.decoding.emissions import WILDCARD, EmittedRow, align_tokens, collapse
from corpus_asr.errors import AlignmentError, ItemError

BLANK = 3


def test_runs_are_joined_and_blanks_left_out_of_each_row() -> None:
    logits = torch.randn(40, 23, 4, generator=torch.Generator().manual_seed(0)) * 3
    lengths = torch.arange(40) % 24
    found = collapse(logits, lengths, blank=BLANK).rows()
    logprobs = logits.log_softmax(dim=2)
    for row, length in enumerate(lengths.tolist()):
        runs: list[list[int]] = []
        best = logits[row, :length].argmax(dim=1).tolist()
        for pos, token in enumerate(best):
            if pos and best[pos - 1] == token:
                runs[-1].append(pos)
            else:
                runs.append([pos])
        runs = [run for run in runs if best[run[0]] != BLANK]
        assert found[row].tokens == tuple(best[run[0]] for run in runs)
        assert found[row].frames == tuple(run[0] for run in runs)
        assert found[row].durations == tuple(len(run) for run in runs)
        means = [float(logprobs[row, run, best[run[0]]].mean()) for run in runs]
        torch.testing.assert_close(torch.tensor(found[row].logprobs), torch.tensor(means))


def test_rows_of_nothing_but_blanks_are_empty() -> None:
    logits = torch.zeros(2, 5, 4)
    logits[..., BLANK] = 1.0
    rows = collapse(logits, torch.tensor([5, 0]), blank=BLANK).rows()
    assert [row.tokens for row in rows] == [(), ()]


def scores_of(positions: int, vocab: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, vocab, generator=generator).mul(2).log_softmax(1).numpy()


def with_wildcard(logprobs: np.ndarray, blank: int) -> np.ndarray:
    """Append the wildcard's scores, which its id then names."""
    best = np.delete(logprobs, blank, axis=1).max(axis=1, keepdims=True)
    return np.concatenate([logprobs, best], axis=1)


def way_of(row: EmittedRow, positions: int, blank: int) -> list[int]:
    way = [blank] * positions
    for token, first, lasts in zip(row.tokens, row.frames, row.durations, strict=True):
        assert lasts > 0
        assert way[first : first + lasts] == [blank] * lasts
        way[first : first + lasts] = [token] * lasts
    return way


def said_by(way: Sequence[int], blank: int) -> list[int]:
    return [token for token, _ in groupby(way) if token != blank]


@pytest.mark.parametrize("blank", [0, 1, 2])
@pytest.mark.parametrize("positions", [1, 2, 5, 6])
def test_no_way_to_say_a_text_is_likelier(positions: int, blank: int) -> None:
    symbols = [0, 1, 2, WILDCARD]
    spoken = [symbol for symbol in symbols if symbol != blank]
    for seed in range(3):
        logprobs = scores_of(positions, 3, seed)
        scores = with_wildcard(logprobs, blank)
        best: dict[tuple[int, ...], float] = {}
        for way in product(symbols, repeat=positions):
            text = tuple(said_by(way, blank))
            score = float(scores[np.arange(positions), list(way)].sum())
            best[text] = max(score, best.get(text, -np.inf))
        for text in (text for count in range(4) for text in product(spoken, repeat=count)):
            if text not in best:
                with pytest.raises(AlignmentError, match=f"found {positions} positions of audio"):
                    align_tokens(logprobs, text, blank=blank)
                continue
            row = align_tokens(logprobs, text, blank=blank)
            found = way_of(row, positions, blank)
            assert row.tokens == text
            assert said_by(found, blank) == list(text)
            assert scores[np.arange(positions), found].sum() == pytest.approx(best[text], abs=1e-5)
            for token, first, lasts, logprob in zip(
                row.tokens, row.frames, row.durations, row.logprobs, strict=True
            ):
                own = scores[first : first + lasts, token]
                assert logprob == pytest.approx(float(own.mean()), abs=1e-6)


@pytest.mark.parametrize(("positions", "count"), [(400, 30), (401, 200), (97, 60), (50, 50)])
def test_a_long_way_is_that_of_the_loss(positions: int, count: int) -> None:
    # Where scores are multiplied, the sum over all ways becomes that of the likeliest.
    scale = 1e5
    logprobs = scores_of(positions, 20, seed=count)
    # Odd and even ones take turns, so that any fifty fit fifty positions; the others may repeat.
    text = np.random.default_rng(count).integers(1, 20, count)
    if count == positions:
        text = text // 2 * 2 + np.arange(count) % 2
        text[text == 0] = 2
        text[text == 20] = 18
    row = align_tokens(logprobs, text.tolist(), blank=0)
    way = way_of(row, positions, 0)
    assert said_by(way, 0) == text.tolist()
    loss = torch.nn.functional.ctc_loss(
        torch.from_numpy(logprobs).double()[:, None] * scale,
        torch.from_numpy(text)[None],
        torch.tensor([positions]),
        torch.tensor([count]),
        reduction="sum",
    )
    found = logprobs[np.arange(positions), way].astype(np.float64).sum()
    assert found == pytest.approx(-float(loss) / scale, abs=0.01)


def test_scores_that_are_not_numbers_are_refused() -> None:
    for value, column in ((np.nan, 0), (np.nan, 1), (np.inf, 2)):
        logprobs = scores_of(6, 3, seed=0)
        logprobs[4, column] = value
        with pytest.raises(ItemError, match="scores that are not numbers"):
            align_tokens(logprobs, [1], blank=0)


def test_a_text_without_any_probability_is_refused() -> None:
    logprobs = scores_of(6, 3, seed=0)
    logprobs[:, 2] = -np.inf
    with pytest.raises(AlignmentError, match="no path with a probability"):
        align_tokens(logprobs, [1, 2], blank=0)
    assert align_tokens(logprobs, [1, WILDCARD], blank=0).tokens == (1, WILDCARD)


@pytest.mark.parametrize("token", [0, 3, -2])
def test_tokens_that_cannot_be_said_are_refused(token: int) -> None:
    with pytest.raises(ValueError, match=f"found token {token}, expected ids from 0 to 2"):
        align_tokens(scores_of(6, 3, seed=0), [1, token], blank=0)
