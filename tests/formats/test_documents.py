"""Documents, tables and subtitles for editors, each read back by a parser of its own kind."""

import csv
import importlib
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import docx
import pysubs2
import pytest
from markdown_it import MarkdownIt
from ttconv.imsc import reader as imsc_reader

from corpus_asr.errors import ConfigError
from corpus_asr.formats import documents
from corpus_asr.formats.options import ExportFormat, FormatName, WordStyle
from corpus_asr.formats.pieces import one_line
from corpus_asr.formats.transcript import Transcript
from corpus_asr.formats.writers import check_formats
from corpus_asr.segments import Segment, Word
from tests.support.tables import segment

HOSTILE = (
    ' =HYPERLINK("http://x","y") & <script>alert(\'1\')</script>',
    ' +1 {\\an8}top \\N new "line", \\h',
    " *bold* _it_ [link](http://x) `code` | # 1. ~~no~~ <!-- &amp; --> ![x](y) \\ $a$",
    " @SUM(A1) \x00\x0b\ufffe one\n\ntwo\u2028three",
    " - a dialogue",
)


def said(text: str, start_s: float, end_s: float, speaker: str | None = None) -> Segment:
    return replace(segment(text, start_s, end_s), speaker=speaker)


def transcript(*segments: Segment, **values: Any) -> Transcript:
    usual: dict[str, Any] = {"language": "en", "duration_s": 60.0, "uri": "/talks/a_b & <c>.mp3"}
    return Transcript(segments=segments, **usual | values)


TALK = transcript(
    said(" Hello.", 0.0, 1.0, "Anna"), said(" How are you?", 1.2, 2.0, "Anna"),
    said(" Fine,", 2.1, 3.0, "<B>, {x}"), said("thanks.", 3.0, 4.0, "<B>, {x}"),
    said(" Well.", 7.0, 8.0, "<B>, {x}"),
)  # fmt: skip
PARAGRAPHS = [("Anna", "Hello. How are you?"), ("<B>, {x}", "Fine, thanks."), ("<B>, {x}", "Well.")]
UNKNOWN = transcript(*(said(text, 5.0 * at, 5.0 * at + 1) for at, text in enumerate(HOSTILE)))
SHOWN = [one_line(text).strip() for text in HOSTILE]


def file(name: FormatName, found: Transcript, tmp_path: Any, **options: Any) -> Any:
    (path,) = found.save(tmp_path, name, **options)
    return path


def test_paragraphs_are_by_speaker_and_pause() -> None:
    found = [(each.speaker, each.text) for each in documents.paragraphs_of(TALK)]
    assert found == PARAGRAPHS
    assert TALK.to_txt().splitlines() == [f"[{name}] {text}" for name, text in PARAGRAPHS]
    long = transcript(*(said(" Some words here.", at, at + 1.0) for at in range(200)))
    lengths = [len(each.text) for each in documents.paragraphs_of(long)]
    assert len(lengths) == 5
    assert max(lengths) < documents.LONGEST_CHARS + 20
    assert long.to_txt().count("\n") == 200  # as openai-whisper's
    japanese = transcript(said("今日は。", 0.0, 1.0, "A"), said("明日は。", 1.0, 2.0, "A"))
    assert japanese.to_txt() == "今日は。\n明日は。\n"  # who speaks goes without saying
    two = transcript(*japanese.segments, said("はい。", 2.0, 3.0, "B"))
    assert two.to_txt() == "[A] 今日は。明日は。\n[B] はい。\n"


@pytest.mark.parametrize("name", ["srt", "vtt", "lrc", "ass", "ttml", "txt", "md"])
def test_speakers_are_named_where_there_are_two(name: Any, tmp_path: Path) -> None:
    one = transcript(said(" Yes?", 0.0, 1.0, "Anna"), said(" Bye.", 3.0, 4.0, "Anna"))
    two = transcript(*one.segments, said(" No!", 5.0, 6.0, "S2"))
    for number, (found, named) in enumerate(((one, False), (two, True))):
        (path,) = found.save(tmp_path / str(number), name)
        assert ("Anna" in Path(path).read_text()) is named
    assert "Anna" in one.to_json()


def test_channels_are_speakers_of_documents() -> None:
    left = transcript(said(" Yes?", 0.0, 1.0), said(" Bye.", 3.0, 4.0), channel=0)
    right = transcript(said(" No!", 1.5, 2.5), channel=1)
    both = transcript(*left.segments, *right.segments, channels=(left, right))
    found = [(each.speaker, each.text) for each in documents.paragraphs_of(both)]
    assert found == [("channel 0", "Yes?"), ("channel 1", "No!"), ("channel 0", "Bye.")]


def test_markdown_holds_text_alone(tmp_path: Any) -> None:
    for found in (TALK, UNKNOWN):
        text = Path(file("md", found, tmp_path)).read_text()
        blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
        inline = [block for block in blocks if block.type == "inline"]
        title, _, *rest = inline
        assert {child.type for child in title.children or ()} <= {"text", "text_special"}
        shown = ["".join(child.content for child in each.children or ()) for each in rest]
        kinds = {child.type for each in rest for child in each.children or ()}
        assert kinds <= {"text", "text_special", "strong_open", "strong_close"}
        if found is TALK:
            times = ("0:00:00", "0:00:02", "0:00:07")
            assert shown == [
                f"{n} ({at}) {t}" for at, (n, t) in zip(times, PARAGRAPHS, strict=True)
            ]
        else:
            assert [each.split(") ", 1)[1] for each in shown] == [
                t.replace("\x00", "") for t in SHOWN
            ]


def test_word_reads_its_document(tmp_path: Any) -> None:
    document = docx.Document(file("docx", TALK, tmp_path))
    title, facts, *rest = document.paragraphs
    assert (title.text, facts.text) == ("a_b & <c>.mp3", "0:01:00, en")
    assert [(each.runs[0].text, each.runs[-1].text) for each in rest] == PARAGRAPHS
    assert all(each.runs[0].bold for each in rest)
    _, _, *rest = docx.Document(file("docx", UNKNOWN, tmp_path)).paragraphs
    assert [each.runs[-1].text for each in rest] == [t.replace("\ufffe", "\ufffd") for t in SHOWN]


def test_without_python_docx_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"found no python-docx.*pip install python-docx"):
        check_formats([ExportFormat.docx], WordStyle.plain)


def test_csv_has_a_row_per_segment_and_no_formula(tmp_path: Any) -> None:
    with open(file("csv", TALK, tmp_path), newline="", encoding="utf-8") as opened:
        rows = [*csv.DictReader(opened)]
    assert rows[2] == {"start": "2.100", "end": "3.000", "speaker": "<B>, {x}", "text": "Fine,"}
    with open(file("csv", UNKNOWN, tmp_path), newline="", encoding="utf-8") as opened:
        texts = [row["text"] for row in csv.DictReader(opened)]
    assert [text.removeprefix("'") for text in texts] == SHOWN
    assert not any(re.match(r"[=+\-@\t\r]", text) for text in texts)
    cell = documents.csv_text([["\uff1dcmd|' /C calc'!A0", "1", "a,b", "x\ty"]])
    assert next(csv.reader(io.StringIO(cell)))[0].startswith("'")


def test_substation_alpha_holds_text_and_names_alone(tmp_path: Any) -> None:
    events = pysubs2.load(file("ass", TALK, tmp_path))
    assert [(event.name, event.plaintext) for event in events][:3] == [
        ("Anna", "Hello."), ("Anna", "How are you?"), ("<B>; \uff5bx\uff5d", "Fine,"),
    ]  # fmt: skip
    assert (events[1].start, events[1].end) == (1200, 2000)
    shown = [
        event.plaintext for event in pysubs2.load(file("ass", UNKNOWN, tmp_path, preset="none"))
    ]
    as_read = [
        text.replace("\\", "\\\u2060").replace("{", "\uff5b").replace("}", "\uff5d")
        for text in SHOWN
    ]
    assert shown == as_read
    lines = pysubs2.load(
        file("ass", transcript(said(" one two", 0, 1)), tmp_path, max_line_width=4)
    )
    assert lines[0].plaintext == "one\ntwo"


TIMED = replace(
    segment(" one two", 1.0, 3.0),
    words=(
        Word(word=" one", start_s=1.5, end_s=2.0, probability=0.5),
        Word(word=" two", start_s=2.25, end_s=3.0, probability=0.5),
    ),
)


def test_words_are_marked_in_substation_alpha_and_ttml() -> None:
    found = transcript(TIMED)
    events = pysubs2.SSAFile.from_string(found.to_ass(words="karaoke"))
    assert events[0].text == r"{\k75}one {\k75}two"
    events = pysubs2.SSAFile.from_string(found.to_ass(words="highlight"))
    assert [event.text for event in events] == [
        r"{\u1}one{\u0} two",
        "one two",
        r"one {\u1}two{\u0}",
    ]
    assert [event.plaintext for event in events] == ["one two"] * 3
    spans = ElementTree.fromstring(found.to_ttml(words="highlight")).iter(f"{TT}span")
    assert [span.text for span in spans] == ["one", "two"]
    with pytest.raises(ConfigError, match="exporting ttml: found --words karaoke"):
        found.to_ttml(words="karaoke")


TT = "{http://www.w3.org/ns/ttml}"
METADATA = "{http://www.w3.org/ns/ttml#metadata}"


def test_ttml_holds_text_and_agents(tmp_path: Any) -> None:
    root = ElementTree.parse(file("ttml", TALK, tmp_path)).getroot()
    names = {
        agent.get("{http://www.w3.org/XML/1998/namespace}id"): agent.findtext(f"{METADATA}name")
        for agent in root.iter(f"{METADATA}agent")
    }
    cues = [
        (names[p.get(f"{METADATA}agent")], p.get("begin"), "".join(p.itertext()))
        for p in root.iter(f"{TT}p")
    ]
    assert cues[2] == ("<B>, {x}", "00:00:02.100", "Fine,")
    tree = ElementTree.parse(file("ttml", UNKNOWN, tmp_path, preset="none"))
    shown = ["".join(p.itertext()) for p in tree.getroot().iter(f"{TT}p")]
    assert shown == [text.replace("\ufffe", "\ufffd") for text in SHOWN]
    narrow = ElementTree.fromstring(UNKNOWN.to_ttml(max_line_width=20))
    assert [*narrow.iter(f"{TT}br")]
    document = imsc_reader.to_model(tree)  # a reader of IMSC takes it as it is
    assert document is not None
    assert document.get_lang() == "en"
