"""Whether a Ray listens at an address and accepts this process, asked within seconds.

Ray itself tries for up to a minute and prints its own log meanwhile. This asks its port one
question in gRPC, over as much of HTTP/2 as that takes, and imports no ray.

Source: RFC 9113 (frames), RFC 7541 (headers), and the protocol of gRPC over HTTP/2.
"""

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from corpus_asr.errors import ConfigError

REACH_TIMEOUT_S = 10.0
_ANYWHERE = ("local", "auto")  # no address yet: Ray looks for one, or starts
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4  # types of frames
_END_STREAM, _END_HEADERS = 1, 4
_NO_FLAGS, _CONNECTION, _STREAM = 0, 0, 1
_FRAME_HEADER_BYTES = 9
_EMPTY_MESSAGE = bytes(5)  # of gRPC: a byte for compression, four for the length
# Any method would do: whether the token is right is decided before the call.
_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_STATUS, _REFUSED = b"grpc-status", b"InvalidAuthToken"  # gRPC's C library sends plain text
_MAX_ANSWER_BYTES = 65_536
TOKEN_MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


class Token(NamedTuple):
    """What this process shows to a Ray, and where it is from."""

    value: str | None
    origin: str

    @classmethod
    def of(cls, environment: Mapping[str, str], home: Path) -> "Token":
        """Return the token that Ray would find; its order is the documented one."""
        if environment.get(TOKEN):
            return cls(environment[TOKEN].strip(), TOKEN)
        path = Path(environment.get(TOKEN_PATH) or home / ".ray" / "auth_token")
        try:
            return cls(path.read_text(encoding="utf-8").strip() or None, str(path))
        except (OSError, UnicodeDecodeError):
            return cls(None, str(path))


def check_reachable(address: str) -> None:
    """Fail at once where no Ray listens, or where it does not accept this process.

    Raises:
        ConfigError: nothing answers, what answers is no Ray, or authentication fails.
    """
    if address in _ANYWHERE:
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection(
            (host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S
        ) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                _ask(connection, address)
    except (OSError, ValueError) as error:
        raise unreachable(address, error) from error


def unreachable(address: str, error: Exception) -> ConfigError:
    """Return the error of an address that a job cannot use; of a refusal, with its cause."""
    seen: BaseException | None = error
    while seen is not None:
        if _REFUSED.decode() in str(seen):
            return refused(address)
        seen = seen.__cause__
    return ConfigError(
        f"connecting to Ray at {address!r} (cluster.address): {error}; start the cluster, correct "
        f"cluster.address, or use `local`"
    )


def _ask(connection: socket.socket, address: str) -> None:
    in_token_mode = os.environ.get(TOKEN_MODE, "").lower() == "token"
    token = Token.of(os.environ, Path.home())
    if in_token_mode and token.value is None:
        raise refused(address)
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": _METHOD,
        ":authority": address,
        "te": "trailers",  # codespell:ignore te
        "content-type": "application/grpc",
    }
    if in_token_mode:
        headers["authorization"] = f"Bearer {token.value}"
    connection.sendall(_PREFACE + _frame(_SETTINGS, _NO_FLAGS, _CONNECTION))
    # A server begins with its settings, Ray's port does and its dashboard does not.
    answer = connection.recv(_MAX_ANSWER_BYTES)
    if answer[3:4] != bytes([_SETTINGS]):
        raise ConnectionError(
            "what answers there is no Ray, expected the port that `ray start` names, usually 6379 "
            "(8265 is the dashboard's, 10001 Ray Client's)"
        )
    block = b"".join(_field(name, value) for name, value in headers.items())
    connection.sendall(
        _frame(_HEADERS, _END_HEADERS, _STREAM, block)
        + _frame(_DATA, _END_STREAM, _STREAM, _EMPTY_MESSAGE)
    )
    # A Ray that is too busy to answer in time is one all the same.
    with contextlib.suppress(TimeoutError):
        while _STATUS not in answer and len(answer) < _MAX_ANSWER_BYTES:
            received = connection.recv(_MAX_ANSWER_BYTES)
            if not received:
                break
            answer += received
    if _REFUSED in answer:
        raise refused(address)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return b"".join((len(payload).to_bytes(3), bytes([kind, flags]), stream.to_bytes(4), payload))


def _field(name: str, value: str) -> bytes:
    # A literal that enters no table, without Huffman's code.
    return b"\0" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode()
    number, most = len(data), 127  # a prefix of seven bits
    if number < most:
        return bytes([number]) + data
    length, number = bytearray([most]), number - most
    while number >= 128:
        length.append(number % 128 + 128)
        number //= 128
    return bytes([*length, number]) + data


def refused(address: str) -> ConfigError:
    """Return the error of a Ray whose authentication token this process does not send."""
    token, mode = Token.of(os.environ, Path.home()), os.environ.get(TOKEN_MODE)
    off = "start all of its nodes with RAY_AUTH_MODE=disabled"
    if (mode or "").lower() != "token":
        here = f"{TOKEN_MODE}={mode}" if mode else f"without {TOKEN_MODE}"
        found = f"this process runs {here} and sends none"
        same = "" if token.value else f", copy the head's ~/.ray/auth_token to {token.origin}"
        advice = f"set {TOKEN_MODE}=token on every node and here{same}, or {off}"
    elif token.value is None:
        found = f"{TOKEN_MODE} is token here, and there is none in {token.origin}"
        advice = f"copy the head's ~/.ray/auth_token to {token.origin}, or {off}"
    else:
        found = f"the one in {token.origin} is another"
        advice = f"copy the head's ~/.ray/auth_token to each node, or {off}"
    return ConfigError(
        f"connecting to Ray at {address!r} (cluster.address): the cluster requires its "
        f"authentication token, and {found}; {advice} (docs/clusters.md)"
    )
