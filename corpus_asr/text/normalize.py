"""Whisper's text normalizers, which reduce a text to comparable words.

Published word error rates of Whisper use such texts, so results equal those of openai-whisper and
`transformers` character for character.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from importlib.resources import files

# Letters without a compatibility decomposition.
PLAIN_LETTERS = {
    "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ß": "ss", "ẞ": "SS",
    "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "th", "ł": "l", "Ł": "L",
}  # fmt: skip

_BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]")
_IN_PARENTHESES = re.compile(r"\(([^)]+?)\)")
_BLANKS = re.compile(r"\s+")

_FILLERS = re.compile(r"\b(hmm|mm|mhm|mmm|uh|um)\b")
_BLANK_APOSTROPHE = re.compile(r"\s+'")
_SHORT_WORDS = {
    "won't": "will not", "can't": "can not", "let's": "let us", "ain't": "aint",
    "y'all": "you all", "wanna": "want to", "gotta": "got to", "gonna": "going to",
    "i'ma": "i am going to", "imma": "i am going to", "woulda": "would have",
    "coulda": "could have", "shoulda": "should have", "ma'am": "madam",
}  # fmt: skip
_TITLES = {
    "mr": "mister", "mrs": "missus", "st": "saint", "dr": "doctor", "prof": "professor",
    "capt": "captain", "gov": "governor", "ald": "alderman", "gen": "general", "sen": "senator",
    "pres": "president",  # codespell:ignore pres
    "rep": "representative", "rev": "reverend", "hon": "honorable",
    "asst": "assistant", "assoc": "associate", "lt": "lieutenant", "col": "colonel",
    "jr": "junior", "sr": "senior", "esq": "esquire",
}  # fmt: skip
# Perfect tenses come first: `'d` and `'s` have another meaning before other words.
_ENDINGS = {
    "'d been": " had been", "'s been": " has been", "'d gone": " had gone",
    "'s gone": " has gone", "'d done": " had done", "'s got": " has got", "n't": " not",
    "'re": " are", "'s": " is", "'d": " would", "'ll": " will", "'t": " not", "'ve": " have",
    "'m": " am",
}  # fmt: skip
# Applied in order: each pattern sees the result of the previous ones.
_REPLACEMENTS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        *((rf"\b{short}\b", long) for short, long in _SHORT_WORDS.items()),
        *((rf"\b{short}\b", f"{long} ") for short, long in _TITLES.items()),
        *((rf"{short}\b", long) for short, long in _ENDINGS.items()),
    )
)
_COMMA_IN_NUMBER = re.compile(r"(\d),(\d)")
_FULL_STOP = re.compile(r"\.([^0-9]|$)")
_LOOSE_PREFIX = re.compile(r"[.$¢€£]([^0-9])")
_LOOSE_PERCENT = re.compile(r"([^0-9])%")
_NUMBER_SYMBOLS = ".%$¢€£"


class BasicTextNormalizer:
    """Normalizes text of any language; removing diacritics changes words in many languages.

    Source: openai/whisper, normalizers/basic.py, BasicTextNormalizer.
    """

    def __init__(self, remove_diacritics: bool = False) -> None:
        self._remove_diacritics = remove_diacritics

    def __call__(self, text: str) -> str:
        """Return `text` in lower case, without remarks in brackets, punctuation and symbols."""
        text = _without_remarks(text.lower())
        if self._remove_diacritics:
            text = unicodedata.normalize("NFKD", text).translate(_PLAIN)
        else:
            text = unicodedata.normalize("NFKC", text).translate(_SPACED)
        return _BLANKS.sub(" ", text.lower())


class EnglishTextNormalizer:
    """Normalizes English text, by Whisper's list of American spellings or a checkpoint's own.

    Source: openai/whisper, normalizers/english.py, EnglishTextNormalizer.
    """

    def __init__(self, english_spelling_mapping: Mapping[str, str] | None = None) -> None:
        spellings = english_spelling_mapping
        self._spellings = american_spellings() if spellings is None else spellings

    def __call__(self, text: str) -> str:
        """Return the text as comparable words."""
        text = _without_remarks(text.lower())
        text = _FILLERS.sub("", text)
        text = _BLANK_APOSTROPHE.sub("'", text)
        for pattern, replacement in _REPLACEMENTS:
            text = pattern.sub(replacement, text)
        text = _COMMA_IN_NUMBER.sub(r"\1\2", text)
        text = _FULL_STOP.sub(r" \1", text)
        text = unicodedata.normalize("NFKD", text).translate(_PLAIN_WITH_NUMBER_SYMBOLS)
        text = numbers_in_figures(text)
        text = " ".join(self._spellings.get(word, word) for word in text.split())
        # Symbols kept for numbers are removed if no number follows.
        text = _LOOSE_PREFIX.sub(r" \1", text)
        text = _LOOSE_PERCENT.sub(r"\1 ", text)
        return _BLANKS.sub(" ", text)


@cache
def american_spellings() -> Mapping[str, str]:
    """Return the American spelling of each British word on Whisper's list."""
    lines = files("corpus_asr.text").joinpath("spellings.txt").read_text(encoding="utf-8")
    pairs = (line.split("\t") for line in lines.splitlines() if not line.startswith("#"))
    return {british: american for british, american in pairs}


def _without_remarks(text: str) -> str:
    return _IN_PARENTHESES.sub("", _BRACKETED.sub("", text))


class _Letters(dict[int, str]):
    # A table for `str.translate` that is filled on demand.
    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code_point: int) -> str:
        self[code_point] = self._rule(chr(code_point))
        return self[code_point]


def _spaced(character: str) -> str:
    return " " if unicodedata.category(character)[0] in "MSP" else character


def _plain(character: str) -> str:
    if character in PLAIN_LETTERS:
        return PLAIN_LETTERS[character]
    # Decomposition has separated diacritics from their letters.
    return "" if unicodedata.category(character) == "Mn" else _spaced(character)


_SPACED = _Letters(_spaced)
_PLAIN = _Letters(_plain)
_PLAIN_WITH_NUMBER_SYMBOLS = _Letters(lambda c: c if c in _NUMBER_SYMBOLS else _plain(c))


_ZEROS = ("o", "oh", "zero")
_ONE_TO_NINETEEN = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TWENTY_TO_NINETY = (
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
_POWERS_OF_THOUSAND = (
    "thousand", "million", "billion", "trillion", "quadrillion", "quintillion", "sextillion",
    "septillion", "octillion", "nonillion", "decillion",
)  # fmt: skip

_ONES = {name: value for value, name in enumerate(_ONE_TO_NINETEEN, start=1)}
_TENS = {name: 10 * value for value, name in enumerate(_TWENTY_TO_NINETY, start=2)}
_MULTIPLIERS = {
    "hundred": 100,
    **{name: 1000**power for power, name in enumerate(_POWERS_OF_THOUSAND, start=1)},
}
_IRREGULAR_ORDINALS = {
    "zeroth": (0, "th"),
    "first": (1, "st"),
    "second": (2, "nd"),  # codespell:ignore nd
    "third": (3, "rd"),
    "fifth": (5, "th"),
    "twelfth": (12, "th"),
}

# Words that end a number, with its last value and the suffix after the digits.
_SUFFIXED = {
    **{("sixes" if name == "six" else f"{name}s"): (n, "s") for name, n in _ONES.items()},
    **_IRREGULAR_ORDINALS,
    **{
        name + ("h" if name.endswith("t") else "th"): (n, "th")
        for name, n in _ONES.items()
        if n > 3 and n not in (5, 12)
    },
    **{name.replace("y", "ies"): (n, "s") for name, n in _TENS.items()},
    **{name.replace("y", "ieth"): (n, "th") for name, n in _TENS.items()},
}
_SUFFIXED_MULTIPLIERS = {
    name + suffix: (n, suffix) for name, n in _MULTIPLIERS.items() for suffix in ("s", "th")
}

_SIGNS = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
_CURRENCIES = {
    "pound": "£", "pounds": "£", "euro": "€", "euros": "€", "dollar": "$", "dollars": "$",
    "cent": "¢", "cents": "¢",
}  # fmt: skip
_PREFIXES = frozenset((*_SIGNS.values(), *_CURRENCIES.values()))
_SPECIAL = ("and", "double", "triple", "point")
_REPEATS = {"double": 2, "triple": 3}

_CARDINALS: Mapping[str, int] = {**_ONES, **_TENS}
_DIGITS = frozenset((*_CARDINALS, *_ZEROS))
_PERCENT = ("per", "percent")
_NUMERIC: frozenset[str] = frozenset().union(
    *(_DIGITS, _SUFFIXED, _MULTIPLIERS, _SUFFIXED_MULTIPLIERS),
    *(_SIGNS, _CURRENCIES, _PERCENT, _SPECIAL),
)
"""All words that may be part of a number."""

_FIGURES = re.compile(r"\d+(\.\d+)?")
_HALF = re.compile(r"\band\s+a\s+half\b")
_LETTER_FIGURE = re.compile(r"([a-z])([0-9])")
_FIGURE_LETTER = re.compile(r"([0-9])([a-z])")
_LOOSE_SUFFIX = re.compile(r"([0-9])\s+(st|nd|rd|th|s)\b")  # codespell:ignore nd
_CENTS_AFTER = re.compile(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b")
_ONLY_CENTS = re.compile(r"[€£$]0.([0-9]{1,2})\b")
_ONE = re.compile(r"\b1(s?)\b")

# Digits of an incomplete number: a str if leading zeros or a point matter, as in `007` or `2.`.
Figures = int | str


def numbers_in_figures(text: str) -> str:
    """Replace spelled-out numbers in a lower-case text by digits."""
    return _with_cents(" ".join(_NumberReader(_separated(text).split()).read()))


class _NumberReader:
    # A number is held back until it has ended: later words may scale or extend it.
    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._written: list[str] = []
        self._value: Figures | None = None
        self._prefix = ""
        self._skip_next = False

    def read(self) -> list[str]:
        padded = ["", *self._words, ""]
        for previous, word, following in zip(padded, self._words, padded[2:], strict=False):
            if self._skip_next:
                self._skip_next = False
            else:
                self._read_word(word, previous, following)
        self._end_number()
        return self._written

    def _read_word(self, word: str, before: str, after: str) -> None:
        bare = word[1:] if word[0] in _PREFIXES else word
        if _FIGURES.fullmatch(bare) and _fraction(bare) is not None:
            self._read_figures(word, bare)
        elif word not in _NUMERIC:
            self._end_number(word)
        elif word in _ZEROS:
            self._value = f"{self._value or ''}0"
        elif word in _CARDINALS:
            self._value = _joined(self._value, _CARDINALS[word], before)
        elif word in _SUFFIXED:
            number, suffix = _SUFFIXED[word]
            self._write(f"{_joined(self._value, number, before)}{suffix}")
        elif word in _MULTIPLIERS:
            self._value = self._scaled(_MULTIPLIERS[word])
        elif word in _SUFFIXED_MULTIPLIERS:
            number, suffix = _SUFFIXED_MULTIPLIERS[word]
            self._write(f"{self._scaled(number)}{suffix}")
        elif word in _SPECIAL:
            self._read_special(word, before, after)
        else:
            self._read_unit(word, after)

    def _read_figures(self, word: str, bare: str) -> None:
        if isinstance(self._value, str) and self._value.endswith("."):
            # Decimals, or the next part of a network address.
            self._value += word
            return
        self._end_number()
        if bare != word:
            self._prefix = word[0]
        fraction = Fraction(bare)
        self._value = fraction.numerator if fraction.denominator == 1 else bare

    def _read_unit(self, word: str, after: str) -> None:
        if word in _SIGNS:
            self._end_number()
            if _may_be_number(after):
                self._prefix = _SIGNS[word]
            else:
                self._write(word)
        elif self._value is None:
            self._write(word)
        elif word in _CURRENCIES:
            self._prefix = _CURRENCIES[word]
            self._end_number()
        elif word == "percent" or after == "cent":
            self._write(f"{self._value}%")
            self._skip_next = word == "per"
        else:
            self._end_number(word)

    def _read_special(self, word: str, before: str, after: str) -> None:
        if not _may_be_number(after):
            self._end_number(word)
        elif word == "and":
            # `two hundred and one` is one number; `two and one` are two numbers.
            if before not in _MULTIPLIERS:
                self._end_number(word)
        elif word == "point":
            if after in _DIGITS or _FIGURES.fullmatch(after):
                self._value = f"{self._value or ''}."
        elif after in _ONES or after in _ZEROS:
            self._value = f"{self._value or ''}{str(_ONES.get(after, 0)) * _REPEATS[word]}"
            self._skip_next = True
        else:
            self._end_number(word)

    def _scaled(self, multiplier: int) -> int:
        # A number that is not an integer after scaling is written first.
        if self._value is None:
            return multiplier
        if isinstance(self._value, int):
            return self._value // 1000 * 1000 + self._value % 1000 * multiplier
        fraction = _fraction(self._value)
        if fraction is not None and (fraction * multiplier).denominator == 1:
            return (fraction * multiplier).numerator
        self._end_number()
        return multiplier

    def _end_number(self, word: str | None = None) -> None:
        if self._value is not None:
            self._write(str(self._value))
        if word is not None:
            self._write(word)

    def _write(self, text: str) -> None:
        self._written.append(self._prefix + text)
        self._value, self._prefix = None, ""


def _joined(value: Figures | None, number: int, before: str) -> Figures:
    # Added if its digits are free (`twenty one`), else appended (`twenty ten`).
    if value is None:
        return number
    if isinstance(value, str) and before in _TENS and number < 10:
        return value[:-1] + str(number)
    places = 10 if number < 10 else 100
    if isinstance(value, int) and before not in _ONES and value % places == 0:
        return value + number
    return f"{value}{number}"


def _may_be_number(word: str) -> bool:
    return word in _NUMERIC or _FIGURES.fullmatch(word) is not None


def _fraction(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except ValueError:
        # `1.2.3`, or more digits than Python converts to an integer.
        return None


def _separated(text: str) -> str:
    *halves, last = _HALF.split(text)
    parts = []
    for part in halves:
        if part.strip():
            is_number = part.split()[-1] in _DIGITS or part.split()[-1] in _MULTIPLIERS
            parts += [part, "point five" if is_number else "and a half"]
    text = " ".join([*parts, last] if last.strip() else parts)
    text = _LETTER_FIGURE.sub(r"\1 \2", text)
    text = _FIGURE_LETTER.sub(r"\1 \2", text)
    return _LOOSE_SUFFIX.sub(r"\1\2", text)


def _with_cents(text: str) -> str:
    text = _CENTS_AFTER.sub(lambda m: f"{m[1]}{m[2]}.{int(m[3]):02d}", text)
    text = _ONLY_CENTS.sub(lambda m: f"¢{int(m[1])}", text)
    # A single 1 is more readable as a word.
    return _ONE.sub(r"one\1", text)
