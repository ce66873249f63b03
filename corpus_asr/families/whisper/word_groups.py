"""Tokens grouped into words, as the pipeline of the reference groups them.

In: text tokens and their language. Out: words and the places of their tokens. Knows no times.

Source: transformers 5.23, tokenization_whisper.py, `_combine_tokens_into_words`.
"""

import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

_CUT_CHARACTER = "\ufffd"
# Languages that put no blanks between words.
_WITHOUT_BLANKS = ("chinese", "japanese", "thai", "lao", "myanmar", "cantonese")
_OPENING = "\"'“¡¿([{-"
_CLOSING = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  (full-width punctuation is meant)


class Word(NamedTuple):
    """A word of a text."""

    text: str
    positions: list[int]
    """Where its tokens stand among those of the text."""


def grouped_words(
    tokens: Sequence[int], language: str, decode: Callable[[list[int]], str]
) -> list[Word]:
    """Group tokens into words, punctuation with the word it belongs to.

    Args:
        tokens: text tokens, neither control tokens nor timestamps among them.
        language: name of the language, such as `english`.
        decode: tokens to text.
    """
    words = _characters(tokens, decode)
    if language not in _WITHOUT_BLANKS:
        words = _joined_at_blanks(words)
    return _with_closing(_with_opening(words))


def _characters(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> list[Word]:
    """Put tokens together until they make whole characters."""
    whole = decode(list(tokens))
    found: list[Word] = []
    length = 0
    positions: list[int] = []
    for position in range(len(tokens)):
        positions.append(position)
        text = decode([tokens[k] for k in positions])
        cut = text.find(_CUT_CHARACTER)
        # The mark of a cut character may also be what was written.
        if cut < 0 or length + cut >= len(whole) or whole[length + cut] == _CUT_CHARACTER:
            found.append(Word(text, positions))
            length += len(text)
            positions = []
    return found


def _joined_at_blanks(parts: list[Word]) -> list[Word]:
    """Start a word at every blank and every punctuation mark."""
    words: list[Word] = []
    for part in parts:
        # A run of marks is one where it stands in this order in the list of all.
        is_mark = part.text.strip() in string.punctuation
        if not words or is_mark or part.text.startswith(" "):
            words.append(part)
        else:
            words[-1] = _together(words[-1], part)
    return words


def _with_opening(words: list[Word]) -> list[Word]:
    """Put opening marks to the word after them."""
    merged: list[Word] = []
    for word in reversed(words):
        if merged and word.text.startswith(" ") and word.text.strip() in _OPENING:
            merged[-1] = _together(word, merged[-1])
        else:
            merged.append(word)
    return merged[::-1]


def _with_closing(words: list[Word]) -> list[Word]:
    """Put closing marks to the word before them."""
    merged: list[Word] = []
    for word in words:
        if merged and word.text in _CLOSING and not merged[-1].text.endswith(" "):
            merged[-1] = _together(merged[-1], word)
        else:
            merged.append(word)
    return [word for word in merged if word.text]


def _together(first: Word, second: Word) -> Word:
    return Word(first.text + second.text, first.positions + second.positions)
