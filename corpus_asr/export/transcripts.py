"""Transcripts as text, tables and JSON, in the shapes that other programs write and read.

In: recordings. Out: text. txt, tsv and json have the shape of openai-whisper's files; the second
json that of WhisperX; the manifest that of NeMo. In each, a recording can also become lines of one
file for all. Knows nothing of files and stores.

Source: openai/whisper, utils.py; m-bain/whisperX, schema.py, AlignedTranscriptionResult; NVIDIA
NeMo, documentation of ASR datasets, "Preparing Custom ASR Data".
"""

import json
from typing import Any

from corpus_asr.export.breaks import one_line
from corpus_asr.export.recording import Recording
from corpus_asr.segments import Segment

TSV_HEADER = "start\tend\ttext\n"
SINGLE_TSV_HEADER = "uri\tstart\tend\ttext\n"


def txt_text(recording: Recording) -> str:
    """Return a line per segment."""
    return "".join(f"{_text(segment)}\n" for segment in recording.segments)


def tsv_text(recording: Recording) -> str:
    """Return a table of times in whole milliseconds and texts."""
    return TSV_HEADER + "".join(f"{_tsv_row(segment)}\n" for segment in recording.segments)


def tsv_rows(recording: Recording) -> str:
    """Return the rows of a recording in a table for many: with its address in front."""
    uri = one_line(recording.uri).replace("\t", " ")
    return "".join(f"{uri}\t{_tsv_row(segment)}\n" for segment in recording.segments)


def json_text(recording: Recording) -> str:
    """Return openai-whisper's object; `seek`, which no table knows, is left out."""
    return _line(_whisper(recording))


def json_row(recording: Recording) -> str:
    """Return openai-whisper's object with the recording's address."""
    return _line({"uri": recording.uri} | _whisper(recording))


def whisperx_text(recording: Recording) -> str:
    """Return WhisperX's object of segments and words; channels are its speakers."""
    return _line(_whisperx(recording))


def whisperx_row(recording: Recording) -> str:
    """Return WhisperX's object with the recording's address."""
    return _line({"uri": recording.uri} | _whisperx(recording))


def nemo_text(recording: Recording) -> str:
    """Return lines of a NeMo manifest, one per segment with text."""
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


def _whisper(recording: Recording) -> dict[str, Any]:
    return {
        "text": recording.text,
        "segments": [_whisper_segment(at, each) for at, each in enumerate(recording.segments)],
        "language": recording.language,
    }


def _whisper_segment(number: int, segment: Segment) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": number,
        "start": _rounded(segment.start_s),
        "end": _rounded(segment.end_s),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": _rounded(segment.temperature),
        "avg_logprob": _rounded(segment.avg_logprob),
        "compression_ratio": _rounded(segment.compression_ratio),
        "no_speech_prob": _rounded(segment.no_speech_prob),
    }
    if segment.words is not None:
        found["words"] = [
            {
                "word": word.word,
                "start": _rounded(word.start_s),
                "end": _rounded(word.end_s),
                "probability": _rounded(word.probability),
            }
            for word in segment.words
        ]
    return found


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
        {
            "word": word.word.strip(),
            "start": _rounded(word.start_s),
            "end": _rounded(word.end_s),
            "score": _rounded(word.probability),
            **speaker,
        }
        for word in segment.words or ()
        if word.word.strip()
    ]
    return {
        "start": _rounded(segment.start_s),
        "end": _rounded(segment.end_s),
        "text": segment.text.strip(),
        "words": words,
        **speaker,
    }


def _text(segment: Segment) -> str:
    return one_line(segment.text).strip()


def _tsv_row(segment: Segment) -> str:
    text = _text(segment).replace("\t", " ")
    return f"{round(1000 * segment.start_s)}\t{round(1000 * segment.end_s)}\t{text}"


def _rounded(value: float | None) -> float | None:
    """Return what single precision tells, without the digits that it invents."""
    return None if value is None else round(value, 6)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
