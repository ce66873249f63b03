"""Names of formats and styles, which a command line knows before it imports what writes them."""

from enum import StrEnum
from typing import Literal

FormatName = Literal[
    "srt", "vtt", "lrc", "txt", "tsv", "json", "whisperx", "nemo", "rttm", "ctm", "textgrid"
]


class ExportFormat(StrEnum):
    """Formats of exported files."""

    srt = "srt"
    vtt = "vtt"
    lrc = "lrc"
    txt = "txt"
    tsv = "tsv"
    json = "json"
    whisperx = "whisperx"
    nemo = "nemo"
    rttm = "rttm"
    ctm = "ctm"
    textgrid = "textgrid"


class WordStyle(StrEnum):
    """How subtitles show the word that is being spoken, if words have times."""

    plain = "plain"
    highlight = "highlight"  # one cue per word, in which it is underlined, as openai-whisper's
    karaoke = "karaoke"  # times within the cue, of WebVTT and LRC
