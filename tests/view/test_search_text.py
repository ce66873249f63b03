"""Folded text, queries, and what of a text is marked."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.errors import ConfigError
from corpus_asr.view.search import MAX_QUERY_CHARS, Query, folded, folded_lines, parse_query, places

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)


def test_case_accents_and_punctuation_make_no_difference() -> None:
    for text, expected in (
        ("Hello,  World!", "hello world"),
        (" Ça va? ÉTÉ ", "ca va ete"),
        ("E\u0301te\u0301", "ete"),
        ("Straße, Œuvre, smørrebrød, Łódź", "strasse oeuvre smorrebrod lodz"),
        ("ΟΔΟΣ οδός", "οδοσ οδοσ"),
        ("İstanbul \u0131s\u0131", "istanbul isi"),
        ("don\u2019t don't", "don t don t"),
        ("\ufb01ne \uff57ide", "fine wide"),
        ("C++ costs $3", "c++ costs $3"),
        ("שָׁלוֹם شَهْر", "שלום شهر"),
        ("Ёлка й", "елка и"),
        ("two\nlines", "two lines"),
        ("... \u2013 !", ""),
        ("an accent alone\u00b4 here", "an accent alone here"),
    ):
        assert folded(text) == expected
    # Signs without which a word is another one are kept.
    for text, other in (("की", "का"), ("が", "か"), ("ボ", "ホ"), ("각", "가"), ("ไป", "ปี")):
        assert folded(text) != folded(other)


@given(TEXTS)
def test_folding_again_or_another_spelling_changes_nothing(text: str) -> None:
    assert folded(folded(text)) == folded(text)
    assert folded(unicodedata.normalize("NFD", text)) == folded(unicodedata.normalize("NFC", text))


@given(st.lists(TEXTS, min_size=1))
def test_many_texts_are_folded_as_each_is(texts: list[str]) -> None:
    assert folded_lines(texts) == [folded(text) for text in texts]


@given(TEXTS)
def test_every_folded_character_has_its_place_in_the_text(text: str) -> None:
    plain, sources = places(text)
    assert len(sources) == len(plain) + 1
    assert sources == sorted(sources)
    assert sources[-1] == len(text)
    assert plain == folded(text)


def matches(query: Query, *texts: str) -> list[bool]:
    lines = pa.array([f" {folded(text)} " for text in texts])
    return [bool(found) for found in query.matches(lines)]


def test_a_line_is_parsed_as_people_mean_it() -> None:
    for typed, wanted, excluded in (
        ("Été déjà", ("ete", "deja"), ()),
        ('"fellow, Americans" ask', ("fellow americans", "ask"), ()),
        ('peace -war -"cold war"', ("peace",), ("war", "cold war")),
        ("well-known", ("well known",), ()),
        ('"not closed', ("not closed",), ()),
        ("", (), ()),
    ):
        query = parse_query(typed)
        assert (query.wanted, query.excluded) == (wanted, excluded)


def test_words_are_found_anywhere_and_phrases_together() -> None:
    texts = ("Ask not what", "what not to ask", "Masked, knot!")
    assert matches(parse_query("ask not"), *texts) == [True, True, True]
    assert matches(parse_query('"ask not"'), *texts) == [True, False, False]
    assert matches(parse_query("ask not", whole_words=True), *texts) == [True, True, False]
    assert matches(parse_query("not -what"), *texts) == [False, False, True]
    assert matches(parse_query("not -not"), *texts) == [False, False, False]


def test_what_has_no_letters_or_too_many_is_refused() -> None:
    for typed in ("?!", '""'):
        with pytest.raises(ConfigError, match="no letter or figure"):
            parse_query(typed)
    with pytest.raises(ConfigError, match="search for fewer words"):
        parse_query("a" * (MAX_QUERY_CHARS + 1))


def test_what_was_searched_for_is_marked_in_the_text_itself() -> None:
    for typed, whole, text, expected in (
        ("fellow", False, "My Fellow, Americans", "My [Fellow], Americans"),
        ('"fellow americans"', False, "My Fellow, Americans!", "My [Fellow, Americans]!"),
        ("ete", False, "étés e\u0301te\u0301.", "[été]s [e\u0301te\u0301]."),
        ("ete", True, "étés été", "étés [été]"),
        ("str", False, "Straße", "[Str]aße"),
        ("가", False, "가 나", "[가] 나"),
    ):
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
