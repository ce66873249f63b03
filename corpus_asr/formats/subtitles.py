"""Subtitle files from cues: SubRip, WebVTT and LRC.

Possible markup is escaped or replaced. With several known speakers, `[S1]` precedes their text, in
WebVTT `<v S1>`.

Source: openai/whisper, utils.py; W3C, WebVTT: The Web Video Text Tracks Format, section 4; LRC, as
players read it.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from corpus_asr.errors import ConfigError
from corpus_asr.formats.cues import Cue
from corpus_asr.formats.options import FRAME_S, ExportFormat, WordStyle
from corpus_asr.formats.pieces import Piece, one_line
from corpus_asr.segments import timestamp

# SubRip has no escapes: characters of possible tags are replaced by similar ones.
_TAG_IN_SRT = re.compile(r"<(?=\s*[A-Za-z/])")
# LRC has no escapes either: times within a text are changed.
# As in Netflix's guide: a subtitle that vanishes for less flickers.
_PAUSE_S = 0.5
_TIME_IN_LRC = re.compile(r"[\[<](?=\s*\d+\s*:)")
_OUTER_SPACES = re.compile(r"^(\s*)(.*)$", re.DOTALL)


def srt_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as a SubRip file."""
    blocks = (
        (start, end, _by(cue.speaker, text, _srt_escape))
        for cue in cues
        for start, end, text in _blocks(cue, style, _srt_clock, _srt_escape)
    )
    return "".join(
        # An arrow may also result from joined words.
        f"{number}\n{start} --> {end}\n{text.replace('-->', '->')}\n\n"
        for number, (start, end, text) in enumerate(blocks, 1)
    )


def vtt_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as a WebVTT file."""
    blocks = (
        (
            start,
            end,
            text if cue.speaker is None else f"<v {_vtt_escape(one_line(cue.speaker))}>{text}",
        )
        for cue in cues
        for start, end, text in _blocks(cue, style, timestamp, _vtt_escape)
    )
    return "WEBVTT\n\n" + "".join(f"{start} --> {end}\n{text}\n\n" for start, end, text in blocks)


def _vtt_escape(text: str) -> str:
    return html.escape(_without_tags(text), quote=False)


def lrc_text(cues: Sequence[Cue]) -> str:
    """Return cues as an LRC file: a time before each line, and alone where a pause begins."""
    lines, end_s = [], 0.0
    for cue, following in zip_longest(cues, cues[1:]):
        for number, (line, text) in enumerate(zip(cue.lines, cue.texts, strict=True)):
            start_s = cue.start_s if number == 0 else line[0].start_s
            lines.append((start_s, _by(cue.speaker, _lrc_escape(text), _lrc_escape)))
        end_s = max(end_s, cue.end_s)
        # Players show a line until the next time.
        if following is None or following.start_s - end_s >= _PAUSE_S:
            lines.append((end_s, ""))
    return "".join(f"[{_lrc_clock(start_s)}]{text}\n" for start_s, text in lines)


def _by(speaker: str | None, text: str, escape: Callable[[str], str] = str) -> str:
    return text if speaker is None else f"[{escape(one_line(speaker))}] {text}"


def _lrc_escape(text: str) -> str:
    return _TIME_IN_LRC.sub(lambda match: "(" if match[0] == "[" else "\u2039", text)


def _lrc_clock(seconds: float) -> str:
    # LRC has no hours: minutes exceed 59.
    minutes, rest = divmod(max(0, round(seconds * 100)), 6_000)
    return f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"


def _srt_escape(text: str) -> str:
    return _TAG_IN_SRT.sub("\u2039", _without_tags(text.replace("-->", "->")))


def _srt_clock(seconds: float) -> str:
    shown = timestamp(seconds).replace(".", ",")
    return shown if shown.count(":") == 2 else f"00:{shown}"


def _blocks(
    cue: Cue,
    style: WordStyle,
    clock: Callable[[float], str],
    escape: Callable[[str], str],
) -> Iterator[tuple[str, str, str]]:
    # Start, end and text, per cue or per word.
    start, end = clock(cue.start_s), clock(cue.end_s)
    if style is WordStyle.plain or not cue.words_timed:
        yield start, end, "\n".join(escape(text) for text in cue.texts)
        return
    pieces, texts = [], []
    for number, line in enumerate(cue.timed_lines()):
        for at, piece in enumerate(line):
            first = piece.text.lstrip() if at == 0 else piece.text
            last = first.rstrip() if at == len(line) - 1 else first
            texts.append(("\n" if number and at == 0 else "") + escape(last))
            pieces.append(piece)
    yield from _highlighted(cue, pieces, texts, clock)


def _highlighted(
    cue: Cue, pieces: Sequence[Piece], texts: Sequence[str], clock: Callable[[float], str]
) -> Iterator[tuple[str, str, str]]:
    spans: list[tuple[float, float, list[int]]] = []  # with the indices of underlined words
    last_s = cue.start_s
    for at, piece in enumerate(pieces):
        start_s = max(last_s, min(piece.start_s, cue.end_s))
        end_s = max(start_s, min(piece.end_s, cue.end_s))
        spans += [(last_s, start_s, []), (start_s, end_s, [at])]
        last_s = end_s
    spans.append((last_s, cue.end_s, []))
    shown: list[tuple[float, float, list[int]]] = []
    for start_s, end_s, words in spans:
        if shown and (end_s - start_s < FRAME_S or shown[-1][1] - shown[-1][0] < FRAME_S):
            # Words shorter than a frame are invisible: shown together with their neighbors.
            start_s, _, earlier = shown.pop()
            words = earlier + words
        shown.append((start_s, end_s, words))
    for start_s, end_s, words in shown:
        marked = (
            _OUTER_SPACES.sub(r"\1<u>\2</u>", text) if at in words else text
            for at, text in enumerate(texts)
        )
        yield clock(start_s), clock(end_s), "".join(marked)


def _without_tags(text: str) -> str:
    # Tags of SubStation Alpha, which players also interpret in SubRip and WebVTT. Not all support
    # `\{`: full-width braces, and a word joiner after a backslash.
    return text.translate({ord("{"): "\uff5b", ord("}"): "\uff5d", ord("\\"): "\\\u2060"})


SUBTITLES: Mapping[ExportFormat, Callable[[Sequence[Cue], WordStyle], str]] = {
    ExportFormat.srt: srt_text,
    ExportFormat.vtt: vtt_text,
    ExportFormat.lrc: lambda cues, _: lrc_text(cues),
}
"""Returns a file's text for cues and a word style."""


def check_words(formats: Sequence[ExportFormat], words: WordStyle) -> None:
    """Raise ConfigError for a word style that a format lacks."""
    if words is WordStyle.highlight and ExportFormat.lrc in formats:
        raise ConfigError(
            f"exporting {ExportFormat.lrc}: found --words {words}, expected {WordStyle.plain}; "
            "choose it, or remove the format"
        )
