"""Recordings as the text of files: SubRip, WebVTT, LRC, plain text, TSV, JSON, NeMo and others.

srt, vtt, txt and tsv equal openai-whisper's files, and json adds to its keys; whisperx has the
shape of WhisperX's, nemo that of NeMo's manifests. What players would take for markup is escaped or
replaced. Where speakers are known, `[S1]` stands before their text, in WebVTT `<v S1>`. Who says
what when is also in RTTM, CTM and Praat's TextGrid.

Source: W3C, WebVTT: The Web Video Text Tracks Format, section 4; openai/whisper, utils.py;
m-bain/whisperX, schema.py, AlignedTranscriptionResult; NVIDIA NeMo, documentation of ASR datasets,
"Preparing Custom ASR Data"; LRC, as players read it, with the times of words of its A2 extension;
NIST, 2009 RT evaluation plan, appendix A (RTTM), and sclite, `ctm` format; Praat manual, "TextGrid
file formats".
"""

import functools
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from corpus_asr.errors import ConfigError
from corpus_asr.formats.cues import Cue, CueRules, Piece, Transcribed, cues_of, one_line
from corpus_asr.formats.names import ExportFormat, WordStyle
from corpus_asr.segments import Segment, Word, timestamp

# SubRip has no escapes: a sign that a player could take for a tag becomes one that looks like it.
_TAG_IN_SRT = re.compile(r"<(?=\s*[A-Za-z/])")
_OVERRIDE_IN_SRT = re.compile(r"\{(?=\\)")  # of SubStation Alpha, which players know in SubRip too
# LRC has no escapes either: a time within a text becomes none.
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
        # An arrow may also come about where two words meet.
        f"{number}\n{start} --> {end}\n{text.replace('-->', '->')}\n\n"
        for number, (start, end, text) in enumerate(blocks, 1)
    )


def vtt_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as a WebVTT file."""
    escape = functools.partial(html.escape, quote=False)
    blocks = (
        (start, end, text if cue.speaker is None else f"<v {escape(one_line(cue.speaker))}>{text}")
        for cue in cues
        for start, end, text in _blocks(cue, style, timestamp, escape)
    )
    return "WEBVTT\n\n" + "".join(f"{start} --> {end}\n{text}\n\n" for start, end, text in blocks)


def lrc_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as an LRC file: a time before each line, and with `karaoke` before each word."""
    lines = (
        (cue.start_s if number == 0 else line[0].start_s, line, cue)
        for cue in cues
        for number, line in enumerate(cue.lines)
    )
    return "".join(
        f"[{_lrc_clock(start_s)}]"
        f"{_by(cue.speaker, _lrc_line(line, style, timed=cue.words_timed), _lrc_escape)}\n"
        for start_s, line, cue in lines
    )


def _lrc_line(line: Sequence[Piece], style: WordStyle, *, timed: bool) -> str:
    if style is WordStyle.plain or not timed:
        return _lrc_escape("".join(piece.text for piece in line).strip())
    words = (f"<{_lrc_clock(piece.start_s)}>{_lrc_escape(piece.text.strip())}" for piece in line)
    return f"{' '.join(words)} <{_lrc_clock(line[-1].end_s)}>"


def _by(speaker: str | None, text: str, escape: Callable[[str], str] = str) -> str:
    return text if speaker is None else f"[{escape(one_line(speaker))}] {text}"


def _lrc_escape(text: str) -> str:
    return _TIME_IN_LRC.sub(lambda match: "(" if match[0] == "[" else "\u2039", text)


def _lrc_clock(seconds: float) -> str:
    # Of hours LRC knows nothing: minutes go on.
    minutes, rest = divmod(max(0, round(seconds * 100)), 6_000)
    return f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"


def _srt_escape(text: str) -> str:
    text = _TAG_IN_SRT.sub("\u2039", text.replace("-->", "->"))
    return _OVERRIDE_IN_SRT.sub("{ ", text)


def _srt_clock(seconds: float) -> str:
    shown = timestamp(seconds).replace(".", ",")
    return shown if shown.count(":") == 2 else f"00:{shown}"


def _blocks(
    cue: Cue, style: WordStyle, clock: Callable[[float], str], escape: Callable[[str], str]
) -> Iterator[tuple[str, str, str]]:
    # Start, end and text: one of each cue, or of each word.
    if style is WordStyle.plain or not cue.words_timed:
        text = "\n".join(escape(text) for text in cue.texts)
        yield clock(cue.start_s), clock(cue.end_s), text
        return
    texts = []
    for number, line in enumerate(cue.lines):
        for at, piece in enumerate(line):
            first = piece.text.strip() if at == 0 else piece.text
            texts.append(("\n" if number and at == 0 else "") + escape(first))
    if style is WordStyle.karaoke:
        yield clock(cue.start_s), clock(cue.end_s), _karaoke(cue, texts, clock)
    else:
        yield from _highlighted(cue, texts, clock)


def _highlighted(
    cue: Cue, texts: Sequence[str], clock: Callable[[float], str]
) -> Iterator[tuple[str, str, str]]:
    last = clock(cue.start_s)
    for at, piece in enumerate(piece for line in cue.lines for piece in line):
        start, end = clock(piece.start_s), clock(min(piece.end_s, cue.end_s))
        if last != start:
            yield last, start, "".join(texts)
        marked = _OUTER_SPACES.sub(r"\1<u>\2</u>", texts[at])
        yield start, end, "".join([*texts[:at], marked, *texts[at + 1 :]])
        last = end


def _karaoke(cue: Cue, texts: Sequence[str], clock: Callable[[float], str]) -> str:
    # The cue's own start needs no mark.
    timed, last_s = [], cue.start_s
    for text, piece in zip(texts, (piece for line in cue.lines for piece in line), strict=True):
        # WebVTT allows only times within the cue, each after the one before.
        if last_s < piece.start_s < cue.end_s and clock(piece.start_s) != clock(last_s):
            spaces, word = _OUTER_SPACES.findall(text)[0]
            text, last_s = f"{spaces}<{clock(piece.start_s)}>{word}", piece.start_s
        timed.append(text)
    return "".join(timed)


def _txt(recording: Transcribed) -> str:
    return "".join(f"{_by(each.speaker, _text(each))}\n" for each in recording.segments)


def _tsv(recording: Transcribed, before: str = "") -> str:
    rows = (
        f"{before}{round(1000 * segment.start_s)}\t{round(1000 * segment.end_s)}\t"
        + _text(segment).replace("\t", " ")
        for segment in recording.segments
    )
    return "".join(f"{row}\n" for row in rows)


def whisper_json(recording: Transcribed) -> dict[str, Any]:
    """Return what openai-whisper writes as JSON, and where it comes from; times in milliseconds."""
    values: dict[str, Any] = {
        "text": recording.text,
        "segments": [_whisper_segment(at, each) for at, each in enumerate(recording.segments)],
        "language": recording.language,
        "duration": _milliseconds(recording.duration_s),
        "uri": recording.uri,
        "model": recording.model,
        "version": f"corpus-asr {package_version()}",
    }
    if recording.missing is not None:
        values["missing"] = [
            {"word": each.word, "index": each.index, "after": _milliseconds(each.after_s)}
            for each in recording.missing
        ]
    return values


@functools.cache
def package_version() -> str:
    """Return the version of this package."""
    return metadata.version("corpus-asr")


def _whisper_segment(number: int, segment: Segment) -> dict[str, Any]:
    # Without `seek`, which the table does not hold.
    scores = ("temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
    values: dict[str, Any] = {
        "id": number, **_times(segment), "text": segment.text, "tokens": list(segment.tokens),
        **{name: _rounded(getattr(segment, name)) for name in scores},
    }  # fmt: skip
    if segment.corrected:
        values["corrected"] = True
    values |= _speaker(segment)
    if segment.words is not None:
        values["words"] = [
            {"word": word.word, **_times(word), "probability": _rounded(word.probability)}
            | _speaker(word)
            for word in segment.words
        ]
    return values


def _whisperx(recording: Transcribed) -> dict[str, Any]:
    pairs = [(each, channel) for channel, said in recording.by_channel().items() for each in said]
    pairs.sort(key=lambda pair: pair[0].start_s)
    segments = [_whisperx_segment(segment, channel) for segment, channel in pairs]
    return {
        "segments": segments,
        "word_segments": [word for segment in segments for word in segment["words"]],
        "language": recording.language,
    }


def _whisperx_segment(segment: Segment, channel: int | None) -> dict[str, Any]:
    by_channel = {} if channel is None else {"speaker": f"CHANNEL_{channel:02d}"}
    words = [
        {
            "word": word.word.strip(),
            **_times(word),
            "score": _rounded(word.probability),
            **(_speaker(word) or by_channel),
        }
        for word in segment.words or ()
        if word.word.strip()
    ]
    speaker = _speaker(segment) or by_channel
    return {**_times(segment), "text": segment.text.strip(), "words": words, **speaker}


def _nemo(recording: Transcribed) -> str:
    return "".join(
        _line(
            {
                "audio_filepath": recording.uri,
                "offset": _milliseconds(segment.start_s),
                "duration": _milliseconds(max(0.0, segment.end_s - segment.start_s)),
                "text": _text(segment),
                "lang": segment.language or recording.language,
            }
            | _speaker(segment)
        )
        for segment in recording.segments
        if _text(segment)
    )


def _speaker(of: Segment | Word) -> dict[str, str]:
    return {} if of.speaker is None else {"speaker": of.speaker}


def _text(segment: Segment) -> str:
    return one_line(segment.text).strip()


def _times(span: Segment | Word) -> dict[str, float]:
    return {"start": _milliseconds(span.start_s), "end": _milliseconds(span.end_s)}


def _milliseconds(seconds: float) -> float:
    return round(seconds, 3)


def _rounded(value: float | None) -> float | None:
    # As tables hold them, in single precision, which tells no more digits.
    return None if value is None else round(float(np.float32(value)), 6)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _tsv_with_uri(recording: Transcribed) -> str:
    return _tsv(recording, before=one_line(recording.uri or "").replace("\t", " ") + "\t")


_BLANKS = re.compile(r"\s+")
_NO_SPEAKER = "text"
# Praat refuses intervals without duration.
_SHORTEST_S = 0.001

_Interval = tuple[float, float, str]


def rttm_text(recording: Transcribed) -> str:
    """Return a line per turn of a speaker.

    Raises:
        ConfigError: speakers were not looked for.
    """
    if recording.turns is None:
        raise ConfigError(
            f"writing RTTM of {recording.uri}: found no speakers, expected their turns; transcribe "
            "with speakers (--diarize, or speakers: auto in a job)"
        )
    name = _name(recording)
    return "".join(
        f"SPEAKER {name} {_channel(turn.channel)} {turn.start_s:.3f} "
        f"{turn.end_s - turn.start_s:.3f} <NA> <NA> {_token(turn.speaker)} {turn.confidence:.3f} "
        "<NA>\n"
        for turn in sorted(recording.turns, key=lambda turn: (turn.start_s, turn.channel or 0))
    )


def ctm_text(recording: Transcribed) -> str:
    """Return a line per word: file, channel, start, duration, word, probability.

    Raises:
        ConfigError: words have no times.
    """
    name = _name(recording)
    lines = []
    for channel, segments in recording.by_channel().items():
        for segment in segments:
            for word in _words(recording, segment):
                lasts_s = max(0.0, word.end_s - word.start_s)
                lines.append(
                    f"{name} {_channel(channel)} {word.start_s:.3f} {lasts_s:.3f} "
                    f"{_token(word.word)} {word.probability:.3f}\n"
                )
    return "".join(lines)


def textgrid_text(recording: Transcribed) -> str:
    """Return an interval tier of each speaker's segments, and where words have times, of those."""
    end_s = max(
        [recording.duration_s, *(segment.end_s for segment in recording.segments)], default=0.0
    )
    tiers: dict[str, list[_Interval]] = {}
    for channel, segments in recording.by_channel().items():
        for segment in segments:
            name = segment.speaker or _NO_SPEAKER
            name = name if channel is None else f"{name} {channel}"
            said = one_line(segment.text).strip()
            tiers.setdefault(name, []).append((segment.start_s, segment.end_s, said))
            if segment.words:
                tiers.setdefault(f"{name} words", []).extend(
                    (word.start_s, word.end_s, one_line(word.word).strip())
                    for word in segment.words
                )
    if not tiers:
        tiers[_NO_SPEAKER] = []
    lines = [
        'File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0",
        f"xmax = {end_s:.3f}", "tiers? <exists>", f"size = {len(tiers)}", "item []:",
    ]  # fmt: skip
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        filled = list(_without_gaps(intervals, end_s))
        lines += [
            f"    item [{number}]:", '        class = "IntervalTier"',
            f"        name = {_quoted(name)}", "        xmin = 0", f"        xmax = {end_s:.3f}",
            f"        intervals: size = {len(filled)}",
        ]  # fmt: skip
        for place, (start_s, stop_s, text) in enumerate(filled, 1):
            lines += [
                f"        intervals [{place}]:", f"            xmin = {start_s:.3f}",
                f"            xmax = {stop_s:.3f}", f"            text = {_quoted(text)}",
            ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _without_gaps(intervals: Sequence[_Interval], end_s: float) -> Iterator[_Interval]:
    # A tier covers all of the time, and no two of its intervals overlap.
    last_s = 0.0
    for start_s, stop_s, text in sorted(intervals):
        start_s, stop_s = round(max(start_s, last_s), 3), round(min(stop_s, end_s), 3)
        if stop_s - start_s < _SHORTEST_S:
            continue
        if start_s - last_s >= _SHORTEST_S:
            yield last_s, start_s, ""
        else:
            start_s = last_s
        yield start_s, stop_s, text
        last_s = stop_s
    if round(end_s, 3) - last_s >= _SHORTEST_S:
        yield last_s, end_s, ""


def _words(recording: Transcribed, segment: Segment) -> Sequence[Word]:
    if segment.words is None:
        raise ConfigError(
            f"writing CTM of {recording.uri}: found words without times, expected them; transcribe "
            "with decoding.word_timestamps"
        )
    return [word for word in segment.words if word.word.strip()]


def _name(recording: Transcribed) -> str:
    path = (recording.uri or "recording").partition("?")[0].rstrip("/").rpartition("/")[2]
    stem = path.rpartition(".")[0] or path
    return _token(stem)


def _token(text: str) -> str:
    # Blanks divide fields.
    return _BLANKS.sub("_", one_line(text).strip()) or "_"


def _channel(channel: int | None) -> int:
    return 1 if channel is None else channel + 1


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


@dataclass(frozen=True, slots=True)
class TranscriptFormat:
    """A format of which a file holds one recording, or (`single`) all of them with their URIs."""

    suffix: str
    text: Callable[[Transcribed], str]
    single_suffix: str
    single_text: Callable[[Transcribed], str]
    header: str = ""
    single_header: str = ""


def _json_format(name: str, data: Callable[[Transcribed], dict[str, Any]]) -> TranscriptFormat:
    return TranscriptFormat(
        f"{name}.json", lambda recording: _line(data(recording)),
        f"{name}.jsonl", lambda recording: _line({"uri": recording.uri} | data(recording)),
    )  # fmt: skip


SUBTITLES: Mapping[ExportFormat, Callable[[Iterable[Cue], WordStyle], str]] = {
    ExportFormat.srt: srt_text,
    ExportFormat.vtt: vtt_text,
    ExportFormat.lrc: lrc_text,
}
_TSV_HEADER = "start\tend\ttext\n"
TRANSCRIPTS: Mapping[ExportFormat, TranscriptFormat] = {
    ExportFormat.txt: TranscriptFormat(".txt", _txt, ".txt", _txt),
    ExportFormat.tsv: TranscriptFormat(
        ".tsv", _tsv, ".tsv", _tsv_with_uri, _TSV_HEADER, f"uri\t{_TSV_HEADER}"
    ),
    ExportFormat.json: _json_format("", whisper_json),
    ExportFormat.whisperx: _json_format(".whisperx", _whisperx),
    ExportFormat.nemo: TranscriptFormat(".nemo.jsonl", _nemo, ".nemo.jsonl", _nemo),
    ExportFormat.rttm: TranscriptFormat(".rttm", rttm_text, ".rttm", rttm_text),
    ExportFormat.ctm: TranscriptFormat(".ctm", ctm_text, ".ctm", ctm_text),
    ExportFormat.textgrid: TranscriptFormat(".TextGrid", textgrid_text, ".TextGrid", textgrid_text),
}


SINGLE_FORMATS = tuple(name for name in TRANSCRIPTS if name is not ExportFormat.textgrid)
"""Formats of which one file may hold all recordings."""


def check_words(formats: Sequence[ExportFormat], words: WordStyle) -> None:
    """Refuse a style of words that a format has not."""
    missing = {WordStyle.highlight: ExportFormat.lrc, WordStyle.karaoke: ExportFormat.srt}
    other = missing.get(words)
    if other in formats:
        expected = [style for style in WordStyle if style is not words]
        raise ConfigError(
            f"exporting {other}: found --words {words}, expected {' or '.join(expected)}: srt has "
            "no times within a line, and lrc no underlined words; choose one of them, or leave out "
            "the format"
        )


def file_suffix(name: ExportFormat) -> str:
    """Return the suffix of a recording's file in a format."""
    return f".{name}" if name in SUBTITLES else TRANSCRIPTS[name].suffix


def file_texts(
    recording: Transcribed,
    formats: Sequence[ExportFormat],
    *,
    rules: CueRules | None = None,
    words: WordStyle = WordStyle.plain,
) -> Iterator[tuple[str, str]]:
    """Yield suffix and text of a recording's file in each format."""
    # Breaking lines takes longer than writing them: done once for all subtitles.
    subtitled = not SUBTITLES.keys().isdisjoint(formats)
    cues = cues_of(recording, rules or CueRules()) if subtitled else []
    for name in formats:
        if name in SUBTITLES:
            yield file_suffix(name), SUBTITLES[name](cues, words)
        else:
            kind = TRANSCRIPTS[name]
            yield kind.suffix, kind.header + kind.text(recording)
