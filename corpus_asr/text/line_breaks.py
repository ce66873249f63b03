"""Where a line of text may be broken: between words as people read them, by ICU.

Source: Unicode Standard Annex 14 (line breaking) and 29 (grapheme clusters); dictionaries of ICU
for Thai, Lao, Khmer, Burmese and Chinese, and its phrases of Japanese.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import accumulate

from icu4py.breakers import BaseBreaker, CharacterBreaker, LineBreaker, WordBreaker

# Scripts whose words have no spaces between: Han, kana, Yi, Thai, Lao, Tibetan, Burmese, Khmer and
# their neighbours, with their punctuation. Hangul has spaces.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u312f\u3190-\ua4cf"
    "\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
_HAN_OR_KANA = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_KANA = re.compile("[\u3041-\u30ff]")
_EM_DASH = "\u2014"
_SURROGATES = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_BEYOND_LATIN = re.compile("[^\n\x20-\u02ff]")


def word_breaks(text: str, language: str | None) -> list[int]:
    """Return where a line may be broken without dividing a word, before the spaces there.

    In scripts without spaces, words are those of a dictionary; of Japanese, phrases. A hyphen
    divides no word.
    """
    locale = language or "en"
    if _KANA.search(text):
        locale = "ja@lb=strict;lw=phrase"
    found, words = [], None
    for at in _spaced_breaks(text, _offsets(LineBreaker, text, locale)):
        if text[at].isspace() or text[at - 1] == _EM_DASH:
            found.append(at)
        elif _is_without_spaces(text, at):
            if _HAN_OR_KANA.match(text, at) and _HAN_OR_KANA.match(text, at - 1):
                words = words or frozenset(_offsets(WordBreaker, text, locale))
                if at not in words:
                    continue
            found.append(at)
    return found


def timed_word_breaks(text: str, language: str | None) -> list[int]:
    """Return where a word that has times of its own may begin, before the spaces there.

    As `word_breaks`, but in scripts without spaces wherever a line may be broken at all.
    """
    return [
        at
        for at in _spaced_breaks(text, line_breaks(text, language))
        if text[at].isspace() or text[at - 1] == _EM_DASH or _is_without_spaces(text, at)
    ]


def line_breaks(text: str, language: str | None) -> list[int]:
    """Return where Unicode lets a line be broken, such as after a hyphen; behind spaces."""
    return _offsets(LineBreaker, text, f"{language or 'en'}@lb=strict")


def character_breaks(text: str) -> list[int]:
    """Return where a word too long for a line may be divided.

    These are between letters and digits as people see them (grapheme clusters), so that signs stay
    with the character beside them; of signs alone, anywhere.
    """
    signs_alone = not any(map(_is_letter, text))
    return [
        at
        for at in _offsets(CharacterBreaker, text, "en")
        if signs_alone or (_is_letter(text[at]) and _is_letter(text[at - 1]))
    ]


def columns(text: str) -> int:
    """Return how many characters people see: grapheme clusters, invisible signs left out."""
    text = _INVISIBLE.sub("", text)
    if not _BEYOND_LATIN.search(text):  # each is one; most texts
        return len(text)
    return len(_offsets(CharacterBreaker, text, "en")) + 1


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _is_without_spaces(text: str, at: int) -> bool:
    return bool(_WITHOUT_SPACES.match(text, at) or _WITHOUT_SPACES.match(text, at - 1))


def _spaced_breaks(text: str, breaks: list[int]) -> Iterator[int]:
    for at in breaks:
        while at and text[at - 1].isspace():
            at -= 1
        if at:
            yield at


def _offsets(breaker: type[BaseBreaker], text: str, locale: str) -> list[int]:
    # ICU counts UTF-16 units and refuses lone surrogates: pieces are counted in their place.
    pieces = breaker(_SURROGATES.sub("\ufffd", text), locale)
    return [*accumulate(map(len, pieces))][:-1]


def join_texts(texts: Iterable[str]) -> str:
    """Return texts as one, with a space between where the script has spaces and none is there."""
    joined = ""
    for text in texts:
        if joined and text and not joined[-1].isspace() and not text[0].isspace():
            both = _WITHOUT_SPACES.match(joined[-1]) and _WITHOUT_SPACES.match(text[0])
            joined += "" if both else " "
        joined += text
    return joined.strip()
