"""Cues as the text of subtitle files: SubRip (srt) and WebVTT (vtt).

In: cues. Out: text. What would be markup is written so that it shows as text: WebVTT has escapes;
SubRip has none, so what a player could take for a tag is written with another sign. Otherwise the
files equal those of openai-whisper byte for byte. Knows nothing of where cues come from.

Source: W3C, WebVTT: The Web Video Text Tracks Format, section 4; openai/whisper, utils.py, WriteSRT
and WriteVTT.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum

from corpus_asr.export.breaks import Piece
from corpus_asr.export.cues import Cue

_TAG_IN_SRT = re.compile(r"<(?=\s*[A-Za-z/])")
_OVERRIDE_IN_SRT = re.compile(r"\{(?=\\)")  # of SubStation Alpha, which players know in SubRip too
_OUTER_BLANKS = re.compile(r"^(\s*)(.*)$", re.DOTALL)
_Clock = Callable[[float], str]
_Escape = Callable[[str], str]


class WordStyle(StrEnum):
    """How the word that is being spoken is shown, where there are word times."""

    plain = "plain"
    """Not at all."""
    highlight = "highlight"
    """Underlined: one cue per word, as openai-whisper writes them."""
    karaoke = "karaoke"
    """By a timestamp before each word, as WebVTT has them."""


def srt_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as a SubRip file."""
    shown = (block for cue in cues for block in _blocks(cue, style, srt_clock, srt_escape))
    return "".join(
        # An arrow may also come about where two words meet.
        f"{number}\n{start} --> {end}\n{text.replace('-->', '->')}\n\n"
        for number, (start, end, text) in enumerate(shown, 1)
    )


def vtt_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as a WebVTT file."""
    shown = (block for cue in cues for block in _blocks(cue, style, vtt_clock, vtt_escape))
    return "WEBVTT\n\n" + "".join(f"{start} --> {end}\n{text}\n\n" for start, end, text in shown)


def srt_escape(text: str) -> str:
    """Return a text that no player takes for markup or for a line of times."""
    text = _TAG_IN_SRT.sub("\u2039", text.replace("-->", "->"))
    return _OVERRIDE_IN_SRT.sub("{ ", text)


def vtt_escape(text: str) -> str:
    """Return a text with WebVTT's escapes."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def srt_clock(seconds: float) -> str:
    """Write a time as HH:MM:SS,mmm."""
    hours, rest = _clock(seconds)
    return f"{hours:02d}:{rest}".replace(".", ",")


def vtt_clock(seconds: float) -> str:
    """Write a time as MM:SS.mmm, with hours in front from the first hour on."""
    hours, rest = _clock(seconds)
    return f"{hours:02d}:{rest}" if hours else rest


def _clock(seconds: float) -> tuple[int, str]:
    minutes, rest_ms = divmod(max(0, round(seconds * 1000.0)), 60_000)
    hours, minutes = divmod(minutes, 60)
    return hours, f"{minutes:02d}:{rest_ms // 1000:02d}.{rest_ms % 1000:03d}"


def _blocks(
    cue: Cue, style: WordStyle, clock: _Clock, escape: _Escape
) -> Iterator[tuple[str, str, str]]:
    """Yield beginning, end and text of what a cue becomes."""
    start, end = clock(cue.start_s), clock(cue.end_s)
    if style is WordStyle.highlight and cue.words_timed:
        yield from _highlighted(cue, clock, escape)
    elif style is WordStyle.karaoke and cue.words_timed:
        yield start, end, _karaoke(cue, clock, escape)
    else:
        yield start, end, "\n".join(escape(text) for text in cue.texts)


def _written(cue: Cue, escape: _Escape) -> tuple[list[str], Sequence[Piece]]:
    """Return the text of each piece, with the line break before it, and the pieces."""
    texts, pieces = [], []
    for number, line in enumerate(cue.lines):
        for at, piece in enumerate(line):
            first = piece.text.strip() if at == 0 else piece.text
            texts.append(("\n" if number and at == 0 else "") + escape(first))
            pieces.append(piece)
    return texts, pieces


def _highlighted(cue: Cue, clock: _Clock, escape: _Escape) -> Iterator[tuple[str, str, str]]:
    texts, pieces = _written(cue, escape)
    last = clock(cue.start_s)
    for at, piece in enumerate(pieces):
        start, end = clock(piece.start_s), clock(min(piece.end_s, cue.end_s))
        if last != start:
            yield last, start, "".join(texts)
        marked = _OUTER_BLANKS.sub(r"\1<u>\2</u>", texts[at])
        yield start, end, "".join([*texts[:at], marked, *texts[at + 1 :]])
        last = end


def _karaoke(cue: Cue, clock: _Clock, escape: _Escape) -> str:
    texts, pieces = _written(cue, escape)
    shown, last_s = [], cue.start_s
    for text, piece in zip(texts, pieces, strict=True):
        # Only times within the cue, each after the one before, are allowed.
        if last_s < piece.start_s < cue.end_s and clock(piece.start_s) != clock(last_s):
            blanks, word = _OUTER_BLANKS.findall(text)[0]
            text, last_s = f"{blanks}<{clock(piece.start_s)}>{word}", piece.start_s
        shown.append(text)
    return "".join(shown)
