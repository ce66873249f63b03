"""Every rule drops what it says, keeps the rest, and can be turned off."""

from typing import Any

import pytest

from corpus_asr.config.run import SelectionSettings
from corpus_asr.errors import ConfigError
from corpus_asr.labelling.selection import SelectionTally, decide, rules_of

GOOD: dict[str, Any] = {
    "start_s": 1.0, "end_s": 4.0, "text": "fine", "uri": "u", "language": "en",
    "language_probability": 0.9, "confidence": 0.9, "avg_logprob": -0.2, "no_speech_prob": 0.1,
    "compression_ratio": 1.2, "temperature": 0.0, "speech_fraction": 0.9, "num_words": 8,
    "num_letters": 30, "unique_words": 0.8, "repeats": 1, "longest_word": 9, "copies": 1,
    "listed": False, "known_hallucination": False, "disagreement": 0.0, "wer": 0.0,
    "reference_language": "en",
}  # fmt: skip
STRICT = SelectionSettings(
    languages=("English",), min_language_probability=0.5, min_speech_fraction=0.5,
    min_confidence=0.5, max_temperature=0.4, min_words_per_s=0.5, max_copies=10,
    drop_texts=("thanks for watching",), against="other", references="said.jsonl",
)  # fmt: skip
BAD: dict[str, dict[str, Any]] = {
    "no_letters": {"num_letters": 0},
    "language": {"language": "de"},
    "listed": {"listed": True},
    "known_hallucination": {"known_hallucination": True},
    "too_short": {"end_s": 1.1, "num_words": 0, "num_letters": 1},
    "too_long": {"end_s": 31.5, "num_words": 40},
    "language_probability": {"language_probability": 0.4},
    "no_speech": {"no_speech_prob": 0.7},
    "outside_speech": {"speech_fraction": 0.2},
    "confidence": {"confidence": 0.4},
    "avg_logprob": {"avg_logprob": -1.1},
    "compression_ratio": {"compression_ratio": 2.5},
    "temperature": {"temperature": 0.6},
    "too_slow": {"num_words": 1},
    "too_fast": {"num_words": 25},
    "too_many_letters": {"num_letters": 121},
    "repeats": {"repeats": 6},
    "few_unique_words": {"unique_words": 0.3},
    "long_word": {"longest_word": 41},
    "copies": {"copies": 11},
    "disagreement": {"disagreement": 0.2},
    "wer": {"wer": 0.2},
}


def decided(row: dict[str, Any], settings: SelectionSettings = STRICT) -> dict[str, Any]:
    decide(row, rules_of(settings))
    return row


def test_what_is_good_is_kept() -> None:
    row = decided(dict(GOOD))
    assert (row["dropped_by"], row["rules"]) == (None, [])


def test_each_rule_drops_what_it_is_about() -> None:
    assert [rule.name for rule in rules_of(STRICT)] == list(BAD)
    for name, values in BAD.items():
        assert name in decided(GOOD | values)["rules"], name


def test_the_first_rule_is_the_one_that_counts() -> None:
    row = decided(GOOD | BAD["wer"] | BAD["copies"] | BAD["language"])
    assert (row["dropped_by"], row["rules"]) == ("language", ["language", "copies", "wer"])


def test_null_turns_rules_off() -> None:
    always = ("min_duration_s", "max_duration_s", "max_disagreement", "max_wer")
    bounds = [name for name in SelectionSettings.model_fields if name.startswith("m")]
    off = SelectionSettings.model_validate(
        {name: None for name in bounds if name not in always} | {"drop_known_hallucinations": False}
    )
    assert [rule.name for rule in rules_of(off)] == [
        "no_letters", "language", "too_short", "too_long",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["language_probability", "no_speech_prob", "speech_fraction", "unique_words", "longest_word"],
)
def test_what_is_not_known_passes(name: str) -> None:
    assert decided(GOOD | {name: None})["dropped_by"] is None


@pytest.mark.parametrize("name", ["disagreement", "wer"])
def test_what_could_not_be_compared_is_dropped(name: str) -> None:
    assert decided(GOOD | {name: None})["dropped_by"] == name


def test_without_languages_the_transcripts_own_is_expected() -> None:
    settings = SelectionSettings(references="said.jsonl")
    assert decided(dict(GOOD), settings)["dropped_by"] is None
    assert decided(GOOD | {"reference_language": "de"}, settings)["dropped_by"] == "language"
    assert decided(GOOD | {"reference_language": None}, settings)["dropped_by"] is None


def test_bounds_are_kept_in_spite_of_32_bits() -> None:
    settings = SelectionSettings(min_confidence=0.9)
    assert decided(GOOD | {"confidence": 0.8999999761581421}, settings)["dropped_by"] is None


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.languages.*englich.*english"):
        rules_of(SelectionSettings(languages=("englich",)))


def test_tallies_say_what_is_dropped_first_at_all_and_by_one_rule_alone() -> None:
    tally = SelectionTally.of([rule.name for rule in rules_of(STRICT)])
    for values in ({}, BAD["wer"], BAD["wer"] | BAD["copies"], BAD["copies"]):
        tally.add(decided(GOOD | values))
    wer, copies = tally.rules["wer"], tally.rules["copies"]
    assert (tally.everything.count, tally.kept.count, tally.kept.seconds) == (4, 1, 3.0)
    assert (wer.dropped.count, wer.matching.count, wer.alone.count) == (1, 2, 1)
    assert (copies.dropped.count, copies.matching.count, copies.alone.count) == (2, 2, 1)
