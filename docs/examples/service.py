"""Transcription over HTTP, as OpenAI's API has it: uvicorn service:app."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from corpus_asr import Transcriber
from corpus_asr.errors import CorpusAsrError
from corpus_asr.formats import openai_api

MODEL = os.environ.get("MODEL", "whisper-tiny.en")
MAX_BYTES = int(os.environ.get("MAX_BYTES", 25 << 20))  # of an upload
MAX_CALLS = int(os.environ.get("MAX_CALLS", 32))  # being uploaded, waiting or transcribed


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
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


def refused(status: int, message: str, **named: str) -> JSONResponse:
    # Closed, so that nobody has to read what is left of an upload.
    headers = {"Connection": "close"} | ({"Retry-After": "2"} if status == 503 else {})
    return JSONResponse(openai_api.error_body(status, message, **named), status, headers)


@app.exception_handler(HTTPException)
@app.exception_handler(RequestValidationError)
@app.exception_handler(CorpusAsrError)
async def on_error(_: Request, error: Any) -> JSONResponse:
    if isinstance(error, RequestValidationError):
        wrong = error.errors()[0]
        name = str(wrong["loc"][:2][-1])  # of a list, its place follows
        return refused(400, f"{name}: {wrong['msg']}", param=name)
    if isinstance(error, HTTPException):
        return refused(error.status_code, error.detail)
    return refused(openai_api.status_of(error), str(error))


async def while_connected(request: Request, work: Awaitable[Any]) -> Any:
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(request.receive())  # behind the body, only that the client left
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client left")
        return task.result()
    finally:
        task.cancel()
        left.cancel()


@app.post("/v1/audio/transcriptions")
async def transcriptions(
    request: Request,
    file: UploadFile,
    model: Annotated[str, Form()],
    language: Annotated[str | None, Form()] = None,
    prompt: Annotated[str | None, Form()] = None,
    hotwords: Annotated[str | None, Form()] = None,
    response_format: Annotated[openai_api.ResponseFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
    timestamp_granularities: Annotated[
        tuple[openai_api.Granularity, ...], Form(alias="timestamp_granularities[]")
    ] = (),
    stream: Annotated[bool, Form()] = False,
) -> Response:
    if model not in (MODEL, "whisper-1"):
        message = f"The model `{model}` does not exist; this service has `{MODEL}`"
        return refused(404, message, param="model", code="model_not_found")
    if not file.size:
        return refused(400, "file: found an empty upload, expected audio", param="file")
    given = {"language": language, "initial_prompt": prompt, "hotwords": hotwords,
             "temperature": temperature,
             "word_timestamps": "word" in timestamp_granularities}  # fmt: skip
    options: Any = {name: value for name, value in given.items() if value}
    audio = {"path": file.filename, "bytes": file.file}
    transcriber: Transcriber = request.app.state.transcriber
    if stream:
        events = openai_api.event_stream(transcriber.astream(audio, **options))
        body = await while_connected(request, events)
        return StreamingResponse(body, media_type="text/event-stream")
    transcript = await while_connected(request, transcriber.atranscribe(audio, **options))
    kind = "application/json" if "json" in response_format else "text/plain"
    return Response(transcript.to_openai(response_format, timestamp_granularities), media_type=kind)
