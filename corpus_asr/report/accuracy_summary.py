"""Scores of many recordings added up: in all, by group, the worst ones, and beside another run.

In: scores. Out: an `Evaluation`, which is a value like JSON's. Knows nothing of texts and tables.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation"
(ICASSP 2004): recordings are drawn with replacement, the same for both runs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from corpus_asr.confidence import CONFIDENCE_EDGES
from corpus_asr.report.accuracy import Errors, Score, total

NUM_WORST = 10
NUM_RESAMPLES = 2_000
_SEED = 20_040_517
_CLOSE_S = 0.2
_DURATIONS_S = (5, 10, 30, 60, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Recordings that have something in common."""

    name: str
    recordings: int
    words: Errors
    letters: Errors


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTimes:
    """How near the times of words are, over words heard right; all in seconds."""

    compared: int
    of: int
    """Words of the references with times."""
    start_median_s: float
    """Of absolute differences, like all that follows."""
    start_p95_s: float
    end_median_s: float
    end_p95_s: float
    close_share: float
    """Words whose start and end are both within 0.2 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Another run beside this one, over the recordings that both have."""

    other: str
    recordings: int
    wer: float
    other_wer: float
    difference: float
    """This run's minus the other's: below zero is better."""
    low: float
    high: float
    """Between them lie 95% of the differences of resampled test sets."""
    p_value: float
    """Share of resampled test sets where the difference has the other sign, doubled."""

    @property
    def clearly_better(self) -> bool:
        """Whether chance hardly explains that this run has fewer errors."""
        return self.high < 0

    @property
    def clearly_worse(self) -> bool:
        """Whether chance hardly explains that this run has more errors."""
        return self.low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a run's transcripts are worth."""

    output: str
    references: str
    missing: int
    """References whose recordings are not in the run, or not done yet; they count nowhere."""
    failed: int
    """Recordings that failed, wholly or in part; what is missing of them counts as left out."""
    everything: Group
    groups: Mapping[str, Sequence[Group]]
    """By what they are grouped: set, language, duration and confidence."""
    languages: Mapping[str, Mapping[str, int]]
    """By the language said, how many recordings were heard in which."""
    word_times: WordTimes | None
    worst: Sequence[Score]
    comparison: Comparison | None = None

    @property
    def wer(self) -> float | None:
        """Errors per word said; None where nothing was."""
        return self.everything.words.rate


def summarise(
    scores: Sequence[Score],
    *,
    output: str,
    references: str,
    missing: int,
    comparison: Comparison | None = None,
) -> Evaluation:
    """Add scores up."""
    return Evaluation(
        output=output,
        references=references,
        missing=missing,
        failed=sum(each.heard.failed for each in scores),
        everything=_group("all", scores),
        groups={
            title: found
            for title, name in _GROUPINGS.items()
            if (found := _grouped(scores, name)) is not None
        },
        languages=_confusion(scores),
        word_times=_word_times(scores),
        worst=sorted(scores, key=_badness, reverse=True)[:NUM_WORST],
        comparison=comparison,
    )


def compare(
    scores: Mapping[str, Score], others: Mapping[str, Score], *, other: str
) -> Comparison | None:
    """Compare two runs over the recordings both have; None where nothing is said in any.

    Args:
        scores: this run's, by recording.
        others: the other's.
        other: names it.
    """
    shared = sorted(scores.keys() & others.keys())
    said = np.array([scores[each].words.said for each in shared], dtype=np.int64)
    errors, other_errors = (
        np.array([found[each].words.errors for each in shared], dtype=np.int64)
        for found in (scores, others)
    )
    if not said.sum():
        return None
    differences = _resampled(errors - other_errors, said)
    low, high = np.quantile(differences, (0.025, 0.975))
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    wer, other_wer = (float(each.sum() / said.sum()) for each in (errors, other_errors))
    return Comparison(
        other=other,
        recordings=len(shared),
        wer=wer,
        other_wer=other_wer,
        difference=wer - other_wer,
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * float(tail)),
    )


def _resampled(errors: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Return the rate of errors in test sets drawn from this one."""
    rng = np.random.default_rng(_SEED)
    rates: list[float] = []
    while len(rates) < NUM_RESAMPLES:
        drawn = rng.integers(len(said), size=len(said))
        # A draw of nothing but silence has no rate.
        if words := said[drawn].sum():
            rates.append(float(errors[drawn].sum() / words))
    return np.array(rates)


def _group(name: str, scores: Iterable[Score]) -> Group:
    found = list(scores)
    return Group(
        name=name,
        recordings=len(found),
        words=total(each.words for each in found),
        letters=total(each.letters for each in found),
    )


def _between(value: float | None, bounds: Sequence[float], unit: str) -> tuple[int, str] | None:
    """Return place and name of the range a value lies in."""
    if value is None:
        return None
    at = sum(value >= bound for bound in bounds)
    if at == 0:
        return at, f"under {bounds[0]:g}{unit}"
    if at == len(bounds):
        return at, f"{bounds[-1]:g}{unit} and more"
    return at, f"{bounds[at - 1]:g} to {bounds[at]:g}{unit}"


def _named(value: str | None) -> tuple[int, str] | None:
    return None if value is None else (0, value)


_GROUPINGS: Mapping[str, Callable[[Score], tuple[int, str] | None]] = {
    "set": lambda each: _named(each.reference.set),
    "language": lambda each: _named(each.reference.language),
    "duration": lambda each: _between(each.heard.duration_s, _DURATIONS_S, " s"),
    "confidence": lambda each: _between(each.heard.confidence, CONFIDENCE_EDGES, ""),
}


def _grouped(
    scores: Sequence[Score], name: Callable[[Score], tuple[int, str] | None]
) -> list[Group] | None:
    found: dict[tuple[int, str], list[Score]] = {}
    for each in scores:
        key = name(each)
        if key is not None:
            found.setdefault(key, []).append(each)
    return [_group(key[1], found[key]) for key in sorted(found)] or None


def _confusion(scores: Sequence[Score]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for each in scores:
        if each.reference.language and each.heard.language:
            counts.setdefault(each.reference.language, Counter())[each.heard.language] += 1
    return {said: dict(found.most_common()) for said, found in sorted(counts.items())}


def _word_times(scores: Sequence[Score]) -> WordTimes | None:
    errors = np.abs(np.array([pair for each in scores for pair in each.time_errors_s]))
    if not errors.size:
        return None
    start_median, end_median = np.median(errors, axis=0)
    start_p95, end_p95 = np.quantile(errors, 0.95, axis=0)
    return WordTimes(
        compared=len(errors),
        of=sum(len(each.reference.words or ()) for each in scores),
        start_median_s=float(start_median),
        start_p95_s=float(start_p95),
        end_median_s=float(end_median),
        end_p95_s=float(end_p95),
        close_share=float((errors <= _CLOSE_S).all(axis=1).mean()),
    )


def _badness(each: Score) -> tuple[float, int, str]:
    words = each.words
    return words.errors / max(1, words.said), words.errors, each.reference.uri


def as_data(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON has it."""
    return {
        "output": found.output,
        "references": found.references,
        "missing": found.missing,
        "failed": found.failed,
        **_group_data(found.everything),
        "by": {title: [_group_data(each) for each in groups]
               for title, groups in found.groups.items()},
        "languages": found.languages,
        "word_times": _slots(found.word_times),
        "worst": [
            {
                "uri": each.reference.uri,
                "wer": _rounded(each.words.rate),
                "errors": each.words.errors,
                "said": each.reference.text,
                "heard": each.heard.text,
            }
            for each in found.worst
        ],
        "against": _slots(found.comparison),
    }  # fmt: skip


def _group_data(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "recordings": group.recordings,
        "words": group.words.said,
        "wer": _rounded(group.words.rate),
        "cer": _rounded(group.letters.rate),
        "substitutions": group.words.substitutions,
        "deletions": group.words.deletions,
        "insertions": group.words.insertions,
    }


def _slots(value: WordTimes | Comparison | None) -> dict[str, Any] | None:
    if value is None:
        return None
    found = {name: getattr(value, name) for name in value.__slots__}
    return {
        name: round(each, 6) if isinstance(each, float) else each for name, each in found.items()
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
