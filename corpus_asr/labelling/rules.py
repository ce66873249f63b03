"""The rules of selection, in the order in which they are asked, and how much each one drops."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from corpus_asr.config.run import SelectionSettings
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


def duration_s(row: Row) -> float:
    """Return the length of a segment, never below zero."""
    return max(0.0, float(row["end_s"] - row["start_s"]))


def _measure(row: Row, name: str) -> float | None:
    """Return the value of a column, or of `NAME per s`; None where it is not known."""
    if name == "duration_s":
        return duration_s(row)
    column, _, per_second = name.partition(" per ")
    value: float | None = row[column]
    if not per_second or value is None:
        return value
    return value / duration_s(row) if duration_s(row) else None


# Tables hold 32 bits: 0.9 there is a little less than 0.9 in the settings.
_ROUNDING = 1e-6


def _under(value: float | None, bound: float) -> bool:
    return value is not None and value < bound - _ROUNDING


def _over(value: float | None, bound: float) -> bool:
    return value is not None and value > bound + _ROUNDING


def _over_or_unknown(value: float | None, bound: float) -> bool:
    """Drop what could not be compared, too."""
    return value is None or value > bound + _ROUNDING


# In the order in which they are asked: name, what is dropped, by which setting, by which measure. A
# rule is off where its setting is null.
_BOUNDS = (
    ("too_short", _under, "min_duration_s", "duration_s", "shorter than {} s"),
    ("too_long", _over, "max_duration_s", "duration_s", "longer than {} s"),
    ("language_probability", _under, "min_language_probability", "language_probability",
     "language less probable than {}"),
    ("no_speech", _over, "max_no_speech_prob", "no_speech_prob",
     "no speech more probable than {}"),
    ("outside_speech", _under, "min_speech_fraction", "speech_fraction",
     "less than {} of it in detected speech"),
    ("confidence", _under, "min_confidence", "confidence", "confidence below {}"),
    ("avg_logprob", _under, "min_avg_logprob", "avg_logprob", "mean log-probability below {}"),
    ("compression_ratio", _over, "max_compression_ratio", "compression_ratio",
     "compression ratio above {}"),
    ("temperature", _over, "max_temperature", "temperature", "temperature above {}"),
    ("too_slow", _under, "min_words_per_s", "num_words per s", "fewer than {} words per second"),
    ("too_fast", _over, "max_words_per_s", "num_words per s", "more than {} words per second"),
    ("too_many_letters", _over, "max_letters_per_s", "num_letters per s",
     "more than {} letters per second"),
    ("repeats", _over, "max_repeats", "repeats", "the same words more than {} times in a row"),
    ("few_unique_words", _under, "min_unique_words", "unique_words",
     "fewer than {} different words per word"),
    ("long_word", _over, "max_word_letters", "longest_word", "a word of more than {} letters"),
    ("copies", _over, "max_copies", "copies", "more than {} segments with the same text"),
    ("disagreement", _over_or_unknown, "max_disagreement", "disagreement",
     "more than {} of the words heard otherwise by the other run, or no result there"),
    ("wer", _over_or_unknown, "max_wer", "wer",
     "word error rate above {} against the existing transcript, or none there"),
)  # fmt: skip
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
    for name, beyond, setting, measure, says in _BOUNDS:
        bound = getattr(settings, setting)
        compared = name not in _NEEDS or getattr(settings, _NEEDS[name]) is not None
        if bound is not None and compared:
            drops = partial(_drops, beyond=beyond, measure=measure, bound=bound)
            yield Rule(name, says.format(f"{bound:g}"), drops)


def _drops(
    row: Row, *, beyond: Callable[[float | None, float], bool], measure: str, bound: float
) -> bool:
    return beyond(_measure(row, measure), bound)


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
