"""A pseudo-terminal, and what a person would see on it."""

import contextlib
import fcntl
import os
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from unittest import mock

import pyte


def seen_lines(written: str, *, columns: int = 80) -> list[str]:
    """Return the lines a person sees, without trailing blanks and empty lines at the end."""
    screen = pyte.Screen(columns, 200)  # higher than all that is written, so that nothing scrolls
    pyte.Stream(screen).feed(written)
    return "\n".join(line.rstrip() for line in screen.display).rstrip().splitlines()


class Terminal:
    """A pseudo-terminal: programs write to `descriptor`, and a thread reads what they write."""

    def __init__(self, main: int, descriptor: int) -> None:
        self.main, self.descriptor = main, descriptor
        self._data = bytearray()
        self._thread = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        # A terminal that nobody reads from blocks whoever writes to it.
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self.main, 65_536):
                self._data += data

    @property
    def output(self) -> str:
        """What was written so far."""
        return self._data.decode("utf-8", "replace")

    def seen(self, until: Callable[[list[str]], bool], *, timeout_s: float = 20.0) -> list[str]:
        """Return the lines a person sees, as soon as they are as expected."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            lines = seen_lines(self.output)
            if until(lines):
                return lines
            assert time.monotonic() < deadline_s, lines
            time.sleep(0.02)

    def close(self) -> None:
        """Close both ends; what was written is kept."""
        os.close(self.descriptor)
        self._thread.join()
        os.close(self.main)


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[Terminal]:
    """Open a pseudo-terminal."""
    main, descriptor = os.openpty()
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    with contextlib.closing(Terminal(main, descriptor)) as opened:
        yield opened


@contextlib.contextmanager
def on_terminal() -> Iterator[Terminal]:
    """Let this process write to a terminal."""
    environment = {"TERM": "xterm", "COLUMNS": "80"}
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(terminal())
        stream = stack.enter_context(open(os.dup(opened.descriptor), "w", encoding="utf-8"))
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(contextlib.redirect_stderr(stream))
        stack.enter_context(contextlib.redirect_stdout(stream))
        yield opened
