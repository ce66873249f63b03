"""Selection rules: which segments are dropped, with reasons and counts.

Input: measured rows of the SELECTION table; independent of measuring.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from corpus_asr.config.run import SelectionSettings
from corpus_asr.errors import ConfigError
from corpus_asr.languages import resolve_language

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that drops segments."""

    name: str
    says: str
    """Description of the dropped segments."""
    drops: Callable[[Row], bool]
    measures: str | None = None
    """Column that may be null in a run; segments without it are not dropped."""


def _duration_s(row: Row) -> float:
    return max(0.0, float(row["end_s"] - row["start_s"]))


def _measure(row: Row, name: str) -> float | None:
    """Return the value of a column, or of `NAME per s`; None if unknown."""
    duration_s = _duration_s(row)
    if name == "duration_s":
        return duration_s
    column, _, per_second = name.partition(" per ")
    value: float | None = row[column]
    if not per_second or value is None:
        return value
    return value / duration_s if duration_s else None


# Tables store 32 bits: 0.9 there is slightly less than 0.9 in the settings.
_ROUNDING = 1e-6

# In evaluation order: name, setting (null disables the rule; `min_...` is a lower bound, others are
# upper bounds), measure, and description.
_BOUNDS = (
    ("too_short", "min_duration_s", "duration_s", "shorter than {} s"),
    ("too_long", "max_duration_s", "duration_s", "longer than {} s"),
    ("language_probability", "min_language_probability", "language_probability",
     "language less probable than {}"),
    ("no_speech", "max_no_speech_prob", "no_speech_prob",
     "no speech more probable than {}"),
    ("outside_speech", "min_speech_fraction", "speech_fraction",
     "less than {} of it in detected speech"),
    ("noise", "min_snr_db", "snr_db", "noise less than {} dB below the speech"),
    ("narrow", "min_bandwidth_hz", "bandwidth_hz", "no sound above {} Hz"),
    ("quiet", "min_level_dbfs", "level_dbfs", "a level below {} dB of full scale"),
    ("clipped", "max_clipped_share", "clipped_share", "more than {} of the samples cut off"),
    ("confidence", "min_confidence", "confidence", "confidence below {}"),
    ("avg_logprob", "min_avg_logprob", "avg_logprob", "mean log-probability below {}"),
    ("compression_ratio", "max_compression_ratio", "compression_ratio",
     "compression ratio above {}"),
    ("temperature", "max_temperature", "temperature", "temperature above {}"),
    ("too_slow", "min_words_per_s", "num_words per s", "fewer than {} words per second"),
    ("too_fast", "max_words_per_s", "num_words per s", "more than {} words per second"),
    ("too_many_letters", "max_chars_per_s", "num_letters per s",
     "more than {} characters per second"),
    ("repeats", "max_repeats", "repeats", "the same words more than {} times in a row"),
    ("few_unique_words", "min_unique_words", "unique_words",
     "fewer than {} different words per word"),
    ("long_word", "max_word_chars", "longest_word", "a word of more than {} characters"),
    ("copies", "max_copies", "copies", "more than {} segments with the same text"),
    ("duplicate", "max_duplicate_fraction", "duplicate_fraction",
     "more than {} of it is audio of an earlier recording"),
    ("disagreement", "max_disagreement", "disagreement",
     "more than {} of the words differ from the other run, or no result there"),
    ("wer", "max_wer", "wer",
     "word error rate above {} against the existing transcript, or none there"),
)  # fmt: skip
_NEEDS = {"disagreement": "against", "wer": "references"}
# Columns that some models or runs lack.
_MAY_BE_UNKNOWN = {
    "language_probability", "no_speech_prob", "speech_fraction", "snr_db", "bandwidth_hz",
    "level_dbfs", "clipped_share", "confidence", "avg_logprob",
    "compression_ratio", "temperature", "duplicate_fraction",
}  # fmt: skip
# Rules about the model's text; corrected or checked segments are exempt.
_JUDGE_THE_MODEL = {
    "known_hallucination", "language_probability", "no_speech", "outside_speech", "confidence",
    "avg_logprob", "compression_ratio", "temperature", "disagreement", "wer",
}  # fmt: skip


def rules_of(settings: SelectionSettings) -> tuple[Rule, ...]:
    """Return the enabled rules of the settings, in order."""
    rules = [
        Rule("no_letters", "no letter or digit", lambda row: not row["num_letters"]),
        _language(settings),
    ]
    if settings.drop_texts:
        rules.append(Rule("listed", "a text of drop_texts", lambda row: bool(row["listed"])))
    if settings.drop_known_hallucinations:
        says = "a known hallucination of Whisper models without speech"
        rules.append(
            Rule("known_hallucination", says, lambda row: bool(row["known_hallucination"]))
        )
    for name, setting, measure, says in _BOUNDS:
        bound = getattr(settings, setting)
        # Without a second run or transcripts there is no comparison.
        compared = name not in _NEEDS or getattr(settings, _NEEDS[name]) is not None
        if bound is not None and compared:
            drops = partial(
                _drops,
                measure=measure,
                bound=bound,
                is_least=setting.startswith("min_"),
                # Segments that could not be compared are dropped as unconfirmed.
                if_unknown=name in _NEEDS,
            )
            measures = measure if measure in _MAY_BE_UNKNOWN else None
            rules.append(Rule(name, says.format(f"{bound:g}"), drops, measures))
    return tuple(rules)


def _drops(row: Row, *, measure: str, bound: float, is_least: bool, if_unknown: bool) -> bool:
    value = _measure(row, measure)
    if value is None:
        return if_unknown
    return value < bound - _ROUNDING if is_least else value > bound + _ROUNDING


def _language(settings: SelectionSettings) -> Rule:
    try:
        codes = frozenset(resolve_language(language) for language in settings.languages)
    except ValueError as error:
        raise ConfigError(f"reading selection.languages: {error}") from error
    if codes:
        says = f"not in {', '.join(sorted(codes))}"
        return Rule("language", says, lambda row: row["language"] not in codes)

    def is_another(row: Row) -> bool:
        expected, detected = row["reference_language"], row["language"]
        return expected is not None and detected is not None and expected != detected

    return Rule("language", "not the transcript's language", is_another)


def decide(row: dict[str, Any], rules: Sequence[Rule]) -> None:
    """Store in a row which rules drop it, and the first of these."""
    passed_over = _passed_over(row)
    row["rules"] = [rule.name for rule in rules if rule.name not in passed_over and rule.drops(row)]
    row["dropped_by"] = next(iter(row["rules"]), None)


def _passed_over(row: Row) -> set[str]:
    return _JUDGE_THE_MODEL if row["corrected"] else set()


@dataclass(slots=True)
class Amount:
    """A count and a total duration."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add a count and its seconds."""
        self.count += count
        self.seconds += seconds


@dataclass(slots=True)
class RuleTally:
    """Counts of one rule."""

    dropped: Amount = field(default_factory=Amount)
    """Segments dropped by this rule first."""
    matching: Amount = field(default_factory=Amount)
    """Segments that match this rule."""
    alone: Amount = field(default_factory=Amount)
    """Segments that match no other rule: gained if this rule is disabled."""
    unmeasured: Amount = field(default_factory=Amount)
    """Segments without the measured column, which this rule does not drop."""


@dataclass(slots=True)
class SelectionTally:
    """Counts of a selection."""

    rules: dict[str, RuleTally]
    measures: dict[str, str]
    """Required column by rule name."""
    everything: Amount = field(default_factory=Amount)
    kept: Amount = field(default_factory=Amount)
    corrected: Amount = field(default_factory=Amount)
    """Selected segments that a person corrected or checked."""
    models: dict[tuple[str | None, str | None], None] = field(default_factory=dict)
    """Models that wrote the texts, with revisions, in order of occurrence."""

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> "SelectionTally":
        """Return empty counts for rules."""
        measures = {rule.name: rule.measures for rule in rules if rule.measures is not None}
        return cls({rule.name: RuleTally() for rule in rules}, measures)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row after `decide`."""
        seconds = _duration_s(row)
        self.everything.add(seconds)
        self.models[row["model"], row["model_revision"]] = None
        passed_over = _passed_over(row)
        for name, column in self.measures.items():
            if row[column] is None and name not in passed_over:
                self.rules[name].unmeasured.add(seconds)
        if row["dropped_by"] is None:
            self.kept.add(seconds)
            if row["corrected"]:
                self.corrected.add(seconds)
            return
        first = self.rules[row["dropped_by"]]
        first.dropped.add(seconds)
        for name in row["rules"]:
            self.rules[name].matching.add(seconds)
        if len(row["rules"]) == 1:
            first.alone.add(seconds)
