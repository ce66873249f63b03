"""What `transcribe` shows while it works: a bar on a terminal, elsewhere a line now and then.

The bar is on stderr, below whatever is printed meanwhile; stdout has the text alone.
"""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from corpus_asr.logs import speaks_json
from corpus_asr.report.text import clock, counted, duration, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_LINE_EVERY_S = 30.0  # as a run's: a log keeps every line
_REDRAWS_PER_S = 4.0
# Before that the first windows, which come in batches, say little about the rest.
_ETA_AFTER_S = 2.0
_LONGEST_NAME = 32


class Meter:
    """How many seconds of audio are transcribed, of how many, and how fast; for any thread.

    A recording counts with the length that its header claims until its end is known.
    """

    def __init__(
        self, names: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._began_s: float | None = None
        self._lock = threading.Lock()
        self._names = list(names)
        self._done_s = dict.fromkeys(names, 0.0)
        self._length_s: dict[str, float | None] = dict.fromkeys(names, None)
        self._finished: set[str] = set()

    def begin(self) -> None:
        """Start the clock; loading a model says nothing about the speed."""
        self._began_s = self._clock()

    def update(
        self, name: str, *, done_s: float | None = None, length_s: float | None = None
    ) -> None:
        """Note how much of a recording is transcribed, or how long its header says it is."""
        with self._lock:
            if name in self._finished:
                return
            if done_s is not None:
                self._done_s[name] = done_s
            self._length_s[name] = length_s or self._length_s[name]

    def finish(self, name: str, length_s: float | None) -> None:
        """Note the end of a recording and its true length; None of one that failed."""
        with self._lock:
            self._finished.add(name)
            end_s = self._done_s[name] if length_s is None else length_s
            self._done_s[name] = self._length_s[name] = end_s

    @property
    def num_finished(self) -> int:
        """Recordings that are over."""
        return len(self._finished)

    @property
    def done_s(self) -> float:
        """Audio transcribed."""
        with self._lock:
            return sum(self._done_s.values())

    @property
    def total_s(self) -> float | None:
        """Audio in all; None while a recording's length is unknown."""
        with self._lock:
            lengths = [
                None if length_s is None else max(length_s, self._done_s[name])
                for name, length_s in self._length_s.items()
            ]
        return None if None in lengths else sum(cast("list[float]", lengths))

    @property
    def elapsed_s(self) -> float:
        """Time since the start."""
        return 0.0 if self._began_s is None else self._clock() - self._began_s

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second."""
        return self.done_s / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Time left at the speed so far; None while nothing says it."""
        total_s, rtfx = self.total_s, self.rtfx
        if total_s is None or not rtfx or self.elapsed_s < _ETA_AFTER_S:
            return None
        return max(0.0, total_s - self.done_s) / rtfx

    @property
    def subject(self) -> str:
        """What is transcribed: the name of one recording, or how many are done."""
        if len(self._names) != 1:
            return f"{self.num_finished} of {len(self._names)} files"
        name = printable(self._names[0])
        # The end of a long name says more than the folders before it.
        return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"

    @property
    def figures(self) -> str:
        """Percentage, seconds, speed and time left, as far as they are known."""
        total_s, eta_s = self.total_s, self.eta_s
        words = [f"{self.done_s / total_s:.0%}"] if total_s else []
        words.append(clock(self.done_s) + (f" of {clock(total_s)}" if total_s else ""))
        words.append(f"RTFx {self.rtfx:.1f}")
        words += [] if eta_s is None else [f"ETA {clock(eta_s)}"]
        return ", ".join(words)

    def summary(self) -> str:
        """Return one line about all that was done."""
        took = f"{duration(self.done_s)} of audio in {duration(self.elapsed_s)}"
        return f"{counted(self.num_finished, 'file')}: {took} (RTFx {self.rtfx:.1f})"


class Display:
    """Shows a meter while the context is open; what is printed meanwhile stays above it."""

    def __init__(self, meter: Meter, *, shown: bool = True) -> None:
        self._meter = meter
        self._shown = shown and not speaks_json()
        self._lock = threading.RLock()
        self._live: Any = None
        self._hidden = False

    def __enter__(self) -> Self:
        self._meter.begin()
        self._stack = contextlib.ExitStack()
        if self._shown and is_terminal(sys.stderr):
            self._stack.enter_context(self._bar())
        elif self._shown:
            self._stack.enter_context(self._lines())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something is written to stdout or stderr."""
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

    @contextlib.contextmanager
    def _bar(self) -> Iterator[None]:
        from rich.console import Console
        from rich.live import Live

        terminal = sys.stderr
        console = Console(file=terminal)
        live = Live(
            console=console,
            get_renderable=lambda: "" if self._hidden else _bar_line(self._meter, console),
            refresh_per_second=_REDRAWS_PER_S,
            transient=True,
            # Rich would break lines of the log and of messages at the terminal's width.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        sys.stderr = cast("TextIO", _Above(terminal, self))
        try:
            with live:
                self._live = live
                yield
                with self._lock:  # nobody draws after the last
                    self._live = None
        finally:
            self._live = None
            sys.stderr = terminal

    @contextlib.contextmanager
    def _lines(self) -> Iterator[None]:
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(_LINE_EVERY_S):
                sys.stderr.write(f"{self._meter.subject}: {self._meter.figures}\n")
                sys.stderr.flush()

        thread = threading.Thread(target=repeat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Above(io.TextIOBase):
    """Stands in for stderr while there is a bar."""

    def __init__(self, stream: TextIO, display: Display) -> None:
        self._stream = stream
        self._display = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._display.aside():
            return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()


def is_terminal(stream: TextIO) -> bool:
    """Return whether a person sees a stream on a terminal that can redraw a line."""
    from rich.console import Console

    return stream.isatty() and not Console(file=stream).is_dumb_terminal


def _bar_line(meter: Meter, console: "Console") -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(no_wrap=True, max_width=_LONGEST_NAME)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    total_s = meter.total_s
    # Without a total it moves to and fro.
    bar = ProgressBar(total=total_s, completed=meter.done_s, pulse=total_s is None)
    line.add_row(Text(meter.subject, style="bold"), bar, Text(meter.figures, style="dim"))
    return line
