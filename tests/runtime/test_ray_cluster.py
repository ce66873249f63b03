import ipaddress
import os
import platform
import socket
import threading

import psutil
import pytest
import ray
from ray._private import services
from ray._private.node import Node
from ray._private.utils import check_version_info
from ray.exceptions import AuthenticationError

from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.runtime import ray_cluster
from corpus_asr.runtime.ray_cluster import (
    Cluster,
    connected,
    other_versions,
)
from corpus_asr.runtime.resources import MIN_LOGICAL_CPUS, local_machine

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
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_ray_started_here_listens_on_loopback_alone(ray_session: Cluster):
    ray.get(ray.remote(lambda: None).remote())  # so that there is a worker
    mine = psutil.Process()
    found = {
        (process.name(), ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:")))
        for process in (mine, *mine.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert any(name.startswith("ray::") for name, _ in found)
    assert all(address.is_loopback for _, address in found), found


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
    with pytest.raises(EngineError, match=r"timed out during startup.*less busy.*--local"):
        ray_cluster.start_ray(cpus=1, gpus=0, store_bytes=1)
    assert len(tries) == 2
    slow[:] = [ValueError("another")]
    tries.clear()
    with pytest.raises(ValueError, match="another"):
        ray_cluster.start_ray(cpus=1, gpus=0, store_bytes=1)


class _StartingNode(Node):
    """A node of which one process has ended, or none."""

    def __init__(self, dead: list[object]) -> None:
        self._dead = dead

    def dead_processes(self) -> list[object]:
        return self._dead

    def look_up(self) -> object:
        """Ask for its entry, as Ray does while it starts."""
        return services.get_node("address", "node")


def test_a_ray_that_starts_slowly_is_awaited_as_long_as_it_lives(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    num_calls = 0

    def get_node(*_: object) -> str:
        nonlocal num_calls
        num_calls += 1
        if num_calls < 5:
            raise RuntimeError("not registered")
        return "registered"

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(ray_cluster, "_START_POLL_S", 0)
    monkeypatch.setattr(ray_cluster, "_START_NOTICE_S", -1)
    with ray_cluster._patient_start():
        assert _StartingNode([]).look_up() == "registered"
        assert caplog.text.count("ray_starts_slowly") == 1
        num_calls = 0
        with pytest.raises(RuntimeError, match="not registered"):
            _StartingNode(["raylet"]).look_up()
        assert num_calls == 1
    assert services.get_node is get_node


@pytest.mark.parametrize(
    ("mode", "found"), [("disabled", "RAY_AUTH_MODE=disabled"), (None, "no RAY_AUTH_MODE")]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_refused_token_is_named(
    wrapped: bool, mode: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        if not wrapped:
            raise AuthenticationError("token")
        raise ConnectionError("no cluster") from RuntimeError("RPC error: InvalidAuthToken: ...")

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    words = (
        f"found {found}, expected the cluster's authentication token; .* set RAY_AUTH_MODE=token"
    )
    with pytest.raises(ConfigError, match=words), connected("auto", store_bytes=1):
        pass


def test_an_address_without_a_ray_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "nonsense:1", "127.0.0.1:port"):
        with (
            pytest.raises(ConfigError, match=r"RAY_ADDRESS"),
            connected(address, store_bytes=1),
        ):
            pass


def test_a_port_that_is_no_rays_is_refused_in_time(monkeypatch: pytest.MonkeyPatch):
    silent = threading.Event()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: silent.wait())  # as Ray does, for minutes
    monkeypatch.setattr(ray_cluster, "JOIN_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        words = rf"{address}' \(RAY_ADDRESS\): found no response of Ray .*usually 6379"
        with pytest.raises(ConfigError, match=words), connected(address, store_bytes=1):
            pass
    silent.set()


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
    words = f"found Ray 2.58.1 and Python 3.12.4, expected {here};"
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
