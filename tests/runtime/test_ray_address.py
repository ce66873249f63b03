"""What keeps a process from a Ray is named within seconds, before Ray itself tries for long."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ray

from corpus_asr.errors import ConfigError
from corpus_asr.runtime import ray_address
from corpus_asr.runtime.ray_address import check_reachable, unreachable
from corpus_asr.runtime.ray_cluster import connected
from tests.support.cluster import start_once
from tests.support.stores import web_server

SETTINGS = bytes.fromhex("000000040000000000")
# Of a Ray 2.60 that was asked without a token, and of one that was asked with its own.
REFUSAL = (
    b"\0\0\x7d\x01\x05\0\0\0\x01\x88@\x0ccontent-type\x10application/grpc\0\x0bgrpc-status\x0216"
    b"\0\x0cgrpc-message>InvalidAuthToken: Authentication token is missing or incorrect"
)
WELCOME = b"\0\0\x0f\x01\x05\0\0\0\x01@\x0bgrpc-status\x010"


@contextmanager
def answering(token: str | None) -> Iterator[tuple[str, list[bytes]]]:
    """A port that answers like a Ray of such a token, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(ConnectionError):  # of who asks nothing
                connection.recv(4096)
                connection.sendall(SETTINGS)
                asked.append(connection.recv(4096))
                right = token is None or f"Bearer {token}".encode() in asked[0]
                connection.sendall(WELCOME if right else REFUSAL)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", asked
        thread.join(timeout=10)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def ray_with_token() -> None:
    """Of the module, so that it starts before its variables are taken away from a test."""
    start_once()


def put_token(home: Path, token: str) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(f"{token}\n")


@pytest.mark.parametrize(
    ("mode", "token", "words"),
    [
        (None, "right", r"without RAY_AUTH_MODE and sends none; set RAY_AUTH_MODE=token on every"),
        ("disabled", "right", r"RAY_AUTH_MODE=disabled and sends none; set RAY_AUTH_MODE=token"),
        (None, None, r"sends none; .*copy the head's ~/\.ray/auth_token to .*/\.ray/auth_token"),
        ("token", "wrong", r"the one in .*/\.ray/auth_token is another; copy the head's"),
    ],
)
def test_a_token_on_one_side_only_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, token: str | None, words: str
) -> None:
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token is not None:
        put_token(home, token)
    with answering("right") as (address, _), pytest.raises(ConfigError, match=words) as caught:
        check_reachable(address)
    assert "requires its authentication token" in str(caught.value)
    assert "right" not in str(caught.value)  # no token is shown


def test_the_token_that_ray_would_send_is_sent_and_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "t" * 300  # beyond what one byte counts
    put_token(home, long)
    with answering(None) as (address, asked):
        check_reachable(address)
    assert b"Bearer" not in asked[0]  # nobody is shown a token unasked
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with answering(long) as (address, _):
        check_reachable(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "first")
    with answering("first") as (address, _):
        check_reachable(address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "none"))
    words = r"is token here, and there is none in .*/none; copy"
    with answering(long) as (address, _), pytest.raises(ConfigError, match=words):
        check_reachable(address)


def test_an_address_without_a_ray_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with web_server() as web:
        for address, messages in (
            ("127.0.0.1:1", r"cluster\.address"),
            ("nonsense:1", r"cluster\.address"),
            (web.endpoint_url.removeprefix("http://"), r"no Ray.*usually 6379"),
        ):
            with pytest.raises(ConfigError, match=messages), connected(address, store_bytes=1):
                pass


def test_a_refusal_that_only_ray_sees_is_named_too() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    error.__cause__ = RuntimeError("... RPC error: InvalidAuthToken: Authentication token is ...")
    assert "requires its authentication token" in str(unreachable("auto", error))
    assert "Failed to connect" in str(unreachable("auto", ConnectionError("Failed to connect")))


def test_a_ray_that_is_too_busy_to_answer_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "REACH_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            connection, _ = server.accept()
            connection.sendall(SETTINGS)
            held.append(connection)

        threading.Thread(target=serve, daemon=True).start()
        check_reachable(f"127.0.0.1:{server.getsockname()[1]}")
        held[0].close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_with_token")
def test_a_ray_with_a_token_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The Ray of the tests was started by this process, as that of a local run is: with a token.
    address = ray.get_runtime_context().gcs_address
    begun_s = time.monotonic()
    with pytest.raises(ConfigError, match="without RAY_AUTH_MODE and sends none"):
        check_reachable(address)
    assert time.monotonic() - begun_s < 5
    monkeypatch.undo()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    check_reachable(address)
