"""Subtitle files from cues: SubRip, WebVTT, LRC, SubStation Alpha and TTML.

Possible markup is escaped or replaced. With several known speakers, `[S1]` precedes their text, in
WebVTT `<v S1>`; SubStation Alpha and TTML have a field for it.

Source: openai/whisper, utils.py; W3C, WebVTT: The Web Video Text Tracks Format, section 4; LRC, as
players read it, with the word times of its A2 extension; Advanced SubStation Alpha v4.00+, as
libass reads it; W3C, TTML2 and TTML Profiles for Internet Media Subtitles and Captions 1.2 (IMSC).
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from corpus_asr.errors import ConfigError
from corpus_asr.formats.cues import Cue
from corpus_asr.formats.options import FRAME_S, ExportFormat, WordStyle
from corpus_asr.formats.pieces import Piece, one_line
from corpus_asr.segments import timestamp

# SubRip has no escapes: characters of possible tags are replaced by similar ones.
_TAG_IN_SRT = re.compile(r"<(?=\s*[A-Za-z/])")
# LRC has no escapes either: times within a text are changed.
_TIME_IN_LRC = re.compile(r"[\[<](?=\s*\d+\s*:)")
_OUTER_SPACES = re.compile(r"^(\s*)(.*)$", re.DOTALL)

_Karaoke = Callable[[Cue, Sequence[Piece], Sequence[str], Callable[[float], str]], str]


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
    return html.escape(_ass_escape(text), quote=False)


def lrc_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as an LRC file: a time before each line, and with `karaoke` before each word."""
    lines = (
        (cue.start_s if number == 0 else line[0].start_s, line, cue)
        for cue in cues
        for number, line in enumerate(cue.lines if style is WordStyle.plain else cue.timed_lines())
    )
    return "".join(
        f"[{_lrc_clock(start_s)}]"
        f"{_by(cue.speaker, _lrc_line(line, style, timed=cue.words_timed), _lrc_escape)}\n"
        for start_s, line, cue in lines
    )


def _lrc_line(line: Sequence[Piece], style: WordStyle, *, timed: bool) -> str:
    if style is WordStyle.plain or not timed:
        return _lrc_escape("".join(piece.text for piece in line).strip())
    words = (
        f"{spaces}<{_lrc_clock(piece.start_s)}>{_lrc_escape(text)}"
        for piece in line
        for spaces, text in _OUTER_SPACES.findall(piece.text.rstrip())
    )
    return f"{''.join(words).strip()} <{_lrc_clock(line[-1].end_s)}>"


def _by(speaker: str | None, text: str, escape: Callable[[str], str] = str) -> str:
    return text if speaker is None else f"[{escape(one_line(speaker))}] {text}"


def _lrc_escape(text: str) -> str:
    return _TIME_IN_LRC.sub(lambda match: "(" if match[0] == "[" else "\u2039", text)


def _lrc_clock(seconds: float) -> str:
    # LRC has no hours: minutes exceed 59.
    minutes, rest = divmod(max(0, round(seconds * 100)), 6_000)
    return f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"


def _srt_escape(text: str) -> str:
    return _TAG_IN_SRT.sub("\u2039", _ass_escape(text.replace("-->", "->")))


def _srt_clock(seconds: float) -> str:
    shown = timestamp(seconds).replace(".", ",")
    return shown if shown.count(":") == 2 else f"00:{shown}"


def _blocks(
    cue: Cue,
    style: WordStyle,
    clock: Callable[[float], str],
    escape: Callable[[str], str],
    *,
    line_break: str = "\n",
    marks: tuple[str, str] = ("<u>", "</u>"),
    karaoke: _Karaoke | None = None,
) -> Iterator[tuple[str, str, str]]:
    # Start, end and text, per cue or per word.
    start, end = clock(cue.start_s), clock(cue.end_s)
    if style is WordStyle.plain or not cue.words_timed:
        yield start, end, line_break.join(escape(text) for text in cue.texts)
        return
    pieces, texts = [], []
    for number, line in enumerate(cue.timed_lines()):
        for at, piece in enumerate(line):
            first = piece.text.lstrip() if at == 0 else piece.text
            last = first.rstrip() if at == len(line) - 1 else first
            texts.append((line_break if number and at == 0 else "") + escape(last))
            pieces.append(piece)
    if style is WordStyle.karaoke:
        yield start, end, (karaoke or _karaoke)(cue, pieces, texts, clock)
        return
    yield from _highlighted(cue, pieces, texts, clock, marks)


def _highlighted(
    cue: Cue,
    pieces: Sequence[Piece],
    texts: Sequence[str],
    clock: Callable[[float], str],
    marks: tuple[str, str],
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
            _OUTER_SPACES.sub(rf"\1{marks[0]}\2{marks[1]}", text) if at in words else text
            for at, text in enumerate(texts)
        )
        yield clock(start_s), clock(end_s), "".join(marked)


def _karaoke(
    cue: Cue, pieces: Sequence[Piece], texts: Sequence[str], clock: Callable[[float], str]
) -> str:
    # The cue's own start needs no timestamp.
    timed, last_s = [], cue.start_s
    for text, piece in zip(texts, pieces, strict=True):
        # WebVTT only allows ascending times within the cue.
        if last_s < piece.start_s < cue.end_s and clock(piece.start_s) != clock(last_s):
            spaces, word = _OUTER_SPACES.findall(text)[0]
            text, last_s = f"{spaces}<{clock(piece.start_s)}>{word}", piece.start_s
        timed.append(text)
    return "".join(timed)


def ass_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as an Advanced SubStation Alpha file; speakers are the names of its actors."""
    lines = (
        f"Dialogue: 0,{start},{end},Default,{_ass_name(cue.speaker)},0,0,0,,{text}\n"
        for cue in cues
        for start, end, text in _blocks(
            cue, style, _ass_clock, _ass_escape,
            line_break=r"\N", marks=(r"{\\u1}", r"{\\u0}"), karaoke=_ass_karaoke,
        )
    )  # fmt: skip
    return _ASS_HEADER + "".join(lines)


# White with a black outline, centered at the bottom, in pixels of the resolution below.
_ASS_STYLE = {
    "Name": "Default", "Fontname": "Arial", "Fontsize": "64", "PrimaryColour": "&H00FFFFFF",
    "SecondaryColour": "&H0000FFFF", "OutlineColour": "&H00000000", "BackColour": "&H80000000",
    "Bold": "0", "Italic": "0", "Underline": "0", "StrikeOut": "0", "ScaleX": "100",
    "ScaleY": "100", "Spacing": "0", "Angle": "0", "BorderStyle": "1", "Outline": "3",
    "Shadow": "1", "Alignment": "2", "MarginL": "96", "MarginR": "96", "MarginV": "54",
    "Encoding": "1",
}  # fmt: skip
_ASS_HEADER = f"""[Script Info]
ScriptType: v4.00+
WrapStyle: 0
ScaledBorderAndShadow: yes
PlayResX: 1920
PlayResY: 1080

[V4+ Styles]
Format: {", ".join(_ASS_STYLE)}
Style: {",".join(_ASS_STYLE.values())}

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def _ass_clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds * 100)), 6_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"


def _ass_escape(text: str) -> str:
    # Tags of SubStation Alpha, which players also interpret in SubRip and WebVTT. Not all support
    # `\{`: full-width braces, and a word joiner after a backslash.
    return text.translate({ord("{"): "\uff5b", ord("}"): "\uff5d", ord("\\"): "\\\u2060"})


def _ass_name(speaker: str | None) -> str:
    # Commas separate fields.
    return _ass_escape(one_line(speaker or "")).replace(",", ";").strip()


def _ass_karaoke(
    cue: Cue, pieces: Sequence[Piece], texts: Sequence[str], clock: Callable[[float], str]
) -> str:
    # `k` is a word's duration in hundredths of a second, including the pause after it.
    starts = [round(100 * min(max(piece.start_s, cue.start_s), cue.end_s)) for piece in pieces]
    edges = [*starts, round(100 * cue.end_s)]
    lead = edges[0] - round(100 * cue.start_s)
    timed = [rf"{{\k{lead}}}"] if lead > 0 else []
    for at, text in enumerate(texts):
        broken = r"\N" if text.startswith(r"\N") else ""
        spaces, word = _OUTER_SPACES.findall(text.removeprefix(broken))[0]
        timed.append(rf"{broken}{spaces}{{\k{max(0, edges[at + 1] - edges[at])}}}{word}")
    return "".join(timed)


# Characters not allowed in XML 1.0.
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TTML_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttm="http://www.w3.org/ns/ttml#metadata" \
xmlns:ttp="http://www.w3.org/ns/ttml#parameter" xmlns:tts="http://www.w3.org/ns/ttml#styling" \
ttp:contentProfiles="http://www.w3.org/ns/ttml/profile/imsc1.1/text" ttp:timeBase="media" \
xml:lang="{language}">
  <head>
    <metadata>{agents}</metadata>
    <styling>
      <style xml:id="plain" tts:color="white" tts:backgroundColor="black" tts:textAlign="center" \
tts:fontFamily="proportionalSansSerif" tts:fontSize="100%"/>
    </styling>
    <layout>
      <region xml:id="bottom" tts:origin="10% 10%" tts:extent="80% 80%" tts:displayAlign="after" \
tts:showBackground="whenActive"/>
    </layout>
  </head>
  <body style="plain" region="bottom">
    <div>
"""


def ttml_text(
    cues: Sequence[Cue], style: WordStyle = WordStyle.plain, language: str | None = None
) -> str:
    """Return cues as a TTML file in IMSC's text profile; speakers are its agents."""
    names = dict.fromkeys(cue.speaker for cue in cues if cue.speaker is not None)
    ids = {name: f"speaker{number}" for number, name in enumerate(names, 1)}
    agents = (
        f'<ttm:agent xml:id="{id_}" type="person"><ttm:name type="full">{xml_escape(name)}'
        "</ttm:name></ttm:agent>"
        for name, id_ in ids.items()
    )
    marks = '<span tts:textDecoration="underline">', "</span>"
    lines = (
        f'      <p begin="{start}" end="{end}"'
        + ("" if cue.speaker is None else f' ttm:agent="{ids[cue.speaker]}"')
        + f">{text}</p>\n"
        for cue in cues
        for start, end, text in _blocks(
            cue, style, _ttml_clock, xml_escape, line_break="<br/>", marks=marks
        )
    )
    head = _TTML_HEAD.format(language=language or "", agents="".join(agents))
    return f"{head}{''.join(lines)}    </div>\n  </body>\n</tt>\n"


def xml_escape(text: str) -> str:
    """Return a text on one line, escaped for XML and HTML, also within quotes."""
    return html.escape(NOT_IN_XML.sub("\ufffd", one_line(text)))


def _ttml_clock(seconds: float) -> str:
    shown = timestamp(seconds)
    return shown if shown.count(":") == 2 else f"00:{shown}"


SUBTITLES: Mapping[ExportFormat, Callable[[Sequence[Cue], WordStyle, str | None], str]] = {
    ExportFormat.srt: lambda cues, words, _: srt_text(cues, words),
    ExportFormat.vtt: lambda cues, words, _: vtt_text(cues, words),
    ExportFormat.lrc: lambda cues, words, _: lrc_text(cues, words),
    ExportFormat.ass: lambda cues, words, _: ass_text(cues, words),
    ExportFormat.ttml: ttml_text,
}
"""Returns a file's text for cues, a word style and a language."""

_WORDS_ABSENT = {
    WordStyle.plain: frozenset(),
    WordStyle.highlight: frozenset({ExportFormat.lrc}),
    WordStyle.karaoke: frozenset({ExportFormat.srt, ExportFormat.ttml}),
}


def check_words(formats: Sequence[ExportFormat], words: WordStyle) -> None:
    """Raise ConfigError for a word style that a format lacks."""
    for name in formats:
        if name in _WORDS_ABSENT[words]:
            expected = [style for style, absent in _WORDS_ABSENT.items() if name not in absent]
            raise ConfigError(
                f"exporting {name}: found --words {words}, expected {' or '.join(expected)}: srt "
                "and ttml have no times within a line, and lrc no underlined words; choose one of "
                "them, or leave out the format"
            )
