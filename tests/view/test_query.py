"""What is typed: words, phrases, what is excluded; and where they lie in a text."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.errors import ConfigError
from corpus_asr.view.folding import folded
from corpus_asr.view.query import MAX_QUERY_CHARS, Query, parse_query


def matches(query: Query, *texts: str) -> list[bool]:
    lines = pa.array([f" {folded(text)} " for text in texts])
    return [bool(found) for found in query.matches(lines)]


@pytest.mark.parametrize(
    ("typed", "wanted", "excluded"),
    [
        ("Été déjà", ("ete", "deja"), ()),
        ('"fellow, Americans" ask', ("fellow americans", "ask"), ()),
        ('peace -war -"cold war"', ("peace",), ("war", "cold war")),
        ("well-known", ("well known",), ()),
        ('"not closed', ("not closed",), ()),
        ("", (), ()),
    ],
)
def test_a_line_is_read_as_people_mean_it(
    typed: str, wanted: tuple[str, ...], excluded: tuple[str, ...]
) -> None:
    query = parse_query(typed)
    assert (query.wanted, query.excluded) == (wanted, excluded)


def test_words_are_found_anywhere_and_phrases_together() -> None:
    texts = ("Ask not what", "what not to ask", "Masked, knot!")
    assert matches(parse_query("ask not"), *texts) == [True, True, True]
    assert matches(parse_query('"ask not"'), *texts) == [True, False, False]
    assert matches(parse_query("ask not", whole_words=True), *texts) == [True, True, False]
    assert matches(parse_query("not -what"), *texts) == [False, False, True]


def test_what_has_no_letters_or_too_many_is_refused() -> None:
    for typed in ("?!", '""'):
        with pytest.raises(ConfigError, match="no letter or figure"):
            parse_query(typed)
    with pytest.raises(ConfigError, match="search for fewer words"):
        parse_query("a" * (MAX_QUERY_CHARS + 1))


@pytest.mark.parametrize(
    ("typed", "whole", "text", "expected"),
    [
        ("fellow", False, "My Fellow, Americans", "My [Fellow], Americans"),
        ('"fellow americans"', False, "My Fellow, Americans!", "My [Fellow, Americans]!"),
        ("ete", False, "étés e\u0301te\u0301.", "[été]s [e\u0301te\u0301]."),
        ("ete", True, "étés été", "étés [été]"),
        ("str", False, "Straße", "[Str]aße"),
        ("가", False, "가 나", "[가] 나"),
    ],
)
def test_what_was_searched_for_is_marked_in_the_text_itself(
    typed: str, whole: bool, text: str, expected: str
) -> None:
    pieces = parse_query(typed, whole_words=whole).pieces(text)
    assert "".join(f"[{piece}]" if found else piece for piece, found in pieces) == expected


@given(st.text(max_size=30), st.text(max_size=6), st.booleans())
def test_pieces_are_the_text_and_something_is_marked_if_it_matches(
    text: str, typed: str, whole: bool
) -> None:
    query = Query(wanted=(folded(typed),) if folded(typed) else (), whole_words=whole)
    pieces = query.pieces(text)
    assert "".join(piece for piece, _ in pieces) == text
    marked = any(found for _, found in pieces)
    assert marked == (bool(query.wanted) and matches(query, text)[0])
