"""Writes recordings in each format: subtitles, documents, tables, JSON, NeMo and others.

srt, vtt, txt and tsv equal openai-whisper's files, and json adds to its keys; whisperx has the
structure of WhisperX's, nemo that of NeMo's manifests. Speakers with times are also available in
RTTM, CTM and ELAN's EAF.

Source: openai/whisper, utils.py; m-bain/whisperX, schema.py, AlignedTranscriptionResult; NVIDIA
NeMo, documentation of ASR datasets, "Preparing Custom ASR Data"; NIST, 2009 RT evaluation plan,
appendix A (RTTM), and sclite, `ctm` format; MPI, "ELAN Annotation Format", EAF 3.0.
"""

import functools
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from corpus_asr.errors import ConfigError
from corpus_asr.formats.cues import Transcribed, cues_of
from corpus_asr.formats.documents import (
    CSV_COLUMNS,
    csv_rows,
    csv_text,
    markdown,
    txt,
)
from corpus_asr.formats.options import CueRules, ExportFormat, WordStyle
from corpus_asr.formats.pieces import one_line, shown_words
from corpus_asr.formats.subtitles import SUBTITLES
from corpus_asr.segments import Segment, SpeakerTurn, Word


def _tsv(recording: Transcribed, before: str = "") -> str:
    rows = (
        f"{before}{round(1000 * segment.start_s)}\t{round(1000 * segment.end_s)}\t"
        + _text(segment).replace("\t", " ")
        for segment in recording.segments
    )
    return "".join(f"{row}\n" for row in rows)


def whisper_json(recording: Transcribed) -> dict[str, Any]:
    """Return openai-whisper's JSON with the source of the transcript; times in milliseconds."""
    segments = _whisper_segments(recording)
    values: dict[str, Any] = {
        # With the leading space, as openai-whisper.
        "text": "".join(segment["text"] for segment in segments),
        "segments": segments,
        "language": recording.language,
        "duration": _milliseconds(recording.duration_s),
        "uri": recording.uri,
        "model": recording.model,
        "version": f"corpus-asr {package_version()}",
    }
    if recording.missing is not None:
        values["missing"] = [
            {"word": word.word, "index": word.index, "after": _milliseconds(word.after_s)}
            for word in recording.missing
        ]
    if recording.turns is not None:
        values["turns"] = [
            {**_times(turn), "speaker": turn.speaker, "confidence": _rounded(turn.confidence)}
            | ({} if turn.channel is None else {"channel": turn.channel})
            for turn in recording.turns
        ]
    return values


@functools.cache
def package_version() -> str:
    """Return the version of this package."""
    return metadata.version("corpus-asr")


def _whisper_segments(recording: Transcribed) -> list[dict[str, Any]]:
    if len(recording.by_channel()) < 2:
        return [_whisper_segment(at, segment) for at, segment in enumerate(recording.segments)]
    return [
        _whisper_segment(at, segment) | {"channel": channel}
        for at, (segment, channel) in enumerate(_by_time(recording))
    ]


def _by_time(recording: Transcribed) -> list[tuple[Segment, int | None]]:
    """Return the segments of all channels with their channels, sorted by start."""
    pairs = [
        (segment, channel)
        for channel, channel_segments in recording.by_channel().items()
        for segment in channel_segments
    ]
    return sorted(pairs, key=lambda pair: pair[0].start_s)


def _whisper_segment(number: int, segment: Segment) -> dict[str, Any]:
    # Without `seek`, which is not in the table.
    scores = ("temperature", "avg_logprob", "compression_ratio", "no_speech_prob")
    values: dict[str, Any] = {
        "id": number, **_times(segment), "text": segment.text, "tokens": list(segment.tokens),
        **{name: _rounded(getattr(segment, name)) for name in scores},
        "confidence": _rounded(segment.confidence), "language": segment.language,
        "speech_fraction": _rounded(segment.speech_fraction),
        "known_hallucination": segment.known_hallucination, "task": segment.task,
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
    segments = [_whisperx_segment(segment, channel) for segment, channel in _by_time(recording)]
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
        for word in shown_words(segment)
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


def _times(span: Segment | Word | SpeakerTurn) -> dict[str, float]:
    return {"start": _milliseconds(span.start_s), "end": _milliseconds(span.end_s)}


def _milliseconds(seconds: float) -> float:
    return round(seconds, 3)


def _rounded(value: float | None) -> float | None:
    # In single precision, as in tables.
    return None if value is None else round(float(np.float32(value)), 6)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _tsv_with_uri(recording: Transcribed) -> str:
    return _tsv(recording, before=one_line(recording.uri or "").replace("\t", " ") + "\t")


_BLANKS = re.compile(r"\s+")
_NO_SPEAKER, _WORDS = "text", " words"
# ELAN rejects annotations without duration.
_SHORTEST_S = 0.001

_Interval = tuple[float, float, str]


def rttm_text(recording: Transcribed) -> str:
    """Return a line per speaker turn.

    Raises:
        ConfigError: the recording has no speakers.
    """
    if recording.turns is None:
        raise ConfigError(
            f"writing RTTM of {recording.uri}: found no speakers, expected speaker turns; "
            "transcribe with --diarize, or with speakers: auto in a job"
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


_EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="1970-01-01T00:00:00Z" FORMAT="3.0" VERSION="3.0" \
xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
    <MEDIA_DESCRIPTOR MEDIA_URL="{url}" MIME_TYPE="{kind}" RELATIVE_MEDIA_URL="{relative}"/>
    <PROPERTY NAME="lastUsedAnnotationId">{count}</PROPERTY>
  </HEADER>
  <TIME_ORDER>
{slots}  </TIME_ORDER>
{tiers}  <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" \
TIME_ALIGNABLE="true"/>
</ANNOTATION_DOCUMENT>
"""
_ANNOTATION = """    <ANNOTATION>
      <ALIGNABLE_ANNOTATION ANNOTATION_ID="a{number}" TIME_SLOT_REF1="ts{start}" \
TIME_SLOT_REF2="ts{end}">
        <ANNOTATION_VALUE>{text}</ANNOTATION_VALUE>
      </ALIGNABLE_ANNOTATION>
    </ANNOTATION>
"""


# Characters not allowed in XML 1.0.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escaped(text: str) -> str:
    return html.escape(_NOT_IN_XML.sub("\ufffd", one_line(text)))


def eaf_text(recording: Transcribed) -> str:
    """Return ELAN's XML: a tier per speaker for segments and, if timed, another one for words.

    The date is constant, so that files of equal transcripts are equal.
    """
    end_s, tiers = _tiers(recording)
    times: list[float] = []
    parts, number = [], 0
    for name, intervals in (tiers or {_NO_SPEAKER: []}).items():
        parts.append(
            f'  <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="{_escaped(name)}" '
            f'PARTICIPANT="{_escaped(name.removesuffix(_WORDS))}">\n'
        )
        for start_s, stop_s, text in _without_overlaps(intervals, end_s):
            number += 1
            times += (start_s, stop_s)
            ends = {"start": len(times) - 1, "end": len(times)}
            parts.append(_ANNOTATION.format(number=number, text=_escaped(text), **ends))
        parts.append("  </TIER>\n")
    uri = recording.uri or ""
    base = uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    # ELAN looks for the file at the first URL, then next to its own file.
    return _EAF.format(
        url=_escaped(f"file://{uri}" if uri.startswith("/") else uri),
        kind="audio/x-wav" if base.lower().endswith(".wav") else "unknown",
        relative=_escaped(f"./{base}"),
        count=number,
        slots="".join(
            f'    <TIME_SLOT TIME_SLOT_ID="ts{at}" TIME_VALUE="{round(1000 * time_s)}"/>\n'
            for at, time_s in sorted(enumerate(times, 1), key=lambda slot: slot[1])
        ),
        tiers="".join(parts),
    )


def _tiers(recording: Transcribed) -> tuple[float, dict[str, list[_Interval]]]:
    """Return the end time, and the intervals of each speaker's segments and timed words."""
    end_s = max(
        [recording.duration_s, *(segment.end_s for segment in recording.segments)], default=0.0
    )
    tiers: dict[str, list[_Interval]] = {}
    for channel, segments in recording.by_channel().items():
        for segment in segments:
            name = one_line(segment.speaker or _NO_SPEAKER)
            name = name if channel is None else f"{name} {channel}"
            text = one_line(segment.text).strip()
            tiers.setdefault(name, []).append((segment.start_s, segment.end_s, text))
            if segment.words:
                tiers.setdefault(f"{name}{_WORDS}", []).extend(
                    (word.start_s, word.end_s, one_line(word.word).strip())
                    for word in shown_words(segment)
                )
    return end_s, tiers


def _without_overlaps(intervals: Sequence[_Interval], end_s: float) -> Iterator[_Interval]:
    last_s = 0.0
    for start_s, stop_s, text in sorted(intervals):
        start_s, stop_s = round(max(start_s, last_s), 3), round(min(stop_s, end_s), 3)
        if stop_s - start_s < _SHORTEST_S:
            continue
        if text:
            yield start_s, stop_s, text
        last_s = stop_s


def _words(recording: Transcribed, segment: Segment) -> Sequence[Word]:
    if segment.words is None:
        raise ConfigError(
            f"writing CTM of {recording.uri}: found words without times, expected them; transcribe "
            "with decoding.word_timestamps"
        )
    return shown_words(segment)


def _name(recording: Transcribed) -> str:
    path = (recording.uri or "recording").partition("?")[0].rstrip("/").rpartition("/")[2]
    stem = path.rpartition(".")[0] or path
    return _token(stem)


def _token(text: str) -> str:
    # Spaces separate fields.
    return _BLANKS.sub("_", one_line(text).strip()) or "_"


def _channel(channel: int | None) -> int:
    return 1 if channel is None else channel + 1


@dataclass(frozen=True, slots=True)
class TranscriptFormat:
    """A format whose files have one recording, or (`single`) all of them with their URIs."""

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


_TSV_HEADER = "start\tend\ttext\n"
TRANSCRIPTS: Mapping[ExportFormat, TranscriptFormat] = {
    ExportFormat.txt: TranscriptFormat(".txt", txt, ".txt", txt),
    ExportFormat.md: TranscriptFormat(".md", markdown, ".md", markdown),
    ExportFormat.tsv: TranscriptFormat(
        ".tsv", _tsv, ".tsv", _tsv_with_uri, _TSV_HEADER, f"uri\t{_TSV_HEADER}"
    ),
    ExportFormat.csv: TranscriptFormat(
        ".csv",
        csv_rows,
        ".csv",
        functools.partial(csv_rows, with_uri=True),
        csv_text([CSV_COLUMNS]),
        csv_text([("uri", *CSV_COLUMNS)]),
    ),
    ExportFormat.json: _json_format("", whisper_json),
    ExportFormat.whisperx: _json_format(".whisperx", _whisperx),
    ExportFormat.nemo: TranscriptFormat(".nemo.jsonl", _nemo, ".nemo.jsonl", _nemo),
    ExportFormat.rttm: TranscriptFormat(".rttm", rttm_text, ".rttm", rttm_text),
    ExportFormat.ctm: TranscriptFormat(".ctm", ctm_text, ".ctm", ctm_text),
    ExportFormat.eaf: TranscriptFormat(".eaf", eaf_text, ".eaf", eaf_text),
}


_OF_ONE_RECORDING = frozenset({ExportFormat.md, ExportFormat.eaf})
SINGLE_FORMATS = tuple(name for name in TRANSCRIPTS if name not in _OF_ONE_RECORDING)
"""Formats whose files may have all recordings."""


def file_suffix(name: ExportFormat) -> str:
    """Return the suffix of a recording's file in a format."""
    return TRANSCRIPTS[name].suffix if name in TRANSCRIPTS else f".{name}"


def file_contents(
    recording: Transcribed,
    formats: Sequence[ExportFormat],
    *,
    rules: CueRules | None = None,
    words: WordStyle = WordStyle.plain,
) -> Iterator[tuple[str, bytes]]:
    """Yield suffix and content of a recording's file in each format."""
    # Line breaking takes longer than writing: done once for all subtitles.
    subtitled = not SUBTITLES.keys().isdisjoint(formats)
    cues = cues_of(recording, rules or CueRules()) if subtitled else []
    for name in formats:
        if name in SUBTITLES:
            text = SUBTITLES[name](cues, words)
        else:
            kind = TRANSCRIPTS[name]
            text = kind.header + kind.text(recording)
        yield file_suffix(name), text.encode("utf-8", "replace")
