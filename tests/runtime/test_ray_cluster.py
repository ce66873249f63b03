import ipaddress
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import services
from ray._private.utils import check_version_info

from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.runtime import ray_cluster
from corpus_asr.runtime.commit import Tally
from corpus_asr.runtime.coordinator import start_coordinator
from corpus_asr.runtime.ray_cluster import (
    Cluster,
    check_reachable,
    connected,
    other_versions,
    unreachable,
)
from corpus_asr.runtime.resources import MIN_LOGICAL_CPUS, local_machine
from tests.support.cluster import start_once
from tests.support.stores import web_server

pytestmark = pytest.mark.long


def test_this_machine_gets_enough_logical_cpus_not_to_wait_for_itself():
    assert local_machine().cpus >= MIN_LOGICAL_CPUS
    assert local_machine().cores >= 1


@pytest.mark.ray
def test_a_ray_that_is_there_is_used_and_left_running(ray_session: Cluster):
    # Workers do not give way to the processes of Ray.
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
    (node,) = ray_session.nodes
    assert node.cpus == 4
    assert node.cores <= local_machine().cores
    assert ray_session.store_bytes > 0
    with connected("auto", store_bytes=1) as cluster:
        assert cluster == ray_session
        coordinator = start_coordinator()
        ray.get(coordinator.add.remote(Tally(parts=1)))
        assert ray.get(coordinator.look.remote("")).tally == Tally(parts=1)
        # One that died is replaced by an empty one, also long after it was made.
        time.sleep(6)
        ray.kill(coordinator, no_restart=False)
        deadline = time.monotonic() + 60
        while ray.get(coordinator.look.remote(""), timeout=60).tally != Tally():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert ray.is_initialized()


LISTENS = "0A"  # in the kernel's tables of sockets, whose numbers are hexadecimal


def listening() -> dict[str, str]:
    """Where processes of this machine listen, by inode of the socket."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS:
                found[fields[9]] = fields[1].partition(":")[0]
    return found


def sockets(process: psutil.Process) -> set[str]:
    inodes = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return inodes


def address_of(words: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address as the kernel writes it: words of 32 bits, each in the machine's order."""
    data = bytes.fromhex(words)
    packed = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    address = ipaddress.ip_address(packed)
    return getattr(address, "ipv4_mapped", None) or address


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the tables of Linux")
def test_a_ray_started_here_listens_on_loopback_alone(ray_session: Cluster):
    ray.get(ray.remote(lambda: None).remote())  # so that there is a worker
    mine = psutil.Process()
    listeners = listening()
    found = {
        (process.name(), address_of(listeners[inode]))
        for process in (mine, *mine.children(recursive=True))
        for inode in sockets(process) & set(listeners)
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert any(name.startswith("ray::") for name, _ in found)
    beyond = {(name, address) for name, address in found if not address.is_loopback}
    assert not beyond


def test_a_ray_without_the_function_that_is_replaced_is_said_to_listen_anywhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    started: dict[str, object] = {}
    monkeypatch.delattr(services, "resolve_ip_for_localhost")
    monkeypatch.setattr(ray, "init", lambda **options: started.update(options))
    ray_cluster.start_ray(cpus=1, gpus=0, store_bytes=1)
    assert started["_node_ip_address"] == "127.0.0.1"
    assert "ray_may_listen_beyond_loopback" in caplog.text


def test_a_machine_that_is_too_busy_to_start_ray_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    slow = [Exception("The current node timed out during startup. This could happen because ...")]
    tries: list[object] = []

    def init(**options: object) -> None:
        tries.append(options)
        if len(tries) <= len(slow):
            raise slow[len(tries) - 1]

    monkeypatch.setattr(ray, "init", init)
    ray_cluster.start_ray(cpus=1, gpus=0, store_bytes=1)
    assert len(tries) == 2
    tries.clear()
    slow *= 3
    with pytest.raises(EngineError, match=r"timed out during startup.*too busy.*--local"):
        ray_cluster.start_ray(cpus=1, gpus=0, store_bytes=1)
    assert len(tries) == 3
    slow[:] = [ValueError("another")]
    tries.clear()
    with pytest.raises(ValueError, match="another"):
        ray_cluster.start_ray(cpus=1, gpus=0, store_bytes=1)


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


@pytest.fixture
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


VERSIONS_OF_CLUSTER = {"ray_version": "2.58.1", "python_version": "3.12.4"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_cluster_of_other_versions_is_refused_with_both(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        try:
            check_version_info(VERSIONS_OF_CLUSTER, "node 10.0.0.2")  # what Ray asks, and says
        except RuntimeError as error:
            if not wrapped:
                raise
            raise ConnectionError("Failed to connect to Ray cluster") from error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    here = f"Ray {ray.__version__} and Python {platform.python_version()}"
    words = f"found Ray 2.58.1 and Python 3.12.4 there, expected {here}, as here"
    with pytest.raises(ConfigError, match=words) as caught, connected("auto", store_bytes=1):
        pass
    assert "an environment with Ray 2.58.1 and Python 3.12.4" in str(caught.value)
    assert "=minor" not in str(caught.value)


def test_a_python_of_another_patch_alone_can_be_let_in() -> None:
    major, minor, patch = platform.python_version().split(".")
    metadata = {
        "ray_version": ray.__version__,
        "python_version": f"{major}.{minor}.{int(patch) + 1}",
    }
    with pytest.raises(RuntimeError) as caught:
        check_version_info(metadata, "node 10.0.0.2")
    refusal = other_versions("10.0.0.1:6379", caught.value)
    assert "set RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL=minor" in str(refusal)
    check_version_info(metadata, "node 10.0.0.2", python_version_match_level="minor")
    assert other_versions("auto", RuntimeError("something else")) is None


def test_messages_name_what_gave_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    refused = ConnectionError("refused")
    assert "(RAY_ADDRESS): refused; start" in str(unreachable("10.0.0.1:6379", refused))
    assert "(cluster.address): refused; start" in str(unreachable("10.0.0.2:6379", refused))


@pytest.mark.usefixtures("home")
def test_a_refusal_that_only_ray_sees_is_named_too() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    error.__cause__ = RuntimeError("... RPC error: InvalidAuthToken: Authentication token is ...")
    assert "requires its authentication token" in str(unreachable("auto", error))
    assert "Failed to connect" in str(unreachable("auto", ConnectionError("Failed to connect")))


@pytest.mark.usefixtures("home")
def test_a_ray_that_is_too_busy_to_answer_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "REACH_TIMEOUT_S", 0.2)
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
@pytest.mark.usefixtures("ray_with_token", "home")
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
