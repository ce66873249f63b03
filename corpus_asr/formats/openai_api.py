"""Transcripts, events and errors as OpenAI's API for transcriptions has them.

In: transcripts, segments or exceptions of this package. Out: bodies of responses, which clients of
that API read. Knows nothing of HTTP libraries.

Source: OpenAI API reference, "Create transcription", "The transcription object (Verbose JSON)",
"Stream event (transcript.text.delta)" and "(transcript.text.done)", and "Error codes".
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from typing import Any, Literal, get_args

from corpus_asr.errors import ConfigError, CorpusAsrError, DecodeError
from corpus_asr.formats.cues import Transcribed
from corpus_asr.formats.names import ExportFormat
from corpus_asr.formats.pieces import shown_words
from corpus_asr.formats.writers import file_contents, whisper_json
from corpus_asr.languages import LANGUAGES
from corpus_asr.segments import Segment
from corpus_asr.units import FRAMES_PER_SECOND

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]

_OF_SEGMENTS = (
    "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
    "no_speech_prob",
)  # fmt: skip


def response_body(
    recording: Transcribed,
    response_format: ResponseFormat = "json",
    granularities: Collection[Granularity] = (),
) -> str:
    """Return the body of a response in a format.

    `granularities` say what `verbose_json` has times of: `segment`, also where there are none.

    Raises:
        ConfigError: no such format or granularity, or words are wanted that have no times.
    """
    _check("response_format", response_format, get_args(ResponseFormat))
    for each in granularities:
        _check("timestamp_granularities", each, get_args(Granularity))
    if response_format == "json":
        return _dumped({"text": recording.text, "usage": _usage(recording)})
    if response_format == "verbose_json":
        return _dumped(_verbose(recording, granularities or ("segment",)))
    if response_format == "text":
        return f"{recording.text}\n"
    ((_, content),) = file_contents(recording, [ExportFormat(response_format)])
    return content.decode()


async def event_stream(segments: AsyncGenerator[Segment, None]) -> AsyncIterator[str]:
    """Wait for the first segment; return server-sent events of this one and the others.

    There is a `transcript.text.delta` for each segment, which also has its `start` and `end` in
    seconds, then `transcript.text.done`. An error after the first segment is the last event.

    Raises:
        CorpusAsrError: an error before the first segment.
    """
    events = _events(segments)
    return _begun(await anext(events), events)


async def _begun(first: str, others: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    async with aclosing(others):  # where the client leaves, the work ends now
        yield first
        async for event in others:
            yield event


async def _events(segments: AsyncGenerator[Segment, None]) -> AsyncGenerator[str, None]:
    text = ""
    try:
        async with aclosing(segments):
            async for segment in segments:
                delta = segment.text if text else segment.text.lstrip()
                text += delta
                times = {"start": round(segment.start_s, 3), "end": round(segment.end_s, 3)}
                yield _event({"type": "transcript.text.delta", "delta": delta, **times})
    except CorpusAsrError as error:
        if not text:
            raise
        yield _event(error_body(status_of(error), str(error)))
        return
    yield _event({"type": "transcript.text.done", "text": text.rstrip()})


def status_of(error: CorpusAsrError) -> int:
    """Return the HTTP status of an error: 400 for what the caller gave, 503 for the service's."""
    is_theirs = isinstance(error, DecodeError) and not error.retryable
    return 400 if is_theirs or isinstance(error, ConfigError) else 503


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return the body of a response with an HTTP status from 400 on.

    `param` is the field that is at fault, `code` a name of the fault such as `model_not_found`.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _verbose(recording: Transcribed, granularities: Collection[str]) -> dict[str, Any]:
    whole = whisper_json(recording)
    code = recording.language
    values: dict[str, Any] = {
        "task": next((each.task for each in recording.segments), "transcribe"),
        # Clients expect a string, also where nobody speaks.
        "language": LANGUAGES.get(code, code) if code else "",
        "duration": whole["duration"],
        "text": recording.text,
    }
    if "segment" in granularities:
        values["segments"] = [
            # Where its window began is not kept: the place of the segment itself.
            {"id": each["id"], "seek": round(each["start"] * FRAMES_PER_SECOND)}
            | {name: each[name] for name in _OF_SEGMENTS}
            for each in whole["segments"]
        ]
    if "word" in granularities:
        values["words"] = [
            {
                "word": word.word.strip(),
                "start": round(word.start_s, 3),
                "end": round(word.end_s, 3),
            }
            for segment in recording.segments
            for word in _timed_words(segment)
        ]
    return values | {"usage": _usage(recording)}


def _timed_words(segment: Segment) -> list[Any]:
    if segment.words is None:
        raise ConfigError(
            "writing words with times: found segments without them, expected words; transcribe "
            "with word_timestamps"
        )
    return shown_words(segment)


def _usage(recording: Transcribed) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(recording.duration_s, 3)}


def _check(name: str, found: str, expected: Collection[str]) -> None:
    if found not in expected:
        raise ConfigError(
            f"writing a response: found {name} {found!r}, expected {', '.join(expected)}"
        )


def _event(values: dict[str, Any]) -> str:
    return f"data: {_dumped(values)}\n\n"


def _dumped(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False)
