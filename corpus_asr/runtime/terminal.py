"""A line that says how far something is: drawn again on a terminal, elsewhere written at times.

Knows neither runs nor files, so that showing them costs a command no more than this.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, Self, TextIO, cast

from rich.console import Console, RenderableType
from rich.live import Live


class Stream(Protocol):
    """Where a line can be written: any text file, captured ones of tests included."""

    def write(self, text: str, /) -> int:
        """Write and return the number of characters."""

    def flush(self) -> None:
        """Hand on what was written."""

    def isatty(self) -> bool:
        """Whether a person is looking."""


# A log file keeps every line: two a minute of them. A terminal shows one, as fast as it is read.
LINE_EVERY_S = 30.0
REDRAWS_PER_S = 4.0


def line_writer(stream: Stream | None) -> Callable[[str], None]:
    """Return what writes a line to a stream, or nowhere if there is none."""

    def write(line: str) -> None:
        if stream is not None:
            stream.write(line + "\n")

    return write


def is_terminal(stream: Any) -> bool:
    """Return whether a person sees a text stream, on a terminal that can redraw a line."""
    return bool(stream.isatty()) and not Console(file=stream).is_dumb_terminal


@contextmanager
def repeated(
    action: Callable[[], None], *, every_s: float, name: str, at_once: bool = True
) -> Iterator[None]:
    """Call `action` in a thread, at once or not, and every so often while the context is open."""
    ended = threading.Event()

    def repeat() -> None:
        if at_once:
            action()
        while not ended.wait(every_s):
            action()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Display:
    """Shows how far something is while it is open; what is printed meanwhile stays above it.

    Args:
        stream: a terminal, where it is drawn again in place, or what takes a line now and then;
            None for nothing.
        line: returns such a line.
        drawn: returns what a terminal shows.
        stays: whether there is something to see from the beginning on, and left at the end.
    """

    def __init__(
        self,
        stream: Stream | None,
        *,
        line: Callable[[], str],
        drawn: Callable[[], RenderableType],
        stays: bool,
    ) -> None:
        self._stream = stream
        self._line, self._drawn, self._stays = line, drawn, stays
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._hidden = False

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        if self._stream is None:
            return self
        if is_terminal(self._stream):
            self._stack.enter_context(self._redrawn(cast("TextIO", self._stream)))
            return self
        if self._stays:
            self._stack.callback(self._write)  # the last line is that of the end, however it ended
        self._stack.enter_context(
            repeated(self._write, every_s=LINE_EVERY_S, name="progress", at_once=self._stays)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take away what is drawn while something is written to stdout or stderr."""
        with self._lock:
            nested = self._hidden
            self._hidden = True
            if self._live is not None and not nested:
                self._live.refresh()
            try:
                yield
            finally:
                self._hidden = nested
                if self._live is not None and not nested:
                    self._live.refresh()

    def _write(self) -> None:
        assert self._stream is not None, "lines have a stream"
        self._stream.write(f"{self._line()}\n")
        self._stream.flush()

    @contextmanager
    def _redrawn(self, terminal: TextIO) -> Iterator[None]:
        live = Live(
            console=Console(file=terminal),  # uses no more than Stream has
            get_renderable=lambda: "" if self._hidden else self._drawn(),
            refresh_per_second=REDRAWS_PER_S,
            transient=not self._stays,
            # Rich would break lines of the log and of messages at the terminal's width.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        is_stderr = terminal is sys.stderr
        if is_stderr:
            sys.stderr = cast("TextIO", _Above(terminal, self))
        try:
            with live:
                self._live = live
                yield
                with self._lock:  # nobody draws after the last
                    self._live = None
        finally:
            self._live = None
            if is_stderr:
                sys.stderr = terminal


class _Above:
    """Stands in for stderr while something is drawn there."""

    def __init__(self, stream: TextIO, display: Display) -> None:
        self._stream = stream
        self._display = display

    # Not a subclass of a text stream: Click takes one without an encoding for broken, and writes to
    # what is below it.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._display.aside():
            return self._stream.write(text)
