"""Values from tables, which may hold anything, as short text without secrets for a page."""

import datetime
import os
import re
from functools import cache
from importlib import resources
from urllib.parse import quote

from corpus_asr.confidence import HIGH_CONFIDENCE, LOW_CONFIDENCE
from corpus_asr.config.document import hide_secrets
from corpus_asr.languages import LANGUAGES
from corpus_asr.report.samples import Sample
from corpus_asr.storage.stores.uri import (
    LOCAL,
    public,
    redact_uri,
    scheme_of,
    without_secrets,
)

# Controls but tab and line feed, lone surrogates, which UTF-8 cannot write, and non-characters;
# what turns the order of the letters that follow: embeddings, overrides, isolates.
_SIGNS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"}
_SIGNS |= {ord("\r"): "", 0x7F: "\u2421"}
_SIGNS |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "\ufffd")
_SIGNS |= {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}

# Tables hold texts of any length; the page of a large run is to stay below 100 kB.
MOST_CHARACTERS = 240  # of a name
MOST_OF_A_MESSAGE = 400
MOST_OF_A_TEXT = 1_200
_LONGEST_LINK = 2_000  # what every browser takes
_LEAST_OF_A_WORD = 8  # letters that the markup of a word is worth
_FROM_THE_RIGHT = {"ar", "fa", "he", "ps", "sd", "ur", "yi"}
# A language is what a model said, or any text of a table: only a code may become an attribute.
_CODE = re.compile(r"[a-z]{2,3}")
_LETTERS_OF_PATHS = "/~!$&'()*+,;=:@"


@cache
def shared(name: str) -> str:
    """Return the content of a style sheet or script in the folder `html`."""
    return resources.files(__package__).joinpath("html", name).read_text("utf-8")


def visible(text: str) -> str:
    """Replace control characters, and those that reorder text, by visible signs or codes."""
    return text if text.isprintable() else text.translate(_SIGNS)


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text, with its middle elided if it is long."""
    if len(text) <= most:
        return text
    # Names differ at their ends as often as at their starts.
    return f"{text[: 2 * most // 3]} … {text[-most // 3 :]}"


def message(text: str, *, of: str = "", most: int = MOST_OF_A_MESSAGE) -> str:
    """Return a failure message without secrets and without the URI `of` its recording."""
    # The page shows the URI above it; most messages start with the action and URI.
    _, address, rest = text.partition(f"{redact_uri(public(of))}: ")
    return cut(hide_secrets(without_secrets(rest if of and address else text)), most)


def link(uri: str, *, folder: str | None) -> tuple[str, str | None]:
    """Return a recording's address as text, and the target of a link to it; None for no link.

    `folder` is that of the page, if it lies on this machine: only then files can be linked to.
    """
    target = None
    if scheme_of(uri) in ("http", "https"):
        # Already quoted characters stay quoted.
        target = quote(public(uri), safe=f"%?{_LETTERS_OF_PATHS}", errors="replace")
    elif scheme_of(uri) == LOCAL and folder is not None:
        # A colon in the first step would be taken for a scheme.
        path = os.path.relpath(uri, folder)
        target = "./" + quote(os.fsencode(path), safe=_LETTERS_OF_PATHS)
    short = target is not None and len(target) <= _LONGEST_LINK
    return cut(redact_uri(public(uri))), target if short else None


def sample_words(sample: Sample) -> tuple[list[tuple[str, float]], int]:
    """Return the first words of a sample with confidences, and the number omitted."""
    words: list[tuple[str, float]] = []
    length = 0
    for word, confidence in sample.words:
        length += max(len(word), _LEAST_OF_A_WORD)
        if words and length > MOST_OF_A_TEXT:
            break
        words.append((cut(word), confidence))
    return words, len(sample.words) - len(words)


def confidence_class(confidence: float) -> str:
    """Return the CSS class of a segment's confidence."""
    if confidence < LOW_CONFIDENCE:
        return "bad"
    return "warn" if confidence < HIGH_CONFIDENCE else "good"


def language_attributes(code: str | None) -> dict[str, str]:
    """Return the HTML attributes of a text's language and direction."""
    if not code or not _CODE.fullmatch(code):
        return {"dir": "auto"}
    return {"lang": code, "dir": "rtl" if code in _FROM_THE_RIGHT else "ltr"}


def language_name(code: str) -> str:
    """Return the English name of a language with its code; an unknown code unchanged."""
    name = LANGUAGES.get(code)
    return f"{name.title()} ({code})" if name else cut(code, 60)


def fraction(value: float) -> str:
    """Format a fraction as a percentage; small values as <1%."""
    return f"{value:.0%}" if value >= 0.01 or not value else "<1%"


def confidence_words(value: float) -> str:
    """Format a confidence; small values are not rounded to zero."""
    return f"confidence {value:.0%}" if value >= 0.01 else "confidence below 1%"


def name_of(uri: str) -> str:
    """Return the last step of an output URI, its usual name."""
    return redact_uri(uri).rstrip("/").rpartition("/")[2] or redact_uri(uri)


def moment(text: str) -> str:
    """Format an ISO 8601 time to the minute; other text unchanged."""
    try:
        when = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except ValueError:
        return cut(text, 60)
    return f"{when:%Y-%m-%d %H:%M} UTC"


def coordinate(value: float) -> str:
    """Format an SVG coordinate."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
