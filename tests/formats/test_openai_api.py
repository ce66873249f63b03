"""Bodies of OpenAI's API: what a service has no recording for, and what goes wrong on the way."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from corpus_asr import Segment, Transcript, Word
from corpus_asr.errors import (
    ClosedError,
    ConfigError,
    CorpusAsrError,
    DecodeError,
    EngineError,
    FetchError,
)
from corpus_asr.formats.openai_api import error_body, event_stream, status_of


def segment(text: str, start_s: float = 0.0, **fields: Any) -> Segment:
    usual: dict[str, Any] = {
        "end_s": start_s + 1.0, "tokens": (7, 8), "language": "de", "language_probability": None,
        "task": "translate", "confidence": 0.5, "avg_logprob": -0.25, "no_speech_prob": 0.125,
        "compression_ratio": 1.5, "temperature": 0.2, "speech_fraction": None,
    }  # fmt: skip
    return Segment(start_s=start_s, text=text, **usual | fields)


SAID = Transcript(
    segments=(segment(" Grüß", 0.25), segment(" Gott.", 1.5)), language="de", duration_s=3.0004
)


def verbose(transcript: Transcript, *granularities: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(transcript.to_openai("verbose_json", granularities))
    return found


def test_verbose_json_has_the_values_of_the_api() -> None:
    found = verbose(SAID)
    first = found["segments"][0]
    assert first == {
        "id": 0, "seek": 25, "start": 0.25, "end": 1.25, "text": " Grüß", "tokens": [7, 8],
        "temperature": 0.2, "avg_logprob": -0.25, "compression_ratio": 1.5,
        "no_speech_prob": 0.125,
    }  # fmt: skip
    del found["segments"]
    assert found == {
        "task": "translate", "language": "german", "duration": 3.0, "text": "Grüß Gott.",
        "usage": {"type": "duration", "seconds": 3.0},
    }  # fmt: skip
    # A language that Whisper has no name for, and none.
    assert verbose(replace(SAID, language="xx"))["language"] == "xx"
    nobody = verbose(Transcript(segments=(), language=None, duration_s=1.0))
    assert (nobody["language"], nobody["text"], nobody["segments"]) == ("", "", [])
    assert nobody["task"] == "transcribe"


def test_words_are_those_of_people_with_their_times() -> None:
    words = tuple(
        Word(word=word, start_s=at, end_s=at + 0.5, probability=0.5)
        for at, word in enumerate((" costs", " $1", ",250", " "))
    )
    timed = replace(
        SAID, segments=(segment(" costs $1,250 ", words=words), segment("", 5.0, words=()))
    )
    found = verbose(timed, "word")
    assert "segments" not in found
    assert found["words"] == [
        {"word": "costs", "start": 0.0, "end": 0.5}, {"word": "$1,250", "start": 1.0, "end": 2.5},
    ]  # fmt: skip
    assert {"words", "segments"} < verbose(timed, "word", "segment").keys()
    with pytest.raises(ConfigError, match="transcribe with word_timestamps"):
        verbose(SAID, "word")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("xml", ()), "found response_format 'xml', expected json, text, srt, verbose_json, vtt"),
        (("json", ("letter",)), "found timestamp_granularities 'letter', expected word, segment"),
    ],
)
def test_what_the_api_does_not_know_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SAID.to_openai(*wrong)


async def said(
    *segments: Segment, error: Exception | None = None, closed: list[bool] | None = None
) -> AsyncGenerator[Segment, None]:
    try:
        for each in segments:
            yield each
        if error is not None:
            raise error
    finally:
        if closed is not None:
            closed.append(True)


def events(segments: AsyncGenerator[Segment, None]) -> list[Any]:
    async def taken() -> list[str]:
        return [event async for event in await event_stream(segments)]

    found = asyncio.run(taken())
    assert all(event.startswith("data: ") and event.endswith("\n\n") for event in found)
    return [json.loads(event.removeprefix("data: ")) for event in found]


def test_a_stream_ends_with_all_of_the_text_or_with_the_error() -> None:
    first, second, last = events(said(*SAID.segments))
    assert first == {
        "type": "transcript.text.delta", "delta": "Grüß", "start": 0.25, "end": 1.25,
    }  # fmt: skip
    assert second["delta"] == " Gott."
    assert last == {"type": "transcript.text.done", "text": "Grüß Gott."}
    damaged = DecodeError("the file ends here", uri="a.mp3")
    _, failed = events(said(SAID.segments[0], error=damaged))
    assert failed == error_body(400, "the file ends here")
    with pytest.raises(DecodeError):  # it may still become a status
        events(said(error=damaged))
    assert events(said()) == [{"type": "transcript.text.done", "text": ""}]


def test_whoever_leaves_a_stream_ends_its_segments() -> None:
    closed: list[bool] = []

    async def left() -> None:
        stream: Any = await event_stream(said(*SAID.segments, closed=closed))
        await anext(stream)
        assert not closed
        await stream.aclose()
        assert closed == [True]
        # Also before the first event was taken.
        unread: Any = await event_stream(said(*SAID.segments, closed=closed))
        await anext(unread)
        await unread.aclose()

    asyncio.run(left())
    assert closed == [True, True]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DecodeError("no audio"), 400),
        (ConfigError("no such language"), 400),
        (DecodeError("killed", retryable=True), 503),
        (FetchError("disk full"), 503),
        (ClosedError("closed"), 503),
        (EngineError("out of memory"), 503),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_status_says_who_can_change_it(error: CorpusAsrError, status: int) -> None:
    assert status_of(error) == status
    kind = error_body(status, str(error), param="file", code="x")["error"]
    assert kind["type"] == ("server_error" if status == 503 else "invalid_request_error")
    assert (kind["param"], kind["code"], kind["message"]) == ("file", "x", str(error))
