"""Sentences that Whisper writes where nobody speaks: credits and farewells of subtitles.

Source: sentences that users of Whisper report again and again, above all in the discussions of
github.com/openai/whisper; written down from common knowledge, neither complete nor measured here.
`Thank you.`, `you` and `Bye.` are reported as often and are not listed: people say them.
"""

import unicodedata
from functools import cache
from pathlib import Path

_PHRASES = Path(__file__).parent / "hallucination_phrases"
LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "zh")


def is_known_hallucination(text: str) -> bool:
    """Whether the whole text is a listed sentence, in any language: on noise that is a guess, too.

    Case, punctuation and spacing do not count.
    """
    return _folded(text) in _folded_phrases()


def known_hallucinations(language: str) -> tuple[str, ...]:
    """Return the sentences listed for one of `LANGUAGES`."""
    lines = (_PHRASES / f"{language}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line)


@cache
def _folded_phrases() -> frozenset[str]:
    return frozenset(
        _folded(phrase) for language in LANGUAGES for phrase in known_hallucinations(language)
    )


def _folded(text: str) -> str:
    letters = unicodedata.normalize("NFKC", text).casefold()
    return "".join(each for each in letters if unicodedata.category(each)[0] in "LMN")
