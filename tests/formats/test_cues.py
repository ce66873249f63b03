"""Cues fit the screen, lose no word, and are broken where it hurts least."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.errors import ConfigError
from corpus_asr.formats.cue_rules import CueRules
from corpus_asr.formats.cues import cues_of
from tests.support.tables import recording, segment

SCREEN = CueRules(max_line_width=20, max_line_count=2, max_duration_s=5.0)
# Times are sums of fractions; files tell milliseconds apart.
MILLISECOND_S = 0.001


def texts(text: str, rules: CueRules, *, seconds: float = 4.0, words: bool = False) -> list[str]:
    found = recording(segment(text, 0.0, seconds, words=words))
    return ["|".join(cue.texts) for cue in cues_of(found, rules)]


def test_a_segment_that_fits_is_one_cue() -> None:
    text = " A long one. " * 40
    assert texts(text, CueRules(), seconds=30.0) == [text.strip()]
    assert texts(" One. Two. Three.", SCREEN) == ["One. Two. Three."]


def test_breaks_come_at_ends_of_sentences_then_of_clauses_then_between_words() -> None:
    for words in (False, True):
        found = texts(" I came here. You saw me, and he left us all.", SCREEN, words=words)
        assert found == ["I came here.", "You saw me, and|he left us all."]
    found = texts(" when all of it was over, they said that none of it had happened", SCREEN)
    assert found[0].replace("|", " ") == "when all of it was over,"
    rules = CueRules(max_line_width=14, max_line_count=1)
    assert texts(" aa bb cc dd ee ff", rules) == ["aa bb cc", "dd ee ff"]
    rules = CueRules(max_line_width=27, max_line_count=1)
    found = texts(" We met Mr. J. Smith there. He was out.", rules)
    assert found == ["We met Mr. J. Smith there.", "He was out."]


def test_scripts_without_spaces_are_broken_between_letters_with_their_marks() -> None:
    for text, chars, mark in (
        ("今日は天気がいいですね。明日も晴れるでしょう。", 8, "。"), ("e\u0301" * 12, 5, "\u0301"),
    ):  # fmt: skip
        found = texts(text, CueRules(max_line_width=chars, max_line_count=1))
        assert "".join(found) == text
        assert all(len(line) <= chars and not line.startswith(mark) for line in found)


def test_long_segments_are_broken_by_time_and_long_words_cut_short() -> None:
    found = cues_of(recording(segment(" a b c d e f g h i j", 0.0, 20.0)), SCREEN)
    assert [round(cue.end_s - cue.start_s) for cue in found] == [4, 4, 4, 4, 4]
    (cue,) = cues_of(recording(segment(" hm", 1.0, 20.0)), SCREEN)
    assert (cue.start_s, cue.end_s) == (1.0, 6.0)


def test_short_cues_stay_until_the_next_and_gaps_are_kept() -> None:
    found = recording(
        segment(" a", 0.0, 0.2), segment(" b", 0.5, 0.6), segment(" c", 5.0, 5.1),
        segment(" d", 5.05, 9.0),
    )  # fmt: skip
    for rules, ends in (
        (CueRules(min_duration_s=1.0, min_gap_s=0.1), [0.4, 1.5, 5.05, 9.0]),
        (CueRules(min_duration_s=1.0), [0.5, 1.5, 5.05, 9.0]),
        (CueRules(min_gap_s=0.4), [0.1, 0.6, 5.05, 9.0]),
    ):
        assert [round(cue.end_s, 3) for cue in cues_of(found, rules)] == ends


def test_channels_do_not_cut_each_other_short() -> None:
    found = recording(segment(" left", 0.0, 4.0), segment(" right", 1.0, 2.0))
    cues = cues_of(replace(found, channels=(0, 1)), CueRules(min_gap_s=0.1))
    assert [(cue.texts, cue.end_s) for cue in cues] == [(["left"], 4.0), (["right"], 2.0)]


def test_bounds_that_make_no_sense_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"max_line_width": 0}, {"max_line_count": 2}, {"max_line_count": 0, "max_line_width": 9},
        {"max_duration_s": 0.0}, {"max_duration_s": float("nan")}, {"min_gap_s": -1.0},
        {"min_duration_s": 3.0, "max_duration_s": 2.0},
    ]  # fmt: skip
    for bounds in wrong:
        with pytest.raises(ConfigError, match="rules for subtitles"):
            CueRules(**bounds)


WORDS = st.lists(st.text("ab.,é。 \n<&", min_size=1, max_size=12), max_size=25)


@settings(max_examples=40, deadline=None)
@given(
    WORDS,
    st.integers(1, 30),
    st.integers(1, 3),
    st.floats(0.5, 10.0),
    st.floats(0.0, 40.0),
    st.booleans(),
)
def test_cues_keep_to_their_bounds_and_lose_nothing(
    words: list[str], chars: int, lines: int, most_s: float, seconds: float, timed: bool
) -> None:
    rules = CueRules(max_line_width=chars, max_line_count=lines, max_duration_s=most_s)
    text = " ".join(words)
    cues = cues_of(recording(segment(text, 2.0, 2.0 + seconds, words=timed)), rules)
    assert "".join("".join(cue.texts) for cue in cues).replace(" ", "") == "".join(text.split())
    for cue in cues:
        alone = sum(len(line) for line in cue.lines) == 1
        assert alone or len(cue.lines) <= lines
        assert cue.end_s - cue.start_s <= most_s + MILLISECOND_S
        for line, shown in zip(cue.lines, cue.texts, strict=True):
            # What must not begin a line stays with the letter before it.
            assert len(shown) <= chars or len(line) == 1
    assert all(a.end_s <= b.start_s + MILLISECOND_S for a, b in pairwise(cues))
