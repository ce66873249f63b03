"""How far what was heard is from what was said: errors of words, letters, times and languages.

In: a reference and what was heard of its recording. Out: counts, which can be added up. Texts are
compared after Whisper's normalisers, English ones after the English; where a language writes no
blanks, each letter counts as a word. Knows no tables and nothing of how counts are shown.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section
4.4 and appendix C (letters for Chinese, Japanese, Thai, Lao and Burmese).
"""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from corpus_asr.errors import ConfigError
from corpus_asr.report.accuracy_references import Reference, TimedWord
from corpus_asr.text.normalize import BasicTextNormalizer, EnglishTextNormalizer

WITHOUT_BLANKS = {"zh", "ja", "th", "lo", "my", "yue"}
_basic = BasicTextNormalizer()


@dataclass(frozen=True, slots=True)
class Errors:
    """Counts of a comparison."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def errors(self) -> int:
        """All that is wrong."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def said(self) -> int:
        """How much there is in the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float | None:
        """Errors per what was said; None where nothing was."""
        return self.errors / self.said if self.said else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a run says of a recording."""

    text: str
    language: str | None
    duration_s: float
    confidence: float | None = None
    """Mean over its words; None without any."""
    words: tuple[TimedWord, ...] = ()
    failed: bool = False
    """Nothing, or not all of it, could be transcribed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A recording compared."""

    reference: Reference
    heard: Heard
    words: Errors
    letters: Errors
    time_errors_s: tuple[tuple[float, float], ...] = ()
    """Of words heard right, where both sides have times: start and end, heard minus said."""


def score(reference: Reference, heard: Heard) -> Score:
    """Compare what was heard with what was said.

    Raises:
        ConfigError: jiwer is not installed.
    """
    said, found = (normalised(text, reference.language) for text in (reference.text, heard.text))
    return Score(
        reference=reference,
        heard=heard,
        words=_errors(units(said, reference.language), units(found, reference.language)),
        letters=_errors(list(said), list(found)),
        time_errors_s=_time_errors(reference.words or (), heard.words),
    )


def total(scores: Iterable[Errors]) -> Errors:
    """Add counts up."""
    return sum(scores, Errors())


def normalised(text: str, language: str | None) -> str:
    """Return what is compared of a text."""
    return (_english() if language == "en" else _basic)(text).strip()


def units(text: str, language: str | None) -> list[str]:
    """Return the words of a normalised text; its letters, where words are not parted."""
    return list(text.replace(" ", "")) if language in WITHOUT_BLANKS else text.split()


@cache
def _english() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


@cache
def _jiwer() -> Any:
    try:
        return importlib.import_module("jiwer")
    except ImportError as error:
        raise ConfigError(
            f"comparing texts: jiwer cannot be imported ({error}), expected the package; "
            "pip install 'corpus-asr[evaluate]'"
        ) from error


def aligned(said: Sequence[str], found: Sequence[str]) -> Any:
    """Return jiwer's comparison of words, which both sides have some of.

    Raises:
        ConfigError: jiwer is not installed.
    """
    # As numbers: letters may be of a kind that jiwer would take for blanks.
    numbers = {each: str(number) for number, each in enumerate({*said, *found})}
    as_text = (" ".join(numbers[each] for each in side) for side in (said, found))
    return _jiwer().process_words(*as_text)


def _errors(said: Sequence[str], found: Sequence[str]) -> Errors:
    if not said or not found:
        _jiwer()
        return Errors(deletions=len(said), insertions=len(found))
    result = aligned(said, found)
    return Errors(result.hits, result.substitutions, result.deletions, result.insertions)


def _time_errors(
    said: Sequence[TimedWord], found: Sequence[TimedWord]
) -> tuple[tuple[float, float], ...]:
    words, others = _comparable(said), _comparable(found)
    if not words or not others:
        return ()
    result = aligned([word for word, _ in words], [word for word, _ in others])
    errors = []
    for chunk in result.alignments[0]:
        if chunk.type != "equal":
            continue
        for at in range(chunk.ref_end_idx - chunk.ref_start_idx):
            right = words[chunk.ref_start_idx + at][1]
            ours = others[chunk.hyp_start_idx + at][1]
            errors.append((ours.start_s - right.start_s, ours.end_s - right.end_s))
    return tuple(errors)


def _comparable(words: Iterable[TimedWord]) -> list[tuple[str, TimedWord]]:
    plain = ((_basic(word.word).replace(" ", ""), word) for word in words)
    return [(text, word) for text, word in plain if text]
