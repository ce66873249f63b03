"""Stores and webhooks on this machine: real servers over real sockets, some of which misbehave.

A faulty store is a proxy that passes requests and answers unchanged, signatures included, but for
the faults. Which request meets which fault is drawn from the seed and the number of the request.
"""

import atexit
import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions

T = TypeVar("T")

# moto looks at the condition of a conditional put and then puts, in a thread per request: of two
# writers that looked at once both would win, which no real store lets them. So one put at a time.
# And it knows no line breaks in keys, which real stores do.
# It ends with whoever started it, whose end of the pipe is closed then.
MOTO = """
import sys
import threading
from moto.moto_server.utilities import RegexConverter
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
as_it_is = RegexConverter.__init__
def with_line_breaks(self, url_map, *items):
    as_it_is(self, url_map, *(item.replace(".+", "(?s:.+)") for item in items))
RegexConverter.__init__ = with_line_breaks
put_object, alone = S3Response.put_object, threading.Lock()
def put_alone(response):
    with alone:
        return put_object(response)
S3Response.put_object = put_alone
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class S3Server:
    """A running S3 server, empty at first."""

    endpoint_url: str

    @property
    def options(self) -> StoreOptions:
        """How our stores reach it."""
        return StoreOptions(endpoint_url=self.endpoint_url)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to it (beside the endpoint)."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        self._put(name, b"")
        return f"s3://{name}"

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Put an object without any of our code and return its address."""
        self._put(f"{bucket}/{urllib.parse.quote(key)}", data)
        return f"s3://{bucket}/{key}"

    def _put(self, path: str, data: bytes) -> None:
        request = urllib.request.Request(f"{self.endpoint_url}/{path}", data=data, method="PUT")
        request.add_header("Content-Type", "binary/octet-stream")
        with urllib.request.urlopen(request, timeout=10):
            pass


_idle: list[S3Server] = []
"""Servers that no context uses; each took two CPU seconds to start."""


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run an S3 server (moto), in a process of its own, that is empty when the context opens."""
    server = _idle.pop() if _idle else _started()
    try:
        yield server
    finally:
        # As it was: empty, and open to everyone if a test closed it.
        for address, data in (("reset", b""), ("reset-auth", b"inf")):
            request = urllib.request.Request(
                f"{server.endpoint_url}/moto-api/{address}", data, {"Content-Type": "text/plain"}
            )
            urllib.request.urlopen(request).close()
        filesystem._connected.cache_clear()
        _idle.append(server)


def _started() -> S3Server:
    process = subprocess.Popen(
        [sys.executable, "-c", MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(process.communicate)  # which closes its input
    assert process.stdout is not None
    return S3Server(f"http://127.0.0.1:{int(process.stdout.readline())}")


def environment(variables: dict[str, str]) -> contextlib.AbstractContextManager[Any]:
    """Set environment variables while the context is open."""
    return mock.patch.dict(os.environ, variables)


@contextlib.contextmanager
def default_s3() -> Iterator[S3Server]:
    """Run an S3 server that is used wherever no endpoint is named."""
    with s3_server() as server:
        variables = server.environment | {"AWS_ENDPOINT_URL": server.endpoint_url}
        with environment(variables):
            filesystem._connected.cache_clear()
            yield server


@dataclass
class WebServer:
    """A running web server; change `files`, `faults` and the switches at any time."""

    endpoint_url: str
    files: dict[str, bytes] = field(default_factory=dict)
    """Bodies by decoded path without the leading slash."""
    etags: dict[str, str] = field(default_factory=dict)
    times: dict[str, str] = field(default_factory=dict)
    """Last-Modified of a decoded path."""
    redirects: dict[str, str] = field(default_factory=dict)
    """Where requests for a decoded path are sent to."""
    faults: deque[str] = field(default_factory=deque)
    """Taken one by one by GET and POST: a status such as `503`, an address to redirect to, `reset`,
    `short` or `stall`."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path with query, and Range of every request."""
    codings: dict[str, str] = field(default_factory=dict)
    """Content-Encoding of a decoded path; its body is sent as it is."""
    supports_ranges: bool = True
    refused_methods: set[str] = field(default_factory=set)
    stall_s: float = 3.0

    def url(self, path: str) -> str:
        """Return the address of a file, quoted as a browser would."""
        return f"{self.endpoint_url}/{urllib.parse.quote(path)}"


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    """Serve bytes from memory, with ranges, while the context is open."""
    with serving(_FileHandler, WebServer) as state:
        yield state


@contextlib.contextmanager
def serving(handler: type["Handler"], make_state: Callable[[str], Any]) -> Iterator[Any]:
    """Answer on a port of this machine; yield what `make_state` makes of the server's address."""
    server = _QuietServer(("127.0.0.1", 0), handler)
    server.state = make_state(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    state: Any

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are what the tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests; what it knows is in `server.state`."""

    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # headers and body in one packet: else each answer waits 40 ms for an ACK
    server: _QuietServer

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def handle_expect_100(self) -> bool:
        """Let the client send its body, at once in spite of the buffer."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def answer(self) -> None:
        """Answer a request, of whatever method."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - names of the base class

    def answer_empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


class _FileHandler(Handler):
    def answer(self) -> None:
        state, asked = self.server.state, self.headers.get("Range")
        with_body = self.command == "GET"
        state.requests.append((self.command, self.path, asked))
        if self.command == "POST":
            assert self.headers["Content-Type"] == "application/json; charset=utf-8"
            state.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        fault = state.faults.popleft() if self.command in ("GET", "POST") and state.faults else None
        path = urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        body = state.files.get(path)
        if path in state.redirects:
            self.answer_empty(302, Location=state.redirects[path])
            return
        if fault == "stall":
            time.sleep(state.stall_s)
        if fault == "reset":
            self._hang_up()
        elif fault is not None and "://" in fault:
            self.answer_empty(307, Location=fault)
        elif fault is not None and fault.isdecimal():
            self.answer_empty(int(fault), **({"Retry_After": "0"} if fault == "429" else {}))
        elif self.command in state.refused_methods:
            self.answer_empty(403)
        elif self.command == "POST":
            self.answer_empty(200)
        elif body is None:
            self.answer_empty(404)
        else:
            self._send(body, path, asked, with_body=with_body, short=fault == "short")

    def _send(
        self, body: bytes, path: str, asked: str | None, *, with_body: bool, short: bool
    ) -> None:
        start, end, partial = 0, len(body), False
        if asked is not None and self.server.state.supports_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, partial = int(first), min(int(last) + 1, len(body)), True
        if partial and start >= len(body):
            self.answer_empty(416, Content_Range=f"bytes */{len(body)}")
            return
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        self.send_header("Content-Length", str(end - start))
        etag = self.server.state.etags.get(path)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if time := self.server.state.times.get(path):
            self.send_header("Last-Modified", time)
        if path in self.server.state.codings:
            self.send_header("Content-Encoding", self.server.state.codings[path])
        self.end_headers()
        if with_body:
            self.wfile.write(body[start : (start + end) // 2 if short else end])
        if short:
            self.close_connection = True


REFUSALS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "too_many": (429, "TooManyRequests", "Too many requests."),
    "internal": (500, "InternalError", "We encountered an internal error."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
    # What Amazon says of a bucket with Object Lock, and of one whose policy wants encryption.
    "no_checksum": (400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required "
                    "for Put Object requests with Object Lock parameters"),
    "no_encryption": (403, "AccessDenied", "User: arn:aws:iam::1:user/night is not authorized to "
                      "perform: s3:PutObject with an explicit deny in a resource-based policy"),
    "no_payer": (403, "AccessDenied", "Access Denied"),
    "wrong_key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in "
                  "our records."),
}  # fmt: skip
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "expect"}
DRIP_S = 0.25
_UPSTREAM_LIMIT_S = 300.0  # the machine of a test may be stopped for minutes


@dataclass
class FaultyStore:
    """A running proxy; change `rates` at any time."""

    endpoint_url: str
    upstream: str
    rates: dict[str, float]
    """By fault, the share of requests that meet it: one of `REFUSALS`, or `reset` (before the
    request is done), `lost_answer` and `done_500` (after it is done), `truncated`, `slow`,
    `changed` (the ETag of a later range is another one), `no_xml` (of a listing)."""
    seed: int
    max_in_a_row: int | None = None
    """So often at most the same request fails; for tests that must end."""
    object_lock: bool = False
    """Whether what is put without a checksum is refused."""
    wanted: dict[str, str] = field(default_factory=dict)
    """Headers that a policy of the bucket wants of all that is put or copied, with their values."""
    requester_pays: bool = False
    """Whether each request has to say that who asks pays."""
    accounts: set[str] | None = None
    """The access keys that are known, "" for none at all; None: any."""
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers (names in lower case) of each request."""
    slow_s: float = 0.2
    dripping: str | None = None
    """Objects whose address contains this are given a few bytes per second, for ever."""
    injected: Counter[str] = field(default_factory=Counter)
    """Faults that were met, by name."""
    requests: int = 0
    _in_a_row: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def options(self) -> StoreOptions:
        """How our stores reach it."""
        return StoreOptions(endpoint_url=self.endpoint_url)

    def draw(self, request: tuple[str, ...], possible: frozenset[str]) -> str | None:
        """Return the fault that the next request meets, if any."""
        with self._lock:
            number = self.requests
            self.requests += 1
            if self.max_in_a_row is not None and self._in_a_row[request] >= self.max_in_a_row:
                self._in_a_row[request] = 0
                return None
            left = random.Random(f"{self.seed}/{number}").random()
            for fault, rate in self.rates.items():
                left -= rate
                if left < 0:
                    if fault not in possible:
                        break
                    self.injected[fault] += 1
                    self._in_a_row[request] += 1
                    return fault
            self._in_a_row[request] = 0
            return None


@contextlib.contextmanager
def faulty_store(
    upstream: str, rates: Mapping[str, float], *, seed: int, max_in_a_row: int | None = None
) -> Iterator[FaultyStore]:
    with serving(
        _Proxy, lambda url: FaultyStore(url, upstream, dict(rates), seed, max_in_a_row)
    ) as store:
        yield store


class _Proxy(Handler):
    def answer(self) -> None:
        state = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = (self.command, self.path, self.headers.get("Range") or "")
        fault = state.draw(request, self._possible())
        fault = self._rule_broken(body) or fault
        if fault == "slow":
            time.sleep(state.slow_s)
        if fault == "reset":
            self._hang_up()
        elif fault in REFUSALS:
            self._refuse(fault)
        elif fault == "no_xml":
            self._send(200, [("Content-Type", "application/xml")], b"<ListBucketResult><Cont")
        else:
            self._give(fault, *self._ask(body))

    def _rule_broken(self, body: bytes) -> str | None:
        state, headers = self.server.state, {name.lower(): v for name, v in self.headers.items()}
        state.seen.append((self.command, self.path, headers))
        signed = re.search(r"Credential=([^/]+)/", headers.get("authorization", ""))
        if state.accounts is not None and (signed[1] if signed else "") not in state.accounts:
            return "wrong_key"
        if state.requester_pays and headers.get("x-amz-request-payer") != "requester":
            return "no_payer"
        begins = self.command == "PUT" and "partNumber=" not in self.path
        begins |= self.command == "POST" and self.path.endswith("?uploads")
        if begins and any(headers.get(name) != value for name, value in state.wanted.items()):
            return "no_encryption"
        if state.object_lock and self.command == "PUT" and not self._has_checksum(body):
            return "no_checksum"
        return None

    def _has_checksum(self, body: bytes) -> bool:
        said = self.headers.get("Content-MD5")
        if said is None:
            return any(name.lower().startswith("x-amz-checksum-") for name in self.headers)
        return said == base64.b64encode(hashlib.md5(body).digest()).decode()

    def _possible(self) -> frozenset[str]:
        every = {*REFUSALS, "reset", "lost_answer", "done_500", "slow"}
        listing = "list-type=" in self.path
        if self.command == "GET":
            every |= {"truncated", "no_xml"} if listing else {"truncated"}
        if not self.headers.get("Range", "bytes=0-").startswith("bytes=0-"):
            every.add("changed")  # the first range says which version the others must be of
        return frozenset(every)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        host = urllib.parse.urlsplit(self.server.state.upstream).netloc
        connection = http.client.HTTPConnection(host, timeout=_UPSTREAM_LIMIT_S)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():  # Host, too: it is signed
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            headers = [pair for pair in answer.getheaders() if pair[0].lower() not in _HOP_BY_HOP]
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def _give(
        self, fault: str | None, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        if fault == "lost_answer":
            self._hang_up()
            return
        if fault == "done_500":
            self._refuse("internal")
            return
        if fault == "changed" and status < 300:
            headers = [
                (name, '"0123456789abcdef0123456789abcdef"' if name.lower() == "etag" else value)
                for name, value in headers
            ]
        drips = self.server.state.dripping
        drips = drips is not None and drips in self.path.partition("?")[0]
        if drips and self.command == "GET" and status < 300:
            self._drip(status, headers, body)
        else:
            self._send(status, headers, body, truncated=fault == "truncated" and bool(body))

    def _drip(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.server.state.injected["drip"] += 1
        self._send(status, headers, b"")
        for byte in body:
            try:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            except OSError:
                break  # the client has had enough
            time.sleep(DRIP_S)
        self.close_connection = True

    def _refuse(self, fault: str) -> None:
        status, code, message = REFUSALS[fault]
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        headers = [("Content-Type", "application/xml")]
        if fault == "too_many":
            headers.append(("Retry-After", "0"))
        self._send(status, headers, text.encode())

    def _send(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, truncated: bool = False
    ) -> None:
        self.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            self.send_header(name, value)
        if "content-length" not in names and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if truncated else body)
        if truncated:
            self.wfile.flush()
            self._hang_up()


SECRET = "B000-s3cret"


@dataclass
class Webhook(WebServer):
    """A running webhook; what it answers may change at any time."""

    posted: list[Any] = field(default_factory=list)
    """The JSON of every request."""

    @property
    def secret_url(self) -> str:
        """Its address, which nobody else should know."""
        return self.url(f"services/T000/{SECRET}") + f"?token={SECRET}"


@contextlib.contextmanager
def webhook() -> Iterator[Webhook]:
    with serving(_FileHandler, Webhook) as hook:
        yield hook


class Killed(BaseException):
    """The process died."""


@dataclass
class Life:
    """A process that changes stores, until it dies."""

    left: float
    """So many changes it lives to make."""
    changes: int = 0
    killed: bool = False

    def mortal(self, change: Callable[..., T], guard: threading.Lock) -> Callable[..., T]:
        """Return `change` that raises, in every thread, once the process is dead."""

        def call(*args: Any, **options: Any) -> T:
            with guard:
                if self.changes >= self.left:
                    raise Killed
                self.changes += 1
                return change(*args, **options)

        return call


@contextlib.contextmanager
def life(changes: float = float("inf")) -> Iterator[Life]:
    """Let this process change stores so often; then it dies, and the context ends."""
    process, guard = Life(changes), threading.Lock()
    with contextlib.ExitStack() as patches:
        for name in ("write_atomic", "create", "swap", "remove"):
            mortal = process.mortal(getattr(filesystem, name), guard)
            patches.enter_context(mock.patch.object(filesystem, name, mortal))
        hook = threading.excepthook

        def say(args: threading.ExceptHookArgs) -> None:
            if not isinstance(args.exc_value, Killed):  # threads of the dead say nothing
                hook(args)

        patches.enter_context(mock.patch.object(threading, "excepthook", say))
        try:
            yield process
        except Killed:
            process.killed = True
