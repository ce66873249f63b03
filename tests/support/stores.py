"""Stores for tests, on this machine only: an S3 server, and a web server that can misbehave.

    with s3_server() as s3, monkeypatch_environment(s3.environment):
        s3.make_bucket("corpus")

Both are real servers spoken to over real sockets; neither needs a network.
"""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from corpus_asr.storage.stores.filesystem import StoreOptions

START_LIMIT_S = 60.0


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
        """Create a bucket and return its address."""
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


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run an S3 server (moto) in a process of its own while the context is open."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, process)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables while the context is open."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start (exit code {process.poll()})")


@dataclass
class WebServer:
    """A running web server; change `files`, `faults` and the switches at any time."""

    endpoint_url: str
    files: dict[str, bytes] = field(default_factory=dict)
    """Bodies by decoded path without the leading slash."""
    etags: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    """Where requests for a decoded path are sent to."""
    faults: deque[str] = field(default_factory=deque)
    """Taken one by one by GET requests: a status such as `503`, `reset`, `short` or `stall`."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path with query, and Range of every request."""
    supports_ranges: bool = True
    refused_methods: set[str] = field(default_factory=set)
    stall_s: float = 3.0

    def url(self, path: str) -> str:
        """Return the address of a file, quoted as a browser would."""
        return f"{self.endpoint_url}/{urllib.parse.quote(path)}"


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    """Serve bytes from memory, with ranges, while the context is open."""
    server = _QuietServer(("127.0.0.1", 0), _Handler)
    state = WebServer(f"http://127.0.0.1:{server.server_port}")
    server.state = state
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    state: WebServer

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are what the tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # headers and body in one packet: else each answer waits 40 ms for an ACK
    server: _QuietServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def _answer(self, *, with_body: bool) -> None:
        state, asked = self.server.state, self.headers.get("Range")
        state.requests.append((self.command, self.path, asked))
        fault = state.faults.popleft() if with_body and state.faults else None
        path = urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        body = state.files.get(path)
        if path in state.redirects:
            self._redirect(state.redirects[path])
            return
        if fault == "stall":
            time.sleep(state.stall_s)
        if fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault is not None and fault.isdecimal():
            self._status(int(fault))
        elif self.command in state.refused_methods:
            self._status(403)
        elif body is None:
            self._status(404)
        else:
            self._send(body, path, asked, with_body=with_body, short=fault == "short")

    def _redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _status(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()

    def _send(
        self, body: bytes, path: str, asked: str | None, *, with_body: bool, short: bool
    ) -> None:
        start, end, partial = 0, len(body), False
        if asked is not None and self.server.state.supports_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, partial = int(first), min(int(last) + 1, len(body)), True
        if partial and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        self.send_header("Content-Length", str(end - start))
        etag = self.server.state.etags.get(path)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body[start : (start + end) // 2 if short else end])
        if short:
            self.close_connection = True
