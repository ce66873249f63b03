"""Documents and tables, each read back by a parser of its own kind."""

import csv
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pysubs2
import pytest
from markdown_it import MarkdownIt

from corpus_asr.formats import documents
from corpus_asr.formats.options import FormatName
from corpus_asr.formats.pieces import one_line
from corpus_asr.formats.transcript import Transcript
from corpus_asr.segments import Segment
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


def test_markdown_holds_text_alone(tmp_path: Any) -> None:
    for found in (TALK, UNKNOWN):
        text = Path(file("md", found, tmp_path)).read_text()
        blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
        inline = [block for block in blocks if block.type == "inline"]
        title, _, *rest = inline
        assert "text" in {child.type for child in title.children or ()} <= {"text", "text_special"}
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


@pytest.mark.parametrize("suffix", ["ass", "ttml"])
def test_pysubs2_makes_other_subtitles_of_subrip(tmp_path: Path, suffix: str) -> None:
    path = file("srt", TALK, tmp_path)
    subprocess.run([sys.executable, "-m", "pysubs2", "--to", suffix, path], check=True)
    made = pysubs2.load(str(tmp_path / f"a_b & <c>.{suffix}"))
    assert [(line.start, line.end) for line in made][:2] == [
        (0, 1000),
        (1200, pytest.approx(2033, abs=4)),
    ]
    assert [line.plaintext.strip() for line in made][:2] == ["[Anna] Hello.", "[Anna] How are you?"]
