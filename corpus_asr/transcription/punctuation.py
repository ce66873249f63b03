"""Where words begin and end among tokens, and which marks belong to which word.

In: text tokens and a way to decode them. Out: words with their tokens, nothing lost: joined they
are the text. Knows neither times nor attention.
"""

import string
from collections.abc import Callable, Sequence

# Source: openai-whisper, the defaults of `add_word_timestamps`.
BEFORE_A_WORD = "\"'“¿([{-"
AFTER_A_WORD = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
SENTENCE_ENDS = ".。!！?？"  # noqa: RUF001

# Written without blanks between words: every character counts as a word.
_WITHOUT_BLANKS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

_BROKEN = "\ufffd"  # what bytes that are no whole character decode to

Spelled = tuple[str, tuple[int, ...]]
"""A piece of text and the tokens that spell it."""


def split_words(
    tokens: Sequence[int], text: Callable[[Sequence[int]], str], language: str | None
) -> list[Spelled]:
    """Split text tokens into words.

    A word begins with a blank, or is punctuation; in languages written without blanks it is the
    shortest run of tokens that spells whole characters.

    Args:
        tokens: of text alone.
        text: decodes them.
        language: code of the language they are in, if known.

    Source: openai-whisper `Tokenizer.split_to_word_tokens`. Differs where bytes are no UTF-8: there
    it loses tokens, or stops with an error.
    """
    pieces = _split_characters(tokens, text)
    return pieces if language in _WITHOUT_BLANKS else _join_to_words(pieces)


def merge_punctuation(words: Sequence[str]) -> list[str]:
    """Move marks to the words they are written beside.

    Returns:
        As many texts as there were, empty where the marks stood: times stay those of the words.

    Source: openai-whisper `merge_punctuations`.
    """
    merged = list(words)
    host = len(merged) - 1
    for at in range(len(merged) - 2, -1, -1):
        if merged[at].startswith(" ") and merged[at].strip() in BEFORE_A_WORD:
            merged[host] = merged[at] + merged[host]
            merged[at] = ""
        else:
            host = at
    host = 0
    for at in range(1, len(merged)):
        if not merged[host].endswith(" ") and merged[at] in AFTER_A_WORD:
            merged[host] += merged[at]
            merged[at] = ""
        else:
            host = at
    return merged


def _split_characters(tokens: Sequence[int], text: Callable[[Sequence[int]], str]) -> list[Spelled]:
    """Cut wherever the tokens before and after decode by themselves as they do together."""
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


def _join_to_words(pieces: Sequence[Spelled]) -> list[Spelled]:
    words: list[Spelled] = []
    for text, tokens in pieces:
        punctuation = text.strip() in string.punctuation
        if text.startswith(" ") or punctuation or not words:
            words.append((text, tokens))
        else:
            before, earlier = words[-1]
            words[-1] = (before + text, earlier + tokens)
    return words
