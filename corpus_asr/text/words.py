"""The words of a text that tokens spell: where they begin, and which marks belong to them."""

import re
import string
from collections.abc import Callable, Sequence

# Source: openai-whisper, the defaults of `add_word_timestamps`.
BEFORE_A_WORD = "\"'“¿([{-"
AFTER_A_WORD = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
SENTENCE_ENDS = ".。!！?？"  # noqa: RUF001

# Codes of languages written without blanks between words: every character counts as a word.
WITHOUT_BLANKS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

_SENTENCE_END = re.compile(r"[.!?…。！？؟।။]+[\"'”’»)\]}」』]*$")  # noqa: RUF001
# Initials and a few titles end with a full stop, but end no sentence.
_ABBREVIATION = re.compile(r"(?:^|.*\s)\W*(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e)\.$")

_BROKEN = "\ufffd"  # what bytes that are no whole character decode to

Spelled = tuple[str, tuple[int, ...]]
"""A piece of text and the tokens that spell it, or where these stand among others."""

NOTHING: Spelled = ("", ())


def ends_sentence(text: str) -> bool:
    """Whether a word, or the last one of a text, ends a sentence."""
    written = text.rstrip()
    return _SENTENCE_END.search(written) is not None and _ABBREVIATION.match(written) is None


def split_characters(tokens: Sequence[int], text: Callable[[Sequence[int]], str]) -> list[Spelled]:
    """Split text tokens into the shortest runs that spell whole characters."""
    # Cut wherever the tokens before and after decode by themselves as they do together.
    rest = text(tokens)
    pieces: list[Spelled] = []
    first = 0
    for stop in range(1, len(tokens) + 1):
        own = text(tokens[first:stop])
        if not rest.startswith(own):
            continue
        # The bytes may go on: those of a whole character, or of another broken one.
        if own.endswith(_BROKEN) and text(tokens[stop:]) != rest[len(own) :]:
            continue
        pieces.append((own, tuple(tokens[first:stop])))
        rest = rest[len(own) :]
        first = stop
    return pieces


def join_to_words(pieces: Sequence[Spelled]) -> list[Spelled]:
    """Join pieces to words, each of which begins with a blank or is punctuation."""
    words: list[Spelled] = []
    for piece in pieces:
        # A run of marks is one where it stands in this order in the list of all.
        punctuation = piece[0].strip() in string.punctuation
        if piece[0].startswith(" ") or punctuation or not words:
            words.append(piece)
        else:
            words[-1] = joined(words[-1], piece)
    return words


def merge_punctuation(
    words: Sequence[Spelled], *, before: str = BEFORE_A_WORD, after: str = AFTER_A_WORD
) -> list[Spelled]:
    """Move marks to the words they are written beside; where they stood is an empty text.

    Source: openai-whisper `merge_punctuations`; transformers `_merge_punctuations`.
    """
    merged = list(words)
    host = len(merged) - 1
    for at in range(len(merged) - 2, -1, -1):
        text = merged[at][0]
        if text.startswith(" ") and text.strip() in before:
            merged[host] = joined(merged[at], merged[host])
            merged[at] = NOTHING
        else:
            host = at
    host = 0
    for at in range(1, len(merged)):
        if not merged[host][0].endswith(" ") and merged[at][0] in after:
            merged[host] = joined(merged[host], merged[at])
            merged[at] = NOTHING
        else:
            host = at
    return merged


def joined(first: Spelled, second: Spelled) -> Spelled:
    """Put one piece after another."""
    return first[0] + second[0], first[1] + second[1]
