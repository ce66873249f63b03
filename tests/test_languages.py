"""Languages against the table in transformers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper import tokenization_whisper as oracle

from corpus_asr import languages
from corpus_asr.config.decoding import DecodingSettings, check_english_only
from corpus_asr.errors import ConfigError
from corpus_asr.languages import (
    ALIASES,
    CODES_BY_NAME,
    LANGUAGES,
    check_known,
    code_of,
    resolve_language,
)
from corpus_asr.transcription.chunks import check_window_settings


def test_codes_names_and_their_order_are_those_of_the_reference():
    assert list(LANGUAGES.items()) == list(oracle.LANGUAGES.items())
    assert CODES_BY_NAME == oracle.TO_LANGUAGE_CODE


def test_every_name_leads_to_its_language():
    for text in ("de", "DE", "German", "german", "<|de|>", " <|DE|> "):
        assert resolve_language(text) == "de", text
    assert {name: resolve_language(name.title()) for name in ALIASES} == ALIASES


def test_every_own_name_and_every_code_of_iso_639_leads_to_its_language() -> None:
    cldr = pytest.importorskip("babel")
    aliases = pytest.importorskip("babel.core").get_global("language_aliases")
    # Of other languages, or of none that Whisper knows.
    elsewhere = {"drh", "prp", "cls"}
    for code in LANGUAGES:
        cldr_code = "jv" if code == "jw" else code
        name = cldr.Locale.parse(cldr_code).languages[cldr_code]
        others = [each for each, meant in aliases.items() if meant == [cldr_code]]
        for text in (name, name.upper(), f"{name} (x)", cldr_code, *others):
            if text not in elsewhere:
                assert (code_of(text), resolve_language(text)) == (code, code), text


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("en", "en-US en_US en_US.UTF-8 EN-gb eng en-001"),
        ("pt", "pt-BR pt_BR PT-PT por portugues"),
        ("zh", "zh-TW zh-Hant zh-Hant-TW zh_CN.UTF-8 zh-cmn cmn-Hans-CN 普通話"),
        ("yue", "yue yue-HK zh-yue zh-yue-HK 廣東話"),
        ("de", "deu ger de-AT deutsch DEUTSCH de_DE@euro <|de|>"),
        ("he", "iw iw-IL heb"),
        ("no", "nb nb-NO nob nor no bokmål Bokmal"),
        ("nn", "nn-NO nno nynorsk"),
        ("sr", "sr-Latn sr-Cyrl-RS srpski"),
        ("es", "espanol es-419 spa castellano"),
        ("jw", "jv jav jv-ID"),
        ("tl", "fil fil-PH tgl"),
        ("uz", "o\u02bbzbek o\u2018zbek o'zbek"),
        ("th", "ไทย th-TH"),
    ],
)
def test_tags_of_systems_and_media_are_languages(code: str, texts: str) -> None:
    for text in texts.split():
        assert (code_of(text), resolve_language(text)) == (code, code), text


def test_what_is_no_tag_is_no_language() -> None:
    for text in ("no-such", "en-such-x", "xx-US", "en,de", "klingon", "e", "de utsch", "qaa", ""):
        assert code_of(text) == text
        with pytest.raises(ValueError, match="no such language"):
            resolve_language(text)
    with pytest.raises(ConfigError, match=r"does not know Deutch; did you mean de\?"):
        check_known(["Deutch"], LANGUAGES)
    with pytest.raises(ValueError, match=r"german \(de\) is not among the 1 languages"):
        resolve_language("Deutsch", known=("en",))


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        ("ua UA ua-UA <|ua|>", "uk"), ("cz cz-CZ", "cs"), ("cn cn-CN", "zh"), ("jp", "ja"),
        ("gsw gsw-CH bar", "de"), ("gr", "el"), ("dk", "da"), ("arz ary", "ar"), ("wuu", "zh"),
    ],
)  # fmt: skip
def test_codes_of_countries_and_dialects_lead_to_the_right_code(texts: str, code: str) -> None:
    for text in texts.split():
        with pytest.raises(ConfigError, match=rf"know {text}.*did you mean {code}\?"):
            check_known(["en", text], LANGUAGES)
        with pytest.raises(ConfigError, match=rf"English-only; did you mean {code}\?"):
            check_english_only(DecodingSettings(language=text))
        with pytest.raises(ConfigError, match=rf"did you mean {code}\? name one of these"):
            check_window_settings(
                DecodingSettings(language=text), model="m", longest_s=1.0, languages=LANGUAGES
            )
        with pytest.raises(ValueError, match=rf"nearest: {code} \("):
            resolve_language(text)
    with pytest.raises(ConfigError, match=r"did you mean cs, uk\?"):
        check_known(["en", "cz", "ua"], LANGUAGES)


@pytest.mark.parametrize("text", ["und", "UND", "und-Latn", "mul", "zxx", "mis"])
def test_a_tag_of_no_language_is_left_out_or_auto(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{text} names no language: leave it out, or write auto"):
        check_known([text], LANGUAGES)
    with pytest.raises(ConfigError, match="leave it out, or write auto"):
        check_english_only(DecodingSettings(language=text))
    with pytest.raises(ValueError, match="nearest: none, as it names no language; leave it out"):
        resolve_language(text)


def test_advice_on_codes_hides_no_known_language() -> None:
    assert {code_of(text) for text in languages.CODES_INSTEAD}.isdisjoint(LANGUAGES)
    assert set(languages.CODES_INSTEAD.values()) <= set(LANGUAGES)


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
