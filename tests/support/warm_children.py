"""Decoders' processes forked from one that has loaded their libraries: tests start hundreds.

    with warm_children():
        ...  # what `stages.isolation` starts takes 0.05 CPU s instead of 0.9

The process that forks has no threads of its own. What it forks becomes a child of the process that
asked, which waits for it as for any other.
"""

import atexit
import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from corpus_asr.stages import isolation

_LOADED = ("corpus_asr.stages.extraction", "corpus_asr.stages.cutting", "onnxruntime")
_BECOME_PARENT = 36  # PR_SET_CHILD_SUBREAPER
_libc = ctypes.CDLL(None)
_lock = threading.Lock()


@contextmanager
def warm_children() -> Iterator[None]:
    """Fork instead of starting Python while the context is open."""
    stand_in = SimpleNamespace(
        Popen=_forked,
        DEVNULL=subprocess.DEVNULL,
        TimeoutExpired=subprocess.TimeoutExpired,
    )
    with mock.patch.object(isolation, "subprocess", stand_in):
        yield


@functools.cache
def _forking(pid: int) -> socket.socket:
    """Return the end of a socket to the process that forks for the process of this number."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "ignore", "-X", "faulthandler", "-m", __name__,
         str(theirs.fileno())],
        env=os.environ | isolation._ONE_THREAD | {"PYTHONPATH": os.pathsep.join(sys.path)},
        pass_fds=(theirs.fileno(),),
    )  # fmt: skip
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _forked(
    command: list[str], *, env: dict[str, str], pass_fds: tuple[int, ...], **_: Any
) -> "subprocess.Popen[bytes]":
    """Stand for `subprocess.Popen` as `isolation` calls it."""
    request = json.dumps({"path": command[9:], "env": env}).encode()
    with _lock:
        forking = _forking(os.getpid())
        _libc.prctl(_BECOME_PARENT, 1, 0, 0, 0)
        try:
            size = len(request).to_bytes(8, "little")
            socket.send_fds(forking, [size], [*pass_fds, 2])
            forking.sendall(request)
            pid = int.from_bytes(forking.recv(8, socket.MSG_WAITALL), "little")
        finally:
            _libc.prctl(_BECOME_PARENT, 0, 0, 0, 0)
    # As after a start of its own.
    process: Any = subprocess.Popen.__new__(subprocess.Popen)
    process.pid, process.returncode, process.args = pid, None, command
    process.stdin = process.stdout = process.stderr = None
    process._child_created, process._waitpid_lock = True, threading.Lock()
    process._sigint_wait_secs = 0.25
    found: subprocess.Popen[bytes] = process
    return found


def _serve(asked: socket.socket) -> None:
    """Fork as often as is asked for, until nobody can ask any more."""
    while True:
        size, fds, _, _ = socket.recv_fds(asked, 8, 8)
        if len(size) < 8:
            return
        request = json.loads(asked.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL))
        reader, writer = os.pipe()
        between = os.fork()
        if not between:
            pid = os.fork()
            if not pid:
                _become(request, fds)
            os.write(writer, pid.to_bytes(8, "little"))
            os._exit(0)
        # Once that process has ended, the one that asked is the parent.
        os.waitpid(between, 0)
        asked.sendall(os.read(reader, 8))
        for fd in (reader, writer, *fds):
            os.close(fd)


def _become(request: dict[str, Any], fds: list[int]) -> None:
    *pipes, errors = fds
    os.closerange(max(fds) + 1, 256)
    for number in (1, 2):
        os.dup2(errors, number)
    os.close(errors)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = request["path"]
    isolation.serve(*pipes)


if __name__ == "__main__":
    for name in _LOADED:
        __import__(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
