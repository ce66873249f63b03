"""Cues fit the screen, lose no word, and are broken where it hurts least."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.errors import ConfigError
from corpus_asr.formats.cues import cues_of
from corpus_asr.formats.options import CueRules, SubtitlePreset
from corpus_asr.text.line_breaks import columns
from tests.support.tables import recording, segment

WHOLE = CueRules(preset=SubtitlePreset.none)
SCREEN = CueRules(max_line_width=20, max_line_count=2, max_duration_s=5.0)
# Times are sums of fractions; files tell milliseconds apart.
MILLISECOND_S = 0.001


def texts(text: str, rules: CueRules, *, seconds: float = 4.0, words: bool = False) -> list[str]:
    found = recording(segment(text, 0.0, seconds, words=words))
    return ["|".join(cue.texts) for cue in cues_of(found, rules)]


def test_a_segment_that_fits_is_one_cue() -> None:
    text = " A long one. " * 40
    assert texts(text, WHOLE, seconds=30.0) == [text.strip()]
    assert texts(" One. Two. Three.", SCREEN) == ["One. Two. Three."]


def test_breaks_come_at_ends_of_sentences_then_of_clauses_then_between_words() -> None:
    for words in (False, True):
        found = texts(" I came here. You saw me, and he left us all.", SCREEN, words=words)
        assert found == ["I came here.", "You saw me, and|he left us all."]
    found = texts(" when all of it was over, they said that none of it had happened", SCREEN)
    assert found[0].replace("|", " ") == "when all of it was over,"
    rules = CueRules(max_line_width=14, max_line_count=1)
    assert texts(" aa bb cc dd ee ff", rules) == ["aa bb cc", "dd ee ff"]
    rules = CueRules(max_line_width=24, max_line_count=1)
    found = texts(" It leaves on Nov. 5 at noon and Mr. Smith waits.", rules)
    assert found == ["It leaves on", "Nov. 5 at noon and", "Mr. Smith waits."]
    rules = CueRules(max_line_width=27, max_line_count=1)
    found = texts(" We met Mr. J. Smith there. He was out.", rules)
    assert found == ["We met Mr. J. Smith there.", "He was out."]


def test_by_default_cues_are_of_two_lines_of_42_columns_and_7_seconds() -> None:
    text = " and they said that none of it had ever happened to any of them" * 4
    for rules in (CueRules(), CueRules(max_cps=20.0)):
        cues = cues_of(recording(segment(text, 0.0, 30.0)), rules)
        assert len(cues) > 4
        assert all(len(cue.texts) <= 2 and cue.end_s - cue.start_s <= 7.001 for cue in cues)
        assert all(len(line) <= 42 for cue in cues for line in cue.texts)
    japanese = replace(segment("今日は天気がいいですね。" * 4, 0.0, 7.0), language="ja")
    lines = [line for cue in cues_of(recording(japanese), CueRules()) for line in cue.texts]
    assert max(map(len, lines)) <= 13


@pytest.mark.parametrize(
    ("language", "text", "width"),
    [
        ("ja", "iPhone15ProMaxの価格は199,800円でAppleCare+を付けると高くなるでしょうね。", 26),
        ("zh", "今年iPhone15ProMax的价格是9,999元，比去年的Samsung便宜了一点点。", 32),  # noqa: RUF001
        ("ko", " 아이폰15프로맥스의 가격은 1,990,000원이고 MacBookPro보다 쌉니다.", 32),
    ],
)
def test_half_width_characters_take_half_of_a_wide_one(
    language: str, text: str, width: int
) -> None:
    said = replace(segment(text, 0.0, 7.0), language=language)
    for rules in (CueRules(), CueRules(preset=SubtitlePreset.netflix)):
        lines = [line for cue in cues_of(recording(said), rules) for line in cue.texts]
        assert max(map(columns, lines)) <= width
        for name in ("iPhone15ProMax", "199,800", "9,999", "Samsung", "1,990,000", "MacBookPro"):
            assert any(name in line for line in lines) == (name in text)


FAST = " This sentence was spoken far too fast for anybody to be able to read it in one second."


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("preset", [None, "netflix", "netflix-children", "bbc"])
def test_no_cue_flashes_beside_free_time(preset: str | None, timed: bool) -> None:
    rules = CueRules(preset=None if preset is None else SubtitlePreset(preset))
    for begin_s, lasts_s in ((0.0, 1.0), (3.0, 0.5), (7.0, 1.5)):
        fast = segment(FAST, begin_s, begin_s + lasts_s, words=timed)
        said = recording(fast, segment(" Next.", begin_s + 5.0, begin_s + 8.0))
        *pieces, after = cues_of(said, rules)
        assert "".join(" ".join(["", *cue.texts]) for cue in pieces) == FAST
        assert all(a.end_s <= b.start_s + MILLISECOND_S for a, b in pairwise([*pieces, after]))
        # Without times of words all share the free time, else the last has it.
        shown_s = [cue.end_s - cue.start_s for cue in pieces]
        assert min(shown_s[-1:] if timed else shown_s) >= 0.83
        assert min(shown_s) >= lasts_s / 3
    for words in (False, True):
        short = segment(" Yes.", 2.0, 2.1, words=words)
        found = replace(recording(segment(" a b c d", 0.0, 2.0), short), duration_s=9.0)
        least_s = 1 / 3 if preset == "bbc" else 5 / 6
        assert cues_of(found, rules)[-1].end_s == pytest.approx(2.0 + least_s, abs=0.003)


def test_each_voice_of_a_dialogue_has_a_line() -> None:
    talk = " - Are you coming? - No, not today, I am far too tired."
    for words in (False, True):
        found = texts(talk, CueRules(), words=words)
        assert found == ["- Are you coming?|- No, not today, I am far too tired."]
        found = texts(talk, CueRules(max_line_width=32), words=words)
        assert found == ["- Are you coming?", "- No, not today, I|am far too tired."]
    both = CueRules(max_line_width=42)
    for text, cues in (
        (" -Sí. -¿Ya?", ["-Sí.|-¿Ya?"]),
        (" Coming? – 20 minutes.", ["Coming?|– 20 minutes."]),  # noqa: RUF001
        (' "No!" — "Why?"', ['"No!"|— "Why?"']),
        (" It was cold. -5 degrees.", ["It was cold. -5 degrees."]),
        (" He said - well - no.", ["He said - well - no."]),
        (" — Что? — спросил он.", ["— Что? — спросил он."]),
    ):
        assert texts(text, both) == cues
        assert texts(text, WHOLE) == [text.strip()]


@pytest.mark.parametrize("width", [10, 14, 16, 18])
@pytest.mark.parametrize(
    "text",
    [
        " Die Donau-Dampfschifffahrts-Gesellschaft",
        " a man anti-establishmentarianisms-loving",
        " it costs $12345678901234567890.75%, (abcdefghijklmnopqrstuvwxyz)", " abcdefghijklmnopq…",
        " dit «anticonstitutionnellement»", " ____________________________________",
    ],
)  # fmt: skip
def test_a_word_too_long_for_a_line_is_cut_between_letters(text: str, width: int) -> None:
    lines = [
        line
        for cue in cues_of(recording(segment(text, 0.0, 6.0)), CueRules(max_line_width=width))
        for line in cue.texts
    ]
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    for line in lines if "__" not in text else ():
        assert line[0].isalnum() or line[0] in "$(«"
        assert line[-1] not in "$(«"


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
        (CueRules(min_gap_s=0.4), [0.1, 1.333, 5.05, 9.0]),
        (CueRules(min_gap_s=0.4, min_duration_s=0.0), [0.1, 0.6, 5.05, 9.0]),
    ):
        assert [round(cue.end_s, 3) for cue in cues_of(found, rules)] == ends


def test_channels_do_not_cut_each_other_short() -> None:
    found = recording(segment(" left", 0.0, 4.0), segment(" right", 1.0, 2.0))
    cues = cues_of(replace(found, channels=(0, 1)), CueRules(min_gap_s=0.1))
    assert [(cue.texts, cue.end_s) for cue in cues] == [(["left"], 4.0), (["right"], 2.0)]


def test_bounds_that_make_no_sense_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"max_line_count": 2, "preset": SubtitlePreset.none}, {"max_line_width": 0},
        {"max_line_count": 0, "max_line_width": 9},
        {"max_duration_s": 0.0}, {"max_duration_s": float("nan")}, {"min_gap_s": -1.0},
        {"min_duration_s": 3.0, "max_duration_s": 2.0},
        {"max_line_width": "42"}, {"max_line_width": 2.5}, {"max_line_count": True},
        {"max_cps": "20"}, {"min_duration_s": 8.0},
    ]  # fmt: skip
    for bounds in wrong:
        with pytest.raises(ConfigError, match="rules for subtitles"):
            CueRules(**bounds)


WORDS = st.lists(st.text("ab.,é。 \n<&", min_size=1, max_size=12), max_size=25)


@settings(max_examples=20)
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
