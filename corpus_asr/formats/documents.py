"""Transcripts as documents: paragraphs by speaker and pause, in text and Markdown.

Source: CommonMark 0.31, 2.4 (backslash escapes); OWASP, "CSV Injection".
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from corpus_asr.formats.cues import Transcribed, labelled
from corpus_asr.formats.pieces import one_line
from corpus_asr.segments import Segment
from corpus_asr.text.line_breaks import join_texts
from corpus_asr.text.words import ends_sentence

# A pause of this length starts a paragraph, and a sentence end after a paragraph of this length.
PAUSE_S = 2.0
LONGEST_CHARS = 800


@dataclass(slots=True)
class Paragraph:
    """Consecutive text of one speaker without a long pause."""

    start_s: float
    end_s: float
    speaker: str | None
    """None unless several speakers or channels are known."""
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Return the text on one line."""
        return one_line(join_texts(self.texts))


def paragraphs_of(recording: Transcribed) -> list[Paragraph]:
    """Return a recording's paragraphs by time; without speakers, channels take their place."""
    paragraphs: list[Paragraph] = []
    for segment in _spoken(recording):
        last = paragraphs[-1] if paragraphs else None
        if last is None or _is_new(last, segment):
            last = Paragraph(segment.start_s, segment.end_s, segment.speaker)
            paragraphs.append(last)
        last.texts.append(segment.text)
        last.end_s = max(last.end_s, segment.end_s)
    return paragraphs


def _spoken(recording: Transcribed, *, least_speakers: int = 2) -> list[Segment]:
    segments = chain.from_iterable(labelled(recording, least=least_speakers))
    spoken_segments = [segment for segment in segments if segment.text.strip()]
    return sorted(spoken_segments, key=lambda segment: segment.start_s)


def _is_new(last: Paragraph, segment: Segment) -> bool:
    is_long = sum(map(len, last.texts)) >= LONGEST_CHARS
    return (
        segment.speaker != last.speaker
        or segment.start_s - last.end_s >= PAUSE_S
        or (is_long and ends_sentence(last.text, segment.text))
    )


def txt(recording: Transcribed) -> str:
    """Return a line per segment; with several speakers, a paragraph per speaker with the name."""
    if not any(segment.speaker for segment in _spoken(recording)):
        lines = (one_line(segment.text).strip() for segment in recording.segments)
        return "".join(f"{line}\n" for line in lines)
    return "".join(
        f"{'' if paragraph.speaker is None else f'[{one_line(paragraph.speaker)}] '}"
        f"{paragraph.text}\n"
        for paragraph in paragraphs_of(recording)
    )


def markdown(recording: Transcribed) -> str:
    """Return a heading and paragraphs in CommonMark."""
    lines = [f"# {_escaped(_title(recording))}", ""]
    if facts := _facts(recording):
        lines += [_escaped(facts), ""]
    for paragraph in paragraphs_of(recording):
        name = "" if paragraph.speaker is None else f"**{_escaped(one_line(paragraph.speaker))}** "
        lines += [f"{name}({_clock(paragraph.start_s)}) {_escaped(paragraph.text)}", ""]
    return "\n".join(lines[:-1]) + "\n"


# Characters that may be inline markup; none of them may start a line.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", text)


def _title(recording: Transcribed) -> str:
    path = (recording.uri or "").partition("?")[0].rstrip("/")
    return one_line(path.rpartition("/")[2]).strip() or "Transcript"


def _facts(recording: Transcribed) -> str:
    facts = (_clock(recording.duration_s), recording.language, recording.model)
    return ", ".join(one_line(fact) for fact in facts if fact)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


CSV_COLUMNS = ("start", "end", "speaker", "text")
# Characters that spreadsheets interpret as a formula, including full-width forms.
_FORMULA = re.compile("^[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def csv_rows(recording: Transcribed, *, with_uri: bool = False) -> str:
    """Return a row per segment: seconds, speaker, and text safe from formula execution."""
    rows = (
        (
            *((recording.uri or "",) if with_uri else ()),
            f"{segment.start_s:.3f}",
            f"{segment.end_s:.3f}",
            segment.speaker or "",
            one_line(segment.text).strip(),
        )
        for segment in _spoken(recording, least_speakers=1)
    )
    return csv_text(rows)


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows in RFC 4180 format, with an apostrophe before possible formulas."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerows([_FORMULA.sub(r"'\g<0>", one_line(cell)) for cell in row] for row in rows)
    return file.getvalue()
