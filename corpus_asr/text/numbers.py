"""Number words as digits, by text2num, and English years that are read in two halves.

Source: text2num 3.1 (MIT License): a word alone stays up to three, of which `one of them` is made.
"""

import importlib
import re
from types import ModuleType

from corpus_asr.errors import ConfigError, install_words

LANGUAGES = frozenset({"da", "de", "en", "es", "fr", "it", "nl", "pt"})
"""Languages whose number words are known."""
_DIGIT = re.compile(r"\d")
_CENTURIES = {"sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20}
_TEENS = {
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15,
    "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80,
    "ninety": 90,
}  # fmt: skip
_UNITS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9,
}  # fmt: skip
_DECADES = {"hundreds": 0, "tens": 10} | {
    f"{name.removesuffix('y')}ies": number for name, number in _TENS.items()
}
_NO_YEARS = (
    "year|dollar|euro|pound|cent|percent|second|minute|hour|degree|people|kilomet|mile|sharp|"
    "first|third|fourth|fifth|sixth|seventh|eighth|ninth"
)
_TENS_AND_TEENS = f"{'|'.join(_TEENS)}|{'|'.join(_TENS)}"
_YEAR = re.compile(
    # Not the end of a larger number, and not the beginning of a longer one or of a measure.
    rf"""(?<!hundred\s)(?<!thousand\s)(?<!million\s)(?<![\w-])
    (?P<century>{"|".join(_CENTURIES)})[\s-]+
    (?:(?P<decade>{"|".join(_DECADES)})
    |(?:(?P<teen>{"|".join(_TEENS)})|(?P<tens>{"|".join(_TENS)})(?:[\s-]+(?P<unit>{"|".join(_UNITS)}))?+
    |(?:oh|o|zero)[\s-]+(?P<after_zero>{"|".join(_UNITS)}))
    (?![\s-]+(?:{_TENS_AND_TEENS}|hundred|thousand|million|{_NO_YEARS})))
    (?![\w-])""",
    re.IGNORECASE | re.VERBOSE,
)


def numbers_module() -> ModuleType:
    """Return the library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("text_to_num")
    except ImportError as error:
        raise ConfigError(
            "writing numbers as digits: found no text2num, expected it next to corpus-asr; "
            f"{install_words('numbers')}, or leave out dataset.numbers, or --numbers of export"
        ) from error


def written_language(language: str | None, task: str) -> str | None:
    """Return the language of a segment's text: translations are English."""
    return "en" if task == "translate" else language


def with_digits(text: str, language: str | None) -> str:
    """Return a text whose number words are digits; of other languages as it is."""
    if language not in LANGUAGES:
        return text
    whole = _YEAR.sub(_year, text) if language == "en" else text
    written: str = numbers_module().alpha2digit(whole, language)
    # Where nothing became a number, spaces and signs stay as they are.
    return written if len(_DIGIT.findall(written)) > len(_DIGIT.findall(text)) else text


def _year(found: re.Match[str]) -> str:
    said = {name: word.lower() for name, word in found.groupdict().items() if word}
    century = _CENTURIES[said["century"]]
    if "decade" in said:
        return f"{century}{_DECADES[said['decade']]:02}s"
    halves = {"teen": _TEENS, "tens": _TENS, "unit": _UNITS, "after_zero": _UNITS}
    return f"{century}{sum(halves[name][said[name]] for name in halves if name in said):02}"
