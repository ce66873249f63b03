"""Speakers and words in every format, and what other tools read of them."""

import re
from dataclasses import replace
from typing import Any

import pytest
import webvtt

from corpus_asr.errors import ConfigError
from corpus_asr.formats.names import ExportFormat
from corpus_asr.formats.transcript import Transcript
from corpus_asr.formats.writers import file_texts
from corpus_asr.segments import Segment, SpeakerTurn
from tests.support.tables import segment


def spoken(text: str, start_s: float, end_s: float, speaker: str | None) -> Segment:
    plain = segment(text, start_s, end_s, words=True)
    words = tuple(replace(word, speaker=speaker) for word in plain.words or ())
    return replace(plain, speaker=speaker, words=words)


def turn(start_s: float, end_s: float, speaker: str, channel: int | None = None) -> SpeakerTurn:
    return SpeakerTurn(
        start_s=start_s, end_s=end_s, speaker=speaker, confidence=0.75, channel=channel
    )


SAID = (
    spoken(' Say "yes".', 0.5, 1.5, "S1"),
    spoken(" <b>No</b>.", 1.5, 2.5, "A & <B>"),
    spoken(" Silence.", 3.0, 3.5, None),
)
TURNS = (turn(0.4, 1.6, "S1"), turn(1.6, 2.6, "A & <B>"))


def text_of(name: str, **values: Any) -> str:
    usual: dict[str, Any] = {
        "segments": SAID, "language": "en", "duration_s": 4.0, "uri": "s3://talks/a b.c.mp3?x=1",
        "turns": TURNS,
    }  # fmt: skip
    ((_, text),) = file_texts(Transcript(**usual | values), [ExportFormat(name)])
    return text


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
    with pytest.raises(ConfigError, match="found no speakers, expected their turns; transcribe"):
        text_of("rttm", turns=None)


def test_ctm_has_a_line_per_word():
    lines = text_of("ctm").splitlines()
    assert lines[0] == "a_b.c 1 0.500 0.500 Say 0.500" or lines[0].startswith("a_b.c 1 0.500 ")
    assert [line.split()[4] for line in lines] == ["Say", '"yes".', "<b>No</b>.", "Silence."]
    assert all(len(line.split()) == 6 for line in lines)
    with pytest.raises(ConfigError, match=r"found words without times.*word_timestamps"):
        text_of("ctm", segments=(replace(SAID[0], words=None),))


def test_textgrid_tiers_cover_the_time_without_overlaps():
    text = text_of("textgrid", segments=(*SAID, spoken(" And more.", 3.4, 3.9, None)))
    names = re.findall(r"name = (.*)", text)
    assert names == [
        '"S1"', '"S1 words"', '"A & <B>"', '"A & <B> words"', '"text"', '"text words"',
    ]  # fmt: skip
    assert 'text = "Say ""yes""."' in text
    for tier in text.split("item [")[2:]:
        starts = [float(each) for each in re.findall(r"xmin = (\S+)", tier)][1:]
        ends = [float(each) for each in re.findall(r"xmax = (\S+)", tier)][1:]
        assert (starts[0], ends[-1]) == (0.0, 4.0)
        assert starts[1:] == ends[:-1]
        assert int(re.findall(r"intervals: size = (\d+)", tier)[0]) == len(starts)
    empty = text_of("textgrid", segments=())
    assert empty.count("intervals [1]") == 1


def test_textgrid_intervals_are_longer_than_none_and_text_may_last_to_the_end():
    said = (
        segment(" One.", 0.0, 1.0), segment(" Nothing.", 2.0, 2.0), segment(" End.", 3.0, 4.0),
    )  # fmt: skip
    text = text_of("textgrid", segments=said)
    assert re.findall(r"name = (.*)", text) == ['"text"']
    assert re.findall(r"intervals: size = (.*)", text) == ["3"]
    assert re.findall(r"xm.. = (\S+)\n +xm.. = (\S+)\n +text = (.*)", text) == [
        ("0.000", "1.000", '"One."'), ("1.000", "3.000", '""'), ("3.000", "4.000", '"End."'),
    ]  # fmt: skip
