"""An S3 store that misbehaves: a proxy on this machine in front of any S3 server.

    with s3_server() as s3, faulty_store(s3.endpoint_url, {"slow_down": 0.2}, seed=1) as faulty:
        ... endpoint_url=faulty.endpoint_url

Requests and answers pass unchanged, signatures included, but for the faults. Which request meets
which fault is drawn from the seed and the number of the request.
"""

import contextlib
import http.client
import http.server
import random
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from corpus_asr.storage.stores.filesystem import StoreOptions

# A store on a bad night: one request in five is throttled, one in seven fails in another way.
BAD_NIGHT = {
    "slow_down": 0.15, "too_many": 0.05, "internal": 0.02, "reset": 0.02, "lost_answer": 0.02,
    "truncated": 0.03, "slow": 0.02, "expired": 0.01, "changed": 0.01, "no_xml": 0.01,
}  # fmt: skip

_REFUSALS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "too_many": (429, "TooManyRequests", "Too many requests."),
    "internal": (500, "InternalError", "We encountered an internal error."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "expect"}
DRIP_S = 0.25
_UPSTREAM_LIMIT_S = 300.0  # the machine of a test may be stopped for minutes


@dataclass
class FaultyStore:
    """A running proxy; change `rates` at any time."""

    endpoint_url: str
    upstream: str
    rates: dict[str, float]
    """By fault, the share of requests that meet it: one of `_REFUSALS`, or `reset` (before the
    request is done), `lost_answer` (after it is done), `truncated`, `slow`, `changed` (the ETag of
    a later range is another one), `no_xml` (of a listing)."""
    seed: int
    max_in_a_row: int | None = None
    """So often at most the same request fails; for tests that must end."""
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
    upstream: str,
    rates: Mapping[str, float],
    *,
    seed: int,
    max_in_a_row: int | None = None,
) -> Iterator[FaultyStore]:
    """Run the proxy while the context is open.

    Args:
        upstream: http://host:port of the real store.
        rates: see `FaultyStore`.
        seed: the same one, the same faults in the order of requests.
        max_in_a_row: see `FaultyStore`.
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    server.state = FaultyStore(
        f"http://127.0.0.1:{server.server_port}", upstream, dict(rates), seed, max_in_a_row
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    state: FaultyStore

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are what this is about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    server: _Server

    def do_GET(self) -> None:
        self._pass()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - names of the base class

    def handle_expect_100(self) -> bool:
        """Let the client send its body, at once in spite of the buffer."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def _pass(self) -> None:
        state = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = (self.command, self.path, self.headers.get("Range") or "")
        fault = state.draw(request, self._possible())
        if fault == "slow":
            time.sleep(state.slow_s)
        if fault == "reset":
            self._hang_up()
        elif fault in _REFUSALS:
            self._refuse(fault)
        elif fault == "no_xml":
            self._send(200, [("Content-Type", "application/xml")], b"<ListBucketResult><Cont")
        else:
            self._answer(fault, *self._ask(body))

    def _possible(self) -> frozenset[str]:
        """Return the faults that the request can meet."""
        every = {*_REFUSALS, "reset", "lost_answer", "slow"}
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

    def _answer(
        self, fault: str | None, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        if fault == "lost_answer":
            self._hang_up()
            return
        if fault == "changed" and status < 300:
            headers = [
                (name, '"0123456789abcdef0123456789abcdef"' if name.lower() == "etag" else value)
                for name, value in headers
            ]
        if self._drips() and status < 300:
            self._drip(status, headers, body)
        else:
            self._send(status, headers, body, truncated=fault == "truncated" and bool(body))

    def _drips(self) -> bool:
        drips = self.server.state.dripping
        return drips is not None and self.command == "GET" and drips in self.path.partition("?")[0]

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
        status, code, message = _REFUSALS[fault]
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        headers = [("Content-Type", "application/xml")]
        if fault == "too_many":
            headers.append(("Retry-After", "0"))
        self._send(status, headers, text.encode())

    def _send(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        truncated: bool = False,
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

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
