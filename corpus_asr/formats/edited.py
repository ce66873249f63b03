"""Parses exported files after editing in other programs: SubRip, WebVTT, ELAN's EAF and CSV.

Source: W3C, WebVTT, section 4; MPI, "ELAN Annotation Format", EAF 3.0; RFC 4180.
"""

import csv
import html
import io
import re
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import NamedTuple
from xml.etree import ElementTree

from corpus_asr.formats.documents import CSV_COLUMNS

_CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}(?:\s.*)?")
_LABEL = re.compile(r"\[([^\]\n]+)\] ")
_VOICE = re.compile(r"<v(?:\.[^ >]*)? ([^>]*)>")
_TAG = re.compile(r"</?[a-zA-Z][^>]*>")
# One cue per word, or times within a cue: not an editable text.
_WORD_STYLE = re.compile(r"<u>|<\d+:\d\d")
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_NO_BLANK = re.compile(rf"(?<=[{_SPACELESS}\u3000-\u303f\uff00-\uffef])\n(?=[{_SPACELESS}])")


class EditedCue(NamedTuple):
    """A span of text in an edited file."""

    start_s: float
    end_s: float
    text: str
    speaker: str | None
    """Name in the file; None without one."""


def join_lines(lines: str) -> str:
    """Join lines, without spaces in scripts that have none."""
    return " ".join(_NO_BLANK.sub("", lines).split())


def read_edited(text: str, suffix: str, *, labelled: bool) -> list[EditedCue]:
    """Return the cues of a file, in order of time, without empty texts.

    Args:
        labelled: whether `[S1]` before a text in SubRip names the speaker.

    Raises:
        ValueError: the file is invalid; states what was found and expected.
    """
    if suffix in (".srt", ".vtt") and _WORD_STYLE.search(text):
        raise ValueError("found marks of single words, expected a file of export --words plain")
    cues = [cue for cue in READERS[suffix](text) if cue.text]
    if suffix == ".srt" and labelled:
        cues = [_with_label(cue) for cue in cues]
    for cue in cues:
        if not 0.0 <= cue.start_s < cue.end_s:
            raise ValueError(
                f"found “{cue.text:.30}” from {cue.start_s:.3f} to {cue.end_s:.3f} s, expected its "
                "end after its start"
            )
    return sorted(cues, key=itemgetter(0, 1))


def _with_label(cue: EditedCue) -> EditedCue:
    label = _LABEL.match(cue.text)
    return cue._replace(text=cue.text[label.end() :], speaker=label[1]) if label else cue


def _read_subtitles(text: str) -> Iterator[EditedCue]:
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        place = next((at for at, line in enumerate(lines[:2]) if "-->" in line), None)
        if place is None:
            if block.strip() and not re.match(r"\s*(WEBVTT|NOTE|STYLE|REGION)", block):
                raise ValueError(f"found “{block.strip():.40}”, expected a line with -->")
            continue
        times = _TIMES.fullmatch(lines[place])
        if times is None:
            raise ValueError(f"found “{lines[place]:.60}”, expected times such as 00:01:02,500 -->")
        start_s, end_s = _seconds(*times.groups()[:4]), _seconds(*times.groups()[4:])
        yield EditedCue(start_s, end_s, join_lines("\n".join(lines[place + 1 :])), None)


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    whole = 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds)
    return whole + int(fraction.ljust(3, "0")) / 1000


def _read_srt(text: str) -> Iterator[EditedCue]:
    for cue in _read_subtitles(text):
        yield cue._replace(text=_TAG.sub("", cue.text))


def _read_vtt(text: str) -> Iterator[EditedCue]:
    if not text.startswith("WEBVTT"):
        raise ValueError("found no WEBVTT in the first line, expected WEBVTT")
    for cue in _read_subtitles(text):
        voice = _VOICE.search(cue.text)
        plain = html.unescape(_TAG.sub("", cue.text)).strip()
        yield cue._replace(text=plain, speaker=html.unescape(voice[1]) if voice else None)


def _read_csv(text: str) -> Iterator[EditedCue]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    columns = tuple(rows.fieldnames or ())
    if columns != CSV_COLUMNS:
        raise ValueError(
            f"found the columns {', '.join(columns):.80}, expected {', '.join(CSV_COLUMNS)}"
        )
    for row in rows:
        values = [re.sub(r"^'(?=[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])", "", row[name] or "")
                  for name in CSV_COLUMNS]  # fmt: skip
        try:
            start_s, end_s = map(float, values[:2])
        except ValueError:
            raise ValueError(f"found the times {values[0]:.20} and {values[1]:.20}, expected "
                             "seconds") from None  # fmt: skip
        yield EditedCue(start_s, end_s, join_lines(values[3]), values[2].strip() or None)


def _read_eaf(text: str) -> Iterator[EditedCue]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("found a document type declaration, expected ELAN's XML")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"found no XML ({error}), expected ELAN's") from error
    times_s = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE", "")) / 1000
               for slot in root.iter("TIME_SLOT") if slot.get("TIME_VALUE")}  # fmt: skip
    for tier in root.iter("TIER"):
        name = tier.get("TIER_ID", "")
        if name.endswith(" words"):
            continue
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            ends = [times_s.get(annotation.get(f"TIME_SLOT_REF{at}")) for at in (1, 2)]
            if ends[0] is None or ends[1] is None:
                raise ValueError(
                    f"found an annotation of “{name:.30}” without times, expected them"
                )
            value = join_lines(annotation.findtext("ANNOTATION_VALUE") or "")
            yield EditedCue(ends[0], ends[1], value, name)


READERS: Mapping[str, Callable[[str], Iterator[EditedCue]]] = {
    ".srt": _read_srt, ".vtt": _read_vtt, ".eaf": _read_eaf, ".csv": _read_csv,
}  # fmt: skip
