"""Scores of transcripts against references: errors of words, times, languages and speakers.

References are a manifest; in addition to its columns, `set` names a subset of the test set and
`words` has objects of `word`, `start_s` and `end_s`. References are held in memory. In scripts
without spaces each character counts as a word.

Errors of speakers are the diarization error rate, and word errors per speaker. Times match
pyannote.metrics 4.2, whose collar is the full width, within 1e-13 on 40 random dialogs.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section
4.4 and appendix C (characters for Chinese, Japanese, Thai, Lao and Burmese); NIST, 2009 RT
evaluation plan, section 6 (DER, a collar of 0.25 s); Watanabe et al. 2020, CHiME-6 challenge,
section 4.3 (cpWER: speaker pairing with the fewest word errors).
"""

import importlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from itertools import chain, pairwise
from typing import Any

import numpy as np

from corpus_asr.array_types import Float64
from corpus_asr.errors import ConfigError, install_words
from corpus_asr.languages import resolve_language
from corpus_asr.storage.manifest import Row, read_manifest
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions
from corpus_asr.storage.stores.uri import public, recording_id, redact_uri
from corpus_asr.text.normalize import BasicTextNormalizer, EnglishTextNormalizer

# Around reference boundaries, whose manual accuracy is no better.
COLLAR_S = 0.25


@dataclass(frozen=True, slots=True)
class SpokenSpan:
    """A time span of one speaker."""

    start_s: float
    end_s: float
    speaker: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class TurnErrors:
    """Seconds of speech; overlapping speech counts once per speaker."""

    missed_s: float = 0.0
    false_s: float = 0.0
    confused_s: float = 0.0
    speech_s: float = 0.0
    """Speech in the reference."""

    def __add__(self, other: "TurnErrors") -> "TurnErrors":
        return TurnErrors(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def rate(self) -> float | None:
        """Diarization error rate; None for a reference without speech."""
        wrong_s = self.missed_s + self.false_s + self.confused_s
        return wrong_s / self.speech_s if self.speech_s else None


def turn_errors(
    reference: Sequence[SpokenSpan], hypothesis: Sequence[SpokenSpan], *, collar_s: float = COLLAR_S
) -> TurnErrors:
    """Compare speech spans exactly; speakers are paired to maximize correct speech."""
    borders_s = {
        border for span in (*reference, *hypothesis) for border in (span.start_s, span.end_s)
    }
    ours = {border for span in reference for border in (span.start_s, span.end_s)}
    near_s = {border + side for border in ours for side in (-collar_s, collar_s)}
    edges = np.array(sorted(borders_s | near_s), dtype=np.float64)
    if len(edges) < 2:
        return TurnErrors()
    middles, lasts_s = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    if collar_s:
        lasts_s = lasts_s * ~_near(middles, np.array(sorted(ours), dtype=np.float64), collar_s)
    spoken, heard = _active(reference, middles), _active(hypothesis, middles)
    together_s = (spoken * lasts_s) @ heard.T  # (speaker, speaker)
    right_s = float(sum(together_s[pair] for pair in assignment(-together_s)))
    num_said, num_heard = spoken.sum(axis=0), heard.sum(axis=0)
    both_s = float((np.minimum(num_said, num_heard) * lasts_s).sum())
    return TurnErrors(
        missed_s=float((np.maximum(num_said - num_heard, 0) * lasts_s).sum()),
        false_s=float((np.maximum(num_heard - num_said, 0) * lasts_s).sum()),
        confused_s=max(0.0, both_s - right_s),
        speech_s=float((num_said * lasts_s).sum()),
    )


def _near(
    times_s: Float64[np.ndarray, " time"], borders_s: Float64[np.ndarray, " border"], reach_s: float
) -> np.ndarray:
    places = np.searchsorted(borders_s, times_s)
    padded = np.concatenate([[-np.inf], borders_s, [np.inf]])
    near: np.ndarray = np.minimum(times_s - padded[places], padded[places + 1] - times_s) < reach_s
    return near


def _active(
    spans: Sequence[SpokenSpan], times_s: Float64[np.ndarray, " time"]
) -> Float64[np.ndarray, "speaker time"]:
    names = sorted({span.speaker for span in spans})
    active = np.zeros((len(names), len(times_s)))
    ordered = times_s.tolist()
    for span in spans:
        first, last = bisect_right(ordered, span.start_s), bisect_right(ordered, span.end_s)
        active[names.index(span.speaker), first:last] = 1.0
    return active


def paired_errors(
    reference: Mapping[str, Sequence[str]],
    found: Mapping[str, Sequence[str]],
    errors_of: Callable[[Sequence[str], Sequence[str]], int],
) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Return the words of speakers in the pairing with the fewest errors.

    Surplus speakers on one side are unpaired: all their words are deletions, or all insertions.
    """
    size = max(len(reference), len(found))
    nothing: Sequence[str] = ()
    spoken = [*reference.values(), *[nothing] * (size - len(reference))]
    heard = [*found.values(), *[nothing] * (size - len(found))]
    costs = np.array(
        [
            [errors_of(spoken_words, heard_words) for heard_words in heard]
            for spoken_words in spoken
        ],
        dtype=np.float64,
    )
    return [(spoken[row], heard[column]) for row, column in assignment(costs.reshape(size, size))]


def assignment(costs: Float64[np.ndarray, "row column"]) -> list[tuple[int, int]]:
    """Return the pairs of rows and columns with minimum total cost, each used at most once.

    Source: Kuhn 1955, the Hungarian method; with potentials, as in Jonker and Volgenant 1987.
    """
    if costs.shape[0] > costs.shape[1]:
        return sorted((row, column) for column, row in assignment(costs.T))
    rows, columns = costs.shape
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=np.int64)  # row of each column, from 1; 0: unassigned
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        slack = np.full(columns + 1, np.inf)
        parent_columns = np.zeros(columns + 1, dtype=np.int64)
        used = np.zeros(columns + 1, dtype=bool)
        while owner[column]:
            used[column] = True
            reduced = costs[owner[column] - 1] - row_price[owner[column]] - column_price[1:]
            nearer = ~used[1:] & (reduced < slack[1:])
            slack[1:][nearer], parent_columns[1:][nearer] = reduced[nearer], column
            open_slack = np.where(used, np.inf, slack)
            open_slack[0] = np.inf
            following = int(open_slack.argmin())
            step = open_slack[following]
            row_price[owner[used]] += step
            column_price[used] -= step
            slack[~used] -= step
            column = following
        while column:
            owner[column] = owner[parent_columns[column]]
            column = int(parent_columns[column])
    pairs = [(int(owner[at]) - 1, at - 1) for at in range(1, columns + 1) if owner[at]]
    return sorted(pairs)


WITHOUT_BLANKS = {"zh", "ja", "th", "lo", "my", "yue"}
_basic = BasicTextNormalizer()


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word with its start and end in seconds."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Reference text of a recording, or of segments of it."""

    uri: str
    """URI without credentials."""
    text: str
    language: str | None = None
    set: str | None = None
    """Subset of the test set."""
    speaker: str | None = None
    """The only speaker; None if unknown or several."""
    spans: tuple[tuple[float, float], ...] | None = None
    """Time spans in seconds covered by the text; None: the whole recording."""
    words: tuple[TimedWord, ...] | None = None
    speech: tuple[SpokenSpan, ...] | None = None
    """Text by speaker with times; None if a segment has no speaker or no times."""


def read_references(
    manifest: str, options: StoreOptions = DEFAULT_STORE, *, language: str | None = None
) -> dict[str, Reference]:
    """Return references by recording_id; `language` is the default.

    Rows with segments of one recording are joined to one reference, in time order.
    """
    usual = language_code(language)
    by_recording: dict[str, list[tuple[Row, Reference]]] = {}
    # Only names are compared: no file is opened.
    for row in read_manifest(manifest, options, allow_local_files=True):
        rows = by_recording.setdefault(recording_id(row.uri), [])
        # The text of a whole row takes precedence over its segments: it is more complete.
        parts = [row] if row.columns.get("text") is not None else row.parts()
        rows += [(part, _reference(part, usual)) for part in parts]
    return {identity: _joined(rows) for identity, rows in by_recording.items()}


def _joined(rows: list[tuple[Row, Reference]]) -> Reference:
    if len(rows) == 1:
        [(_, reference)] = rows
        # A clip of the file's length does not locate speech in it.
        is_clip = reference.spans is not None and reference.spans[0][0] == 0
        return replace(reference, speech=None) if is_clip else reference
    rows = sorted(rows, key=lambda pair: pair[1].spans[0] if pair[1].spans else (0.0, math.inf))
    references = [reference for _, reference in rows]
    for (_, first), (row, second) in pairwise(rows):
        if not (first.spans and second.spans) or first.spans == second.spans:
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
        words=None
        if None in words
        else tuple(chain.from_iterable(timed_words or () for timed_words in words)),
        speech=None
        if None in speech
        else tuple(chain.from_iterable(spans or () for spans in speech)),
    )


def language_code(language: str | None) -> str | None:
    """Return the code of a language name; an unknown name in lower case."""
    if not language or not language.strip():
        return None
    try:
        return resolve_language(language)
    except ValueError:
        # Test sets have more languages than Whisper, and `en_us` as well as `en`.
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
        names = ", ".join(row.columns) or "nothing"
        raise row.wrong(f"{names} of a word", "word, start_s and end_s")
    return TimedWord(word, row.start_s(), end_s)


@dataclass(frozen=True, slots=True)
class Errors:
    """Error counts of an alignment."""

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
        """WER or CER; None for an empty reference."""
        return self.errors / self.reference_length if self.reference_length else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A run's transcript of a recording."""

    text: str
    language: str | None
    duration_s: float
    confidence: float | None = None
    """Mean confidence over its words; None without words."""
    words: tuple[TimedWord, ...] = ()
    failed: bool = False
    """Whether any part failed."""
    turns: tuple[SpokenSpan, ...] | None = None
    """Speech spans by speaker; None without diarization."""
    said: Mapping[str, str] = field(default_factory=dict)
    """Text by speaker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Scores of a recording."""

    reference: Reference
    hypothesis: Hypothesis
    words: Errors
    characters: Errors
    time_errors_s: tuple[tuple[float, float], ...] = ()
    """Errors of word times in seconds: start and end, hypothesis minus reference."""
    turns: TurnErrors | None = None
    """None if either side has no speakers."""
    speaker_words: Errors | None = None
    """Word errors per speaker (cpWER); None if `turns` is."""
    speakers: tuple[int, int] | None = None
    """Number of speakers in the reference, and in the hypothesis."""


def score(reference: Reference, hypothesis: Hypothesis) -> Score:
    """Score a transcript against its reference."""
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

    texts: dict[str, str] = {}
    for span in reference.speech:
        texts[span.speaker] = f"{texts.get(span.speaker, '')} {span.text}"
    expected, actual = (
        {name: words_of(text) for name, text in side.items()} for side in (texts, hypothesis.said)
    )
    # Before and after the annotated time, speakers are unknown.
    first_s = min(span.start_s for span in reference.speech)
    last_s = max(span.end_s for span in reference.speech)
    turns = [
        replace(turn, start_s=max(turn.start_s, first_s), end_s=min(turn.end_s, last_s))
        for turn in hypothesis.turns
        if turn.start_s < last_s and turn.end_s > first_s
    ]
    pairs = paired_errors(expected, actual, lambda spoken, heard: _errors(spoken, heard).errors)
    return {
        "turns": turn_errors(reference.speech, turns),
        "speaker_words": total(
            _errors(spoken_words, heard_words) for spoken_words, heard_words in pairs
        ),
        "speakers": (len(texts), len({turn.speaker for turn in turns})),
    }


def total(scores: Iterable[Errors]) -> Errors:
    """Sum counts."""
    return sum(scores, Errors())


def normalized(text: str, language: str | None) -> str:
    """Return a normalized text for comparison."""
    return (_english() if language == "en" else _basic)(text).strip()


def units(text: str, language: str | None) -> list[str]:
    """Return the words of a normalized text; the characters in scripts without spaces."""
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
            f"comparing texts: jiwer cannot be imported ({error}), expected that package; "
            f"{install_words('evaluate')}"
        ) from error


def aligned(reference: Sequence[str], hypothesis: Sequence[str]) -> Any:
    """Return jiwer's alignment of two non-empty word sequences."""
    # As numbers: jiwer may treat some letters as whitespace.
    numbers = {word: str(number) for number, word in enumerate({*reference, *hypothesis})}
    as_text = (" ".join(numbers[word] for word in side) for side in (reference, hypothesis))
    return _jiwer().process_words(*as_text)


def _errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    if not reference or not hypothesis:
        _jiwer()  # a missing jiwer must raise an error at the first recording, even if silent
        return Errors(deletions=len(reference), insertions=len(hypothesis))
    result = aligned(reference, hypothesis)
    return Errors(result.hits, result.substitutions, result.deletions, result.insertions)


def _time_errors(
    reference: Sequence[TimedWord], hypothesis: Sequence[TimedWord]
) -> tuple[tuple[float, float], ...]:
    words, other_words = _comparable(reference), _comparable(hypothesis)
    if not words or not other_words:
        return ()
    result = aligned([word for word, _ in words], [word for word, _ in other_words])
    errors = []
    for chunk in result.alignments[0]:
        if chunk.type != "equal":
            continue
        for at in range(chunk.ref_end_idx - chunk.ref_start_idx):
            right = words[chunk.ref_start_idx + at][1]
            ours = other_words[chunk.hyp_start_idx + at][1]
            errors.append((ours.start_s - right.start_s, ours.end_s - right.end_s))
    return tuple(errors)


# Basic normalizer only: the English one merges words, which then have no times.
def _comparable(words: Iterable[TimedWord]) -> list[tuple[str, TimedWord]]:
    plain = ((_basic(word.word).replace(" ", ""), word) for word in words)
    return [(text, word) for text, word in plain if text]
