"""Whisper's text normalisers: what is left of a text when only its words are compared.

In: any text, as a person or a model wrote it. Out: lower case without punctuation, fillers and
remarks in brackets; in English also without contractions, British spellings and spelled-out
numbers. Every published word error rate of Whisper was computed on such texts, so results equal
those of openai-whisper and `transformers` character for character. Knows no tokens and no audio.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files

from corpus_asr.text.english_numbers import numbers_in_figures

# Letters that the compatibility decomposition leaves whole.
PLAIN_LETTERS = {
    "œ": "oe",
    "Œ": "OE",
    "ø": "o",
    "Ø": "O",
    "æ": "ae",
    "Æ": "AE",
    "ß": "ss",
    "ẞ": "SS",
    "đ": "d",
    "Đ": "D",
    "ð": "d",
    "Ð": "D",
    "þ": "th",
    "Þ": "th",
    "ł": "l",
    "Ł": "L",
}

_BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]")
_IN_PARENTHESES = re.compile(r"\(([^)]+?)\)")
_BLANKS = re.compile(r"\s+")

_FILLERS = re.compile(r"\b(hmm|mm|mhm|mmm|uh|um)\b")
_BLANK_APOSTROPHE = re.compile(r"\s+'")
_SHORT_WORDS = {
    "won't": "will not",
    "can't": "can not",
    "let's": "let us",
    "ain't": "aint",
    "y'all": "you all",
    "wanna": "want to",
    "gotta": "got to",
    "gonna": "going to",
    "i'ma": "i am going to",
    "imma": "i am going to",
    "woulda": "would have",
    "coulda": "could have",
    "shoulda": "should have",
    "ma'am": "madam",
}
_TITLES = {
    "mr": "mister",
    "mrs": "missus",
    "st": "saint",
    "dr": "doctor",
    "prof": "professor",
    "capt": "captain",
    "gov": "governor",
    "ald": "alderman",
    "gen": "general",
    "sen": "senator",
    "rep": "representative",
    "pres": "president",  # codespell:ignore pres
    "rev": "reverend",
    "hon": "honorable",
    "asst": "assistant",
    "assoc": "associate",
    "lt": "lieutenant",
    "col": "colonel",
    "jr": "junior",
    "sr": "senior",
    "esq": "esquire",
}
# Perfect tenses come first: `'d` and `'s` mean something else before other words.
_ENDINGS = {
    "'d been": " had been",
    "'s been": " has been",
    "'d gone": " had gone",
    "'s gone": " has gone",
    "'d done": " had done",
    "'s got": " has got",
    "n't": " not",
    "'re": " are",
    "'s": " is",
    "'d": " would",
    "'ll": " will",
    "'t": " not",
    "'ve": " have",
    "'m": " am",
}
# One after the other: a later one sees what the earlier ones left.
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
    """Normalises text of any language.

    Args:
        remove_diacritics: also turn `é` into `e`; in many languages that makes other words.

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
    """Normalises English text.

    Args:
        english_spelling_mapping: British words with their American spelling, such as a
            checkpoint's normalizer.json; None takes Whisper's own list.

    Source: openai/whisper, normalizers/english.py, EnglishTextNormalizer.
    """

    def __init__(self, english_spelling_mapping: Mapping[str, str] | None = None) -> None:
        own = english_spelling_mapping
        self._spellings = american_spellings() if own is None else own

    def __call__(self, text: str) -> str:
        """Return what was said, as comparable words."""
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
        # What stood by no number was kept in vain.
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
    """Leave out what stands in brackets of any kind."""
    return _IN_PARENTHESES.sub("", _BRACKETED.sub("", text))


class _Letters(dict[int, str]):
    """What each character becomes, found out when it is first met: a table for `str.translate`."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code_point: int) -> str:
        self[code_point] = self._rule(chr(code_point))
        return self[code_point]


def _spaced(character: str) -> str:
    """Turn marks, symbols and punctuation into blanks."""
    return " " if unicodedata.category(character)[0] in "MSP" else character


def _plain(character: str) -> str:
    """Turn symbols and punctuation into blanks, and letters into plain ones."""
    if character in PLAIN_LETTERS:
        return PLAIN_LETTERS[character]
    # Decomposition has parted diacritics from their letters.
    return "" if unicodedata.category(character) == "Mn" else _spaced(character)


_SPACED = _Letters(_spaced)
_PLAIN = _Letters(_plain)
_PLAIN_WITH_NUMBER_SYMBOLS = _Letters(lambda c: c if c in _NUMBER_SYMBOLS else _plain(c))
