"""An evaluation: scores of many recordings added up, by group, and compared with another run's."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from corpus_asr.confidence import CONFIDENCE_EDGES
from corpus_asr.report.accuracy.intervals import interval, resampled
from corpus_asr.report.accuracy.scoring import Errors, Score, total
from corpus_asr.report.accuracy.speaker_errors import TurnErrors
from corpus_asr.report.text import printable, rounded, text_template
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import shortened

NUM_WORST = 10
_CLOSE_S = 0.2  # the collar of the WhisperX paper (2023)
_DURATIONS_S = (5, 10, 30, 60, 600)
_MOST_CHARACTERS = 200
_HEADER = ("", "recordings", "words", "WER", "95%", "CER", "sub", "del", "ins")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Recordings that have something in common."""

    name: str
    recordings: int
    words: Errors
    characters: Errors
    interval: tuple[float, float] | None
    """Of the WER, 95 %, by bootstrap; None for few recordings, or without errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTimes:
    """Absolute differences of word times, over correct words."""

    compared: int
    of: int
    """Words of the references with times."""
    start_median_s: float
    start_p95_s: float
    end_median_s: float
    end_p95_s: float
    close_share: float
    """Words whose start and end are both within 0.2 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerErrors:
    """Speakers of recordings whose references name them."""

    recordings: int
    number_right: int
    """Recordings with as many speakers as the reference."""
    der: float | None
    """Diarization error rate, with a collar of 0.25 s."""
    missed: float
    false: float
    confused: float
    """Shares of the speech of the references, which add up to the rate."""
    cpwer: float | None
    """Word error rate of each speaker's words, speakers paired so that it is least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Another run compared with this one, over the recordings that both have."""

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
    """Share of resampled test sets where the difference has the other sign, doubled."""

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
    """References whose recordings are not in the run, or not finished; they count nowhere."""
    failed: int
    """Recordings that failed, wholly or in part; their missing words count as deletions."""
    everything: Group
    groups: Mapping[str, Sequence[Group]]
    """By set, language, duration and confidence."""
    languages: Mapping[str, Mapping[str, int]]
    """Recordings by the reference's and the detected language."""
    word_times: WordTimes | None
    worst: Sequence[Score]
    comparison: Comparison | None = None
    speakers: SpeakerErrors | None = None
    """None where the references, or the run, have no speakers."""

    @property
    def wer(self) -> float | None:
        """Of all words; None if the references have none."""
        return self.everything.words.rate


def summarize(
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
        failed=sum(each.hypothesis.failed for each in scores),
        everything=_group("all", scores),
        groups=_grouped(scores),
        languages=_confusion(scores),
        word_times=_word_times(scores),
        worst=sorted(scores, key=_badness, reverse=True)[:NUM_WORST],
        comparison=comparison,
        speakers=_speaker_errors(scores),
    )


def _speaker_errors(scores: Sequence[Score]) -> SpeakerErrors | None:
    compared = [each for each in scores if each.turns is not None]
    turns = sum((each.turns for each in compared if each.turns), TurnErrors())
    if not turns.speech_s:
        return None
    return SpeakerErrors(
        recordings=len(compared),
        number_right=sum(each.speakers is not None and len({*each.speakers}) == 1
                         for each in compared),
        der=turns.rate,
        missed=turns.missed_s / turns.speech_s,
        false=turns.false_s / turns.speech_s,
        confused=turns.confused_s / turns.speech_s,
        cpwer=total(each.speaker_words for each in compared if each.speaker_words).rate,
    )  # fmt: skip


def compare(
    scores: Mapping[str, Score], others: Mapping[str, Score], *, other: str
) -> Comparison | None:
    """Compare two runs over the recordings both have; None if their references have no words."""
    shared = sorted(scores.keys() & others.keys())
    ours = [scores[each] for each in shared]
    words = [each.words.reference_length for each in ours]
    errors, other_errors = (
        np.array([run[each].words.errors for each in shared], dtype=np.int64)
        for run in (scores, others)
    )
    num_words = sum(words)
    if not num_words:
        return None
    differences = resampled((errors - other_errors).tolist(), words, _speakers(ours))
    low, high = np.quantile(differences, (0.025, 0.975))
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    wer, other_wer = (float(each.sum() / num_words) for each in (errors, other_errors))
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
    return [each.reference.speaker for each in scores]


def _group(name: str, scores: Sequence[Score]) -> Group:
    words = [each.words for each in scores]
    return Group(
        name=name,
        recordings=len(scores),
        words=total(words),
        characters=total(each.characters for each in scores),
        interval=interval(
            [each.errors for each in words],
            [each.reference_length for each in words],
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


# The place of a group among those of its kind, and its name; None for a recording in none of them.
_GROUPINGS: Mapping[str, Callable[[Score], tuple[int, str] | None]] = {
    "set": lambda each: _named(each.reference.set),
    "language": lambda each: _named(each.reference.language),
    "duration": lambda each: _between(each.hypothesis.duration_s, _DURATIONS_S, " s"),
    "confidence": lambda each: _between(each.hypothesis.confidence, CONFIDENCE_EDGES, ""),
}


def _grouped(scores: Sequence[Score]) -> dict[str, list[Group]]:
    groups = {}
    for title, key_of in _GROUPINGS.items():
        members: dict[tuple[int, str], list[Score]] = {}
        for each in scores:
            if (key := key_of(each)) is not None:
                members.setdefault(key, []).append(each)
        if members:
            groups[title] = [_group(key[1], members[key]) for key in sorted(members)]
    return groups


def _confusion(scores: Sequence[Score]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for each in scores:
        expected, detected = each.reference.language, each.hypothesis.language
        if expected and detected:
            counts.setdefault(expected, Counter())[detected] += 1
    return {expected: dict(detected.most_common()) for expected, detected in sorted(counts.items())}


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


# Of two wholly wrong transcripts, the longer one is worse.
def _badness(each: Score) -> tuple[float, int, str]:
    words = each.words
    return words.errors / max(1, words.reference_length), words.errors, each.reference.uri


def as_data(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON has it."""
    times, comparison = evaluation.word_times, evaluation.comparison
    data: dict[str, Any] = rounded({
        "output": evaluation.output,
        "references": evaluation.references,
        "missing": evaluation.missing,
        "failed": evaluation.failed,
        **_group_data(evaluation.everything),
        "by": {title: [_group_data(each) for each in groups]
               for title, groups in evaluation.groups.items()},
        "languages": evaluation.languages,
        "word_times": times and asdict(times),
        "speakers": evaluation.speakers and asdict(evaluation.speakers),
        "worst": [
            {
                "uri": each.reference.uri,
                "wer": each.words.rate,
                "errors": each.words.errors,
                "ref": each.reference.text,
                "hyp": each.hypothesis.text,
            }
            for each in evaluation.worst
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
