"""Progress display: redrawn in place on a terminal, otherwise a line written periodically.

Independent of runs and files, so that a command only imports this for its display.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TextIO, cast

from rich.console import Console, RenderableType
from rich.live import Live

# Interval in seconds for log files, which keep every line; a terminal is redrawn.
LINE_EVERY_S = 30.0
REDRAWS_PER_S = 4.0


def line_writer(stream: TextIO | None) -> Callable[[str], None]:
    """Return a function that writes a line to a stream; without a stream it does nothing."""

    def write(line: str) -> None:
        if stream is not None:
            stream.write(line + "\n")

    return write


def is_terminal(stream: Any) -> bool:
    """Return whether a text stream is a terminal that can redraw a line."""
    return bool(stream.isatty()) and not Console(file=stream).is_dumb_terminal


@contextmanager
def repeated(
    action: Callable[[], None], *, every_s: float, name: str, at_once: bool = True
) -> Iterator[None]:
    """Call `action` in a thread while the context is open: periodically, and first if `at_once`."""
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
    """Displays progress while open; text printed meanwhile stays above it.

    Args:
        stream: a terminal, which is redrawn in place, or any other stream, which gets a line now
            and then; None: no display.
        line: returns such a line.
        drawn: returns the content for a terminal.
        stays: whether to display from the start, and to keep the last state at the end.
    """

    def __init__(
        self,
        stream: TextIO | None,
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
            self._stack.enter_context(self._redrawn(self._stream))
            return self
        if self._stays:
            self._stack.callback(self._write)  # writes the final line in any case
        self._stack.enter_context(
            repeated(self._write, every_s=LINE_EVERY_S, name="progress", at_once=self._stays)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the display while text is written to stdout or stderr."""
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
            console=Console(file=terminal),
            get_renderable=lambda: "" if self._hidden else self._drawn(),
            refresh_per_second=REDRAWS_PER_S,
            transient=not self._stays,
            # Rich would wrap lines of the log and of messages at the terminal's width.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        is_stderr = terminal is sys.stderr
        if is_stderr:
            sys.stderr = cast("TextIO", _DisplayStderr(terminal, self))
        try:
            with live:
                self._live = live
                yield
                with self._lock:  # no redraw after the last one
                    self._live = None
        finally:
            self._live = None
            if is_stderr:
                sys.stderr = terminal


class _DisplayStderr:
    """Replaces stderr while the display is on it."""

    def __init__(self, stream: TextIO, display: Display) -> None:
        self._stream = stream
        self._display = display

    # Not a subclass of a text stream: Click considers one without an encoding broken, and writes to
    # its underlying stream.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._display.aside():
            return self._stream.write(text)
