"""The rules of selection, in the order in which they are asked, and how much each one drops."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corpus_asr.config.labelling import SelectionSettings
from corpus_asr.errors import ConfigError
from corpus_asr.languages import resolve_language

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is dropped, and why."""

    name: str
    says: str
    """What is dropped, for people."""
    drops: Callable[[Row], bool]


Measure = Callable[[Row], float | None]


def duration_s(row: Row) -> float:
    """Return the length of a segment, never below zero."""
    return max(0.0, float(row["end_s"] - row["start_s"]))


def _column(name: str) -> Measure:
    return lambda row: row[name]


def _per_second(name: str) -> Measure:
    def rate(row: Row) -> float | None:
        lasts_s = duration_s(row)
        return row[name] / lasts_s if lasts_s else None

    return rate


# Tables hold 32 bits: 0.9 there is a little less than 0.9 in the settings.
_ROUNDING = 1e-6


def _under(bound: float, measure: Measure) -> Callable[[Row], bool]:
    """Drop what is less; what is not known passes."""
    return lambda row: (found := measure(row)) is not None and found < bound - _ROUNDING


def _over(bound: float, measure: Measure) -> Callable[[Row], bool]:
    """Drop what is more; what is not known passes."""
    return lambda row: (found := measure(row)) is not None and found > bound + _ROUNDING


def _over_or_unknown(bound: float, measure: Measure) -> Callable[[Row], bool]:
    """Drop what is more, and what could not be compared."""
    return lambda row: (found := measure(row)) is None or found > bound + _ROUNDING


# In the order in which they are asked. A rule is off where its setting is null.
_BOUNDS = {
    "too_short": (_under, "min_duration_s", duration_s, "shorter than {} s"),
    "too_long": (_over, "max_duration_s", duration_s, "longer than {} s"),
    "language_probability": (
        _under, "min_language_probability", _column("language_probability"),
        "language less probable than {}",
    ),
    "no_speech": (
        _over, "max_no_speech_prob", _column("no_speech_prob"), "no speech more probable than {}",
    ),
    "outside_speech": (
        _under, "min_speech_fraction", _column("speech_fraction"),
        "less than {} of it in detected speech",
    ),
    "confidence": (_under, "min_confidence", _column("confidence"), "confidence below {}"),
    "avg_logprob": (
        _under, "min_avg_logprob", _column("avg_logprob"), "mean log-probability below {}",
    ),
    "compression_ratio": (
        _over, "max_compression_ratio", _column("compression_ratio"), "compression ratio above {}",
    ),
    "temperature": (_over, "max_temperature", _column("temperature"), "temperature above {}"),
    "too_slow": (
        _under, "min_words_per_s", _per_second("num_words"), "fewer than {} words per second",
    ),
    "too_fast": (
        _over, "max_words_per_s", _per_second("num_words"), "more than {} words per second",
    ),
    "too_many_letters": (
        _over, "max_letters_per_s", _per_second("num_letters"), "more than {} letters per second",
    ),
    "repeats": (
        _over, "max_repeats", _column("repeats"), "the same words more than {} times in a row",
    ),
    "few_unique_words": (
        _under, "min_unique_words", _column("unique_words"),
        "fewer than {} different words per word",
    ),
    "long_word": (
        _over, "max_word_letters", _column("longest_word"), "a word of more than {} letters",
    ),
    "copies": (_over, "max_copies", _column("copies"), "more than {} segments with the same text"),
    "disagreement": (
        _over_or_unknown, "max_disagreement", _column("disagreement"),
        "more than {} of the words heard otherwise by the other run, or no result there",
    ),
    "wer": (
        _over_or_unknown, "max_wer", _column("wer"),
        "word error rate above {} against the existing transcript, or none there",
    ),
}  # fmt: skip
_NEEDS = {"disagreement": "against", "wer": "references"}


def rules_of(settings: SelectionSettings) -> tuple[Rule, ...]:
    """Return the rules that settings turn on, in their order."""
    return tuple(_rules(settings))


def _rules(settings: SelectionSettings) -> Iterator[Rule]:
    yield Rule("no_letters", "no letter or digit", lambda row: not row["num_letters"])
    yield _language(settings)
    if settings.drop_texts:
        yield Rule("listed", "a text of drop_texts", lambda row: bool(row["listed"]))
    if settings.drop_known_hallucinations:
        yield Rule(
            "known_hallucination",
            "a sentence that models are known to write where nobody speaks",
            lambda row: bool(row["known_hallucination"]),
        )
    for name, (drops, setting, measure, says) in _BOUNDS.items():
        bound = getattr(settings, setting)
        compared = name not in _NEEDS or getattr(settings, _NEEDS[name]) is not None
        if bound is not None and compared:
            yield Rule(name, says.format(f"{bound:g}"), drops(bound, measure))


def _language(settings: SelectionSettings) -> Rule:
    try:
        codes = frozenset(resolve_language(language) for language in settings.languages)
    except ValueError as error:
        raise ConfigError(f"reading selection.languages: {error}") from error
    if codes:
        names = ", ".join(sorted(codes))
        return Rule("language", f"not in {names}", lambda row: row["language"] not in codes)

    def is_another(row: Row) -> bool:
        said, heard = row["reference_language"], row["language"]
        return said is not None and heard is not None and said != heard

    return Rule("language", "not the transcript's language", is_another)


def decide(row: dict[str, Any], rules: Sequence[Rule]) -> None:
    """Note in a row which rules drop it, and the first."""
    against = [rule.name for rule in rules if rule.drops(row)]
    row["rules"] = against
    row["dropped_by"] = against[0] if against else None


SHOWN_EACH = 2


@dataclass(slots=True)
class Amount:
    """So many, so long together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Take more into account."""
        self.count += count
        self.seconds += seconds


@dataclass(slots=True)
class RuleTally:
    """What one rule does."""

    dropped: Amount = field(default_factory=Amount)
    """Segments that count under it: no rule before it drops them."""
    matching: Amount = field(default_factory=Amount)
    """Segments that it would drop if it were the only rule."""
    alone: Amount = field(default_factory=Amount)
    """Segments that no other rule drops: what turning it off would win."""
    shown: list[tuple[str, str]] = field(default_factory=list)
    """Text and address of some that count under it."""


@dataclass(slots=True)
class SelectionTally:
    """What a selection does."""

    rules: dict[str, RuleTally]
    everything: Amount = field(default_factory=Amount)
    kept: Amount = field(default_factory=Amount)

    @classmethod
    def of(cls, names: Sequence[str]) -> "SelectionTally":
        """Begin to count for rules of these names."""
        return cls({name: RuleTally() for name in names})

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a decided row."""
        seconds = duration_s(row)
        self.everything.add(seconds)
        if row["dropped_by"] is None:
            self.kept.add(seconds)
            return
        first = self.rules[row["dropped_by"]]
        first.dropped.add(seconds)
        if len(first.shown) < SHOWN_EACH:
            first.shown.append((row["text"], row["uri"]))
        for name in row["rules"]:
            self.rules[name].matching.add(seconds)
        if len(row["rules"]) == 1:
            first.alone.add(seconds)
