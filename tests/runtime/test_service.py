"""The service of docs/how-to/service.md, as clients of OpenAI's API and ruder ones meet it."""

import asyncio
import importlib.util
import json
import re
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from corpus_asr import Cancellation, Segment, Transcriber, Transcript
from corpus_asr.errors import ClosedError, ConfigError, CorpusAsrError, DecodeError, FetchError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, wav_bytes
from tests.support.corpora import tiny_model

# Starlette 1.0 and older leave the temporary file of an upload that is refused to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s).*(SpooledTemporaryFile|FileIO):pytest.PytestUnraisableExceptionWarning"
)

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "docs" / "examples" / "service.py"
PAGE = (REPOSITORY / "docs" / "how-to" / "service.md").read_text()
PATH = "/v1/audio/transcriptions"
LIMIT_S = 60.0
# What the kernel holds of a connection, both ways; more was not read by the service.
BUFFERS_BYTES = 16 << 20


def sound(seconds: float, seed: int = 0) -> bytes:
    return wav_bytes(noise(seconds, seed=seed), rate_hz=SAMPLE_RATE_HZ)


SPOKEN, SPOKEN_S = sound(20.0, seed=8), 20.0  # of which the model has several segments


def loaded_example(**options: Any) -> Any:
    """Import the example, of which `options` are those of its Transcriber."""
    spec = importlib.util.spec_from_file_location("service", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Transcriber = partial(Transcriber, **options)
    return module


@contextmanager
def serving(module: Any) -> Iterator[str]:
    """Run the service on a free port; gives its address."""
    config = uvicorn.Config(module.app, host="127.0.0.1", port=0, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(LIMIT_S)
    assert not thread.is_alive()


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    module = loaded_example(
        slots=2, num_threads=1, vad_filter=False, temperature=0, language="en",
        part_s=30.0,
    )  # fmt: skip
    module.MODEL = str(model)
    with serving(module) as address:
        module.address = address
        yield module
    assert module.app.state.transcriber._pool.closed


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.address}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected(service: Any) -> Transcript:
    transcriber: Transcriber = service.app.state.transcriber
    return transcriber.transcribe(SPOKEN)


@pytest.mark.long
def test_each_response_format_is_what_the_client_expects(
    client: openai.OpenAI, service: Any, expected: Transcript
) -> None:
    create: Any = partial(
        client.audio.transcriptions.create, file=("talk.wav", SPOKEN), model=service.MODEL
    )
    assert expected.text
    said = create()
    assert said.text == expected.text
    assert (said.usage.type, said.usage.seconds) == ("duration", SPOKEN_S)
    assert create(response_format="json").text == expected.text
    assert create(response_format="text") == f"{expected.text}\n"
    assert create(response_format="srt") == expected.to_srt()
    assert create(response_format="vtt") == expected.to_vtt()
    verbose = create(response_format="verbose_json")
    assert (verbose.text, verbose.language, verbose.duration) == (
        expected.text,
        "english",
        SPOKEN_S,
    )
    assert verbose.words is None
    segment, said_so = verbose.segments[1], expected.segments[1]
    assert (segment.start, segment.end) == (round(said_so.start_s, 3), round(said_so.end_s, 3))
    assert (segment.id, segment.seek, segment.text) == (1, round(100 * segment.start), said_so.text)
    assert tuple(segment.tokens) == said_so.tokens
    assert segment.avg_logprob == pytest.approx(said_so.avg_logprob, abs=1e-5)
    # Everything that the client's type names is there, and of its type.
    type(verbose).model_validate(verbose.model_dump(exclude={"words"}))


@pytest.mark.long
def test_granularities_say_what_has_times(client: openai.OpenAI, service: Any) -> None:
    transcriber: Transcriber = service.app.state.transcriber
    expected = transcriber.transcribe(SPOKEN, word_timestamps=True)
    assert len(expected.segments) > 3

    def create(*granularities: Any) -> Any:
        return client.audio.transcriptions.create(
            file=("talk.wav", SPOKEN), model="whisper-1", response_format="verbose_json",
            timestamp_granularities=list(granularities),
        )  # fmt: skip

    words = create("word")
    assert words.segments is None
    assert words.words
    spoken = "".join(word.word for word in words.words)
    assert [*filter(str.isprintable, spoken)] == [
        *filter(str.isprintable, "".join(expected.text.split()))
    ]
    assert all(0 <= word.start <= word.end <= SPOKEN_S for word in words.words)
    both = create("word", "segment")
    assert both.words == words.words
    assert [segment.text for segment in both.segments] == [each.text for each in expected.segments]
    assert create("segment").words is None


@pytest.mark.long
def test_options_reach_the_decoder(client: openai.OpenAI, service: Any) -> None:
    create: Any = partial(
        client.audio.transcriptions.create, file=("talk.wav", SPOKEN), model=service.MODEL,
        response_format="verbose_json",
    )  # fmt: skip
    transcriber: Transcriber = service.app.state.transcriber
    for given, options in (
        ({"language": "de"}, {"language": "de"}),
        ({"prompt": "Newgate"}, {"initial_prompt": "Newgate"}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
    ):
        found = create(**given)
        # What is sampled hangs on the recording's name.
        named = {"path": "talk.wav", "bytes": SPOKEN}
        assert found.text == transcriber.transcribe(named, **options).text, given
    assert create(language="de").language == "german"
    assert create(temperature=0.5).segments[0].temperature == 0.5


@pytest.mark.long
def test_a_stream_has_each_segment_as_it_is_final(client: openai.OpenAI, service: Any) -> None:
    transcriber: Transcriber = service.app.state.transcriber
    whole = transcriber.transcribe(sound(70.0))
    assert len(whole.segments) > 2
    stream = client.audio.transcriptions.create(
        file=("talk.wav", sound(70.0)), model=service.MODEL, stream=True
    )
    events: Any = list(stream)
    *deltas, done = events
    assert [delta.type for delta in deltas] == ["transcript.text.delta"] * len(whole.segments)
    assert done.type == "transcript.text.done"
    assert done.text == whole.text == "".join(delta.delta for delta in deltas).rstrip()
    starts = [delta.start for delta in deltas]
    assert starts == [round(segment.start_s, 3) for segment in whole.segments]


def test_an_error_after_the_first_segment_is_the_last_event(expected: Transcript) -> None:
    module, damaged = loaded_example(), DecodeError("the file ends here", uri="a.mp3")

    def segments(count: int) -> Iterator[Segment]:
        yield from expected.segments[:count]
        raise damaged

    async def events(count: int) -> list[Any]:
        events = module.events_of(segments(count), Cancellation())
        return [json.loads(event.removeprefix("data: ")) async for event in events]

    *deltas, last = asyncio.run(events(2))
    assert [delta["type"] for delta in deltas] == ["transcript.text.delta"] * 2
    assert last == module.error_body(400, "the file ends here")
    with pytest.raises(DecodeError):  # before it, it may become a status
        asyncio.run(events(0))


def test_a_model_is_described_by_its_name(client: openai.OpenAI, service: Any) -> None:
    for model in client.models.list():
        assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError, match="`large` does not exist") as caught:
        client.models.retrieve("large")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.get("/nowhere", cast_to=object)
    assert caught.value.code == "unknown_url"


def test_advice_is_for_the_caller() -> None:
    module = loaded_example()
    error = ConfigError("decoding.task: found translate, expected transcribe; name another model")
    answer = asyncio.run(module.on_error(None, error))
    told = json.loads(answer.body)["error"]
    assert (answer.status_code, told["param"]) == (400, "task")
    assert told["message"] == "task: found translate, expected transcribe"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (DecodeError("no audio"), 400, "invalid_request_error"),
        (ConfigError("no such language"), 400, "invalid_request_error"),
        (DecodeError("killed", retryable=True), 503, "server_error"),
        (FetchError("disk full"), 503, "server_error"),
        (ClosedError("closed"), 503, "server_error"),
    ],
    ids=repr,
)
def test_a_status_says_who_can_change_it(error: CorpusAsrError, status: int, kind: str) -> None:
    module = loaded_example()
    assert module.status_of(error) == status
    assert module.error_body(status, str(error))["error"]["type"] == kind


@pytest.mark.parametrize(
    ("status", "param", "message", "wrong"),
    [
        (400, "file", "found an empty upload", {"file": ("nothing.wav", b"")}),
        (400, None, r"talk\.wav: not recognized as audio", {"file": ("talk.wav", b"no sound" * 9)}),
        (404, "model", "The model `large` does not exist", {"model": "large"}),
        (400, "response_format", "'verbose_json'", {"response_format": "xml"}),
        (400, "temperature", "less than or equal to 1", {"temperature": 2}),
        (400, "timestamp_granularities[]", "'word'", {"timestamp_granularities": ["letter"]}),
        (
            400,
            "language",
            "language: this checkpoint does not know Klingon",
            {"language": "Klingon"},
        ),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_in_the_shape_of_the_api(
    client: openai.OpenAI, status: int, param: str | None, message: str, wrong: Any, stream: bool
) -> None:
    given: Any = {"file": ("talk.wav", sound(1.0)), "model": "whisper-1"} | wrong
    with pytest.raises(openai.APIStatusError, match=message) as refused:
        client.audio.transcriptions.create(**given, stream=stream)
    error: Any = refused.value
    assert error.status_code == status
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert error.code == ("model_not_found" if param == "model" else None)
    assert isinstance(error.body["message"], str)


def test_clients_are_told_the_name_of_a_folder_not_its_place(
    client: openai.OpenAI, service: Any
) -> None:
    name = Path(service.MODEL).name
    assert [model.id for model in client.models.list()] == [name, "whisper-1"]
    with pytest.raises(openai.NotFoundError, match=f"this service has `{name}`") as refused:
        client.audio.transcriptions.create(file=("talk.wav", sound(1.0)), model="large")
    assert service.MODEL not in str(refused.value)
    client.audio.transcriptions.create(file=("talk.wav", sound(1.0)), model=name)


@pytest.mark.parametrize("origins", ["", "https://a.example.org https://b.example.org", "*"])
def test_pages_of_the_origins_may_call(origins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORIGINS", origins)
    headers = {
        "Origin": "https://b.example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    with serving(loaded_example(num_threads=1)) as address:
        asked = httpx.options(address + PATH, headers=headers)
        answered = httpx.post(address + PATH, headers=headers)
    expected = {"": None, "*": "*"}.get(origins, headers["Origin"])
    assert asked.is_success == bool(origins)
    assert answered.status_code == 400  # without a file, which the page is told
    for answer in (asked, answered):
        assert answer.headers.get("Access-Control-Allow-Origin") == expected


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # openai's word of 2026
def test_a_translation_is_one(client: openai.OpenAI, service: Any) -> None:
    transcriber: Transcriber = service.app.state.transcriber
    expected = transcriber.transcribe(SPOKEN, task="translate")
    create: Any = partial(client.audio.translations.create, file=("talk.wav", SPOKEN))
    assert create(model="whisper-1").text == expected.text
    verbose = create(model="whisper-1", response_format="verbose_json")
    assert verbose.segments[0].text == expected.segments[0].text
    assert create(model="whisper-1", response_format="srt") == expected.to_srt()


def head(length: int | None) -> bytes:
    size = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"{size}\r\n\r\n"
    ).encode()


def form(audio: bytes, **fields: str) -> bytes:
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    named = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return b"".join([*parts, named, audio])


def connected(service: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(service.address.rpartition(":")[2])), LIMIT_S)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_upload_of_ten_gigabytes_is_refused_while_it_is_read(
    service: Any, monkeypatch: pytest.MonkeyPatch, is_chunked: bool
) -> None:
    monkeypatch.setattr(service, "MAX_BYTES", 1 << 20)
    piece, sent = bytes(1 << 18), 0
    with connected(service) as client:
        client.sendall(head(None if is_chunked else 10 << 30))
        client.settimeout(LIMIT_S)
        try:
            begin = form(b"", model="whisper-1")
            client.sendall(b"%x\r\n%s\r\n" % (len(begin), begin) if is_chunked else begin)
            while sent < 10 << 30:
                client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
                sent += len(piece)
        except OSError:  # the service closed the connection
            answer = client.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 413 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["message"] == "the upload is larger than 1048576 bytes"
    assert sent < BUFFERS_BYTES
    until(lambda: calls(service) == 0)


def calls(service: Any) -> int:
    """Requests that the service counts as being at work."""
    layer = service.app.middleware_stack
    while not isinstance(layer, service.Limits):
        layer = layer.app
    count: int = layer.calls
    return count


def test_calls_beyond_the_limit_are_asked_to_come_again(
    client: openai.OpenAI, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_CALLS", 1)
    with connected(service) as slow:  # it is still being uploaded
        slow.sendall(head(1 << 20) + form(b"", model="whisper-1"))
        until(lambda: calls(service) == 1)
        with pytest.raises(openai.APIStatusError, match="too many calls") as refused:
            client.audio.transcriptions.create(file=("a.wav", sound(1.0)), model="whisper-1")
        assert (refused.value.status_code, refused.value.type) == (503, "server_error")
        assert refused.value.response.headers["Retry-After"] == "2"
        # The library comes again by itself, when it is asked to.
        threading.Timer(0.5, slow.close).start()
        began_s = time.monotonic()
        patient = client.with_options(max_retries=1)
        assert patient.audio.transcriptions.create(
            file=("a.wav", sound(1.0)), model="whisper-1"
        ).text
        assert time.monotonic() - began_s > 1.9
    until(lambda: calls(service) == 0)
    assert client.audio.transcriptions.create(file=("a.wav", sound(1.0)), model="whisper-1").text


@pytest.mark.long
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_leaves_frees_what_worked_for_it(
    client: openai.OpenAI,
    service: Any,
    stream: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transcriber: Transcriber = service.app.state.transcriber
    engine: Any = transcriber._engine
    advance = engine._scheduler.advance

    def advance_slowly() -> None:
        time.sleep(0.02)  # all 10 windows then take some 3 s, however busy the machine
        advance()

    monkeypatch.setattr(engine._scheduler, "advance", advance_slowly)
    before = engine.statistics().windows
    body = form(sound(300.0), model="whisper-1", stream=stream) + b"\r\n--x--\r\n"
    with connected(service) as leaving:
        leaving.sendall(head(len(body)) + body)
        if stream == "true":
            assert leaving.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        else:
            until(lambda: engine.statistics().windows > before)
        assert transcriber._pool._calls
    monkeypatch.undo()
    until(lambda: not transcriber._pool._calls and not engine._scheduler.pending)
    assert engine.statistics().windows - before < 9  # of 10
    until(lambda: calls(service) == 0)
    assert client.audio.transcriptions.create(file=("a.wav", sound(1.0)), model="whisper-1").text
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.long
def test_what_the_page_calls_answers_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shown commands of curl, and the shown Python."""
    clip = REPOSITORY / "tests" / "data" / "speech" / "english_short" / "cheetah_en.wav"
    shutil.copy(clip, tmp_path / "talk.wav")
    monkeypatch.chdir(tmp_path)
    [calls_shown] = re.findall(r"^```console\n(\$ curl .*?)^```$", PAGE, re.M | re.S)
    with serving(loaded_example(num_threads=1)) as address:
        for call in calls_shown.split("$ curl ")[1:]:
            command, _, answer = call.partition("\n")
            place, *options = shlex.split(command)
            assert options[::2] == ["-F"] * (len(options) // 2)
            given = dict(option.split("=", 1) for option in options[1::2])
            file = Path(given.pop("file").removeprefix("@"))
            url = place.replace("localhost:8000", address)
            files = {"file": (file.name, file.read_bytes())}
            found = httpx.post(url, data=given, files=files, timeout=LIMIT_S)
            assert found.text.rstrip() == answer.rstrip(), command
        [code] = re.findall(r"^```python\n(from openai.*?)^```$", PAGE, re.M | re.S)
        exec(code.replace("http://localhost:8000", address), {})
    [printed] = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    assert capsys.readouterr().out == printed
