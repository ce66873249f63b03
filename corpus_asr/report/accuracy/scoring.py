"""Transcripts compared with references: errors of words, characters, times and languages.

Columns of a manifest of references (.jsonl, .csv or .parquet): `uri` or `path`, `text`; optional
`language`, `set` and `words` (objects of `word`, `start_s` and `end_s`, or `start` and `end`). It
is held in memory: a test set, not a corpus. In scripts without spaces each character is a word.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section
4.4 and appendix C (characters for Chinese, Japanese, Thai, Lao and Burmese).
"""

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

from corpus_asr.errors import ConfigError
from corpus_asr.languages import resolve_language
from corpus_asr.storage.listing import manifest_rows
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions
from corpus_asr.storage.stores.uri import public, recording_id, redact_uri
from corpus_asr.text.normalize import BasicTextNormalizer, EnglishTextNormalizer

WITHOUT_BLANKS = {"zh", "ja", "th", "lo", "my", "yue"}
_basic = BasicTextNormalizer()
_URI_NAMES = ("uri", "path")
# Ten hours of words with their times.
_MAX_CHARACTERS = 16_000_000


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word, from when to when it is said."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A row of the manifest."""

    uri: str
    """Without credentials."""
    text: str
    language: str | None = None
    set: str | None = None
    """The part of the test set it belongs to."""
    words: tuple[TimedWord, ...] | None = None


def read_references(
    manifest: str, options: StoreOptions = DEFAULT_STORE, *, language: str | None = None
) -> dict[str, Reference]:
    """Return references by recording_id; `language` is that of references that name none."""
    references: dict[str, Reference] = {}
    usual = language_code(language)
    chunks = manifest_rows(
        manifest,
        options,
        allow_local_files=True,  # only names are compared: nothing is opened
        uri_names=_URI_NAMES,
        max_metadata_characters=_MAX_CHARACTERS,
    )
    for uris, rows in chunks:
        for uri, row in zip(uris, rows, strict=True):
            identity = recording_id(uri)
            if identity in references:
                raise _unusable(manifest, uri, "it twice", "each recording once")
            references[identity] = _reference(uri, json.loads(row or "{}"), manifest, usual)
    return references


def language_code(language: str | None) -> str | None:
    """Return the code of a language by any of its names; an unknown name in lower case."""
    if not language or not language.strip():
        return None
    try:
        return resolve_language(language)
    except ValueError:
        # Test sets have more languages than Whisper, and `en_us` beside `en`.
        return language.strip().lower()


def _reference(uri: str, row: Mapping[str, Any], manifest: str, language: str | None) -> Reference:
    text, own = row.get("text"), row.get("language")
    if text is None and "text" in row:
        text = ""  # how CSV writes it
    if not isinstance(text, str):
        columns = ", ".join(row) or "no other columns"
        raise _unusable(manifest, uri, columns, "a column text with the reference text")
    return Reference(
        uri=public(uri),
        text=text,
        language=language_code(str(own)) if own else language,
        set=None if row.get("set") is None else str(row["set"]),
        words=_words(row.get("words"), manifest, uri),
    )


def _words(value: Any, manifest: str, uri: str) -> tuple[TimedWord, ...] | None:
    if isinstance(value, str):  # in CSV
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _unusable(manifest, uri, f"words that are no JSON ({error})", "a list") from error
    if value is None:
        return None
    try:
        return tuple(
            TimedWord(
                str(each["word"]),
                float(each["start_s"] if "start_s" in each else each["start"]),
                float(each["end_s"] if "end_s" in each else each["end"]),
            )
            for each in value
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(
            manifest, uri, f"words without {error}", "a list of objects of word, start_s and end_s"
        ) from error


def _unusable(manifest: str, uri: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        f"reading the references {redact_uri(manifest)}: found {found} at {redact_uri(uri)}, "
        f"expected {expected}; correct the manifest"
    )


@dataclass(frozen=True, slots=True)
class Errors:
    """Counts of an alignment."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        """Words or characters of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float | None:
        """WER, or CER; None for an empty reference."""
        return self.errors / self.reference_length if self.reference_length else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A run's transcript of a recording."""

    text: str
    language: str | None
    duration_s: float
    confidence: float | None = None
    """Mean over its words; None without any."""
    words: tuple[TimedWord, ...] = ()
    failed: bool = False
    """Wholly or in part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A recording compared."""

    reference: Reference
    hypothesis: Hypothesis
    words: Errors
    characters: Errors
    time_errors_s: tuple[tuple[float, float], ...] = ()
    """Of correct words with times on both sides: start and end, hypothesis minus reference."""


def score(reference: Reference, hypothesis: Hypothesis) -> Score:
    """Compare a transcript with its reference."""
    expected, actual = (
        normalized(text, reference.language) for text in (reference.text, hypothesis.text)
    )
    return Score(
        reference=reference,
        hypothesis=hypothesis,
        words=_errors(units(expected, reference.language), units(actual, reference.language)),
        characters=_errors(list(expected), list(actual)),
        time_errors_s=_time_errors(reference.words or (), hypothesis.words),
    )


def total(scores: Iterable[Errors]) -> Errors:
    """Add counts up."""
    return sum(scores, Errors())


def normalized(text: str, language: str | None) -> str:
    """Return what is compared of a text."""
    return (_english() if language == "en" else _basic)(text).strip()


def units(text: str, language: str | None) -> list[str]:
    """Return the words of a normalized text; its characters in scripts without spaces."""
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


def aligned(reference: Sequence[str], hypothesis: Sequence[str]) -> Any:
    """Return jiwer's comparison of words, which both sides have some of."""
    # As numbers: letters may be of a kind that jiwer would take for blanks.
    numbers = {each: str(number) for number, each in enumerate({*reference, *hypothesis})}
    as_text = (" ".join(numbers[each] for each in side) for side in (reference, hypothesis))
    return _jiwer().process_words(*as_text)


def _errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    if not reference or not hypothesis:
        _jiwer()  # its absence is to show at the first recording, silent or not
        return Errors(deletions=len(reference), insertions=len(hypothesis))
    result = aligned(reference, hypothesis)
    return Errors(result.hits, result.substitutions, result.deletions, result.insertions)


def _time_errors(
    reference: Sequence[TimedWord], hypothesis: Sequence[TimedWord]
) -> tuple[tuple[float, float], ...]:
    words, others = _comparable(reference), _comparable(hypothesis)
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


# By the basic normalizer alone: the English one turns several words into one, which has no time.
def _comparable(words: Iterable[TimedWord]) -> list[tuple[str, TimedWord]]:
    plain = ((_basic(word.word).replace(" ", ""), word) for word in words)
    return [(text, word) for text, word in plain if text]
