"""Recordings as the text of files: SubRip, WebVTT, plain text, TSV, JSON and NeMo manifests.

srt, vtt, txt, tsv and json equal openai-whisper's files; whisperx has the shape of WhisperX's,
nemo that of NeMo's manifests. What players would take for markup is escaped or replaced.

Source: W3C, WebVTT: The Web Video Text Tracks Format, section 4; openai/whisper, utils.py;
m-bain/whisperX, schema.py, AlignedTranscriptionResult; NVIDIA NeMo, documentation of ASR datasets,
"Preparing Custom ASR Data".
"""

import functools
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from corpus_asr.export.cues import Cue, CueRules, cues_of, one_line
from corpus_asr.export.recordings import Recording
from corpus_asr.segments import Segment, Word, timestamp

# SubRip has no escapes: a sign that a player could take for a tag becomes one that looks like it.
_TAG_IN_SRT = re.compile(r"<(?=\s*[A-Za-z/])")
_OVERRIDE_IN_SRT = re.compile(r"\{(?=\\)")  # of SubStation Alpha, which players know in SubRip too
_OUTER_SPACES = re.compile(r"^(\s*)(.*)$", re.DOTALL)


class ExportFormat(StrEnum):
    """Formats of exported files."""

    srt = "srt"
    vtt = "vtt"
    txt = "txt"
    tsv = "tsv"
    json = "json"
    whisperx = "whisperx"
    nemo = "nemo"


class WordStyle(StrEnum):
    """How subtitles show the word that is being spoken, if words have times."""

    plain = "plain"
    highlight = "highlight"  # one cue per word, in which it is underlined, as openai-whisper's
    karaoke = "karaoke"  # WebVTT timestamps within the cue


def srt_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as a SubRip file."""
    blocks = (block for cue in cues for block in _blocks(cue, style, _srt_clock, _srt_escape))
    return "".join(
        # An arrow may also come about where two words meet.
        f"{number}\n{start} --> {end}\n{text.replace('-->', '->')}\n\n"
        for number, (start, end, text) in enumerate(blocks, 1)
    )


def vtt_text(cues: Iterable[Cue], style: WordStyle = WordStyle.plain) -> str:
    """Return cues as a WebVTT file."""
    escape = functools.partial(html.escape, quote=False)
    blocks = (block for cue in cues for block in _blocks(cue, style, timestamp, escape))
    return "WEBVTT\n\n" + "".join(f"{start} --> {end}\n{text}\n\n" for start, end, text in blocks)


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


def _txt(recording: Recording) -> str:
    return "".join(f"{_text(segment)}\n" for segment in recording.segments)


def _tsv(recording: Recording, before: str = "") -> str:
    rows = (
        f"{before}{round(1000 * segment.start_s)}\t{round(1000 * segment.end_s)}\t"
        + _text(segment).replace("\t", " ")
        for segment in recording.segments
    )
    return "".join(f"{row}\n" for row in rows)


def _whisper(recording: Recording) -> dict[str, Any]:
    return {
        "text": recording.text,
        "segments": [_whisper_segment(at, each) for at, each in enumerate(recording.segments)],
        "language": recording.language,
    }


def _whisper_segment(number: int, segment: Segment) -> dict[str, Any]:
    # Without `seek`, which the table does not hold.
    scores = ("temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
    values: dict[str, Any] = {
        "id": number, **_times(segment), "text": segment.text, "tokens": list(segment.tokens),
        **{name: _rounded(getattr(segment, name)) for name in scores},
    }  # fmt: skip
    if segment.corrected:
        values["corrected"] = True
    if segment.words is not None:
        values["words"] = [
            {"word": word.word, **_times(word), "probability": _rounded(word.probability)}
            for word in segment.words
        ]
    return values


def _whisperx(recording: Recording) -> dict[str, Any]:
    pairs = zip(recording.segments, recording.channels, strict=True)
    segments = [_whisperx_segment(segment, channel) for segment, channel in pairs]
    return {
        "segments": segments,
        "word_segments": [word for segment in segments for word in segment["words"]],
        "language": recording.language,
    }


def _whisperx_segment(segment: Segment, channel: int | None) -> dict[str, Any]:
    speaker = {} if channel is None else {"speaker": f"CHANNEL_{channel:02d}"}
    words = [
        {"word": word.word.strip(), **_times(word), "score": _rounded(word.probability), **speaker}
        for word in segment.words or ()
        if word.word.strip()
    ]
    return {**_times(segment), "text": segment.text.strip(), "words": words, **speaker}


def _nemo(recording: Recording) -> str:
    return "".join(
        _line(
            {
                "audio_filepath": recording.uri,
                "offset": _rounded(segment.start_s),
                "duration": _rounded(max(0.0, segment.end_s - segment.start_s)),
                "text": _text(segment),
                "lang": segment.language or recording.language,
            }
        )
        for segment in recording.segments
        if _text(segment)
    )


def _text(segment: Segment) -> str:
    return one_line(segment.text).strip()


def _times(span: Segment | Word) -> dict[str, float | None]:
    return {"start": _rounded(span.start_s), "end": _rounded(span.end_s)}


def _rounded(value: float | None) -> float | None:
    # Single precision tells no more digits.
    return None if value is None else round(value, 6)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _tsv_with_uri(recording: Recording) -> str:
    return _tsv(recording, before=one_line(recording.uri).replace("\t", " ") + "\t")


@dataclass(frozen=True, slots=True)
class TranscriptFormat:
    """A format of which a file holds one recording, or (`single`) all of them with their URIs."""

    suffix: str
    text: Callable[[Recording], str]
    single_suffix: str
    single_text: Callable[[Recording], str]
    header: str = ""
    single_header: str = ""


def _json_format(name: str, data: Callable[[Recording], dict[str, Any]]) -> TranscriptFormat:
    return TranscriptFormat(
        f"{name}.json", lambda recording: _line(data(recording)),
        f"{name}.jsonl", lambda recording: _line({"uri": recording.uri} | data(recording)),
    )  # fmt: skip


SUBTITLES: Mapping[ExportFormat, Callable[[Iterable[Cue], WordStyle], str]] = {
    ExportFormat.srt: srt_text,
    ExportFormat.vtt: vtt_text,
}
_TSV_HEADER = "start\tend\ttext\n"
TRANSCRIPTS: Mapping[ExportFormat, TranscriptFormat] = {
    ExportFormat.txt: TranscriptFormat(".txt", _txt, ".txt", _txt),
    ExportFormat.tsv: TranscriptFormat(
        ".tsv", _tsv, ".tsv", _tsv_with_uri, _TSV_HEADER, f"uri\t{_TSV_HEADER}"
    ),
    ExportFormat.json: _json_format("", _whisper),
    ExportFormat.whisperx: _json_format(".whisperx", _whisperx),
    ExportFormat.nemo: TranscriptFormat(".nemo.jsonl", _nemo, ".nemo.jsonl", _nemo),
}


def file_suffix(name: ExportFormat) -> str:
    """Return the suffix of a recording's file in a format."""
    return f".{name}" if name in SUBTITLES else TRANSCRIPTS[name].suffix


def file_texts(
    recording: Recording,
    formats: Sequence[ExportFormat],
    *,
    rules: CueRules | None = None,
    words: WordStyle = WordStyle.plain,
) -> Iterator[tuple[str, str]]:
    """Yield suffix and text of a recording's file in each format."""
    # Breaking lines takes longer than writing them: done once for srt and vtt.
    subtitled = not SUBTITLES.keys().isdisjoint(formats)
    cues = cues_of(recording, rules or CueRules()) if subtitled else []
    for name in formats:
        if name in SUBTITLES:
            yield file_suffix(name), SUBTITLES[name](cues, words)
        else:
            kind = TRANSCRIPTS[name]
            yield kind.suffix, kind.header + kind.text(recording)
