"""Words spelled by tokens: word boundaries, and attachment of punctuation."""

import re
import string
from collections.abc import Callable, Sequence

# Source: openai-whisper, the defaults of `add_word_timestamps`.
BEFORE_A_WORD = "\"'“¿([{-"
AFTER_A_WORD = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
SENTENCE_ENDS = ".。!！?？"  # noqa: RUF001
_MARKS = frozenset(SENTENCE_ENDS + "…,，、:：;¿¡-–—'\"“”‘’「」")  # noqa: RUF001

# Codes of languages without spaces between words: every character counts as a word.
WITHOUT_BLANKS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

_SENTENCE_END = re.compile(r"[.!?…。！？؟।။]+[\"'”’»)\]}」』]*$")  # noqa: RUF001
_WITH_A_STOP = re.compile(r"([^\W_](?:[^\W_]|\.(?=\w))*)\.$")
# Abbreviations that do not end a sentence: titles, and initials such as U.S.
_TITLE = re.compile(
    "Mrs?|Ms|Messrs|Dra?|Drs|Ste?|Prof|Rev|Hon|Gen|Col|Capt|Lt|Sgt|Gov|Sen|Rep|Mme|Mlle|Mgr|Sra?|"
    "Srta|Sig|Dott|Ing|Hr|Fr|vs|etc|cf|ca|approx|bzw|evtl|ggf|usw|vgl|проф|акад"
)
# Abbreviations that do not end a sentence before a number or a small letter: months and days.
_DATE = re.compile(
    "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu|Thurs?|Fri|Sat|Sun|Mär|Okt|"
    "Dez|Mo|Di|Mi|Do|Sa|So|janv|févr|avr|juil|sept|oct|nov|déc|ene|feb|abr|ago|dic|gen|apr|giu|"
    "lug|ott|fev|янв|февр?|апр|авг|сент|окт|нояб|дек"
)
# Abbreviations that do not end a sentence before a number.
_NUMBERED = re.compile(
    "nos?|nr|núm|num|vols?|pp?|pgs?|ch|chap|figs?|sect?|arts?|para?|pt|op|cap|págs?|bd|kap|abb|"
    "tab|abs|ziff|стр|гл|рис|ст|табл",
    re.IGNORECASE,
)
_OUTER_MARKS = re.compile(r"^\W+")
_NUMBER = re.compile(r"\d|(?:[IVXLC]{2,}|[VX])\b")
# In German, a day of the month has a period: 5. November.
_MONTH = re.compile("Jan|Jän|Feb|März|Apr|Mai|Jun|Jul|Aug|Sep|Okt|Nov|Dez")

_BROKEN = "\ufffd"  # decoded form of incomplete characters

Spelled = tuple[str, tuple[int, ...]]
"""A piece of text with its token IDs, or their indices."""

NOTHING: Spelled = ("", ())


def has_words(text: str) -> bool:
    """Whether a text is more than blanks and marks of sentences, which nobody says."""
    return any(not character.isspace() and character not in _MARKS for character in text)


def ends_sentence(text: str, following: str = "") -> bool:
    """Whether a word, or the last one of a text, ends a sentence, given the following text."""
    written = text.rstrip()
    if _SENTENCE_END.search(written) is None:
        return False
    if (match := _WITH_A_STOP.search(written)) is None:
        return True
    word, next_text = match[1], _OUTER_MARKS.sub("", following)
    is_initials = max(map(len, word.split("."))) == 1
    if _TITLE.fullmatch(word) or (is_initials and word[-1].isupper()):
        return False
    goes_on = next_text[:1].islower()
    if word.isdigit():
        return not (len(word) < 3 and (goes_on or _MONTH.match(next_text)))
    if _DATE.fullmatch(word) or ("." in word and not word[0].isdigit()):
        return not (goes_on or _NUMBER.match(next_text))
    return not (_NUMBERED.fullmatch(word) and _NUMBER.match(next_text))


def split_characters(tokens: Sequence[int], text: Callable[[Sequence[int]], str]) -> list[Spelled]:
    """Split text tokens into the shortest runs that spell whole characters."""
    # Split where the tokens before and after decode separately as they do together.
    rest = text(tokens)
    pieces: list[Spelled] = []
    first = 0
    for stop in range(1, len(tokens) + 1):
        spelling = text(tokens[first:stop])
        if not rest.startswith(spelling):
            continue
        # The bytes may continue: those of a whole character, or of another incomplete one.
        if spelling.endswith(_BROKEN) and text(tokens[stop:]) != rest[len(spelling) :]:
            continue
        pieces.append((spelling, tuple(tokens[first:stop])))
        rest = rest[len(spelling) :]
        first = stop
    return pieces


def join_to_words(pieces: Sequence[Spelled]) -> list[Spelled]:
    """Join pieces to words, which start with a space or are punctuation."""
    words: list[Spelled] = []
    for piece in pieces:
        # A run of marks counts if it occurs in this order in the list of all marks.
        punctuation = piece[0].strip() in string.punctuation
        if piece[0].startswith(" ") or punctuation or not words:
            words.append(piece)
        else:
            words[-1] = joined(words[-1], piece)
    return words


def join_between(pieces: Sequence[Spelled], breaks: Sequence[int]) -> list[Spelled]:
    """Join pieces to words between offsets in their text; a piece across a break joins two."""
    words: list[Spelled] = []
    starts, offset = {0, *breaks}, 0
    for piece in pieces:
        if offset in starts or not words:
            words.append(piece)
        else:
            words[-1] = joined(words[-1], piece)
        offset += len(piece[0])
    return words


def merge_punctuation(words: Sequence[Spelled], *, before: str = BEFORE_A_WORD) -> list[Spelled]:
    """Attach punctuation to adjacent words, leaving empty texts in its place.

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
        if not merged[host][0].endswith(" ") and merged[at][0] in AFTER_A_WORD:
            merged[host] = joined(merged[host], merged[at])
            merged[at] = NOTHING
        else:
            host = at
    return merged


def joined(first: Spelled, second: Spelled) -> Spelled:
    """Concatenate two pieces."""
    return first[0] + second[0], first[1] + second[1]
