"""Runs a generator in a persistent child process, so that a crash or hang costs one item only.

    parent  -- item -->  requests pipe  -->  child: function(item)
            <- message, message, ..., end or error --  replies pipe

Both pipes carry length-prefixed pickles. The replies pipe holds 64 KiB, so that a child ahead of
its reader blocks. Nothing is sent through a third pipe: when the parent ends for any reason, the
kernel ends the child, whatever native code is running.
"""

import enum
import fcntl
import importlib
import logging
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from corpus_asr.errors import (
    CorpusAsrError,
    DecodeError,
    EngineError,
    ItemError,
    check_same_process,
)
from corpus_asr.logs import LogSettings, configure, event
from corpus_asr.storage.stores.uri import without_secrets

_LOG = logging.getLogger(__name__)

_HEADER = struct.Struct("<BQ")  # kind of reply, bytes of pickle that follow
_PICKLE_PROTOCOL = 5
_READ_BYTES = 1 << 20
# Includes imports from a slow network disk, which are no item's fault.
_START_TIMEOUT_S = 300.0
_STARTS = 3  # attempts, if the child is killed while starting
_EXIT_TIMEOUT_S = 5.0  # a child closes its pipe shortly before it exits
_POLL_S = 1.0  # delay in noticing a death while a grandchild keeps the pipe open

# One thread per child, on any machine: threads of numpy's linear algebra that wait for each other
# took twice the CPU time for features.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)

# Not `-m`, which would import this module twice. Not multiprocessing: its children import the
# parent's `__main__` again, which in a Ray worker or an unguarded script repeats everything.
_CHILD_CODE = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from corpus_asr.stages.isolation import serve; serve(*map(int, sys.argv[1:4]))"
)


class _Reply(enum.IntEnum):
    READY = 0
    MESSAGE = 1
    END = 2
    ERROR = 3


class _DiedError(Exception):
    """The child's end of the replies pipe is closed, or the child has exited."""

    def __init__(self, how: str, *, killed: bool = False) -> None:
        super().__init__(how)
        self.killed = killed


class _SilentError(Exception):
    """No reply arrived in time."""


class IsolatedGenerator:
    """A generator function in a child process. For use by one thread at a time.

    Args:
        target: `module:callable`; in the child, `callable(**init_kwargs)` returns the function that
            takes an item and yields messages.
        init_kwargs: picklable.
        timeout_s: maximum seconds without a message. Time in which the consumer processes a
            message does not count.
    """

    def __init__(self, target: str, *, init_kwargs: dict[str, Any], timeout_s: float) -> None:
        self._target = target
        self._init_kwargs = init_kwargs
        self._timeout_s = timeout_s
        self._child: _Child | None = None
        self._starting: _Child | None = None
        self._busy = self._interrupted = False
        self._made_in = os.getpid()

    def start(self) -> None:
        """Start the child without waiting for it, so that it is ready when `run` is called.

        Raises:
            EngineError: no process can be started.
        """
        check_same_process("decoding", "decoder", made_in=self._made_in)
        if self._child is None and self._starting is None:
            with suppress(_DiedError):  # `run` retries and reports the error
                self._starting = self._spawned()

    def run(self, item: Any) -> Generator[Any, None, None]:
        """Yield the function's messages for one item, starting the child if necessary.

        Closing the generator early replaces the child, whose state is unknown.

        Raises:
            DecodeError: kind `decoder_crashed`, the child died; kind `decoder_killed`, retryable,
                it was killed or stopped externally; kind `decoder_timeout`, no message arrived for
                `timeout_s` and the child was killed.
            EngineError: the child could not be started, for no fault of an item.
            ForkedError: the process is a fork of the one that created this object.
            CheckpointError: raised when creating the function; so for ConfigError.
            Exception: any exception of the function, with the child's traceback as a note.
            RuntimeError: the previous item's generator is neither finished nor closed.
        """
        name = _name(item)
        check_same_process(f"decoding {name}", "decoder", made_in=self._made_in)
        if self._busy:
            raise RuntimeError(
                f"decoding {name}: found the decoder busy, expected it idle; finish or close the "
                "iterator of its item first"
            )
        self._busy = True
        finished = False
        try:
            child = self._child = self._handed_over(item)
            while True:
                kind, value = child.receive(self._timeout_s)
                if kind is not _Reply.MESSAGE:
                    break
                yield value
            finished = True  # in sync again, whether the function ended or raised
            if kind is _Reply.ERROR:
                raise value
        except _DiedError as death:
            raise DecodeError(
                f"decoding {name}: its child process died ({death}), expected it to finish; other "
                "recordings continue in a new child process",
                kind="decoder_killed" if death.killed else "decoder_crashed",
                # Memory may suffice next time; a crash would repeat.
                retryable=death.killed,
            ) from None
        except _SilentError:
            raise DecodeError(
                f"decoding {name}: no progress for {self._timeout_s:g} s, expected some, so its "
                "child process was killed; other recordings continue in a new one",
                kind="decoder_timeout",
            ) from None
        finally:
            self._busy = False
            if not finished:
                self.close()

    def interrupt(self) -> None:
        """End the child; `run`, also in another thread, raises `DecodeError`.

        `close` resets this.
        """
        self._interrupted = True
        child = self._child
        if child is not None:
            child.interrupt()

    def close(self) -> None:
        """End the child; the next `run` starts another."""
        self._drop_child()
        self._interrupted = False

    def _drop_child(self) -> None:
        for child in (self._child, self._starting):
            if child is not None:
                child.kill()
        self._child = self._starting = None

    def _handed_over(self, item: Any) -> "_Child":
        """Send an item to the child, or a new one if there is none or it died while idle."""
        if self._child is not None:
            try:
                self._child.check_alive()
                self._child.send(item)
                return self._child
            except _DiedError as death:
                self._refuse_interrupted()
                event(_LOG, logging.WARNING, "idle_child_replaced", why=str(death))
                self._drop_child()
        child = self._child = self._start()
        self._refuse_interrupted()
        child.send(item)
        return child

    def _refuse_interrupted(self) -> None:
        if self._interrupted:
            raise _DiedError("it was interrupted", killed=True)

    def _start(self) -> "_Child":
        """Start a child; errors here are never an item's fault."""
        for starts_left in reversed(range(_STARTS)):
            try:
                return self._started()
            except (_DiedError, _SilentError) as failure:
                # When memory is short, the kernel kills the youngest process.
                if not starts_left or not getattr(failure, "killed", False):
                    reason = str(failure) or f"it was silent for {_START_TIMEOUT_S:.0f} s"
                    raise self._no_start(reason) from None
                event(_LOG, logging.WARNING, "child_killed_at_start", why=str(failure))
        raise AssertionError("unreachable: the last start returns or raises")

    def _spawned(self) -> "_Child":
        try:
            child = _Child()
        except OSError as error:
            raise self._no_start(f"{type(error).__name__}: {error}") from error
        try:
            child.send((self._target, self._init_kwargs))
        except BaseException:
            child.kill()
            raise
        return child

    def _started(self) -> "_Child":
        child, self._starting = self._starting or self._spawned(), None
        try:
            kind, value = child.receive(_START_TIMEOUT_S)
        except BaseException:
            child.kill()
            raise
        if kind is _Reply.ERROR:
            child.kill()
            if isinstance(value, CorpusAsrError) and not isinstance(value, ItemError):
                raise value
            raise self._no_start(f"{type(value).__name__}: {value}") from value
        return child

    def _no_start(self, what: str) -> EngineError:
        return EngineError(
            f"starting a child process that decodes: {what}, expected it to be ready; see its "
            "standard error above, repair the machine or the installation, and run again"
        )


class _Child:
    """The parent's handle of one child process: three pipes and a process to reap."""

    def __init__(self) -> None:
        requests_read, requests_write = os.pipe()
        replies_read, replies_write = os.pipe()
        life_read, life_write = os.pipe()
        child_fds = (requests_read, replies_write, life_read)
        try:
            self._process = subprocess.Popen(
                # Unbuffered, and with a stack trace on a crash, so that no output is lost.
                [sys.executable, "-u", "-X", "faulthandler", "-c", _CHILD_CODE,
                 *map(str, child_fds), *sys.path],
                stdin=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD,
                stdout=2,  # library output goes to the log; the protocol has its own pipe
                pass_fds=child_fds,
            )  # fmt: skip
        except BaseException:
            for fd in (requests_write, replies_read, life_write):
                os.close(fd)
            raise
        finally:
            for fd in child_fds:
                os.close(fd)
        self._requests = os.fdopen(requests_write, "wb")
        self._replies = replies_read
        self._poll = select.poll()
        self._poll.register(replies_read, select.POLLIN)
        # Also if the owner is dropped without `close`, and at interpreter exit.
        self.kill = weakref.finalize(
            self, _end, self._process, self._requests, (replies_read, life_write), os.getpid()
        )

    def interrupt(self) -> None:
        """Kill the child, but keep the pipes, which a thread may be reading, for `kill`."""
        self._process.kill()

    def check_alive(self) -> None:
        """Raise if the child does not run."""
        if self._process.poll() is not None:
            raise self._death()

    def send(self, value: Any) -> None:
        """Send a request."""
        data = pickle.dumps(value, protocol=_PICKLE_PROTOCOL)
        try:
            self._requests.write(_HEADER.pack(0, len(data)) + data)
            self._requests.flush()
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, timeout_s: float) -> tuple[_Reply, Any]:
        """Wait for the next reply; an exception is returned as a value."""
        deadline = time.monotonic() + timeout_s
        kind, num_bytes = _HEADER.unpack(self._read(_HEADER.size, deadline))
        data = self._read(num_bytes, deadline) if num_bytes else b""
        if kind == _Reply.ERROR:
            return _Reply.ERROR, _rebuild(pickle.loads(data))
        return _Reply(kind), pickle.loads(data) if data else None

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        data = bytearray(num_bytes)
        view, filled = memoryview(data), 0
        while filled < num_bytes:
            self._wait(deadline)
            count = os.readv(self._replies, [view[filled : filled + _READ_BYTES]])
            if not count:
                raise self._death()
            filled += count
        return data

    def _wait(self, deadline: float) -> None:
        while True:
            remaining_s = deadline - time.monotonic()
            if self._poll.poll(max(0.0, min(_POLL_S, remaining_s)) * 1000):
                return
            if self._process.poll() is not None and not self._poll.poll(0):
                raise self._death()
            if remaining_s <= 0:
                if self._is_stopped():
                    raise _DiedError("it was suspended from outside, so it was killed", killed=True)
                raise _SilentError

    def _is_stopped(self) -> bool:
        """Whether the child was stopped externally (SIGSTOP), not by its item."""
        if not hasattr(os, "waitid"):
            return False
        stopped = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, stopped) is not None
        except ChildProcessError:  # it has ended meanwhile
            return False

    def _death(self) -> _DiedError:
        """Return how the child ended; it has closed its pipe, so it is about to exit."""
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return _DiedError("it closed its pipe without exiting")
        if code >= 0:
            return _DiedError(f"exit code {code}")
        if -code == signal.SIGKILL:  # not a crash: the kernel's OOM killer or a user
            return _DiedError("SIGKILL, perhaps for lack of memory", killed=True)
        has_name = -code in list(signal.Signals)
        return _DiedError(signal.Signals(-code).name if has_name else f"signal {-code}")


def _end(
    process: "subprocess.Popen[bytes]", requests: BinaryIO, fds: tuple[int, ...], owner_pid: int
) -> None:
    """Kill and reap a child, which has no state to save."""
    if os.getpid() != owner_pid:  # an exiting fork of the owner must keep the child
        return
    process.kill()
    process.wait()
    try:
        requests.close()
    except BrokenPipeError:  # a request that was never read
        event(_LOG, logging.DEBUG, "request_dropped", pid=process.pid)
    for fd in fds:
        os.close(fd)


def _rebuild(sent: tuple[bytes | None, str, str]) -> BaseException:
    pickled, summary, child_traceback = sent
    error: BaseException
    try:
        error = pickle.loads(pickled) if pickled is not None else RuntimeError(summary)
    except Exception as cause:  # its class cannot be built here; its message is kept
        error = RuntimeError(summary)
        error.__cause__ = cause
    error.add_note(f"In the child process:\n{child_traceback}")
    return error


def _name(item: Any) -> str:
    name = getattr(item, "name", None) or getattr(item, "uri", None)
    text = without_secrets(name if isinstance(name, str) else repr(item))
    return text if len(text) <= 300 else f"{text[:300]}..."


def serve(requests_fd: int, replies_fd: int, life_fd: int) -> None:
    """Run the child: create the function, then process items until the parent ends."""
    for fd in (requests_fd, replies_fd, life_fd):
        os.set_inheritable(fd, False)
    _end_with_parent(life_fd)
    configure(LogSettings.from_environment(), redact=without_secrets)
    # Ctrl-C and scheduler signals reach the whole process group; the parent handles them, and a
    # child that ended on its own would look like a crash of its recording.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    requests, replies = os.fdopen(requests_fd, "rb"), os.fdopen(replies_fd, "wb")
    try:
        target, init_kwargs = pickle.loads(_next_request(requests))
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)(**init_kwargs)
        _reply(replies, _Reply.READY)
    except Exception as error:
        _reply_error(replies, error)
        os._exit(1)  # a regular exit would wait for library threads
    while True:
        _answer(replies, function, _next_request(requests))


def _end_with_parent(life_fd: int) -> None:
    """Have the kernel end this process when the parent's end of a pipe is closed."""
    # Not by a reader thread: native code that hangs with the GIL held would block it. Not
    # PR_SET_PDEATHSIG: a child would end with the thread that started it.
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life_fd], [], [], 0)[0]:
        os._exit(0)  # it ended before the request


def _next_request(requests: BinaryIO) -> bytes:
    header = requests.read(_HEADER.size)
    if len(header) < _HEADER.size:
        os._exit(0)  # the parent is gone
    return requests.read(_HEADER.unpack(header)[1])


def _answer(replies: BinaryIO, function: Callable[[Any], Iterator[Any]], request: bytes) -> None:
    try:
        for message in function(pickle.loads(request)):
            _reply(replies, _Reply.MESSAGE, pickle.dumps(message, protocol=_PICKLE_PROTOCOL))
        _reply(replies, _Reply.END)
    except BrokenPipeError:
        os._exit(0)  # the parent is gone
    except Exception as error:
        _reply_error(replies, error)


def _reply(replies: BinaryIO, kind: _Reply, data: bytes = b"") -> None:
    replies.write(_HEADER.pack(kind, len(data)))
    replies.write(data)
    replies.flush()


def _reply_error(replies: BinaryIO, error: Exception) -> None:
    pickled: bytes | None = None
    summary = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    try:
        pickled = pickle.dumps(error, protocol=_PICKLE_PROTOCOL)
    except Exception as obstacle:  # its class or attributes cannot be pickled; its text can
        summary += f" (sent as text: {obstacle})"
    trace = "".join(traceback.format_exception(error))
    _reply(replies, _Reply.ERROR, pickle.dumps((pickled, summary, trace)))
