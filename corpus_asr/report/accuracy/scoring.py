"""Transcripts compared with references: errors of words, characters, times and languages.

References are a manifest; besides its columns, `set` names a part of the test set and `words` has
objects of `word`, `start_s` and `end_s`. It is held in memory: a test set, not a corpus. In scripts
without spaces each character is a word.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section
4.4 and appendix C (characters for Chinese, Japanese, Thai, Lao and Burmese).
"""

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from itertools import chain, pairwise
from typing import Any

from corpus_asr.errors import ConfigError, install_words
from corpus_asr.languages import resolve_language
from corpus_asr.report.accuracy.speaker_errors import (
    SpokenSpan,
    TurnErrors,
    paired_errors,
    turn_errors,
)
from corpus_asr.storage.manifest import Row, read_manifest
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions
from corpus_asr.storage.stores.uri import public, recording_id, redact_uri
from corpus_asr.text.normalize import BasicTextNormalizer, EnglishTextNormalizer

WITHOUT_BLANKS = {"zh", "ja", "th", "lo", "my", "yue"}
_basic = BasicTextNormalizer()


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word, from when to when it is said."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What is said in a recording, or in parts of it."""

    uri: str
    """Without credentials."""
    text: str
    language: str | None = None
    set: str | None = None
    """The part of the test set it belongs to."""
    speaker: str | None = None
    """Who says all of it; None where that is unknown, or several do."""
    spans: tuple[tuple[float, float], ...] | None = None
    """From when to when the text is that of the recording; None: from its start to its end."""
    words: tuple[TimedWord, ...] | None = None
    speech: tuple[SpokenSpan, ...] | None = None
    """Who says what when; None where a part has no speaker or no times."""


def read_references(
    manifest: str, options: StoreOptions = DEFAULT_STORE, *, language: str | None = None
) -> dict[str, Reference]:
    """Return references by recording_id; `language` is that of references that name none.

    Rows of several parts of a recording are one reference, joined in the order of their times.
    """
    usual = language_code(language)
    by_recording: dict[str, list[tuple[Row, Reference]]] = {}
    # Only names are compared: nothing is opened.
    for row in read_manifest(manifest, options, allow_local_files=True):
        rows = by_recording.setdefault(recording_id(row.uri), [])
        # A text of the whole says more than those of its segments: also what is between them.
        parts = [row] if row.columns.get("text") is not None else row.parts()
        rows += [(part, _reference(part, usual)) for part in parts]
    return {identity: _joined(rows) for identity, rows in by_recording.items()}


def _joined(rows: list[tuple[Row, Reference]]) -> Reference:
    if len(rows) == 1:
        [(_, reference)] = rows
        # A clip as long as it is: it does not say when in it somebody speaks.
        is_clip = reference.spans is not None and reference.spans[0][0] == 0
        return replace(reference, speech=None) if is_clip else reference
    rows = sorted(rows, key=lambda each: each[1].spans[0] if each[1].spans else (0.0, math.inf))
    references = [reference for _, reference in rows]
    for (_, before), (row, after) in pairwise(rows):
        if not (before.spans and after.spans) or before.spans == after.spans:
            raise row.wrong(
                f"{redact_uri(row.uri)} twice", "each recording once, or its parts by their times"
            )
    words = [reference.words for reference in references]
    speech = [reference.speech for reference in references]
    speakers = {reference.speaker for reference in references}
    return replace(
        references[0],
        text=" ".join(filter(None, (reference.text.strip() for reference in references))),
        language=next(filter(None, (reference.language for reference in references)), None),
        speaker=speakers.pop() if len(speakers) == 1 else None,
        spans=tuple(chain.from_iterable(reference.spans or () for reference in references)),
        words=None if None in words else tuple(chain.from_iterable(each or () for each in words)),
        speech=None
        if None in speech
        else tuple(chain.from_iterable(each or () for each in speech)),
    )


def language_code(language: str | None) -> str | None:
    """Return the code of a language by any of its names; an unknown name in lower case."""
    if not language or not language.strip():
        return None
    try:
        return resolve_language(language)
    except ValueError:
        # Test sets have more languages than Whisper, and `en_us` beside `en`.
        return language.strip().lower()


def _reference(row: Row, usual: str | None) -> Reference:
    (start_s, end_s), words, part_of_set = row.span(), row.nested("words"), row.columns.get("set")
    whole = start_s == 0 and end_s is None
    speaker, speech = row.speaker(), None
    if speaker is not None and end_s is not None:
        speech = (SpokenSpan(start_s, end_s, speaker, row.needed_text()),)
    return Reference(
        uri=public(row.uri),
        text=row.needed_text(),
        language=language_code(row.language()) or usual,
        set=None if part_of_set is None else str(part_of_set),
        speaker=speaker,
        spans=None if whole else ((start_s, math.inf if end_s is None else end_s),),
        words=None if words is None else tuple(map(_word, words)),
        speech=speech,
    )


def _word(row: Row) -> TimedWord:
    word, end_s = row.columns.get("word"), row.end_s()
    if not isinstance(word, str) or end_s is None:
        found = ", ".join(row.columns) or "nothing"
        raise row.wrong(f"{found} of a word", "word, start_s and end_s")
    return TimedWord(word, row.start_s(), end_s)


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
    turns: tuple[SpokenSpan, ...] | None = None
    """Who speaks when; None where the run did not look for speakers."""
    said: Mapping[str, str] = field(default_factory=dict)
    """Text by speaker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A recording compared."""

    reference: Reference
    hypothesis: Hypothesis
    words: Errors
    characters: Errors
    time_errors_s: tuple[tuple[float, float], ...] = ()
    """Of correct words with times on both sides: start and end, hypothesis minus reference."""
    turns: TurnErrors | None = None
    """None where one of the sides has no speakers."""
    speaker_words: Errors | None = None
    """Of the words of each speaker (cpWER); None where `turns` is."""
    speakers: tuple[int, int] | None = None
    """Number in the reference, and in the hypothesis."""


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
        **_of_speakers(reference, hypothesis),
    )


def _of_speakers(reference: Reference, hypothesis: Hypothesis) -> dict[str, Any]:
    if not reference.speech or hypothesis.turns is None:
        return {}

    def words_of(text: str) -> list[str]:
        return units(normalized(text, reference.language), reference.language)

    said: dict[str, str] = {}
    for span in reference.speech:
        said[span.speaker] = f"{said.get(span.speaker, '')} {span.text}"
    expected, actual = (
        {name: words_of(text) for name, text in side.items()} for side in (said, hypothesis.said)
    )
    # Before and after what the reference annotates, nobody knows who speaks.
    first_s = min(span.start_s for span in reference.speech)
    last_s = max(span.end_s for span in reference.speech)
    turns = [
        replace(turn, start_s=max(turn.start_s, first_s), end_s=min(turn.end_s, last_s))
        for turn in hypothesis.turns
        if turn.start_s < last_s and turn.end_s > first_s
    ]
    pairs = paired_errors(expected, actual, lambda one, other: _errors(one, other).errors)
    return {
        "turns": turn_errors(reference.speech, turns),
        "speaker_words": total(_errors(one, other) for one, other in pairs),
        "speakers": (len(said), len({turn.speaker for turn in turns})),
    }


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
            f"{install_words('evaluate')}"
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
