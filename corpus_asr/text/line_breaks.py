"""Line break opportunities of a text: between linguistic words.

Scripts without spaces use the dictionaries of ICU for Thai, Lao, Khmer, Burmese and Chinese, and
its phrases for Japanese, if icu4py is installed. Without it, Chinese and Japanese are broken
between any characters that Unicode allows; the others at spaces, then anywhere.

Source: Unicode Standard Annex 14 (line breaking) and 29 (grapheme clusters), as for subtitles.
"""

import functools
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from corpus_asr.errors import install_words
from corpus_asr.logs import event

_LOG = logging.getLogger(__name__)
# Scripts without spaces between words: Han, kana, Yi, Thai, Lao, Tibetan, Burmese, Khmer and
# related ones, with their punctuation. Hangul has spaces.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u312f\u3190-\ua4cf"
    "\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
_HAN_OR_KANA = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_KANA = re.compile("[\u3041-\u30ff]")
_OF_DICTIONARIES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_EM_DASH = "\u2014"
_IDEOGRAPHS = (
    "\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Characters that may not start a line: closing and small ones; and those that may not end it.
_NOT_FIRST = (
    r"\s!?:;,.%)\]}\u00bb\u2019\u201d\u2026\u3001-\u3003\u3005\u3009\u300b\u300d\u300f\u3011\u3015"
    "\u3041\u3043\u3045\u3047\u3049\u3063\u3083\u3085\u3087\u308e\u309b-\u309e\u30a1\u30a3\u30a5\u30a7"
    "\u30a9\u30c3\u30e3\u30e5\u30e7\u30ee\u30f5\u30f6\u30fb-\u30fe\uff01\uff05\uff09\uff0c\uff0e\uff1a"
    "\uff1b\uff1f\uff3d\uff5d\uff61\uff63-\uff65"
)
_NOT_LAST = (
    r"\s(\[{$#\u00ab\u2018\u201c\u3008\u300a\u300c\u300e\u3010\u3014\uff08\uff3b\uff5b\uff62"
)
_PLAIN_BREAKS = re.compile(
    rf"(?<=[^\S\u00a0\u2007\u202f])(?<![(\[{{\u00ab][ ])(?![\s!?)\]}}/\u00bb]|[.,:;](?!\d))"
    rf"|(?<=\w[-\u2010\u2013/])(?=[^\W\d])"
    rf"|(?<={_EM_DASH})(?=[^{_NOT_FIRST}])|(?<=\S)(?={_EM_DASH})"
    rf"|(?<=[{_IDEOGRAPHS}\u3001\u3002\uff01-\uff60])(?<![{_NOT_LAST}])(?=[^{_NOT_FIRST}])"
    rf"|(?<=[^{_NOT_LAST}])(?=[{_IDEOGRAPHS}])(?=[^{_NOT_FIRST}])"
)
_FLAG_LETTERS = re.compile("[\U0001f1e6-\U0001f1ff]*$")
_SURROGATES = re.compile("[\ud800-\udfff]")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_BEYOND_LATIN = re.compile("[^\n\x20-\u02ff]")


def word_breaks(text: str, language: str | None) -> list[int]:
    """Return break opportunities that do not divide a word, before the spaces there.

    In scripts without spaces, words are those of a dictionary; in Japanese, phrases. Hyphens do
    not separate words.
    """
    locale = language or "en"
    icu = _icu_of(text)
    if icu is None:
        breaks = line_breaks(text, language)
    else:
        breaks = _offsets(
            icu.LineBreaker, text, "ja@lb=strict;lw=phrase" if _KANA.search(text) else locale
        )
    places, words = [], None
    for at in _spaced_breaks(text, breaks):
        if text[at].isspace() or text[at - 1] == _EM_DASH:
            places.append(at)
        elif _is_without_spaces(text, at):
            if icu and _HAN_OR_KANA.match(text, at) and _HAN_OR_KANA.match(text, at - 1):
                words = words or frozenset(_offsets(icu.WordBreaker, text, locale))
                if at not in words:
                    continue
            places.append(at)
    return places


def timed_word_breaks(text: str, language: str | None) -> list[int]:
    """Return possible starts of words with times, before the spaces there.

    As `word_breaks`, but in scripts without spaces at every line break opportunity.
    """
    return [
        at
        for at in _spaced_breaks(text, line_breaks(text, language))
        if text[at].isspace() or text[at - 1] == _EM_DASH or _is_without_spaces(text, at)
    ]


def dictionary_breaks(text: str, language: str | None) -> list[int] | None:
    """Return `word_breaks` of Thai, Lao, Khmer and Burmese by ICU; None if it is not installed.

    None for other scripts too.
    """
    if not _OF_DICTIONARIES.search(text) or _icu_of(text) is None:
        return None
    return word_breaks(text, language)


def line_breaks(text: str, language: str | None) -> list[int]:
    """Return Unicode's line break opportunities, such as after a hyphen; after spaces."""
    if (icu := _icu_of(text)) is not None:
        return _offsets(icu.LineBreaker, text, f"{language or 'en'}@lb=strict")
    return [match.start() for match in _PLAIN_BREAKS.finditer(text) if match.start()]


def character_breaks(text: str) -> list[int]:
    """Return positions where a word too long for a line may be divided.

    These are between letters and digits as grapheme clusters, so that symbols stay with adjacent
    characters; words of symbols may be divided anywhere.
    """
    signs_alone = not any(map(_is_letter, text))
    return [
        at
        for at in _clusters(text)
        if signs_alone or (_is_letter(text[at]) and _is_letter(text[at - 1]))
    ]


def columns(text: str) -> int:
    """Return the width as displayed: wide characters take two columns, marks and joiners none.

    Source: Unicode Standard Annex 11, East Asian Width: W and F.
    """
    text = _INVISIBLE.sub("", text)
    if not _BEYOND_LATIN.search(text):  # one column each; most texts
        return len(text)
    starts = (text[at] for at in (0, *_clusters(text)))
    return sum(
        1 + (unicodedata.east_asian_width(character) in "WF")
        for character in starts
        if unicodedata.category(character)[0] != "M"
    )


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


def _clusters(text: str) -> list[int]:
    # Starts of grapheme clusters, except the first.
    return [at for at in range(1, len(text)) if not _goes_on(text, at)]


def _goes_on(text: str, at: int) -> bool:
    previous, character = text[at - 1], text[at]
    if character < "\u0300":
        return previous + character == "\r\n"
    if "\U0001f1e6" <= character <= "\U0001f1ff":
        flag = _FLAG_LETTERS.search(text, 0, at)
        return flag is not None and len(flag[0]) % 2 == 1
    return (
        unicodedata.category(character)[0] == "M"
        or character in "\u200d\u0e33\u0eb3"  # a joiner; vowels of Thai and Lao
        or "\u1160" <= character <= "\u11ff"  # Hangul in parts
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
        or (previous == "\u200d" and unicodedata.category(character) == "So")
    )


def _icu_of(text: str) -> Any:
    """Return ICU's breakers for a text in scripts without spaces; None if not installed."""
    if not _WITHOUT_SPACES.search(text):
        return None
    return _icu(bool(_OF_DICTIONARIES.search(text)))


@functools.cache  # so that a missing package is logged once
def _icu(is_needed: bool) -> Any:
    try:
        from icu4py import breakers
    except ImportError:
        if is_needed:
            event(_LOG, logging.WARNING, "lines_may_divide_words", cure=install_words("lines"))
        return None
    return breakers


def _offsets(breaker: Any, text: str, locale: str) -> list[int]:
    # ICU counts UTF-16 units and rejects lone surrogates: pieces are counted instead.
    pieces = breaker(_SURROGATES.sub("\ufffd", text), locale)
    return [*accumulate(map(len, pieces))][:-1]


def join_texts(texts: Iterable[str]) -> str:
    """Join texts, with a space between them if the script has spaces and none is present."""
    joined = ""
    for text in texts:
        if joined and text and not joined[-1].isspace() and not text[0].isspace():
            both = _WITHOUT_SPACES.match(joined[-1]) and _WITHOUT_SPACES.match(text[0])
            joined += "" if both else " "
        joined += text
    return joined.strip()
