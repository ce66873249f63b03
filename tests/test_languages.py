"""Languages against the table in transformers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper import tokenization_whisper as oracle

from corpus_asr.languages import ALIASES, CODES_BY_NAME, LANGUAGES, resolve_language


def test_codes_names_and_their_order_are_those_of_the_reference():
    assert list(LANGUAGES.items()) == list(oracle.LANGUAGES.items())
    assert CODES_BY_NAME == oracle.TO_LANGUAGE_CODE


@pytest.mark.parametrize("text", ["de", "DE", "German", "german", "<|de|>", " <|DE|> "])
def test_codes_names_and_tokens_mean_the_same(text):
    assert resolve_language(text) == "de"


def test_every_other_name_leads_to_its_language():
    assert {name: resolve_language(name.title()) for name in ALIASES} == ALIASES


@pytest.mark.parametrize(
    ("text", "nearest"), [("englsh", "en (english)"), ("gernam", "de (german)"), ("dee", "de")]
)
def test_an_unknown_language_is_refused_with_the_nearest_one(text, nearest):
    with pytest.raises(ValueError, match=f"choosing the language '{text}'") as caught:
        resolve_language(text)
    assert f"nearest: {nearest}" in str(caught.value)


def test_a_language_that_is_not_among_those_to_choose_from_is_named():
    with pytest.raises(ValueError, match=r"cantonese \(yue\) is not among the 2 languages"):
        resolve_language("Cantonese", known=("en", "zh"))


def test_choosing_among_no_language_is_refused_too():
    with pytest.raises(ValueError, match="nearest: none"):
        resolve_language("en", known=())


@given(st.text())
def test_any_text_is_a_known_language_or_a_value_error(text):
    try:
        assert resolve_language(text) in LANGUAGES
    except ValueError as error:
        assert "nearest: " in str(error)  # noqa: PT017  (either outcome is right)
