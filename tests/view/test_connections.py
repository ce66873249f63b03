"""Connections of strangers: whoever reaches the port, without the token."""

import gzip
import logging
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from urllib.parse import urlsplit

import pytest

import corpus_asr.view.connections as connections
import corpus_asr.view.server as view_server
from corpus_asr.view.server import ViewServer

LIMIT_S = 0.5
HALF_HEAD = b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\nA: "


def address(server: ViewServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return str(parts.hostname), int(parts.port or 0)


def head(server: ViewServer, path: str, *, method: str = "GET", more: str = "") -> bytes:
    prefix = server.access.prefix
    return f"{method} {prefix}/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\n".encode()


def answer(connection: socket.socket, request: bytes) -> bytes:
    """Return the status line and what came with it."""
    connection.sendall(request)
    return connection.recv(65_536)


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(65_536))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


@contextmanager
def opened(server: ViewServer, number: int, first: bytes) -> Iterator[list[socket.socket]]:
    """Open connections, each of which sends something."""
    with ExitStack() as stack:
        sockets = []
        for _ in range(number):
            sockets.append(stack.enter_context(socket.create_connection(address(server), 10)))
            sockets[-1].sendall(first)
        yield sockets


@pytest.mark.parametrize("first", [HALF_HEAD, b""], ids=["half a head", "nothing"])
def test_many_strangers_lock_nobody_out(
    server: ViewServer, caplog: pytest.LogCaptureFixture, first: bytes
) -> None:
    with closing(socket.create_connection(address(server), 10)) as earlier:
        assert answer(earlier, head(server, "style.css")).startswith(b"HTTP/1.1 200 ")
        with opened(server, 3 * connections.MOST_STRANGERS, first) as strangers:
            with closing(socket.create_connection(address(server), 10)) as later:
                assert answer(later, head(server, "style.css")).startswith(b"HTTP/1.1 200 ")
            assert sum(map(is_open, strangers)) <= connections.MOST_STRANGERS
        # Who has shown the token stays connected.
        assert is_open(earlier)
    [note] = notes(caplog)
    assert "event=connections_refused count=1 " in note


def test_strangers_have_no_more_than_a_time(
    server: ViewServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", LIMIT_S)
    whole = b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    unread = b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n"
    with ExitStack() as stack:
        with_token = head(server, "style.css")
        strangers = [
            stack.enter_context(opened(server, 1, first))[0]
            for first in (b"", HALF_HEAD, with_token[:-2], whole, unread)
        ]
        owner = stack.enter_context(closing(socket.create_connection(address(server), 10)))
        assert answer(owner, with_token).startswith(b"HTTP/1.1 200 ")
        time.sleep(3 * LIMIT_S)
        for stranger in strangers:
            is_open(stranger)  # reads its answer, if there is one
            assert not is_open(stranger)
        assert is_open(owner)
    assert not notes(caplog)  # browsers open connections that they do not need


def test_a_body_that_does_not_come_is_refused(
    server: ViewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_server, "_BODY_S", LIMIT_S)
    more = "Content-Type: application/json\r\nX-Corpus-ASR: 1\r\nContent-Length: 50\r\n"
    request = head(server, "api/correct", method="POST", more=more)
    with closing(socket.create_connection(address(server), 10)) as connection:
        refused = answer(connection, request + b'{"id": ')
    assert refused.startswith(b"HTTP/1.1 408 ")
    assert b"expected the whole request within 0.5 s" in refused


def test_what_is_no_http_is_one_line_of_the_log(
    server: ViewServer, caplog: pytest.LogCaptureFixture
) -> None:
    start = b"POST /x HTTP/1.1\r\nHost: a\r\n"
    for nonsense in (
        b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", start + b"Content-Length: -5\r\n\r\n",
        start + b"A B: c\r\n\r\n", start + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        start + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
    ):  # fmt: skip
        with closing(socket.create_connection(address(server), 10)) as connection:
            assert answer(connection, nonsense).split()[1] in (b"400", b"403")
    [note] = notes(caplog)
    assert "event=connections_refused count=1 last='found no HTTP request" in note
    more = "Content-Type: application/json\r\nX-Corpus-ASR: 1\r\nContent-Encoding: gzip\r\n"
    for data, status in ((b"abcde", b"400"), (gzip.compress(b'{"id":"\\ud800"}'), b"400")):
        length = f"Content-Length: {len(data)}\r\n"
        request = head(server, "api/correct", method="POST", more=more + length)
        with closing(socket.create_connection(address(server), 10)) as connection:
            assert answer(connection, request + data).split()[1] == status
    assert len(notes(caplog)) == 1


@pytest.mark.parametrize("has_token", [True, False])
def test_who_leaves_within_a_body_is_no_error(
    server: ViewServer, caplog: pytest.LogCaptureFixture, has_token: bool
) -> None:
    more = "Content-Type: application/json\r\nX-Corpus-ASR: 1\r\nContent-Length: 50\r\n"
    request = head(server, "api/correct", method="POST", more=more)
    if not has_token:
        request = request.replace(server.access.token.encode(), b"x")
    for _ in range(3):
        with opened(server, 1, request + b'{"id": '):
            time.sleep(0.1)
    with opened(server, 1, b"") as (last,):
        assert answer(last, head(server, "style.css"))
    assert not notes(caplog)


def test_without_free_files_the_oldest_strangers_leave(
    server: ViewServer, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        owner = stack.enter_context(closing(socket.create_connection(address(server), 10)))
        assert answer(owner, head(server, "style.css"))  # read once, then kept
        strangers = [stack.enter_context(closing(socket.socket())) for _ in range(30)]
        free = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
        later = stack.enter_context(closing(socket.socket()))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (later.fileno() + 1, hard))
        with suppress(OSError):
            while True:
                stack.callback(os.close, os.dup(later.fileno()))
        for descriptor in free:
            os.close(descriptor)
        for stranger in strangers:
            stranger.connect(address(server))
            stranger.sendall(HALF_HEAD)
        later.settimeout(10)
        later.connect(address(server))
        assert answer(later, head(server, "style.css")).startswith(b"HTTP/1.1 200 ")
    [note] = notes(caplog)
    assert "last='cannot accept a connection (Too many open files)'" in note
