"""The rules against repetition equal transformers' processors, row by row."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from corpus_asr.decoding.options import (
    apply_after_rules,
    apply_before_rules,
    forbid_repeated_ngrams,
    penalise_repeats,
    run_processors,
    should_stop,
)
from corpus_asr.decoding.protocols import Search

VOCAB = 12

text = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=14)
texts = st.lists(text, min_size=1, max_size=5)


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens with rubbish behind them, and their lengths."""
    matrix = torch.randint(0, VOCAB, (len(rows), 16))
    for row, text in enumerate(rows):
        matrix[row, : len(text)] = torch.tensor(text)
    return matrix, torch.tensor([len(text) for text in rows])


def oracle(processor: Any, rows: list[list[int]], scores: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [
            processor(torch.tensor([text]), scores[row : row + 1].clone())
            for row, text in enumerate(rows)
        ]
    )


@given(rows=texts, penalty=st.floats(0.5, 3.0), seed=st.integers(0, 99))
def test_repeats_are_penalised_as_transformers_does(
    rows: list[list[int]], penalty: float, seed: int
) -> None:
    scores = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed))
    found = penalise_repeats(scores, *padded(rows), torch.full((len(rows),), penalty))
    expected = oracle(RepetitionPenaltyLogitsProcessor(penalty), rows, scores)
    torch.testing.assert_close(found, expected)


@given(rows=texts, size=st.integers(1, 6))
def test_ngrams_are_forbidden_as_transformers_does(rows: list[list[int]], size: int) -> None:
    scores = torch.zeros(len(rows), VOCAB)
    found = forbid_repeated_ngrams(scores, *padded(rows), size)
    assert torch.equal(found, oracle(NoRepeatNGramLogitsProcessor(size), rows, scores))


def test_ngrams_longer_than_any_text_forbid_nothing() -> None:
    scores = torch.zeros(1, VOCAB)
    assert torch.equal(forbid_repeated_ngrams(scores, *padded([[1, 1, 1]]), 17), scores)


def test_each_row_gets_its_own_search_s_rules_in_transformers_order() -> None:
    rows = [[1, 2, 1], [1, 2, 1], [1, 2, 1], [3, 3]]
    scores = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))
    seen: list[Any] = []

    def note(ids: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        seen.append((ids.tolist(), given[0].isneginf().nonzero().flatten().tolist()))
        given[0, 5] = 7.0
        return given

    searches = [
        Search(),
        Search(repetition_penalty=1.5, no_repeat_ngram_size=2, early_processors=(note,)),
        Search(repetition_penalty=2.0),
        Search(no_repeat_ngram_size=1),
    ]
    found = apply_before_rules(scores.clone(), searches, *padded(rows))
    assert torch.equal(found[0], scores[0])
    assert seen == [([rows[1]], [2])]  # the n-gram rule came first
    both = oracle(RepetitionPenaltyLogitsProcessor(1.5), rows, scores)[1]
    both[2], both[5] = float("-inf"), 7.0
    torch.testing.assert_close(found[1], both)
    assert found[3].isneginf().nonzero().flatten().tolist() == [3]
    late = apply_after_rules(scores.clone(), [Search(processors=(note,))] * 4, *padded(rows))
    assert (late[:, 5] == 7.0).all()


def test_a_processor_that_gives_no_scores_is_named() -> None:
    text, scores = torch.tensor([1]), torch.zeros(VOCAB)

    def forgets_to_return(ids: torch.Tensor, given: torch.Tensor) -> Any:
        return None

    with pytest.raises(ValueError, match=r"forgets_to_return: it gave a NoneType"):
        run_processors([forgets_to_return], text, scores)
    with pytest.raises(ValueError, match=r"it gave a tensor of shape \(1, 3\).*\(1, 12\)"):
        run_processors([lambda ids, given: given[:, :3]], text, scores)
    with pytest.raises(ValueError, match="leaves none of 12 tokens"):
        run_processors([lambda ids, given: given - float("inf")], text, scores)


def test_processors_get_copies_and_work_in_turn() -> None:
    scores = torch.zeros(VOCAB)

    def add(ids: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        given += 1
        return given

    def double(ids: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return given.double() * 2

    found = run_processors([add, double], torch.tensor([1]), scores)
    assert found.dtype == torch.float32
    assert (found == 2).all()
    assert (scores == 0).all()


def test_criteria_are_all_asked_and_any_of_them_stops() -> None:
    asked: list[str] = []

    def never(ids: torch.Tensor, scores: Any) -> bool:
        asked.append("never")
        return False

    def at_three(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        asked.append("at three")
        return torch.tensor([ids.shape[1] >= 3])

    assert should_stop([at_three, never], torch.tensor([1, 2, 3]), None)
    assert not should_stop([never, at_three], torch.tensor([1, 2]), None)
    assert asked == ["at three", "never", "never", "at three"]
    with pytest.raises(ValueError, match="tensor of shape \\(2,\\), expected a bool"):
        should_stop([lambda ids, scores: torch.tensor([True, False])], torch.tensor([1]), None)
