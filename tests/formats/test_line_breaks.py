"""Lines, cues and timed words never divide a word of people, whatever tokens a model has."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pysubs2
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.errors import ConfigError
from corpus_asr.formats.cues import Cue, cues_of
from corpus_asr.formats.options import FRAME_S, CueRules, ExportFormat, SubtitlePreset, WordStyle
from corpus_asr.formats.subtitles import lrc_text, srt_text
from corpus_asr.formats.writers import file_contents
from corpus_asr.segments import Segment, Word
from corpus_asr.text import line_breaks
from corpus_asr.text.line_breaks import columns
from tests.support.tables import recording, segment

# As Whisper's tokens divide them, a word per `_`.
ENGLISH = " The_ rate_ rose_ 3_.5%_ to_ $1,250_.75_ at_ 10_:30_ on_ self_-evident_ days."
FRENCH = " l_'homme_ d'aujourd_'hui,_ qu_'est_-ce_ que_ c_'est_ ?"
LINK = " visit_ www_.example_.com_ or_ mail_ x_@y_.org_ now"
THAI = "สวัสด_ีครับ_ ผม_ชื่อ_สมช_าย_ ยินดี_ที่ได_้รู้จ_ัก_ครับ"
JAPANESE = "こん_に_ち_は_、_世界_。_今日_は_3._5_度_です_！_「_ありがとう_」_と_言い_ました_。"  # noqa: RUF001
CHINESE = "我_们_今_天_去_北_京_大_学_学_习_，_价_格_是_3_.5_元_。"  # noqa: RUF001
KOREAN = " 오늘_은_ 날씨_가_ 좋_네요._ 3_.5_도_입니다."
BURMESE = "မြန်_မာ_စ_ာ_ မြန်မ_ာစာ"
HINDI = " हि_न्दी_ में_ क_्या_ है_।"
CASES = [
    (ENGLISH, 10), (ENGLISH, 16), (FRENCH, 14), (LINK, 16), (THAI, 10), (JAPANESE, 18),
    (CHINESE, 14), (KOREAN, 18), (BURMESE, 7), (HINDI, 8),
]  # fmt: skip


def timed(tokens: str, start_s: float = 0.0, end_s: float = 10.0, **changes: Any) -> Segment:
    texts = tokens.split("_")
    lasts_s = (end_s - start_s) / len(texts)
    words = tuple(
        Word(
            word=text,
            start_s=start_s + at * lasts_s,
            end_s=start_s + (at + 1) * lasts_s,
            probability=0.5,
        )
        for at, text in enumerate(texts)
    )
    usual = {"language": None, "words": words}
    return replace(segment("".join(texts), start_s, end_s), **usual | changes)


def lines_of(said: Segment, width: int, **rules: Any) -> list[str]:
    cues = cues_of(
        recording(said), CueRules(preset=SubtitlePreset.none, max_line_width=width, **rules)
    )
    return [text for cue in cues for text in cue.texts]


@pytest.fixture
def _without_icu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    line_breaks._icu.cache_clear()
    monkeypatch.setitem(sys.modules, "icu4py", None)
    yield
    line_breaks._icu.cache_clear()


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("abc", 3), ("日本語", 6), ("カナ。", 6), ("ｶﾅ", 2), ("ＡＢ", 4), ("한국어", 6),  # noqa: RUF001
        ("價 1.5", 6),
        ("e\u0301", 1), ("\u0301", 0), ("दी", 1), ("สวัสดี", 4), ("か\u3099", 2), ("한", 2),
        ("👩‍👩‍👧", 2), ("a\u200bb", 2),
    ],
)  # fmt: skip
def test_wide_characters_take_two_columns_and_marks_none(text: str, width: int) -> None:
    assert columns(text) == width


@pytest.mark.parametrize(("tokens", "width"), CASES)
@pytest.mark.usefixtures("_without_icu")
def test_lines_without_icu_are_the_same_too(tokens: str, width: int) -> None:
    test_lines_are_the_same_with_and_without_times_of_words(tokens, width)


@pytest.mark.parametrize(("tokens", "width"), CASES)
def test_lines_are_the_same_with_and_without_times_of_words(tokens: str, width: int) -> None:
    said = timed(tokens)
    for count in (None, 1, 2):
        lines = lines_of(said, width, max_line_count=count)
        assert lines == lines_of(replace(said, words=None), width, max_line_count=count)
        assert all(columns(line) <= width for line in lines)
        assert "".join(lines).replace(" ", "") == said.text.replace(" ", "")
        for line in lines:
            # Marks, closing and opening punctuation.
            assert not regex.match(r"[\p{M}\p{Pe}\p{Pf}、。！,.:।ーっ]", line), line  # noqa: RUF001
            assert not regex.search(r"[\p{Ps}\p{Pi}]$", line), line


@pytest.mark.usefixtures("_without_icu")
def test_without_a_dictionary_lines_are_told_to_divide_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        assert "".join(lines_of(timed(THAI), 5)).replace(" ", "") == re.sub("[ _]", "", THAI)
    assert caplog.text.count("lines_may_divide_words") == 1
    assert lines_of(timed(JAPANESE), 18)[0] == "こんにちは、世"


def test_words_of_a_dictionary_stay_whole() -> None:
    assert lines_of(timed(THAI), 5) == [
        "สวัสดี", "ครับ", "ผมชื่อ", "สมชาย", "ยินดีที่", "ได้รู้จัก", "ครับ",
    ]  # fmt: skip
    chinese = lines_of(timed(CHINESE), 10)
    assert chinese == ["我们今天", "去北京大学", "学习，价格", "是3.5元。"]  # noqa: RUF001
    japanese = ["こんにちは、世界。", "今日は3.5度です！", "「ありがとう」", "と言いました。"]  # noqa: RUF001
    assert lines_of(timed(JAPANESE), 18) == japanese


def test_only_a_word_too_long_for_a_line_is_divided_and_never_within_a_character() -> None:
    said = timed(" see_ https://_www.example_.com/_a-long-path_ or_ anticonstitutionnel_lement")
    assert lines_of(said, 14) == lines_of(replace(said, words=None), 14)
    lines = lines_of(said, 14)
    assert all(len(line) <= 14 for line in lines)
    # A mark behind a space is no part of the word.
    assert lines_of(timed(" l_'homme_ d'aujourd_'hui_ ?"), 13) == ["l'homme", "d'aujourd'hui", "?"]
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    for text in (family * 5, "e\u0301" * 12, "ก็" * 9):
        parts = lines_of(segment(text, 0.0, 5.0), 5)
        assert [c for line in parts for c in regex.findall(r"\X", line)] == regex.findall(
            r"\X", text
        )


def test_timed_words_are_those_of_people() -> None:
    said = timed(ENGLISH)
    cues = cues_of(recording(said), CueRules(preset=SubtitlePreset.none))
    words = said.text.split()
    assert re.findall("<u>(.*?)</u>", srt_text(cues, WordStyle.highlight)) == words
    (_, whisperx), (_, ctm) = file_contents(
        recording(said), [ExportFormat.whisperx, ExportFormat.ctm]
    )
    assert re.findall('"word": "([^"]+)"', whisperx.decode())[: len(words)] == words
    lines = [line.split() for line in ctm.decode().splitlines()]
    assert [line[4] for line in lines] == words
    # 3 and .5% together last two sixteenths of the time.
    assert float(lines[3][3]) == pytest.approx(2 * 10 / len(ENGLISH.split("_")), abs=0.002)
    thai = cues_of(recording(timed(THAI)), CueRules(preset=SubtitlePreset.none))
    for word in re.findall("<u>(.*?)</u>", srt_text(thai, WordStyle.highlight)):
        assert not regex.match(r"\p{M}", word)
    japanese = cues_of(recording(timed(JAPANESE)), CueRules(preset=SubtitlePreset.none))
    marked = re.findall("<u>(.*?)</u>", srt_text(japanese, WordStyle.highlight))
    assert "3.5" in "".join(marked)
    assert not {"。", "3.", "「", "」", "！"} & {*marked}  # noqa: RUF001
    assert " " not in lrc_text(japanese)


def zero_words(*words: tuple[str, float, float]) -> Segment:
    said = tuple(Word(word=w, start_s=a, end_s=b, probability=0.5) for w, a, b in words)
    return replace(
        segment("".join(w for w, *_ in words), said[0].start_s, said[-1].end_s), words=said
    )


ENDS_AT_ONCE = zero_words(
    (" nicht", 5.0, 5.8), (" alle", 5.8, 6.62), (" nicht", 6.62, 6.62), (" kür", 6.62, 6.62),
    (" feel", 6.62, 6.62), (" Sinn.", 6.62, 6.62),
)  # fmt: skip


def test_no_cue_lasts_less_than_a_frame() -> None:
    found = recording(
        segment(" One.", 1.0, 1.0), segment(" Two.", 1.0, 1.0), segment(" Three.", 1.01, 3.0),
        ENDS_AT_ONCE, segment(" End.", 6.62, 6.62),
    )  # fmt: skip
    for rules in (
        CueRules(), CueRules(max_line_width=20, max_line_count=1), CueRules(min_gap_s=0.5),
        CueRules(preset=SubtitlePreset.netflix),
    ):  # fmt: skip
        cues = cues_of(found, rules)
        assert " ".join(t for cue in cues for t in cue.texts) == found.text
        assert all(cue.end_s - cue.start_s > FRAME_S - 1e-9 for cue in cues)
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(cues))
        for style in (WordStyle.plain, WordStyle.highlight):
            events = pysubs2.SSAFile.from_string(srt_text(cues, style), format_="srt")
            assert all(event.duration > 0 for event in events)
            assert {"One.", "Two.", "Three.", "End."} <= {event.plaintext for event in events}


def test_text_without_a_duration_shares_the_time_of_what_is_before_it() -> None:
    first, last = cues_of(recording(ENDS_AT_ONCE), CueRules(max_line_width=20, max_line_count=1))
    assert (first.start_s, first.end_s, last.end_s) == (5.0, last.start_s, 6.62)
    assert last.end_s - last.start_s > 0.5


SPOKEN = st.lists(
    st.tuples(st.text("ab '.", min_size=1, max_size=9), st.floats(0, 2), st.floats(0, 3)),
    min_size=1, max_size=12,
)  # fmt: skip


def cps(cue: Cue) -> float:
    return len(" ".join(cue.texts)) / (round(cue.end_s, 3) - round(cue.start_s, 3))


@settings(max_examples=20)
@given(SPOKEN, st.sampled_from([None, *SubtitlePreset]), st.floats(0, 1), st.floats(5, 30))
def test_cues_are_read_in_time_where_there_is_time(
    spoken: list[tuple[str, float, float]], preset: SubtitlePreset | None, gap_s: float, most: float
) -> None:
    segments, at_s = [], 0.0
    for text, lasts_s, pause_s in spoken:
        segments.append(segment(f" {text}", at_s, at_s + lasts_s))
        at_s += lasts_s + pause_s
    rules = CueRules(preset=preset, max_cps=most, min_gap_s=gap_s, min_duration_s=0.5)
    known = rules.of("en")
    found = replace(recording(*segments), duration_s=at_s + 30.0)
    cues = cues_of(found, rules)
    for cue, after in pairwise([*cues, None]):
        assert cue is not None
        room_s = (after.start_s if after else found.duration_s) - cue.start_s
        longest_s = known.max_duration_s or float("inf")
        assert cue.end_s - cue.start_s <= min(room_s, longest_s) + 1e-6
        if cue.end_s - cue.start_s < min(room_s - gap_s, longest_s) - 1e-6:
            assert cps(cue) <= most
            assert cue.end_s - cue.start_s >= 0.5 - 1e-6


def test_presets_are_the_published_guides_and_options_replace_them() -> None:
    text = " It was a bright cold day in April, and the clocks were striking thirteen. " * 3
    said = recording(
        segment(text, 0.0, 9.0), segment(" No.", 9.3, 9.4), segment(" Yes.", 20.0, 20.1)
    )
    said = replace(said, duration_s=30.0)
    for preset, width, speed in (
        ("netflix", 42, 20.0),
        ("netflix-children", 42, 17.0),
        ("bbc", 37, None),
    ):
        rules = CueRules(preset=SubtitlePreset(preset))
        cues = cues_of(said, rules)
        assert all(len(line) <= width for cue in cues for line in cue.texts)
        assert all(len(cue.texts) <= 2 for cue in cues)
        assert rules.of("en").max_cps == speed
        if speed:
            assert all(cue.end_s - cue.start_s <= 7.0 for cue in cues)
            assert all(b.start_s - a.end_s >= 2 / 24 - 1e-9 for a, b in pairwise(cues))
            assert cues[-1].end_s == pytest.approx(20 + 5 / 6)
        else:  # a pause shorter than a second is closed, a word is shown for a third of one
            assert cues[-3].end_s == cues[-2].start_s
            assert cues[-1].end_s == pytest.approx(20 + 1 / 3, abs=0.003)
    assert CueRules(preset=SubtitlePreset.netflix, max_line_width=30).of("en").max_line_width == 30
    japanese = CueRules(preset=SubtitlePreset.netflix).of("ja")
    assert (japanese.max_line_width, japanese.max_cps) == (26, 8.0)
    with pytest.raises(ConfigError, match="min_duration_s 8 above max_duration_s"):
        CueRules(preset=SubtitlePreset.netflix, min_duration_s=8.0)


def test_a_speakers_name_counts_with_the_line_that_it_stands_in() -> None:
    said = timed(" one_ two_ three_ four_ five", speaker="Anna")
    other = replace(said, speaker="S2", start_s=9.0, end_s=9.5, words=None)
    text = srt_text(
        cues_of(recording(said, other), CueRules(preset=SubtitlePreset.none, max_line_width=16))
    )
    assert text.splitlines()[2:4] == ["[Anna] one two", "three four five"]
