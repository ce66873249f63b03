"""An evaluation: scores of recordings aggregated by group, and compared with another run's.

Confidence intervals of error rates are by bootstrap over recordings, or over speakers: a speaker's
errors are correlated. With enough speakers in a test set, speakers are resampled with all their
recordings; with few, the interval is for new recordings of these speakers.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation"
(ICASSP 2004).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from corpus_asr.array_types import Float64
from corpus_asr.confidence import CONFIDENCE_EDGES
from corpus_asr.report.scoring import Errors, Score, TurnErrors, total
from corpus_asr.report.text import printable, rounded, text_template
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import shortened

# The standard error of a p-value of 0.05 is then 0.007.
NUM_RESAMPLES = 2_000
# Coverage in simulations: 86 % of intervals with 10 blocks, 90 % with 20, 94 % with 100.
LEAST_BLOCKS = 20
_SEED = 20_040_517  # fixed, for reproducible results
_MOST_AT_ONCE = 1_000_000  # samples in memory, 8 MB


def interval(
    errors: Sequence[int], words: Sequence[int], speakers: Sequence[str | None]
) -> tuple[float, float] | None:
    """Return the 95 % interval of an error rate; None for few recordings, or without errors.

    Args:
        errors: per recording.
        words: reference words per recording.
        speakers: per recording; None if unknown.
    """
    if len(errors) < LEAST_BLOCKS or not any(errors) or not any(words):
        return None
    low, high = np.quantile(resampled(errors, words, speakers), (0.025, 0.975))
    return float(low), float(high)


def resampled(
    errors: Sequence[int], words: Sequence[int], speakers: Sequence[str | None]
) -> Float64[np.ndarray, " sample"]:
    """Return the error rates of resampled test sets; at least one recording must have words."""
    names = {name for name in speakers if name is not None}
    places = range(len(speakers))
    blocks = places if len(names) < LEAST_BLOCKS else [
        at if name is None else name for at, name in zip(places, speakers, strict=True)
    ]  # fmt: skip
    numbers = {block: number for number, block in enumerate(dict.fromkeys(blocks))}
    at = [numbers[block] for block in blocks]
    # Sums of counts are exact in floats.
    sums = [np.bincount(at, counts, len(numbers)) for counts in (errors, words)]
    rng, rates, num_samples = np.random.default_rng(_SEED), [], 0
    while num_samples < NUM_RESAMPLES:
        at_once = min(NUM_RESAMPLES - num_samples, max(1, _MOST_AT_ONCE // len(numbers)))
        drawn = rng.integers(len(numbers), size=(at_once, len(numbers)))
        num_errors, num_words = (block_sums[drawn].sum(axis=1) for block_sums in sums)
        # A sample of only silent recordings has no rate.
        rates.append(num_errors[num_words > 0] / num_words[num_words > 0])
        num_samples += len(rates[-1])
    return np.concatenate(rates)


NUM_WORST = 10
_CLOSE_S = 0.2  # the collar of the WhisperX paper (2023)
_DURATIONS_S = (5, 10, 30, 60, 600)
_MOST_CHARACTERS = 200
_HEADER = ("", "recordings", "words", "WER", "95%", "CER", "sub", "del", "ins")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Recordings with a common property."""

    name: str
    recordings: int
    words: Errors
    characters: Errors
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the WER; None for few recordings, or without errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTimes:
    """Absolute differences of word times, over correct words."""

    compared: int
    of: int
    """Number of reference words with times."""
    start_median_s: float
    start_p95_s: float
    end_median_s: float
    end_p95_s: float
    close_share: float
    """Fraction of words whose start and end are both within 0.2 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerErrors:
    """Speaker errors of recordings with speakers in their references."""

    recordings: int
    number_right: int
    """Recordings with the reference's number of speakers."""
    der: float | None
    """Diarization error rate, with a collar of 0.25 s."""
    missed: float
    false: float
    confused: float
    """Fractions of the reference speech, which sum to the rate."""
    cpwer: float | None
    """Word error rate per speaker, with the speaker pairing that minimizes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Comparison with another run, over the recordings in both."""

    other: str
    recordings: int
    wer: float
    other_wer: float
    difference: float
    """This run's WER minus the other's."""
    low: float
    """Lower end of the 95% bootstrap interval of the difference."""
    high: float
    p_value: float
    """Fraction of resampled test sets with the opposite sign, doubled (p-value)."""

    @property
    def clearly_better(self) -> bool:
        """Whether this run has significantly fewer errors."""
        return self.high < 0

    @property
    def clearly_worse(self) -> bool:
        """Whether this run has significantly more errors."""
        return self.low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Accuracy of a run's transcripts."""

    output: str
    references: str
    missing: int
    """References whose recordings are missing from the run or unfinished; excluded."""
    failed: int
    """Recordings with failed parts; their missing words count as deletions."""
    everything: Group
    groups: Mapping[str, Sequence[Group]]
    """Groups by set, language, duration and confidence."""
    languages: Mapping[str, Mapping[str, int]]
    """Number of recordings by reference language and detected language."""
    word_times: WordTimes | None
    worst: Sequence[Score]
    comparison: Comparison | None = None
    speakers: SpeakerErrors | None = None
    """None without speakers in the references or the run."""

    @property
    def wer(self) -> float | None:
        """WER of all words; None if the references have none."""
        return self.everything.words.rate


def summarize(
    scores: Sequence[Score],
    *,
    output: str,
    references: str,
    missing: int,
    comparison: Comparison | None = None,
) -> Evaluation:
    """Aggregate scores."""
    return Evaluation(
        output=output,
        references=references,
        missing=missing,
        failed=sum(score.hypothesis.failed for score in scores),
        everything=_group("all", scores),
        groups=_grouped(scores),
        languages=_confusion(scores),
        word_times=_word_times(scores),
        worst=sorted(scores, key=_badness, reverse=True)[:NUM_WORST],
        comparison=comparison,
        speakers=_speaker_errors(scores),
    )


def _speaker_errors(scores: Sequence[Score]) -> SpeakerErrors | None:
    compared = [score for score in scores if score.turns is not None]
    turns = sum((score.turns for score in compared if score.turns), TurnErrors())
    if not turns.speech_s:
        return None
    return SpeakerErrors(
        recordings=len(compared),
        number_right=sum(score.speakers is not None and len({*score.speakers}) == 1
                         for score in compared),
        der=turns.rate,
        missed=turns.missed_s / turns.speech_s,
        false=turns.false_s / turns.speech_s,
        confused=turns.confused_s / turns.speech_s,
        cpwer=total(score.speaker_words for score in compared if score.speaker_words).rate,
    )  # fmt: skip


def compare(
    scores: Mapping[str, Score], others: Mapping[str, Score], *, other: str
) -> Comparison | None:
    """Compare two runs over the recordings in both; None if their references have no words."""
    shared = sorted(scores.keys() & others.keys())
    ours = [scores[key] for key in shared]
    words = [score.words.reference_length for score in ours]
    errors, other_errors = (
        np.array([run[key].words.errors for key in shared], dtype=np.int64)
        for run in (scores, others)
    )
    num_words = sum(words)
    if not num_words:
        return None
    differences = resampled((errors - other_errors).tolist(), words, _speakers(ours))
    low, high = np.quantile(differences, (0.025, 0.975))
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    wer, other_wer = (float(counts.sum() / num_words) for counts in (errors, other_errors))
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


def _speakers(scores: Sequence[Score]) -> list[str | None]:
    return [score.reference.speaker for score in scores]


def _group(name: str, scores: Sequence[Score]) -> Group:
    words = [score.words for score in scores]
    return Group(
        name=name,
        recordings=len(scores),
        words=total(words),
        characters=total(score.characters for score in scores),
        interval=interval(
            [word_errors.errors for word_errors in words],
            [word_errors.reference_length for word_errors in words],
            _speakers(scores),
        ),
    )


def _between(value: float | None, bounds: Sequence[float], unit: str) -> tuple[int, str] | None:
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


# Sort key and name of a recording's group of each kind; None if it is in no group.
_GROUPINGS: Mapping[str, Callable[[Score], tuple[int, str] | None]] = {
    "set": lambda score: _named(score.reference.set),
    "language": lambda score: _named(score.reference.language),
    "duration": lambda score: _between(score.hypothesis.duration_s, _DURATIONS_S, " s"),
    "confidence": lambda score: _between(score.hypothesis.confidence, CONFIDENCE_EDGES, ""),
}


def _grouped(scores: Sequence[Score]) -> dict[str, list[Group]]:
    groups = {}
    for title, key_of in _GROUPINGS.items():
        members: dict[tuple[int, str], list[Score]] = {}
        for score in scores:
            if (key := key_of(score)) is not None:
                members.setdefault(key, []).append(score)
        if members:
            groups[title] = [_group(key[1], members[key]) for key in sorted(members)]
    return groups


def _confusion(scores: Sequence[Score]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for score in scores:
        expected, detected = score.reference.language, score.hypothesis.language
        if expected and detected:
            counts.setdefault(expected, Counter())[detected] += 1
    return {expected: dict(detected.most_common()) for expected, detected in sorted(counts.items())}


def _word_times(scores: Sequence[Score]) -> WordTimes | None:
    errors = np.abs(np.array([pair for score in scores for pair in score.time_errors_s]))
    if not errors.size:
        return None
    start_median, end_median = np.median(errors, axis=0)
    start_p95, end_p95 = np.quantile(errors, 0.95, axis=0)
    return WordTimes(
        compared=len(errors),
        of=sum(len(score.reference.words or ()) for score in scores),
        start_median_s=float(start_median),
        start_p95_s=float(start_p95),
        end_median_s=float(end_median),
        end_p95_s=float(end_p95),
        close_share=float((errors <= _CLOSE_S).all(axis=1).mean()),
    )


# Among transcripts that are all wrong, the longer one is worse.
def _badness(score: Score) -> tuple[float, int, str]:
    words = score.words
    return words.errors / max(1, words.reference_length), words.errors, score.reference.uri


def as_data(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON-compatible values."""
    times, comparison = evaluation.word_times, evaluation.comparison
    data: dict[str, Any] = rounded({
        "output": evaluation.output,
        "references": evaluation.references,
        "missing": evaluation.missing,
        "failed": evaluation.failed,
        **_group_data(evaluation.everything),
        "by": {title: [_group_data(group) for group in groups]
               for title, groups in evaluation.groups.items()},
        "languages": evaluation.languages,
        "word_times": times and asdict(times),
        "speakers": evaluation.speakers and asdict(evaluation.speakers),
        "worst": [
            {
                "uri": score.reference.uri,
                "wer": score.words.rate,
                "errors": score.words.errors,
                "ref": score.reference.text,
                "hyp": score.hypothesis.text,
            }
            for score in evaluation.worst
        ],
        "against": comparison and asdict(comparison),
    })  # fmt: skip
    return data


def _group_data(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "recordings": group.recordings,
        "words": group.words.reference_length,
        "wer": group.words.rate,
        "wer_interval": group.interval,
        "cer": group.characters.rate,
        "substitutions": group.words.substitutions,
        "deletions": group.words.deletions,
        "insertions": group.words.insertions,
    }


def render(evaluation: Evaluation) -> str:
    """Return an evaluation as text."""
    template = text_template(
        "corpus_asr.report",
        "evaluation.txt.j2",
        cut=lambda text: shortened(printable(text), _MOST_CHARACTERS),
        ms=lambda seconds: f"{1000 * seconds:.0f}",
        rate=_percent,
        redact=redact_uri,
    )
    languages = evaluation.languages
    groups = {"in all": [evaluation.everything], **evaluation.groups}
    text = template.render(
        evaluation=evaluation,
        tables={title: [_HEADER, *map(_cells, members)] for title, members in groups.items()},
        languages=languages,
        languages_right=sum(detected.get(code, 0) for code, detected in languages.items()),
        languages_compared=sum(sum(detected.values()) for detected in languages.values()),
        times=evaluation.word_times,
        speakers=evaluation.speakers,
        other=evaluation.comparison,
    )
    return text.rstrip("\n")


def _cells(group: Group) -> tuple[str, ...]:
    words = group.words
    counts = (words.substitutions, words.deletions, words.insertions)
    return (
        group.name, f"{group.recordings:,}", f"{words.reference_length:,}", _percent(words.rate),
        _percents(group.interval), _percent(group.characters.rate),
        *(f"{count:,}" for count in counts),
    )  # fmt: skip


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2%}"


def _percents(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1%}-{interval[1]:.1%}"
