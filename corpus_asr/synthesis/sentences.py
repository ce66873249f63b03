"""English sentences to speak: drawn ones, and lines of texts that people wrote.

In: a generator of random numbers. Out: sentences without digits, so that there is one way to say
them. Knows no voices.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

_NOUNS = (
    "archive", "baker", "bridge", "captain", "child", "city", "clock", "cloud", "country", "doctor",
    "dog", "engine", "evening", "farmer", "father", "field", "fire", "forest", "friend", "garden",
    "girl", "hill", "horse", "house", "island", "judge", "kitchen", "lake", "lawyer", "letter",
    "machine", "market", "mother", "mountain", "museum", "neighbour", "newspaper", "ocean",
    "office", "painter", "path", "picture", "president", "question", "radio", "river", "road",
    "sailor", "school", "ship", "singer", "soldier", "station", "stone", "storm", "story",
    "street", "student", "summer", "teacher", "theatre", "thief", "tower", "train", "tree",
    "valley", "village", "voice", "water", "weather", "window", "winter", "woman", "writer",
)  # fmt: skip
_ADJECTIVES = (
    "ancient", "angry", "brave", "bright", "broken", "busy", "careful", "cheap", "clever", "cold",
    "curious", "dark", "distant", "dry", "early", "empty", "famous", "fresh", "gentle", "golden",
    "green", "heavy", "hidden", "honest", "hungry", "large", "late", "little", "lonely", "loud",
    "narrow", "new", "noisy", "old", "pale", "quiet", "rough", "sharp", "silent", "simple", "slow",
    "strange", "strong", "sudden", "sweet", "thick", "tired", "useful", "warm", "white", "wild",
    "wise", "wonderful", "wooden", "young",
)  # fmt: skip
_VERBS = (
    "answered", "asked", "believed", "bought", "brought", "built", "carried", "caught", "changed",
    "chose", "cleaned", "closed", "counted", "covered", "described", "discovered", "drew",
    "expected", "explained", "followed", "forgot", "found", "heard", "helped", "imagined", "kept",
    "knew", "left", "lost", "loved", "measured", "missed", "moved", "needed", "noticed", "opened",
    "painted", "passed", "played", "pushed", "reached", "remembered", "repaired", "saw", "served",
    "showed", "sold", "studied", "threw", "touched", "understood", "used", "visited", "wanted",
    "washed", "watched", "wrote",
)  # fmt: skip
_WHEN = (
    "after breakfast", "at midnight", "before the rain", "during the war", "every morning",
    "in the afternoon", "last week", "long ago", "next year", "once again", "on Monday",
    "on Saturday", "several times", "the other day", "this evening", "two days later", "yesterday",
)  # fmt: skip
_WHERE = (
    "across the bridge", "along the river", "behind the house", "beneath the floor",
    "beside the lake", "between the trees", "by the window", "in the garden", "in the library",
    "near the station", "on the table", "outside the city", "over the hills", "through the door",
    "under the old oak", "up the stairs",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "twentieth", "thirtieth",
)  # fmt: skip

_SPOKEN = re.compile(r"[A-Za-z][A-Za-z' ,;:.!?-]*[A-Za-z.!?]")
_WORDS = range(3, 26)
_AUTHOR = re.compile(r"^\s*--", flags=re.MULTILINE)
_SHOUTED = re.compile(r"[A-Z]{2}")  # or spelled, or of Roman figures: nobody knows how to say it
_WORDNET = "  1 This software and database is being provided"  # how its data files begin
_EXAMPLE = re.compile(r'"([^"]+)"')


def drawn_sentences(draw: random.Random) -> Iterator[str]:
    """Yield sentences without end: statements, questions, numbers, dates, rows of digits."""
    makers = (_statement, _statement, _statement, _two_parts, _question, _number, _date, _digits)
    while True:
        sentence = draw.choice(makers)(draw)
        yield sentence[0].upper() + sentence[1:]


def few_digits(draw: random.Random) -> str:
    """Return one digit or two or three, without capitals and stops, as single words are written."""
    return " ".join(draw.choices(_ONES[:10], k=draw.choice((1, 1, 1, 2, 3))))


def written_sentences(path: Path) -> Iterator[str]:
    """Yield the sentences of a text that can be read aloud as they stand.

    Args:
        path: a text; lines of `%` part it, as in files of fortune cookies, and what follows a line
            that begins with `--` names its author. Or a data file of WordNet, whose examples are
            taken.

    Raises:
        OSError: it cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="ignore")
    for said in _examples(text) if text.startswith(_WORDNET) else _entries(text):
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", " ".join(said.split())):
            if (
                _SPOKEN.fullmatch(sentence)
                and len(sentence.split()) in _WORDS
                and not _SHOUTED.search(sentence)
            ):
                yield sentence


def _entries(text: str) -> Iterator[str]:
    for entry in re.split(r"^%$", text, flags=re.MULTILINE):
        yield _AUTHOR.split(entry, maxsplit=1)[0]


def _examples(text: str) -> Iterator[str]:
    """Yield what is quoted in explanations, as sentences are written."""
    for line in text.splitlines():
        for example in _EXAMPLE.findall(line.partition("|")[2]):
            said = example.strip(" ,;")
            yield said[:1].upper() + said[1:] + ("" if said[-1:] in ".!?" else ".")


def spelled(number: int) -> str:
    """Return a number below a million in words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return _TENS[ten - 2] + (f" {_ONES[one]}" if one else "")
    if number < 1000:
        hundred, rest = divmod(number, 100)
        return f"{_ONES[hundred]} hundred" + (f" and {spelled(rest)}" if rest else "")
    thousand, rest = divmod(number, 1000)
    joint = " and " if 0 < rest < 100 else " "
    return f"{spelled(thousand)} thousand" + (f"{joint}{spelled(rest)}" if rest else "")


def _thing(draw: random.Random) -> str:
    article = draw.choice(("the", "the", "a", "my", "their", "this", "every", "our"))
    adjective = draw.choice(_ADJECTIVES) if draw.random() < 0.6 else ""
    noun = draw.choice(_NOUNS)
    if article == "a" and (adjective or noun)[0] in "aeiou":
        article = "an"
    return " ".join(filter(None, (article, adjective, noun)))


def _statement(draw: random.Random) -> str:
    place = draw.choice((*_WHEN, *_WHERE)) if draw.random() < 0.6 else ""
    parts = (_thing(draw), draw.choice(_VERBS), _thing(draw), place)
    return " ".join(filter(None, parts)) + "."


def _two_parts(draw: random.Random) -> str:
    joint = draw.choice((", and", ", but", ", because", ", so", ", while", " when", " before"))
    second = _statement(draw)
    return f"{_statement(draw)[:-1]}{joint} {second}"


def _question(draw: random.Random) -> str:
    opening = draw.choice(("who", "why do you think", "do you know how", "did you see where"))
    return (
        f"{opening} {draw.choice(_VERBS)} {_thing(draw)}?"
        if opening == "who"
        else (f"{opening} {_statement(draw)[:-1]}?")
    )


def _number(draw: random.Random) -> str:
    number = spelled(draw.randrange(10 ** draw.randrange(1, 7)))
    return f"{_thing(draw)} {draw.choice(_VERBS)} {number} {draw.choice(_NOUNS)}s."


def _date(draw: random.Random) -> str:
    hour, minute = spelled(draw.randrange(1, 13)), spelled(draw.randrange(10, 60))
    day = f"the {draw.choice(_ORDINALS)} of {draw.choice(_MONTHS)}"
    return f"on {day}, at {hour} {minute}, {_statement(draw)}"


def _digits(draw: random.Random) -> str:
    return " ".join(draw.choice(_ONES[:10]) for _ in range(draw.randrange(3, 11))) + "."
