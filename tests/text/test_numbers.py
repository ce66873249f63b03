"""Number words become digits where they are numbers, in each language that is offered."""

import sys

import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.text.numbers import LANGUAGES, numbers_module, with_digits

CASES = {
    "da": (" Der er toogtyve hunde.", " Der er 22 hunde.", " en af dem"),
    "de": (" Er hat einundzwanzig Hunde.", " Er hat 21 Hunde.", " Nur einer von ihnen."),
    "en": (" Twenty-three dogs,  and 3.5 more.", " 23 dogs,  and 3.5 more.", " one of them"),
    "es": (" treinta y dos perros", " 32 perros", " uno de ellos"),
    "fr": (" quatre-vingt-dix-neuf ballons", " 99 ballons", " l'un d'eux,  un homme"),
    "it": (" ventidue cani", " 22 cani", " uno di loro"),
    "nl": (" vierentwintig honden", " 24 honden", " een man"),
    "pt": (" vinte e dois cães", " 22 cães", " um deles"),
}


def test_numbers_are_digits_and_other_words_stay() -> None:
    pytest.importorskip("text_to_num")
    assert {*CASES} == LANGUAGES
    for language, (said, written, unchanged) in CASES.items():
        assert with_digits(said, language) == written
        assert with_digits(unchanged, language) == unchanged
    for text in ("", " ", " 23 dogs", "No one, nobody.", "\u00a0two\nlines  here"):
        assert with_digits(text, "en") == text
    for other in (None, "ja", "ru", "xx"):
        assert with_digits(" twenty-three", other) == " twenty-three"


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("the nineteen nineties,  and", "the 1990s,  and"),
        ("nineteen-eighties' songs", "1980s' songs"),
        ("the eighteen hundreds", "the 1800s"), ("Nineteen eighty-four was", "1984 was"),
        ("twenty twenty five", "2025"), ("Twenty ten.", "2010."), ("nineteen oh five", "1905"),
        ("nineteen thirty to nineteen forty-eight", "1930 to 1948"), ("nineteen zero five", "1905"),
        ("in nineteen eighty four two men", "in 1984 two men"),
        # Lists, times, ages, and halves of larger numbers.
        ("nineteen, twenty people", "19, 20 people"), ("at ten twenty five", "at 10 25"),
        ("twenty five thirty", "25 30"), ("sixteen twenty year olds", "16 20 year olds"),
        ("one hundred nineteen eighty four", "119 84"), ("twenty twenty thousand", "20 20000"),
        ("nineteen eighty four thirty two", "19 84 32"),
    ],
)  # fmt: skip
def test_years_are_read_in_two_halves_in_english(said: str, written: str) -> None:
    pytest.importorskip("text_to_num")
    assert with_digits(said, "en") == written
    assert with_digits("nineteen eighty", "nl") == "nineteen eighty"


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "text_to_num", None)
    with pytest.raises(ConfigError, match=r"found no text2num.*pip install text2num"):
        numbers_module()
