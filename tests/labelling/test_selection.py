"""Segments are measured; every rule drops what it says; the table of a selection has every row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from corpus_asr.config.run import SelectionSettings
from corpus_asr.errors import ConfigError
from corpus_asr.labelling.rules import SelectionTally, decide, rules_of
from corpus_asr.labelling.selection import (
    errors_by_piece,
    listed_hashes,
    measure,
    measured,
    most_repeats,
    open_sources,
    rate,
)
from corpus_asr.labelling.summary import Written, summarize
from corpus_asr.report.scoring import Errors, aligned
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.runs import correct_segment, passage, run_of, says, spoken
from tests.support.tables import commit, part, recording, results, segment

GOOD: dict[str, Any] = {
    "start_s": 1.0, "end_s": 4.0, "text": "fine", "uri": "u", "language": "en",
    "language_probability": 0.9, "confidence": 0.9, "avg_logprob": -0.2, "no_speech_prob": 0.1,
    "compression_ratio": 1.2, "temperature": 0.0, "speech_fraction": 0.9, "num_words": 8,
    "num_letters": 30, "unique_words": 0.8, "repeats": 1, "longest_word": 9, "copies": 1,
    "model": "m", "model_revision": "r1", "duplicate_fraction": 0.0,
    "listed": False, "known_hallucination": False, "corrected": False,
    "disagreement": 0.0, "wer": 0.0,
    "reference_language": "en",
}  # fmt: skip
STRICT = SelectionSettings(
    languages=("English",), min_language_probability=0.5, min_speech_fraction=0.5,
    min_confidence=0.5, max_temperature=0.4, min_words_per_s=0.5, max_copies=10,
    max_duplicate_fraction=0.5,
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
    "duplicate": {"duplicate_fraction": 0.6},
    "disagreement": {"disagreement": 0.2},
    "wer": {"wer": 0.2},
}


def decided(row: dict[str, Any], settings: SelectionSettings = STRICT) -> dict[str, Any]:
    decide(row, rules_of(settings))
    return row


def test_what_is_good_is_kept_and_each_rule_drops_what_it_is_about() -> None:
    row = decided(dict(GOOD))
    assert (row["dropped_by"], row["rules"]) == (None, [])
    assert [rule.name for rule in rules_of(STRICT)] == list(BAD)
    for name, values in BAD.items():
        assert name in decided(GOOD | values)["rules"], name
    # The first rule is the one that counts.
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


def test_what_is_not_known_passes_and_what_could_not_be_compared_is_dropped() -> None:
    for name in ("language_probability", "no_speech_prob", "speech_fraction", "unique_words",
                 "duplicate_fraction", "longest_word"):  # fmt: skip
        assert decided(GOOD | {name: None})["dropped_by"] is None, name
    for name in ("disagreement", "wer"):
        assert decided(GOOD | {name: None})["dropped_by"] == name


def test_without_languages_the_transcripts_own_is_expected() -> None:
    settings = SelectionSettings(references="said.jsonl")
    for language, expected in (("en", None), ("de", "language"), (None, None)):
        row = GOOD | {"reference_language": language}
        assert decided(row, settings)["dropped_by"] == expected, language


def test_bounds_are_kept_in_spite_of_32_bits() -> None:
    settings = SelectionSettings(min_confidence=0.9)
    assert decided(GOOD | {"confidence": 0.8999999761581421}, settings)["dropped_by"] is None


def test_bounds_between_which_nothing_is_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"min_duration_s: 10 is more than max_duration_s: 3"):
        SelectionSettings(min_duration_s=10, max_duration_s=3)
    assert "wer" not in [rule.name for rule in rules_of(SelectionSettings(max_wer=None))]


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.languages.*englich.*english"):
        rules_of(SelectionSettings(languages=("englich",)))


def test_tallies_say_what_is_dropped_first_at_all_and_by_one_rule_alone() -> None:
    tally = SelectionTally.of(rules_of(STRICT))
    for values in ({}, BAD["wer"], BAD["wer"] | BAD["copies"], BAD["copies"]):
        tally.add(decided(GOOD | values))
    wer, copies = tally.rules["wer"], tally.rules["copies"]
    assert (tally.everything.count, tally.kept.count, tally.kept.seconds) == (4, 1, 3.0)
    assert (wer.dropped.count, wer.matching.count, wer.alone.count) == (1, 2, 1)
    assert (copies.dropped.count, copies.matching.count, copies.alone.count) == (2, 2, 1)


def test_words_in_a_row_are_counted() -> None:
    for text, times in (
        ("", 0), ("one two", 1), ("no no", 2), ("a b a b a b", 3), ("a a a b a a", 3),
        ("x a b c d e a b c d e y", 2), ("a b a", 1), ("a b c d e f a b c d e f", 1),
    ):  # fmt: skip
        assert most_repeats(text.split()) == times, text


def test_a_segment_is_measured() -> None:
    text = " The cat, the cat and the Donaudampfschifffahrt: 12 of them, the cat said."
    talk = replace(recording(segment(text, 1.0, 5.0)), size_bytes=100, etag="v1")
    ((row, _),) = measured(talk)
    assert row["num_words"] == 13
    assert row["num_letters"] == 57
    assert row["longest_word"] == 21
    assert row["unique_words"] == pytest.approx(8 / 13)
    assert row["repeats"] == 2
    assert (row["etag"], row["wer"], row["disagreement"]) == ("v1", None, None)


def test_letters_are_words_where_words_are_not_parted() -> None:
    text = "你好你好你好世界和平万岁"
    ((row, _),) = measured(recording(segment(text, 0, 5, language="zh")))
    assert row["num_words"] == 12
    assert (row["unique_words"], row["longest_word"]) == (None, None)
    assert row["repeats"] == 3


def test_texts_that_say_the_same_have_one_number_and_listed_ones_are_known() -> None:
    listed = listed_hashes(["Thanks for watching", "谢谢观看"])
    found = [
        *measured(
            recording(
                segment(" Thanks for watching!", 0, 1),
                segment(" thanks, for watching", 1, 2, language="de"),
                segment("谢谢观看。", 2, 3, language="zh"),
                segment(" Thanks for watching me", 3, 4),
            ),
            listed=listed,
        )
    ]
    assert [row["listed"] for row, _ in found] == [True, True, True, False]
    assert found[0][1] == found[1][1]


_WORDS = st.lists(st.sampled_from("abcd"), max_size=6)


def rates(pieces: list[str], said: str) -> list[float]:
    return [rate(each) for each in errors_by_piece([p.split() for p in pieces], said.split())]


def test_each_error_counts_where_it_is() -> None:
    pieces = [["the", "cat"], ["sat", "in"], ["a", "hat", "hat"]]
    found = errors_by_piece(pieces, ["the", "cat", "sat", "on", "a", "hat"])
    assert found == [Errors(2, 0, 0, 0), Errors(1, 1, 0, 0), Errors(2, 0, 0, 1)]


def test_what_is_missing_counts_where_it_is() -> None:
    for pieces, said, expected in (
        (["one three", "four"], "one two three four", [1 / 3, 0]),  # within a segment
        (["one two", "five six"], "one two three four five six", [0.5, 0.5]),  # against both
        (["thanks for watching", "hello"], "hello", [1.0, 0.0]),  # nothing of it was said
        (["hello", ""], "", [1.0, 0.0]),
        ([], "hello", []),
    ):
        assert rates(pieces, said) == expected, pieces


@given(st.lists(_WORDS, max_size=5), _WORDS)
def test_hits_substitutions_and_insertions_add_up_to_those_of_the_whole(
    pieces: list[list[str]], said: list[str]
) -> None:
    found = errors_by_piece(pieces, said)
    words = [word for piece in pieces for word in piece]
    if not words or not said:
        assert sum(each.insertions for each in found) == len(words)
        return
    whole = aligned(said, words)
    assert sum(each.hits for each in found) == whole.hits
    assert sum(each.substitutions for each in found) == whole.substitutions
    assert sum(each.insertions for each in found) == whole.insertions
    assert whole.deletions <= sum(each.deletions for each in found) <= 2 * whole.deletions


def test_a_segment_that_two_speakers_share_is_split_at_word_times(tmp_path: Path) -> None:
    uri = str(tmp_path / "talk.wav")
    shared = passage(0, "Are you? Yes, I am.", probabilities=[0.9] * 5)
    corrected = passage(1, "Mine and yurs.", probabilities=[0.9] * 3)
    store = run_of(tmp_path / "run", spoken(uri, shared, corrected, passage(2, "No word times.")))
    correct_segment(store, "Mine and yurs.", "Mine and yours.")

    def measured_rows() -> list[dict[str, Any]]:
        settings = SelectionSettings()
        path = tmp_path / "selection.parquet"
        with open_sources(store, settings) as sources:
            hashes = measure(sources, settings, str(path))
        assert hashes.dtype == np.uint64  # compared as numbers with decimals some would be equal
        return pyarrow.parquet.read_table(path).to_pylist()

    assert len(measured_rows()) == 3
    says(store, uri, (0.0, 0.8, "S1"), (0.8, 2.9, "S2"), (2.9, 4.5, "S1"), (4.5, 6.0, "S2"))
    rows = measured_rows()
    assert [(row["text"].strip(), row["speaker"].rpartition("-")[2]) for row in rows] == [
        ("Are you?", "S1"), ("Yes, I am.", "S2"),
        ("Mine", "S2"), ("and yours.", "S1"),  # a corrected text, too
        ("No word times.", "S2"),  # as most of it
    ]  # fmt: skip
    assert [round(row["start_s"], 2) for row in rows] == [0.0, 0.8, 2.0, 2.67, 4.0]
    assert [round(row["end_s"], 2) for row in rows] == [0.8, 2.0, 2.67, 4.0, 6.0]
    assert [row["num_words"] for row in rows] == [2, 3, 1, 2, 3]
    assert [row["corrected"] for row in rows] == [False, False, True, True, False]


def test_recordings_are_done_failed_or_unfinished(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    commit(store, results(
        part("done", 0, texts=["x"], part_end_s=1.0),
        part("half", 0, texts=["x"], part_end_s=2.0, last=False),
        part("failed", 0, texts=None, status="failed", part_end_s=4.0),
        part("begun", 0, texts=None, status="failed", part_end_s=8.0, last=False),
        part("silent", 0, texts=None, status="no_speech", part_end_s=16.0),
    ))  # fmt: skip
    with RunTables(store) as tables:
        numbers = summarize(
            tables, (), SelectionTally.of(()), Written(), uri="set", output="out", settings={},
            model={},
        )  # fmt: skip
    assert (numbers.recordings, numbers.failed, numbers.unfinished) == (2, 1, 2)
    assert numbers.audio_s == 17.0
