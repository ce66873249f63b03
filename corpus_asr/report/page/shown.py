"""How a page shows addresses, messages, text with how sure it is, and times.

In: values from tables, which may hold anything. Out: `Html`, short, without secrets, and with no
link but to http and, for files of the machine the page lies on, relative ones. Knows nothing of
what they are of.
"""

import os
import re
from dataclasses import dataclass
from urllib.parse import quote

from corpus_asr.confidence import HIGH_CONFIDENCE, LOW_CONFIDENCE
from corpus_asr.config.secrets import hide_secrets
from corpus_asr.languages import LANGUAGES
from corpus_asr.pages.html import Html, escaped, fill, joined
from corpus_asr.report.details import Sample
from corpus_asr.storage.stores.uri import LOCAL, public, redact_uri, scheme_of, without_secrets

MOST_CHARACTERS = 240  # of a name
MOST_OF_A_MESSAGE = 400
MOST_OF_A_TEXT = 1_200
_LONGEST_LINK = 2_000
_LEAST_OF_A_WORD = 8  # letters that its mark is worth
_FROM_THE_RIGHT = {"ar", "fa", "he", "ps", "sd", "ur", "yi"}
_CODE = re.compile(r"[a-z]{2,3}")
_LETTERS_OF_PATHS = "/~!$&'()*+,;=:@"


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text, without its middle if it is long."""
    if len(text) <= most:
        return text
    return f"{text[: 2 * most // 3]} … {text[-most // 3 :]}"


def message(text: str, *, of: str = "") -> str:
    """Return what was said of a failure: short, without secrets, nor the address it stands below.

    Args:
        text: the message.
        of: the recording's address.
    """
    _, named, rest = text.partition(f"{redact_uri(public(of))}: ")
    return cut(hide_secrets(without_secrets(rest if of and named else text)), MOST_OF_A_MESSAGE)


@dataclass(frozen=True, slots=True)
class Links:
    """Makes links to recordings from a page.

    Args:
        folder: where the page lies on this machine; None if it lies elsewhere.
    """

    folder: str | None

    def to(self, uri: str, *, start_s: float | None = None) -> Html:
        """Return a recording's address, as a link to this time of it where there can be one."""
        words = cut(redact_uri(public(uri)))
        target = self._target(uri)
        if target is None or len(target) > _LONGEST_LINK:
            return fill('<bdi class="address">$words</bdi>', words=words)
        return fill(
            '<a class="address" href="$target$at" rel="noopener noreferrer"><bdi>$words</bdi></a>',
            target=target,
            at="" if start_s is None else f"#t={start_s:.2f}",
            words=words,
        )

    def _target(self, uri: str) -> str | None:
        if scheme_of(uri) in ("http", "https"):
            # What is quoted already stays so.
            return quote(public(uri), safe=f"%?{_LETTERS_OF_PATHS}", errors="replace")
        if scheme_of(uri) == LOCAL and self.folder is not None:
            path = os.path.relpath(uri, self.folder)
            # A colon in the first step would be taken for a scheme.
            return "./" + quote(os.fsencode(path), safe=_LETTERS_OF_PATHS)
        return None


def sample_text(sample: Sample) -> Html:
    """Return what was said, its words marked by how sure the model was of them."""
    if not sample.words:
        return escaped(cut(sample.text.strip(), MOST_OF_A_TEXT))
    told: list[Html] = []
    length = 0
    for word, sure in sample.words:
        length += max(len(word), _LEAST_OF_A_WORD)
        if told and length > MOST_OF_A_TEXT:
            break
        told.append(_word(word, sure))
    rest = len(sample.words) - len(told)
    return joined([*told, f" … ({rest:,} more words)" if rest else ""])


def _word(word: str, sure: float | None) -> Html:
    word = cut(word)
    # Where no blanks part words, a line may still end between them.
    end = Html("" if word[:1].isspace() else "<wbr>")
    if sure is None or sure >= HIGH_CONFIDENCE:
        return joined([end, word])
    return fill(
        '$end$blank<mark class="$kind" title="$share sure">$word</mark>',
        end=end,
        blank=word[: len(word) - len(word.lstrip())],
        kind="doubtful" if sure < LOW_CONFIDENCE else "unsure",
        share=f"{sure:.0%}",
        word=word.lstrip(),
    )


def language_attributes(code: str | None) -> Html:
    """Return what tells a browser the language of a text, and which way it is written."""
    if not code or not _CODE.fullmatch(code):
        return Html(' dir="auto"')
    return Html(f' lang="{code}" dir="{"rtl" if code in _FROM_THE_RIGHT else "ltr"}"')


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
    """Write a stretch of audio, in hours where there are some."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
