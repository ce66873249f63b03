"""Values from tables, which may hold anything, as short text without secrets for a page."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from urllib.parse import quote

from corpus_asr.confidence import HIGH_CONFIDENCE, LOW_CONFIDENCE
from corpus_asr.config.document import hide_secrets
from corpus_asr.languages import LANGUAGES
from corpus_asr.report.samples import Sample
from corpus_asr.storage.stores.uri import LOCAL, public, redact_uri, scheme_of, without_secrets

# Controls but tab and line feed, lone surrogates, which UTF-8 cannot write, and non-characters;
# what turns the order of the letters that follow: embeddings, overrides, isolates.
_SIGNS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"}
_SIGNS |= {ord("\r"): "", 0x7F: "\u2421"}
_SIGNS |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "\ufffd")
_SIGNS |= {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}

MOST_CHARACTERS = 240  # of a name
MOST_OF_A_MESSAGE = 400
MOST_OF_A_TEXT = 1_200
_LONGEST_LINK = 2_000  # what every browser takes
_LEAST_OF_A_WORD = 8  # letters that the markup of a word is worth
_FROM_THE_RIGHT = {"ar", "fa", "he", "ps", "sd", "ur", "yi"}
_CODE = re.compile(r"[a-z]{2,3}")
_LETTERS_OF_PATHS = "/~!$&'()*+,;=:@"


@cache
def shared(name: str) -> str:
    """Return a file of this folder: a style sheet or a script."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def visible(text: str) -> str:
    """Write controls as signs for them, and what reorders letters by its code."""
    return text if text.isprintable() else text.translate(_SIGNS)


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text, without its middle if it is long."""
    if len(text) <= most:
        return text
    return f"{text[: 2 * most // 3]} … {text[-most // 3 :]}"


def message(text: str, *, of: str = "") -> str:
    """Return a failure's message without the address `of` its recording, which it stands below."""
    _, address, rest = text.partition(f"{redact_uri(public(of))}: ")
    return cut(hide_secrets(without_secrets(rest if of and address else text)), MOST_OF_A_MESSAGE)


@dataclass(frozen=True, slots=True)
class Link:
    """A recording's address as text, and where a link to it leads; None where it may not."""

    text: str
    target: str | None


@dataclass(frozen=True, slots=True)
class Links:
    """Makes links from a page in this folder; None for a page on another machine."""

    folder: str | None

    def to(self, uri: str) -> Link:
        """Return a link only to http and, for a page on this machine, to files beside it."""
        target = self._target(uri)
        short = target is not None and len(target) <= _LONGEST_LINK
        return Link(cut(redact_uri(public(uri))), target if short else None)

    def _target(self, uri: str) -> str | None:
        if scheme_of(uri) in ("http", "https"):
            # What is quoted already stays so.
            return quote(public(uri), safe=f"%?{_LETTERS_OF_PATHS}", errors="replace")
        if scheme_of(uri) == LOCAL and self.folder is not None:
            path = os.path.relpath(uri, self.folder)
            # A colon in the first step would be taken for a scheme.
            return "./" + quote(os.fsencode(path), safe=_LETTERS_OF_PATHS)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedWord:
    """A word of a sample, marked by how sure the model was of it."""

    may_break: bool
    """Where no blanks part words, a line may still end between them."""
    blank: str
    text: str
    mark: str | None
    """`unsure`, `doubtful`, or None."""
    probability: float


def sample_words(sample: Sample) -> tuple[Sequence[MarkedWord], int]:
    """Return the first words of a sample, and how many are left out."""
    words: list[MarkedWord] = []
    length = 0
    for word, probability in sample.words:
        length += max(len(word), _LEAST_OF_A_WORD)
        if words and length > MOST_OF_A_TEXT:
            break
        word = cut(word)
        mark = None
        if probability < HIGH_CONFIDENCE:
            mark = "doubtful" if probability < LOW_CONFIDENCE else "unsure"
        text = word.lstrip()
        words.append(
            MarkedWord(
                may_break=not word[:1].isspace(),
                blank=word[: len(word) - len(text)],
                text=text,
                mark=mark,
                probability=probability,
            )
        )
    return words, len(sample.words) - len(words)


def confidence_class(confidence: float) -> str:
    """Return the style of a segment's confidence."""
    if confidence < LOW_CONFIDENCE:
        return "bad"
    return "warn" if confidence < HIGH_CONFIDENCE else "good"


def language_attributes(code: str | None) -> dict[str, str]:
    """Return what tells a browser the language of a text, and which way it is written."""
    if not code or not _CODE.fullmatch(code):
        return {"dir": "auto"}
    return {"lang": code, "dir": "rtl" if code in _FROM_THE_RIGHT else "ltr"}


def language_name(code: str) -> str:
    """Return what people call a language; the code itself where that is not known."""
    name = LANGUAGES.get(code)
    return f"{name.title()} ({code})" if name else cut(code, 60)


def clock(seconds: float) -> str:
    """Write a time within a recording."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def hours(seconds: float) -> str:
    """Write a length of audio, in hours where there are some."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def fraction(value: float) -> str:
    """Write a fraction as a percentage; one that is there is never 0%."""
    return f"{value:.0%}" if value >= 0.01 or not value else "<1%"


def coordinate(value: float) -> str:
    """Write a number of an SVG."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
