"""Generators that behave and misbehave, run in the child processes of tests."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from corpus_asr.errors import CheckpointError, DecodeError, FetchError

if TYPE_CHECKING:  # loads Arrow, which starts a thread
    from corpus_asr.stages.messages import Header

Function = Callable[[Any], Iterator[Any]]


class UnpicklableError(Exception):
    """Carries what cannot travel between processes."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = open(os.devnull)  # noqa: SIM115 - a resource is the point


class StubbornError(Exception):
    """Travels, but cannot be built again on arrival."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class RecordingItem(NamedTuple):
    """What to do, its arguments, and the recording that messages name."""

    what: str
    argument: Any = None
    uri: str = "s3://bucket/talk.wav"


def make(**settings: Any) -> Function:
    """The function most tests run: an item is (what to do, its arguments)."""

    def function(item: tuple[str, Any]) -> Iterator[Any]:
        name, argument = item[:2]
        yield from globals()[f"_{name}"](argument, settings)

    return function


def fail_to_start() -> Function:
    raise ValueError("no such model folder")


def refuse_to_start() -> Function:
    raise CheckpointError("refused on purpose")


def blame_an_item() -> Function:
    raise fetch_error()


def crash_at_start() -> Function:
    os._exit(3)


def killed_at_start(*, notes: str, times: int) -> Function:
    """Be killed from outside while starting, so many times; each start is a letter of `notes`."""
    with open(notes, "a+") as file:
        file.write("+")
        file.flush()
        file.seek(0)
        if len(file.read()) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
    return lambda item: iter((item,))


def _count(limit: int, settings: dict[str, Any]) -> Iterator[int]:
    yield from range(limit)


def _settings(_: None, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield settings


def _pid(_: None, settings: dict[str, Any]) -> Iterator[int]:
    yield os.getpid()


def _arrays(shape: tuple[int, ...], settings: dict[str, Any]) -> Iterator[Any]:
    for index in range(3):
        yield np.full(shape, index, dtype=np.float32)


def _threads(_: None, settings: dict[str, Any]) -> Iterator[int]:
    matrix = np.ones((500, 500), dtype=np.float32)
    matrix @ matrix
    yield len(os.listdir("/proc/self/task"))


def _modules(_: None, settings: dict[str, Any]) -> Iterator[list[str]]:
    yield sorted(sys.modules)


def _raise(error: Exception, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    raise error


def _raise_unpicklable(_: None, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    raise UnpicklableError("a file came along")


def _raise_stubborn(_: None, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    raise StubbornError(code=7)


def _yield_unpicklable(_: None, settings: dict[str, Any]) -> Iterator[Any]:
    yield 1
    yield lambda: None


def _kill(number: int, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), number)
    yield 2


def _read_null(_: None, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    ctypes.string_at(0)


def _exit(code: int, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    os._exit(code)


def _exit_at(_: str, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    os._exit(1)


def _hang(_: None, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    while True:
        time.sleep(60)


def _hang_with_the_lock_held(_: None, settings: dict[str, Any]) -> Iterator[int]:
    yield 1
    ctypes.PyDLL(None).sleep(60)  # PyDLL: no other thread of this process runs meanwhile


def _pause(pause_s: float, settings: dict[str, Any]) -> Iterator[int]:
    for index in range(3):
        time.sleep(pause_s)
        yield index


def _print(_: None, settings: dict[str, Any]) -> Iterator[int]:
    print("printed " * 1000)  # noqa: T201 - what the test is about
    os.write(1, b"written to descriptor 1\n")
    sys.stderr.write("an error message\n")
    yield 1
    print("printed again")  # noqa: T201
    yield 2


def _megabytes(limit: int, settings: dict[str, Any]) -> Iterator[tuple[float, bytes]]:
    for _index in range(limit):
        yield time.monotonic(), bytes(1 << 20)


def _leave_a_grandchild(_: None, settings: dict[str, Any]) -> Iterator[int]:
    """A process that keeps the child's descriptors open after it."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                                  close_fds=False)  # fmt: skip
    yield grandchild.pid
    os._exit(5)


def decode_error() -> DecodeError:
    return DecodeError("decoding s3://b/a.mp3: no", uri="s3://b/a.mp3", kind="not_audio")


def fetch_error() -> FetchError:
    return FetchError("reading s3://b/a.mp3: 503", uri="s3://b/a.mp3", kind="timeout")


SEGFAULT = int(signal.SIGSEGV)


def make_crashing_reader() -> Callable[[Any], Iterator[tuple[int, "Header"]]]:
    """Return a reader of headers that dies of every recording called `crash`."""
    from corpus_asr.stages.messages import Header

    def read(request: Any) -> Iterator[tuple[int, "Header"]]:
        for index, (uri, _) in request.files.items():
            if "crash" in uri:
                os.kill(os.getpid(), signal.SIGSEGV)
            yield index, Header(audio_s=10.0)

    return read


def make_silent_reader() -> Callable[[Any], Iterator[tuple[int, "Header"]]]:
    """Return a reader of headers that says nothing after its first one."""
    from corpus_asr.stages.messages import Header

    def read(_: Any) -> Iterator[tuple[int, "Header"]]:
        yield 0, Header(audio_s=10.0)
        time.sleep(60)

    return read


def length_or_harm(file: BinaryIO, *, uri: str) -> int:
    """Return the length of a file, if its content does not say what to do to the process."""
    content = file.read(100)
    if content == b"abort":
        os.abort()
    elif content == b"hang":
        time.sleep(60)
    elif content == b"slow":
        for _ in range(20):
            file.seek(0)
            file.read(1)
            time.sleep(0.1)
    elif content.startswith(b"loop"):
        while file.read(1 << 16) or not file.seek(0):
            pass
    return len(content)
