"""Subtitle files: openai-whisper's byte for byte, and what real parsers read back; speakers."""

import html
import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pympi
import pysubs2
import pytest
import webvtt
from whisper.utils import get_writer

from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import Recording
from corpus_asr.formats.cues import Transcribed, cues_of
from corpus_asr.formats.options import CueRules, ExportFormat, SubtitlePreset, WordStyle
from corpus_asr.formats.subtitles import check_words, lrc_text, srt_text, vtt_text
from corpus_asr.formats.transcript import Transcript
from corpus_asr.formats.writers import file_contents
from corpus_asr.segments import Segment, SpeakerTurn, Word
from tests.support.tables import recording, segment

TEXTS = (
    " Four score and seven years ago, our fathers brought forth a new nation.",
    " «Größe», sagte er — 10 % mehr!",
    " 这是一个测试。",
    " it's",
)


WHOLE = CueRules(preset=SubtitlePreset.none)


def spoken(*, words: bool, start_s: float = 0.0) -> Recording:
    rng = random.Random(words)
    segments = []
    for text in TEXTS:
        segments.append(segment(text, start_s, start_s + rng.uniform(1, 6), words=words))
        start_s = segments[-1].end_s + rng.uniform(0, 2)
    return recording(*segments)


def text_in(name: str, found: Transcribed) -> str:
    ((_, content),) = file_contents(found, [ExportFormat(name)])
    return content.decode()


def whispers(kind: str, found: Recording, **options: Any) -> str:
    file = io.StringIO()
    result = json.loads(text_in("json", found))
    get_writer(kind, ".").write_result(result, file=file, **options)
    return file.getvalue()


def test_files_are_whispers_to_the_byte() -> None:
    formats = [ExportFormat(name) for name in ("srt", "vtt", "tsv", "txt")]
    for words in (False, True):
        for start_s in (0.0, 3599.2, 360_000.0):
            found = spoken(words=words, start_s=start_s)
            for suffix, text in file_contents(found, formats, rules=WHOLE):
                assert text.decode() == whispers(suffix[1:], found), (words, start_s, suffix)
    cues = cues_of(found, WHOLE)
    assert srt_text(cues, WordStyle.highlight) == whispers("srt", found, highlight_words=True)
    assert vtt_text(cues, WordStyle.highlight) == whispers("vtt", found, highlight_words=True)


def test_lines_are_whispers_where_nothing_can_be_balanced() -> None:
    text = " aaaa bbbb cccc dddd eeee ffff gggg hhhh"
    found = recording(segment(text, 0.0, 8.0, words=True))
    cues = cues_of(found, CueRules(max_line_width=9, max_line_count=2))
    width = {"max_line_width": 9, "max_line_count": 2}
    assert srt_text(cues) == whispers("srt", found, **width)
    marked = whispers("srt", found, **width, highlight_words=True)
    assert srt_text(cues, WordStyle.highlight) == marked


def test_no_highlighted_cue_is_shorter_than_a_frame() -> None:
    times = [(0.0, 0.02), (0.02, 0.04), (0.04, 0.5), (0.5, 0.5), (0.6, 0.61), (0.61, 0.9)]
    words = tuple(
        Word(word=f" w{at}", start_s=start_s, end_s=end_s, probability=0.9)
        for at, (start_s, end_s) in enumerate(times)
    )
    said = replace(segment("".join(each.word for each in words), 0.0, 0.93), words=words)
    text = srt_text(cues_of(recording(said), CueRules()), WordStyle.highlight)
    lines = pysubs2.SSAFile.from_string(text, format_="srt")
    assert all(line.end - line.start >= 41 for line in lines)
    assert {line.plaintext for line in lines} == {"w0 w1 w2 w3 w4 w5"}
    marked = {word for line in lines for word in re.findall("<u>(.*?)</u>", text)}
    assert len(marked) == len(words)


HOSTILE = (
    " a --> b",
    " <i>no</i> & <b",
    " 1 < 2 && 3 > 2 &amp; &lt;",
    " one\n\n2\n00:00:00,000 -->\nno cue",
    " one\r\n\r\nNOTE none\u2028two\x85three\x00",
    " {\\an8}top <00:00:00.500>now",
    " STYLE",
    " WEBVTT",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_text_holds_it_stays_one_cue_of_text(text: str) -> None:
    for words in (False, True):
        parts = segment(text, 0.0, 2.0, words=words), segment(" End.", 2.0, 3.0, words=words)
        cues = cues_of(recording(*parts), WHOLE)
        for style in WordStyle:
            parsed = webvtt.from_string(vtt_text(cues, style)).captions
            captions = [html.unescape(caption.text) for caption in parsed]
            assert set(captions) == {shown(text), "End."}, (words, style)
            one_cue = style is not WordStyle.highlight or not words
            if one_cue:
                assert [caption.end for caption in parsed] == ["00:00:02.000", "00:00:03.000"]
            lines = pysubs2.SSAFile.from_string(srt_text(cues, style), format_="srt")
            assert {guarded(line.plaintext) for line in lines} == {guarded(shown(text)), "End."}
            assert not one_cue or len(lines) == 2


def shown(text: str) -> str:
    for character in ("\r\n\r\n", "\n\n", "\n", "\u2028", "\x85"):
        text = text.replace(character, " ")
    text = text.replace("\x00", "").replace("\\", "\\\u2060").strip()
    return text.replace("{", "\uff5b").replace("}", "\uff5d")


def guarded(text: str) -> str:
    """Return a text as a reader of SubRip is to see it, but for its blanks."""
    return re.sub(r"<(?=[a-z/])", "\u2039", text.replace("-->", "->")).replace(" ", "")


def test_only_words_with_times_are_marked() -> None:
    # What players would take for instructions is none of them.
    found = srt_text(cues_of(recording(segment(" {\\an8}top <i>", 0.0, 2.0)), WHOLE))
    assert found.splitlines()[2] == "\uff5b\\\u2060an8\uff5dtop \u2039i>"
    cues = cues_of(recording(segment(" one two", 1.0, 4.0)), WHOLE)
    for style in WordStyle:
        assert vtt_text(cues, style) == "WEBVTT\n\n00:01.000 --> 00:04.000\none two\n\n"


def test_words_that_are_blank_are_not_marked_and_those_that_meet_make_no_arrow() -> None:
    said = timed_words(" a", " ", " --", ">", " b")
    cues = cues_of(recording(said), WHOLE)
    texts = srt_text(cues, WordStyle.highlight).splitlines()[2::4]
    assert texts == [
        "<u>a</u> -> b", "a -> b", "a <u>-></u> b", "a -> <u>b</u>",
    ]  # fmt: skip


def timed_words(*words: str) -> Segment:
    timed = tuple(
        Word(word=word, start_s=float(at), end_s=at + 1.0, probability=0.5)
        for at, word in enumerate(words)
    )
    return replace(segment("".join(words), 0.0, float(len(words))), words=timed)


def test_nemo_has_no_line_without_text() -> None:
    found = recording(segment(" ", 0.0, 2.0), segment(" One.", 2.0, 3.5))
    text = text_in("nemo", found)
    assert json.loads(text) == {
        "audio_filepath": "/clips/talk.mp3", "offset": 2.0, "duration": 1.5, "text": "One.",
        "lang": "en",
    }  # fmt: skip


def test_lrc_has_a_time_before_each_line() -> None:
    timed = recording(
        segment(" one two three", 1.0, 4.0, words=True), segment(" four.", 6000.123, 6002.0)
    )
    cues = cues_of(timed, CueRules(max_line_width=8))
    assert lrc_text(cues) == (
        "[00:01.00]one two\n[00:03.00]three\n[00:04.00]\n[100:00.12]four.\n[100:02.00]\n"
    )
    # No time alone in short pauses, nor while another voice speaks.
    voices = recording(
        segment(" a", 0.0, 9.0), segment(" b", 2.0, 4.0), segment(" c", 6.0, 7.0),
        segment(" d", 9.4, 10.0),
    )  # fmt: skip
    assert lrc_text(cues_of(voices, WHOLE)).splitlines() == [
        "[00:00.00]a", "[00:02.00]b", "[00:06.00]c", "[00:09.40]d", "[00:10.00]",
    ]  # fmt: skip
    # What players would take for times is none.
    for text in (*HOSTILE, " [00:01.00] a <00:02.00> b"):
        lines = lrc_text(cues_of(recording(segment(text, 0.0, 2.0)), WHOLE)).splitlines()
        (time, said), *others = (line.split("]", 1) for line in lines)
        assert (time, others) == ("[00:00.00", [["[00:02.00", ""]])
        assert not re.search(r"[\[<]\d+:", said)


def test_a_style_of_words_that_a_format_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="exporting lrc: found --words highlight, expected plain"):
        check_words([ExportFormat.vtt, ExportFormat.lrc], WordStyle.highlight)
    check_words(list(ExportFormat), WordStyle.plain)


def test_a_recording_without_text_has_no_cue() -> None:
    for text in ("", "  ", "\n"):
        assert cues_of(recording(segment(text, 0.0, 1.0)), WHOLE) == []
    assert (srt_text([]), vtt_text([]), lrc_text([])) == ("", "WEBVTT\n\n", "")


def said_by(text: str, start_s: float, end_s: float, speaker: str | None) -> Segment:
    plain = segment(text, start_s, end_s, words=True)
    words = tuple(replace(word, speaker=speaker) for word in plain.words or ())
    return replace(plain, speaker=speaker, words=words)


def turn(start_s: float, end_s: float, speaker: str, channel: int | None = None) -> SpeakerTurn:
    return SpeakerTurn(
        start_s=start_s, end_s=end_s, speaker=speaker, confidence=0.75, channel=channel
    )


SAID = (
    said_by(' Say "yes".', 0.5, 1.5, "S1"),
    said_by(" <b>No</b>.", 1.5, 2.5, "A & <B>"),
    said_by(" Silence.", 3.0, 3.5, None),
)
TURNS = (turn(0.4, 1.6, "S1"), turn(1.6, 2.6, "A & <B>"))


def text_of(name: str, **values: Any) -> str:
    usual: dict[str, Any] = {
        "segments": SAID, "language": "en", "duration_s": 4.0, "uri": "s3://talks/a b.c.mp3?x=1",
        "turns": TURNS,
    }  # fmt: skip
    return text_in(name, Transcript(**usual | values))


def test_texts_and_subtitles_name_the_speaker():
    assert text_of("txt") == '[S1] Say "yes".\n[A & <B>] <b>No</b>.\nSilence.\n'
    assert "\n[S1] Say" in text_of("srt")
    assert "<B>" not in text_of("srt")  # which players take for bold
    assert text_of("lrc").splitlines()[0] == '[00:00.50][S1] Say "yes".'
    vtt = text_of("vtt")
    assert "<v S1>Say" in vtt
    assert "<v A &amp; &lt;B&gt;>&lt;b&gt;No" in vtt
    first, second, third = webvtt.from_string(vtt).captions
    assert (first.voice, first.text) == ("S1", 'Say "yes".')
    assert (second.voice or "").startswith("A &")
    assert third.voice is None


def test_json_has_speakers_where_they_are_known():
    plain = Transcript(segments=SAID, language="en", duration_s=4.0, turns=TURNS).to_dict()
    first, _, third = plain["segments"]
    assert first["speaker"] == "S1"
    assert [word["speaker"] for word in first["words"]] == ["S1", "S1"]
    assert "speaker" not in third
    assert "speaker" not in third["words"][0]
    assert text_of("whisperx").count('"speaker": "S1"') == 1 + 2 + 2  # word_segments, too
    channel = text_of("whisperx", channel=1)
    assert channel.count("CHANNEL_01") == 1 + 1 + 1  # of the segment without a speaker
    assert '"speaker": "S1"' in text_of("nemo").splitlines()[0]


def test_rttm_has_a_line_per_turn():
    # The fields of NIST's description: blanks would make more of them.
    lines = [line.split() for line in text_of("rttm").splitlines()]
    assert lines == [
        ["SPEAKER", "a_b.c", "1", "0.400", "1.200", "<NA>", "<NA>", "S1", "0.750", "<NA>"],
        ["SPEAKER", "a_b.c", "1", "1.600", "1.000", "<NA>", "<NA>", "A_&_<B>", "0.750", "<NA>"],
    ]
    assert text_of("rttm", turns=()) == ""
    of_channel = text_of("rttm", turns=(turn(0, 1, "S1", channel=1),))
    assert of_channel.split()[2] == "2"
    of_both = text_of("rttm", turns=(turn(1, 2, "S1", channel=0), turn(0, 3, "S2", channel=1)))
    assert [line.split()[2:4] for line in of_both.splitlines()] == [["2", "0.000"], ["1", "1.000"]]
    with pytest.raises(ConfigError, match="found no speakers, expected speaker turns; transcribe"):
        text_of("rttm", turns=None)


def test_ctm_has_a_line_per_word():
    lines = text_of("ctm").splitlines()
    assert lines[0] == "a_b.c 1 0.500 0.500 Say 0.500" or lines[0].startswith("a_b.c 1 0.500 ")
    assert [line.split()[4] for line in lines] == ["Say", '"yes".', "<b>No</b>.", "Silence."]
    assert all(len(line.split()) == 6 for line in lines)
    with pytest.raises(ConfigError, match=r"found words without times.*word_timestamps"):
        text_of("ctm", segments=(replace(SAID[0], words=None),))


TIERS = ["S1", "S1 words", "A & <B>", "A & <B> words", "text", "text words"]


def test_pympi_reads_eaf_and_makes_a_textgrid_of_it(tmp_path: Path):
    path = tmp_path / "a.eaf"
    overlap = said_by("\x01 And\x0bmore\ud800.", 3.4, 9.9, None)
    path.write_text(text_of("eaf", segments=(*SAID, overlap), uri="/corpus/a & <b> 1.wav"))
    found = pympi.Elan.Eaf(str(path))
    assert [*found.get_tier_names()] == TIERS
    grid = found.to_textgrid()
    assert sorted(tier.name for tier in grid.get_tiers()) == sorted(TIERS)
    (media,) = found.get_linked_files()
    assert (media["MEDIA_URL"], media["RELATIVE_MEDIA_URL"], media["MIME_TYPE"]) == (
        "file:///corpus/a & <b> 1.wav", "./a & <b> 1.wav", "audio/x-wav",
    )  # fmt: skip
    texts = {name: found.get_annotation_data_for_tier(name) for name in TIERS}
    assert texts["S1"] == [(500, 1500, 'Say "yes".')]
    # In a tier nothing overlaps or goes on beyond the recording; a lone surrogate is no XML.
    assert texts["text"] == [(3000, 3500, "Silence."), (3500, 9900, "And more\ufffd.")]
    assert [text for _, _, text in texts["A & <B> words"]] == ["<b>No</b>."]
