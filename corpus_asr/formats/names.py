"""Names of formats and styles, which a command line knows before it imports what writes them."""

from enum import StrEnum
from typing import Literal

FormatName = Literal[
    "srt", "vtt", "lrc", "ass", "ttml", "txt", "md", "docx", "tsv", "csv", "json",
    "whisperx", "nemo", "rttm", "ctm", "textgrid", "eaf",
]  # fmt: skip


JSON_LINES = "jsonl"
"""A line of JSON per transcript: of `transcribe` alone, as `--single` makes it of exports."""


class ExportFormat(StrEnum):
    """Formats of exported files."""

    srt = "srt"
    vtt = "vtt"
    lrc = "lrc"
    ass = "ass"
    ttml = "ttml"
    txt = "txt"
    md = "md"
    docx = "docx"
    tsv = "tsv"
    csv = "csv"
    json = "json"
    whisperx = "whisperx"
    nemo = "nemo"
    rttm = "rttm"
    ctm = "ctm"
    textgrid = "textgrid"
    eaf = "eaf"


class WordStyle(StrEnum):
    """How subtitles show the word that is being spoken, if words have times."""

    plain = "plain"
    highlight = "highlight"  # one cue per word, in which it is underlined, as openai-whisper's
    karaoke = "karaoke"  # times within the cue, of WebVTT and LRC


class SubtitlePreset(StrEnum):
    """Broadcasters whose published guides set the limits of subtitles, and `none` for none."""

    none = "none"
    netflix = "netflix"
    netflix_children = "netflix-children"
    bbc = "bbc"
