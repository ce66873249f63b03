"""Folded texts: what is taken for the same, what is not, and the way back."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.view.folding import folded, folded_lines, places

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
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
    ],
)
def test_case_accents_and_punctuation_make_no_difference(text: str, expected: str) -> None:
    assert folded(text) == expected


@pytest.mark.parametrize(
    ("one", "other"), [("की", "का"), ("が", "か"), ("ボ", "ホ"), ("각", "가"), ("ไป", "ปี")]
)
def test_signs_without_which_a_word_is_another_one_are_kept(one: str, other: str) -> None:
    assert folded(one) != folded(other)


@given(st.lists(TEXTS, min_size=1))
def test_many_texts_are_folded_as_each_is(texts: list[str]) -> None:
    assert folded_lines(texts) == [folded(text) for text in texts]


@given(TEXTS)
def test_folding_again_changes_nothing(text: str) -> None:
    assert folded(folded(text)) == folded(text)


@given(TEXTS)
def test_either_spelling_of_an_accent_is_folded_alike(text: str) -> None:
    assert folded(unicodedata.normalize("NFD", text)) == folded(unicodedata.normalize("NFC", text))


@given(TEXTS)
def test_every_folded_character_has_its_place_in_the_text(text: str) -> None:
    plain, sources = places(text)
    assert len(sources) == len(plain) + 1
    assert sources == sorted(sources)
    assert sources[-1] == len(text)
    assert plain == folded(text)
