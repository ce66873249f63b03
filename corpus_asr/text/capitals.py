"""Texts that are all in capitals, as some transcripts are, written as sentences. Knows no audio."""

import re

_SPEAKER = re.compile(r"\bi\b")


def sentence_case(text: str) -> str:
    """Return a text with one capital at its beginning, and `I`; others stay as they are.

    Names lose their capitals, as nothing tells which words they are.
    """
    if not text.isupper():
        return text
    lower = _SPEAKER.sub("I", text.lower())
    first = next((at for at, letter in enumerate(lower) if letter.isalpha()), 0)
    return lower[:first] + lower[first].upper() + lower[first + 1 :]
