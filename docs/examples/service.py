"""Transcription over HTTP, as OpenAI's API has it: uvicorn service:app."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from corpus_asr import Cancellation, Transcriber, Transcript
from corpus_asr.errors import ConfigError, CorpusAsrError, DecodeError
from corpus_asr.languages import LANGUAGES

MODEL = os.environ.get("MODEL", "whisper-tiny.en")
MAX_BYTES = int(os.environ.get("MAX_BYTES", 25 << 20))  # of an upload
MAX_CALLS = int(os.environ.get("MAX_CALLS", 32))  # being uploaded, waiting or transcribed
ORIGINS = os.environ.get("ORIGINS", "").split()  # of pages whose scripts may call, or *

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]
OF_SEGMENTS = ("id", "start", "end", "text", "tokens", "temperature", "avg_logprob",
               "compression_ratio", "no_speech_prob")  # fmt: skip


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(MAX_CALLS))
    with Transcriber(MODEL) as app.state.transcriber:
        yield


class Limits:
    """Refuses calls beyond MAX_CALLS, and uploads beyond MAX_BYTES while they are read."""

    def __init__(self, app: Any) -> None:
        self.app, self.calls = app, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        received = 0

        async def receive_limited() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BYTES:
                raise HTTPException(413, f"the upload is larger than {MAX_BYTES} bytes")
            return message

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.calls >= MAX_CALLS:
            return await refused(503, "too many calls; try again")(scope, receive, send)
        self.calls += 1
        try:
            await self.app(scope, receive_limited, send)
        finally:
            self.calls -= 1


app = FastAPI(lifespan=lifespan)
app.add_middleware(Limits)
app.add_middleware(CORSMiddleware, allow_origins=ORIGINS, allow_methods="*", allow_headers="*")


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(error: CorpusAsrError) -> int:
    is_theirs = isinstance(error, DecodeError) and not error.retryable
    return 400 if is_theirs or isinstance(error, ConfigError) else 503


def refused(status: int, message: str, **named: str | None) -> JSONResponse:
    # Closed, so that nobody has to read what is left of an upload.
    headers = {"Connection": "close"} | ({"Retry-After": "2"} if status == 503 else {})
    return JSONResponse(error_body(status, message, **named), status, headers)


@app.exception_handler(HTTPException)
@app.exception_handler(RequestValidationError)
@app.exception_handler(CorpusAsrError)
async def on_error(request: Request, error: Any) -> JSONResponse:
    if isinstance(error, RequestValidationError):
        wrong = error.errors()[0]
        name = str(wrong["loc"][:2][-1])  # of a list, its place follows
        return refused(400, f"{name}: {wrong['msg']}", param=name)
    if isinstance(error, HTTPException):
        code = "unknown_url" if error.status_code == 404 else None
        return refused(error.status_code, error.detail, code=code)
    doing, _, reason = str(error).partition(": ")
    of_model = next((name for name in ("language", "task") if name in doing), None)
    if isinstance(error, ConfigError) and of_model:
        # Without its advice, which is for whoever chose the model.
        return refused(400, f"{of_model}: {reason.partition(';')[0]}", param=of_model)
    return refused(status_of(error), str(error))


async def while_connected(
    request: Request, work: Awaitable[Any], cancellation: Cancellation
) -> Any:
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(request.receive())  # behind the body, only that the client left
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client left")
        return task.result()
    finally:
        left.cancel()
        if not task.done():
            cancellation.cancel()
            await asyncio.wait([task])  # it reads the upload, which is closed afterwards
            task.exception()


async def events_of(segments: Any, cancellation: Cancellation) -> AsyncGenerator[str, None]:
    text = ""
    try:
        while (segment := await asyncio.to_thread(next, segments, None)) is not None:
            delta = segment.text if text else segment.text.lstrip()
            text += delta
            times = {"start": round(segment.start_s, 3), "end": round(segment.end_s, 3)}
            yield event_of({"type": "transcript.text.delta", "delta": delta, **times})
    except CorpusAsrError as error:
        if not text:
            raise  # it may still become a status
        yield event_of(error_body(status_of(error), str(error)))
        return
    finally:
        cancellation.cancel()
        with suppress(ValueError):  # the thread that it runs in ends it
            await asyncio.to_thread(segments.close)
    yield event_of({"type": "transcript.text.done", "text": text.rstrip()})


def event_of(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"


async def begun(first: str, events: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    async with aclosing(events):  # where the client leaves, the work ends now
        yield first
        async for event in events:
            yield event


def body_of(
    transcript: Transcript, response_format: ResponseFormat, granularities: tuple[Granularity, ...]
) -> str:
    if response_format == "text":
        return f"{transcript.text}\n"
    if response_format in ("srt", "vtt"):
        return transcript.to_srt() if response_format == "srt" else transcript.to_vtt()
    whole = transcript.to_dict()
    values: dict[str, Any] = {"text": transcript.text}
    if response_format == "verbose_json":
        values |= {
            "task": next((segment["task"] for segment in whole["segments"]), "transcribe"),
            # Clients expect a string, also where nobody speaks.
            "language": LANGUAGES.get(whole["language"], whole["language"] or ""),
            "duration": whole["duration"],
        }
        if "word" in granularities:
            words = [word for segment in whole["segments"] for word in segment["words"]]
            values["words"] = [
                {"word": word["word"].strip(), "start": word["start"], "end": word["end"]}
                for word in words
            ]
        if "segment" in granularities or not granularities:
            values["segments"] = [
                # Where its window began is not kept: the place of the segment itself.
                {name: segment[name] for name in OF_SEGMENTS}
                | {"seek": round(100 * segment["start"])}
                for segment in whole["segments"]
            ]
    usage = {"type": "duration", "seconds": whole["duration"]}
    return json.dumps(values | {"usage": usage}, ensure_ascii=False)


def models() -> list[str]:
    # Of a folder its name: where it lies is nobody's business.
    return [MODEL.rstrip("/").rpartition("/")[2], "whisper-1"]


def described(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "corpus-asr"}


def unknown(model: str) -> JSONResponse:
    message = f"The model `{model}` does not exist; this service has `{models()[0]}`"
    return refused(404, message, param="model", code="model_not_found")


@app.get("/v1/models")
async def list_models() -> dict[str, Any]:
    return {"object": "list", "data": [described(name) for name in models()]}


@app.get("/v1/models/{model:path}", response_model=None)
async def retrieve_model(model: str) -> dict[str, Any] | JSONResponse:
    return described(model) if model in models() else unknown(model)


@app.post("/v1/audio/transcriptions")
async def transcriptions(
    request: Request,
    file: UploadFile,
    model: Annotated[str, Form()],
    language: Annotated[str | None, Form()] = None,
    prompt: Annotated[str | None, Form()] = None,
    hotwords: Annotated[str | None, Form()] = None,
    response_format: Annotated[ResponseFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
    timestamp_granularities: Annotated[
        tuple[Granularity, ...], Form(alias="timestamp_granularities[]")
    ] = (),
    granularities: Annotated[  # as many clients spell it
        tuple[Granularity, ...], Form(alias="timestamp_granularities")
    ] = (),
    stream: Annotated[bool, Form()] = False,
) -> Response:
    granularities += timestamp_granularities
    options = {"language": language, "initial_prompt": prompt, "hotwords": hotwords,
               "temperature": temperature, "word_timestamps": "word" in granularities}  # fmt: skip
    return await answer(request, file, model, options, response_format, granularities, stream)


@app.post("/v1/audio/translations")
async def translations(
    request: Request,
    file: UploadFile,
    model: Annotated[str, Form()],
    prompt: Annotated[str | None, Form()] = None,
    response_format: Annotated[ResponseFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
) -> Response:
    options = {"task": "translate", "initial_prompt": prompt, "temperature": temperature}
    return await answer(request, file, model, options, response_format)


async def answer(
    request: Request,
    file: UploadFile,
    model: str,
    options: dict[str, Any],
    response_format: ResponseFormat,
    granularities: tuple[Granularity, ...] = (),
    stream: bool = False,
) -> Response:
    if model not in (MODEL, *models()):
        return unknown(model)
    if not file.size:
        return refused(400, "file: found an empty upload, expected audio", param="file")
    options = {name: value for name, value in options.items() if value}
    audio: Any = {"path": file.filename, "bytes": file.file}
    transcriber: Transcriber = request.app.state.transcriber
    options["cancellation"] = cancellation = Cancellation()
    if stream:
        events = events_of(transcriber.stream(audio, **options), cancellation)
        first = await while_connected(request, anext(events), cancellation)
        return StreamingResponse(begun(first, events), media_type="text/event-stream")
    call = asyncio.to_thread(transcriber.transcribe, audio, **options)
    transcript = await while_connected(request, call, cancellation)
    kind = "application/json" if "json" in response_format else "text/plain"
    return Response(body_of(transcript, response_format, granularities), media_type=kind)
