"""A webhook on this machine that takes what is posted to it, or does anything else.

with webhook() as hook:
    hook.answers.append("503")
"""

import contextlib
import http.server
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SECRET = "B000-s3cret"


@dataclass
class Webhook:
    """A running webhook; what it answers may change at any time."""

    port: int
    answers: deque[str] = field(default_factory=deque)
    """Taken one by one: a status such as `503`, an address to redirect to, `hang` or `reset`."""
    posted: list[Any] = field(default_factory=list)
    """The JSON of every request."""
    hang_s: float = 3.0

    @property
    def url(self) -> str:
        """Its address, which nobody else should know."""
        return f"http://127.0.0.1:{self.port}/services/T000/{SECRET}?token={SECRET}"


@contextlib.contextmanager
def webhook() -> Iterator[Webhook]:
    """Listen while the context is open."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hook = Webhook(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hook: Webhook

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are what the tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        hook = self.server.hook
        assert self.headers["Content-Type"] == "application/json; charset=utf-8"
        assert SECRET in self.path
        hook.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = hook.answers.popleft() if hook.answers else "200"
        if answer == "hang":
            time.sleep(hook.hang_s)
            return
        if answer == "reset":
            self.close_connection = True
            return
        self.send_response(int(answer) if answer.isdecimal() else 307)
        if not answer.isdecimal():
            self.send_header("Location", answer)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""
