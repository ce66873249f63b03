"""A Ray to work on, an existing one or one started here."""

import atexit
import contextlib
import inspect
import logging
import os
import re
import select
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

# Read when ray is imported. Without it `uv run` makes Ray upload the working directory and build
# an environment of its own on every machine.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Workers without GPUs keep CUDA_VISIBLE_DEVICES as it is: what Ray will do by default anyway.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# By default (15) workers give way to Ray's own processes, each of which wakes a hundred times a
# second; threads of a model wait for the one that did. Counts for a Ray that is started here.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray._private import services
from ray._private.node import Node
from ray.exceptions import AuthenticationError

from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.logs import event
from corpus_asr.runtime.resources import RAY_ADDRESS, NodeShape, local_machine, this_machine

_RAY_STARTS = 2
_TOO_SLOW = "timed out during startup"
_START_NOTICE_S = 10.0
_START_LIMIT_S = 600.0  # a start took 40 s at a load of 20 on two cores
_START_POLL_S = 0.5

LOOPBACK = "127.0.0.1"
_ASK_S = 1.0
_GCS_PATIENCE_S = 45.0
REACH_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 60.0
_ANYWHERE = ("local", "auto")  # no address yet: Ray looks for one, or starts
TOKEN_MODE, _REFUSED = "RAY_AUTH_MODE", "InvalidAuthToken"
_CREDENTIALS = "3i"  # process, user, group
_RESOLVE = "resolve_ip_for_localhost"
_QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The machines of the Ray that is connected."""

    nodes: tuple[NodeShape, ...]
    store_bytes: int
    joined: str | None = None
    """Name of a cluster that was already running; None if it was started for this run."""


@contextlib.contextmanager
def connected(address: str, *, store_bytes: int) -> Iterator[Cluster]:
    """Connect to Ray while the context is open; an existing connection is reused.

    Raises:
        ConfigError: no Ray at the address, access refused, or version mismatch.
        EngineError: this machine is too busy to start Ray.
    """
    if ray.is_initialized():
        yield _describe()
        return
    _connect(address, store_bytes=store_bytes)
    try:
        yield _describe() if address == "local" else replace(_describe(), joined=_name())
    finally:
        _leave()


def _name() -> str:
    where = ray.get_runtime_context().gcs_address
    return f"Ray {ray.__version__} at {where} ({RAY_ADDRESS})"


def _leave() -> None:
    if not (_raylet_refuses() or _gcs_refuses()):
        ray.shutdown()
        return
    # Shutting down a dead Ray exits this process with code 1, here or at exit.
    atexit.unregister(ray.shutdown)
    _node().kill_all_processes(check_alive=False)


def _node() -> Any:
    return ray._private.worker._global_node


def _raylet_refuses() -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return _refuses(connection, _node().raylet_socket_name)


def _gcs_refuses() -> bool:
    host, _, port = _node().gcs_address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as connection:
        return _refuses(connection, (host.strip("[]"), int(port)))


def _refuses(asked: socket.socket, address: Any) -> bool:
    asked.settimeout(_ASK_S)
    try:
        asked.connect(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except OSError:  # busy, or far away
        return False
    return False


class RayWatch:
    """Sees that the connected Ray has died, before Ray does and ends this process with code 1."""

    def __init__(self) -> None:
        # A GCS that others started may come back, and Ray waits a minute for that.
        self._gcs_patience_s = 0.0 if _node().is_head() else _GCS_PATIENCE_S
        self._gcs_refuses_since_s: float | None = None
        self._raylet = select.poll()
        self._descriptor = _raylet_descriptor()
        if self._descriptor is not None:
            self._raylet.register(self._descriptor, select.POLLIN)

    def lost(self) -> EngineError | None:
        """Return the error to end a run with; None while Ray lives. For calls a second apart."""
        if self._raylet.poll(0):
            return _died("its raylet on this machine")
        if not _gcs_refuses():
            self._gcs_refuses_since_s = None
            return None
        now_s = time.monotonic()
        if self._gcs_refuses_since_s is None:
            self._gcs_refuses_since_s = now_s
        if now_s - self._gcs_refuses_since_s < self._gcs_patience_s:
            return None
        return _died("its GCS on the head node")

    def close(self) -> None:
        """Watch no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)


def _raylet_descriptor() -> int | None:
    """Return what is readable once the raylet has ended; None where the system has no such thing.

    It is asked once who it is: it writes a line to its log for each connection.
    """
    if not (hasattr(os, "pidfd_open") and hasattr(socket, "SO_PEERCRED")):
        return None
    size = struct.calcsize(_CREDENTIALS)
    try:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(_node().raylet_socket_name)
            credentials = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return os.pidfd_open(struct.unpack(_CREDENTIALS, credentials)[0])
    except OSError:  # it is in another container, or gone: its work will say so
        return None


def _died(what: str) -> EngineError:
    return EngineError(
        f"running the pipeline on Ray: {what} has died, expected it to respond; check memory "
        "(dmesg), /dev/shm and Ray's logs, and run again to continue from the last commit"
    )


def start_ray(*, cpus: int, gpus: int, store_bytes: int) -> None:
    """Start a Ray instance reachable only from this machine, and connect to it.

    Raises:
        EngineError: this machine is too busy.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        # A local Ray uses token authentication, which needs no log line.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    for starts_left in reversed(range(_RAY_STARTS)):
        try:
            with _loopback_kept(), _patient_start():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    object_store_memory=store_bytes,
                    include_dashboard=False,
                    _node_ip_address=LOOPBACK,
                    **_QUIET,
                )
            return
        except Exception as error:
            if _TOO_SLOW not in str(error):
                raise
            _end_half_started(error)
            if not starts_left:
                raise EngineError(
                    f"starting Ray: {error} in {_RAY_STARTS} attempts, expected a start; run "
                    "again when the machine is less busy, or with --local"
                ) from error
            event(_LOG, logging.WARNING, "ray_started_again", why=str(error))


def _end_half_started(error: Exception) -> None:
    """Kill the processes of a Ray whose start failed; only the traceback refers to them."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        started = frame.f_locals.get("self")
        if isinstance(started, Node):
            started.kill_all_processes(check_alive=False, wait=True)
            return


@contextlib.contextmanager
def _patient_start() -> Iterator[None]:
    """Let a starting Ray take its time while its processes live.

    Ray 2.60 limits the start of its own processes to 30 s, without a setting.
    """
    get_node = services.get_node
    services.get_node = _with_patience(get_node)
    try:
        yield
    finally:
        services.get_node = get_node


def _with_patience(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Return Ray's look-up of a node, waiting for one that is being started as long as it lives."""

    def get_started_node(*args: Any) -> Any:
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        node: Any = None if caller is None else caller.f_locals.get("self")
        start_s, is_told = time.monotonic(), False
        while True:
            try:
                return get_node(*args)
            except RuntimeError:
                waited_s = time.monotonic() - start_s
                is_known = isinstance(node, Node)
                if not is_known or node.dead_processes() or waited_s > _START_LIMIT_S:
                    raise
            if waited_s > _START_NOTICE_S and not is_told:
                event(_LOG, logging.WARNING, "ray_starts_slowly", limit_s=_START_LIMIT_S)
                is_told = True
            time.sleep(_START_POLL_S)

    return get_started_node


@contextlib.contextmanager
def _loopback_kept() -> Iterator[None]:
    """Make Ray listen on loopback, which it otherwise replaces by the machine's address."""
    # Ray 2.60 has no setting for it. Its tools (`ray status`) replace loopback as well and do not
    # find such a Ray: runs to be inspected with them need a cluster of their own.
    resolve = getattr(services, _RESOLVE, None)
    if resolve is None:
        event(_LOG, logging.WARNING, "ray_may_listen_beyond_loopback", version=ray.__version__)
        yield
        return
    setattr(services, _RESOLVE, lambda host: host)
    try:
        yield
    finally:
        setattr(services, _RESOLVE, resolve)


def _connect(address: str, *, store_bytes: int) -> None:
    check_reachable(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local":
            machine = local_machine()
            start_ray(cpus=int(machine.cpus), gpus=int(machine.gpus), store_bytes=store_bytes)
        else:
            _join(address)
    except AuthenticationError as error:
        raise refused(address) from error
    except (ConnectionError, RuntimeError) as error:
        if (version_error := other_versions(address, error)) is not None:
            raise version_error from error
        if isinstance(error, ConnectionError):
            raise unreachable(address, error) from error
        raise
    finally:
        # Ray turns SIGTERM into an exit with code 1, which stops its processes before results are
        # committed.
        if signal.getsignal(signal.SIGTERM) is not handler:
            signal.signal(signal.SIGTERM, handler)


def _join(address: str) -> None:
    """Connect to a cluster in a thread: Ray waits for minutes if another service listens there."""
    # Suppresses the warning on SIGTERM, for which Ray sets handlers in the main thread only.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    joined: Future[None] = Future()

    def join() -> None:
        try:
            ray.init(address=address, **_QUIET)
        except BaseException as error:
            joined.set_exception(error)
        else:
            joined.set_result(None)

    threading.Thread(target=join, daemon=True).start()
    try:
        joined.result(JOIN_TIMEOUT_S)
    except TimeoutError as error:
        raise unreachable(
            address,
            TimeoutError(
                f"found no response of Ray in {JOIN_TIMEOUT_S:g} s, expected the port of `ray "
                "start`, usually 6379 (not 8265 or 10001)"
            ),
        ) from error


def _describe() -> Cluster:
    local_address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    nodes, store_bytes = [], 0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        resources = node["Resources"]
        if not node["Alive"]:
            continue
        cpus = resources.get("CPU", 0.0)
        cores = int(cpus)
        if node["NodeManagerAddress"] == local_address:
            # A local Ray may be given more CPUs than exist.
            cores = min(cores, this_machine().cores)
        store_bytes += int(resources.get("object_store_memory", 0))
        nodes.append(
            NodeShape(
                cpus=cpus,
                cores=max(1, cores),
                gpus=resources.get("GPU", 0.0),
                memory_bytes=int(resources.get("memory", 0)),
            )
        )
    return Cluster(nodes=tuple(nodes), store_bytes=store_bytes)


def check_reachable(address: str) -> None:
    """Raise an error within seconds if nothing listens at an address.

    Raises:
        ConfigError: nothing listens, or the address has no port.
    """
    if address in _ANYWHERE:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise unreachable(address, error) from error


def unreachable(address: str, error: Exception) -> ConfigError:
    """Return the error for an unusable cluster address, with the cause of a refusal."""
    seen: BaseException | None = error
    while seen is not None:
        if _REFUSED in str(seen):
            return refused(address)
        seen = seen.__cause__
    return ConfigError(
        f"connecting to Ray at {address!r} ({RAY_ADDRESS}): {error}; start the cluster, correct "
        f"{RAY_ADDRESS}, or unset it to start Ray here"
    )


# Message of Ray 2.60 if versions of a driver or worker differ from the cluster's.
_VERSIONS = re.compile(r"Version mismatch:" + 2 * r".*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL)
_PYTHON_MATCH = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"


def other_versions(address: str, error: BaseException) -> ConfigError | None:
    """Return the error for a cluster with another Ray or Python version; None otherwise."""
    seen: BaseException | None = error
    while seen is not None and not (match := _VERSIONS.search(str(seen))):
        seen = seen.__cause__
    if seen is None or match is None:
        return None
    its_ray, its_python, our_ray, our_python = match.groups()
    advice = f"run in an environment with Ray {its_ray} and Python {its_python}"
    if its_ray == our_ray and its_python.split(".")[:2] == our_python.split(".")[:2]:
        advice += f", or set {_PYTHON_MATCH}=minor on every node and here"
    return ConfigError(
        f"connecting to Ray at {address!r} ({RAY_ADDRESS}): found Ray {its_ray} and Python "
        f"{its_python}, expected Ray {our_ray} and Python {our_python}; {advice}, such as `ray "
        f"job submit`, use one version on both sides, or unset {RAY_ADDRESS}"
    )


def refused(address: str) -> ConfigError:
    """Return the error for a missing or wrong Ray authentication token."""
    mode = os.environ.get(TOKEN_MODE)
    return ConfigError(
        f"connecting to Ray at {address!r} ({RAY_ADDRESS}): found "
        f"{f'{TOKEN_MODE}={mode}' if mode else f'no {TOKEN_MODE}'}, expected the cluster's "
        f"authentication token; copy ~/.ray/auth_token of the head, and set {TOKEN_MODE}=token "
        "(docs/how-to/clusters.md)"
    )
