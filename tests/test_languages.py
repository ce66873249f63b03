"""Languages against the table in transformers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper import tokenization_whisper as oracle

from corpus_asr.languages import ALIASES, CODES_BY_NAME, LANGUAGES, resolve_language


def test_codes_names_and_their_order_are_those_of_the_reference():
    assert list(LANGUAGES.items()) == list(oracle.LANGUAGES.items())
    assert CODES_BY_NAME == oracle.TO_LANGUAGE_CODE


def test_every_name_leads_to_its_language():
    for text in ("de", "DE", "German", "german", "<|de|>", " <|DE|> "):
        assert resolve_language(text) == "de", text
    assert {name: resolve_language(name.title()) for name in ALIASES} == ALIASES


def test_an_unknown_language_is_refused_with_the_nearest_one():
    for text, nearest in (
        ("englsh", r"en \(english\)"),
        ("gernam", r"de \(german\)"),
        ("dee", "de"),
    ):
        with pytest.raises(ValueError, match=f"choosing the language '{text}'.*nearest: {nearest}"):
            resolve_language(text)
    with pytest.raises(ValueError, match=r"cantonese \(yue\) is not among the 2 languages"):
        resolve_language("Cantonese", known=("en", "zh"))
    with pytest.raises(ValueError, match="nearest: none"):
        resolve_language("en", known=())


@given(st.text())
def test_any_text_is_a_known_language_or_a_value_error(text):
    try:
        assert resolve_language(text) in LANGUAGES
    except ValueError as error:
        assert "nearest: " in str(error)  # noqa: PT017  (either outcome is right)
