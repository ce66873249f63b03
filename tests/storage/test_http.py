"""What web servers do to reads and to messages: it costs a bounded time, and no address is told."""

import email.utils
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from corpus_asr.errors import FetchError
from corpus_asr.storage.stores import http
from corpus_asr.storage.stores.filesystem import StoreOptions, open_binary
from corpus_asr.storage.stores.host_allowlist import HostRules
from corpus_asr.storage.stores.http import post_json
from corpus_asr.storage.stores.store import (
    RangesUnsupportedError,
    RetryPolicy,
    asked_wait_s,
    with_retries,
)
from tests.support.stores import SECRET, Webhook, WebServer, webhook

SOON = RetryPolicy(attempts=3, first_wait_s=0.01, longest_wait_s=0.01, request_timeout_s=0.5)
HERE = ["127.0.0.1"]


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


def refused(url: str, *, allow_hosts: list[str] | None = None) -> FetchError:
    """Post in vain; neither the error nor what led to it tells the address."""
    with pytest.raises(FetchError) as caught:
        post_json(url, {"text": "done"}, allow_hosts=allow_hosts, policy=SOON)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error!r} {vars(error)}"
        error = None if error.__suppress_context__ else error.__context__
    return caught.value


def test_a_message_is_taken_also_when_a_server_cannot_at_first(hook: Webhook) -> None:
    hook.faults += ["503", "reset"]
    message = {"text": "Grüße \ud800", "night": [1, None]}
    post_json(hook.secret_url, message, allow_hosts=HERE, policy=SOON)
    assert hook.posted == [{"text": "Grüße ?", "night": [1, None]}] * 3


@pytest.mark.parametrize(
    ("answers", "asked", "message"),
    [
        (["404"], 1, "the server answered 404 Not Found"),
        (["403"], 1, "the server answered 403 Forbidden"),
        (["400"], 1, "the server answered 400 Bad Request"),
        (["500"] * 9, 3, "the server answered 500 Internal Server Error"),
        (["stall"] * 9, 3, "no answer within the time limit"),
        (["reset"] * 9, 3, "the connection failed (ServerDisconnectedError)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_a_server_does_instead_is_told(
    hook: Webhook, answers: list[str], asked: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    hook.faults += answers
    started = time.monotonic()
    with caplog.at_level(logging.DEBUG):
        error = refused(hook.secret_url, allow_hosts=HERE)
    assert str(error).startswith(f"telling the webhook at 127.0.0.1: {message}")
    assert len(hook.posted) == asked
    assert time.monotonic() - started < 10
    assert SECRET not in caplog.text


def test_a_redirect_is_not_followed(hook: Webhook) -> None:
    with webhook() as elsewhere:
        hook.faults.append(elsewhere.secret_url)
        error = refused(hook.secret_url, allow_hosts=HERE)
    assert "answered 307, a redirect, which is not followed" in str(error)
    assert elsewhere.posted == []


def test_a_secret_goes_over_http_only_where_that_is_allowed(hook: Webhook) -> None:
    for allow_hosts in (None, [], ["example.org"]):
        error = refused(hook.secret_url, allow_hosts=allow_hosts)
        assert error.kind == "refused_host"
        assert "by http, expected https or a host in source.allow_hosts" in str(error)
    error = refused(hook.secret_url.replace("http:", "https:"))
    assert "no trusted connection" in str(error) or "connection failed" in str(error)
    assert hook.posted == []


def test_what_is_no_address_is_told() -> None:
    for url in ("", SECRET, f"ftp://host/{SECRET}", f"https:///{SECRET}", f"https://[{SECRET}"):
        assert "found no valid https URL" in str(refused(url)), url


QUICK = RetryPolicy(attempts=5, first_wait_s=0.001, longest_wait_s=0.01, request_timeout_s=0.3)


def test_the_wait_that_is_asked_for_is_a_number_or_a_date() -> None:
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 57 < asked_wait_s(in_a_minute) <= 60
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    waits: list[tuple[str | None, float]] = [("7", 7), (past, 0), ("soon", 0), ("-3", 0), ("", 0)]
    endless = (past.replace("2015", "9" * 20), f"21 Oct 2015 07:28:00 +{'9' * 20}")
    for text, wait_s in [*waits, (None, 0), *((each, 0) for each in endless)]:
        assert asked_wait_s(text) == wait_s


@pytest.fixture
def raw() -> Iterator[tuple[str, list[bytes], list[float]]]:
    """Serve raw answers, byte by byte where they start with `drip`; note when."""
    answers: list[bytes] = []
    times: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, answers, times), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.mp3", answers, times


def _serve(server: socket.socket, answers: list[bytes], times: list[float]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, answers, times), daemon=True).start()


def _answer(connection: socket.socket, answers: list[bytes], times: list[float]) -> None:
    with connection:
        connection.recv(65536)
        times.append(time.monotonic())
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        dripping = answer.startswith(b"drip")
        try:
            for byte in answer.removeprefix(b"drip") if dripping else (answer,):
                connection.sendall(bytes([byte]) if isinstance(byte, int) else byte)
                time.sleep(0.05 if dripping else 0)
        except OSError:
            return  # the client had enough


GOOD = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-3/4\r\nContent-Length: 4\r\n\r\nabcd"
HOSTILE = [
    b"HTTP/1.1 500 \xff\xfe\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 404 \xff\xfe\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 X\r\nLocation: http://\xff\xfe/x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 X\r\nLocation: /\xed\xa0\x80\r\nContent-Length: 0\r\n\r\n",
    b"\xff\xfe\x00 garbage\r\n\r\n",
    b"drip" + GOOD * 9,
]


def read(url: str, policy: RetryPolicy = QUICK) -> bytes:
    store = http.WebStore(policy, HostRules(own_hosts=("127.0.0.1",)))
    return with_retries(
        "reading", url, lambda: store.read_range(url, 0, 4)[0], policy=policy, store=store
    )


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_failures_that_any_table_can_hold(
    raw: tuple[str, list[bytes], list[float]], answer: bytes
) -> None:
    url, answers, _ = raw
    answers.append(answer)
    with pytest.raises(FetchError) as caught:
        read(url)
    assert str(caught.value).encode()


def test_a_size_that_no_column_can_hold_is_not_known(
    raw: tuple[str, list[bytes], list[float]],
) -> None:
    url, answers, _ = raw
    answers.append(GOOD.replace(b"0-3/4", b"0-3/99999999999999999999"))
    with pytest.raises(RangesUnsupportedError):  # as where a server names none
        read(url)


def test_no_request_comes_sooner_than_a_host_asks_for(
    raw: tuple[str, list[bytes], list[float]],
) -> None:
    url, answers, times = raw
    throttled = b"HTTP/1.1 429 Slow\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n"
    answers += [throttled % 1, GOOD]
    assert read(url) == b"abcd"
    assert times[1] - times[0] >= 1
    answers[:] = [throttled % 3600]
    with pytest.raises(FetchError, match="429") as caught:
        read(url)
    assert caught.value.retryable
    assert len(times) == 3


def test_a_server_that_ends_connections_is_asked_for_the_rest(web: WebServer) -> None:
    """Before: ten times the same bytes, and a failure."""
    web.files["a.mp3"] = bytes(range(256)) * 400
    web.faults.extend(["short"] * 6)
    options = StoreOptions(policy=QUICK, hosts=HostRules(own_hosts=("127.0.0.1",)))
    with open_binary(web.url("a.mp3"), options) as file:
        assert file.read() == web.files["a.mp3"]
    starts = [int(span[len("bytes=") :].partition("-")[0]) for _, _, span in web.requests if span]
    assert starts == sorted(set(starts))
    assert len(starts) == 7


def test_redirects_that_want_cookies_and_denials_say_what_is_not_sent(
    raw: tuple[str, list[bytes], list[float]],
) -> None:
    url, answers, _ = raw
    answers.append(b"HTTP/1.1 307 X\r\nLocation: /a.mp3\r\nSet-Cookie: a=b\r\n"
                   b"Content-Length: 0\r\n\r\n")  # fmt: skip
    with pytest.raises(FetchError, match=r"10 redirects, which set cookies; download it with ano"):
        read(url)
    answers[:] = [b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n"]
    with pytest.raises(FetchError, match="cookies or a browser's User-Agent are not") as caught:
        read(url)
    assert caught.value.kind == "access_denied"
