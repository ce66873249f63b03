"""Texts as they are compared: without case, accents and punctuation; and where matches lie.

In: any text. Out: its folded form, in which words stand between single blanks, and the way back
from places in the folded form to those in the text. Vowel signs and the like, without which a word
would be another one, are kept. Knows nothing of queries and tables.

Source: Unicode Standard, section 3.13 (caseless matching) and UAX 15 (normalisation forms).
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

# Letters that the compatibility decomposition leaves whole.
_PLAIN_LETTERS = {
    "ø": "o",
    "đ": "d",
    "ð": "d",
    "þ": "th",
    "ł": "l",
    "œ": "oe",
    "æ": "ae",
    "\u0131": "i",  # without its dot
}
# Marks that only colour a letter: accents, and points of Hebrew and Arabic.
_ACCENTS = (
    (0x0300, 0x036F), (0x0591, 0x05BD), (0x05BF, 0x05C7), (0x0610, 0x061A), (0x0640, 0x0640),
    (0x064B, 0x065F), (0x0670, 0x0670), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF),
    (0xFE00, 0xFE0F), (0xFE20, 0xFE2F),
)  # fmt: skip
_SEPARATORS = frozenset({"P", "Z", "C"})
_BLANKS = re.compile(" {2,}")
# Parts of Korean syllables, which belong to the letter before them.
_FOLLOWING_JAMO = range(0x1160, 0x1200)


class _Table(dict[int, str | int | None]):
    """What becomes of each character, found when it is met."""

    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        found: str | int | None = _PLAIN_LETTERS.get(character, code)
        if unicodedata.category(character)[0] in _SEPARATORS:
            found = " "
        if any(first <= code <= last for first, last in _ACCENTS):
            found = None
        self[code] = found
        return found


_TABLE = _Table({ord("\n"): "\n"})


def folded(text: str) -> str:
    """Return the folded form of one text: words between single blanks, none at the ends."""
    return folded_lines([text])[0]


def folded_lines(texts: Sequence[str]) -> list[str]:
    """Return the folded forms of many texts, at a cost of microseconds each."""
    plain = iter(_folded([text for text in texts if text.isascii()]))
    others = iter(_folded([text for text in texts if not text.isascii()]))
    return [next(plain) if text.isascii() else next(others) for text in texts]


def _folded(texts: Sequence[str]) -> list[str]:
    # All at once: a call for each would take longer than the work.
    whole = _spread("\n".join(text.replace("\n", " ") for text in texts))
    return [line.strip(" ") for line in _BLANKS.sub(" ", whole).split("\n")]


def _spread(text: str) -> str:
    """Return the folded form with all the blanks that characters have become."""
    if text.isascii():
        return text.lower().translate(_TABLE)
    # Letters are parted from their marks, and what is left is put together again.
    parted = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", parted.translate(_TABLE))


def places(text: str) -> tuple[str, list[int]]:
    """Return the folded form, and for each of its characters where in the text it comes from.

    One more place stands at the end: the length of the text.
    """
    characters: list[str] = []
    sources: list[int] = []
    for start, cluster in _clusters(text):
        for character in _spread(cluster.replace("\n", " ")):
            if character != " " or (characters and characters[-1] != " "):
                characters.append(character)
                sources.append(start)
    if characters and characters[-1] == " ":
        del characters[-1], sources[-1]
    return "".join(characters), [*sources, len(text)]


def _clusters(text: str) -> Iterator[tuple[int, str]]:
    """Yield letters with the marks that follow them, each with its place."""
    start = 0
    for at in range(1, len(text) + 1):
        if at == len(text) or not follows(text[at]):
            yield start, text[start:at]
            start = at


def follows(character: str) -> bool:
    """Tell whether a character belongs to the letter before it."""
    return ord(character) in _FOLLOWING_JAMO or unicodedata.category(character)[0] == "M"
