"""Texts are split at added tokens; unknown options of SentencePiece are one clear error."""

from typing import Any

import pytest
from tokenizers import AddedToken

from corpus_asr.families.speech2text.vocabulary import (
    AddedTokens,
    SentencePieces,
    described_token,
)
from tests.support.tokenizers import trained_model


def tokens(*described: AddedToken) -> AddedTokens:
    found = AddedTokens()
    for token_id, token in enumerate(described, start=10):
        found.put(token_id, token)
    return found


def test_the_first_and_of_those_the_longest_token_is_found() -> None:
    found = tokens(AddedToken("<a"), AddedToken("<a>"), AddedToken("a>b"))
    assert found.split("x<a>b") == ["x", "<a>", "b"]
    assert found.split("<a<a>") == ["<a", "<a>"]
    assert found.split("") == []
    assert AddedTokens().split("(?!)") == ["(?!)"]


def test_blanks_beside_a_token_are_swallowed_where_it_says_so() -> None:
    assert tokens(AddedToken("#", lstrip=True)).split("a # b") == ["a", "#", " b"]
    assert tokens(AddedToken("#", rstrip=True)).split("a # b") == ["a ", "#", "b"]
    assert tokens(AddedToken("#", single_word=True)).split("a# # #b") == ["a#", " ", "#", " ", "#b"]


def test_an_id_has_one_token() -> None:
    added = tokens(AddedToken("<a>"))
    added.put(10, AddedToken("<b>"))
    assert added.ids == {"<b>": 10}


def test_a_file_that_describes_no_token_is_refused() -> None:
    for entry in (None, 5, {}, {"content": 5}, ["<a>"]):
        with pytest.raises(ValueError, match="expected its text, or an object with 'content'"):
            described_token(entry)


def test_options_that_are_none_are_a_type_error() -> None:
    options: tuple[dict[str, Any], ...] = (
        {"foo": 1}, {"alpha": "much"}, {"model_file": "x"}, {"nbest_size": 1.5}
    )  # fmt: skip
    for each in options:
        with pytest.raises(TypeError, match="correct sp_model_kwargs"):
            SentencePieces(trained_model(), each)
