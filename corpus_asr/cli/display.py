"""Progress of `transcribe`: a bar on a terminal, elsewhere a line now and then.

The bar is on stderr, below whatever is printed meanwhile; stdout has the text alone.
"""

import itertools
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from corpus_asr.formats.cues import labelled
from corpus_asr.formats.transcript import Transcript
from corpus_asr.logs import speaks_json
from corpus_asr.report.text import (
    clock,
    duration,
    print_heading,
    print_segment,
    printable,
)
from corpus_asr.runtime.terminal import Display, is_terminal
from corpus_asr.segments import Segment, channel_name
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted

# Before that the first windows, which come in batches, say little about the rest.
_ETA_AFTER_S = 2.0
_LONGEST_NAME = 32


class Meter:
    """Counts seconds of audio transcribed and in total, and the speed; thread-safe.

    A recording that is under way counts with the length that its header claims.
    """

    def __init__(
        self, names: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._began_s: float | None = None
        self._lock = threading.Lock()
        self._done_s = dict.fromkeys(names, 0.0)
        self._length_s = dict.fromkeys(names, math.inf)
        self._finished: set[str] = set()

    def begin(self) -> None:
        """Start the clock, after loading the model."""
        self._began_s = self._clock()

    def update(
        self, name: str, *, done_s: float | None = None, length_s: float | None = None
    ) -> None:
        """Note how much of a recording is transcribed, and how long its header says it is."""
        with self._lock:
            if name in self._finished:
                return
            if done_s is not None:
                self._done_s[name] = done_s
            if length_s is not None:
                self._length_s[name] = length_s

    def finish(self, name: str, length_s: float | None) -> None:
        """Mark a recording as finished, with its actual duration; None if it failed."""
        with self._lock:
            self._finished.add(name)
            end_s = self._done_s[name] if length_s is None else length_s
            self._done_s[name] = self._length_s[name] = end_s

    @property
    def num_finished(self) -> int:
        """Number of finished recordings."""
        return len(self._finished)

    @property
    def num_files(self) -> int:
        """Recordings in all."""
        return len(self._done_s)

    @property
    def done_s(self) -> float:
        """Seconds of audio transcribed."""
        with self._lock:
            return sum(self._done_s.values())

    @property
    def total_s(self) -> float | None:
        """Total seconds of audio; None while a recording's duration is unknown."""
        with self._lock:
            total_s = sum(map(max, self._length_s.values(), self._done_s.values()))
        return total_s if math.isfinite(total_s) else None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return 0.0 if self._began_s is None else self._clock() - self._began_s

    @property
    def rtfx(self) -> float:
        """Throughput in seconds of audio per second."""
        return self.done_s / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Remaining seconds at the speed so far; None if unknown."""
        total_s, rtfx = self.total_s, self.rtfx
        if total_s is None or not rtfx or self.elapsed_s < _ETA_AFTER_S:
            return None
        return max(0.0, total_s - self.done_s) / rtfx

    @property
    def subject(self) -> str:
        """Return the name of a single recording, or the number finished."""
        names = [*self._done_s]
        if len(names) != 1:
            return f"{self.num_finished} of {len(names)} files"
        name = printable(redact_uri(names[0]))
        # The end of a long name is more informative than its folders.
        return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"

    @property
    def figures(self) -> str:
        """Return percentage, seconds, speed and remaining time, as far as known."""
        total_s, eta_s = self.total_s, self.eta_s
        words = [f"{self.done_s / total_s:.0%}"] if total_s else []
        words.append(clock(self.done_s) + (f" of {clock(total_s)}" if total_s else ""))
        words.append(f"RTFx {self.rtfx:.1f}")
        words += [] if eta_s is None else [f"ETA {clock(eta_s)}"]
        return ", ".join(words)

    def summary(self, num_done: int) -> str:
        """Return a line that summarizes the work."""
        took = f"{duration(self.done_s)} of audio in {duration(self.elapsed_s)}"
        return f"{counted(num_done, 'file')}: {took} (RTFx {self.rtfx:.1f})"


def display_of(meter: Meter, *, shown: bool = True) -> Display:
    """Return the display of a meter."""
    return Display(
        sys.stderr if shown and not speaks_json() else None,
        line=lambda: f"{meter.subject}: {meter.figures}",
        drawn=lambda: _bar_line(meter),
        stays=False,
    )


@contextmanager
def waiting(words: str, *, shown: bool) -> Iterator[None]:
    """Show a status message on a terminal while waiting."""
    terminal = sys.stderr
    if not shown or speaks_json() or not is_terminal(terminal):
        yield
        return
    # Not a live display: hub downloads show their own bars, which would conflict.
    terminal.write(words)
    terminal.flush()
    try:
        yield
    finally:
        terminal.write("\r\x1b[2K")
        terminal.flush()


class TextPrinter:
    """Prints transcripts on stdout in the order of the arguments, the first of them as it comes."""

    def __init__(self, names: Sequence[str], display: Display, *, times: bool = True) -> None:
        self._display = display
        self._times = times
        self._headed = len(names) > 1 or sys.stdout.isatty()
        self._left = deque(names)
        self._said: dict[str, list[Segment]] = {name: [] for name in names}
        self._ended: dict[str, tuple[Transcript, ...]] = {}
        self._num_printed = 0  # segments of the first pending recording

    def add(self, name: str, segment: Segment) -> None:
        """Add the next segment of a recording."""
        self._said[name].append(segment)
        if name == self._left[0]:
            with self._display.aside():
                self._print_said(name)

    def end(self, name: str, transcripts: Sequence[Transcript] = ()) -> None:
        """Mark a recording's end with its transcripts, one per channel, or none if it failed."""
        self._ended[name] = tuple(transcripts)
        if name == self._left[0]:
            with self._display.aside():
                while self._left and self._left[0] in self._ended:
                    self._print_first()
                if self._left:
                    self._print_said(self._left[0])

    def end_early(self) -> None:
        """Print finished recordings even if others before them are unfinished."""
        with self._display.aside():
            while self._left:
                if self._left[0] in self._ended:
                    self._print_first()
                else:
                    self._left.popleft()
                    self._num_printed = 0

    def _print_first(self) -> None:
        name = self._left.popleft()
        transcripts = self._ended.pop(name)
        apart = len(transcripts) > 1  # one transcript per channel
        for transcript in transcripts:
            if apart:
                part = channel_name(
                    transcript.channel, transcript.audio_track, transcript.audio_tracks
                )
                print_heading(f"{redact_uri(name)}, {part}", transcript)
            elif not transcript.segments and self._headed:
                print_heading(redact_uri(name), transcript)
            self._said[name] = [*itertools.chain.from_iterable(labelled(transcript))]
            self._print_said(name, headed=not apart)
            self._num_printed = 0
        del self._said[name]
        self._num_printed = 0  # for a failed one

    def _print_said(self, name: str, *, headed: bool = True) -> None:
        segments = self._said[name]
        for segment in segments[self._num_printed :]:
            if self._num_printed == 0 and headed and self._headed:
                print_heading(redact_uri(name), segment)
            print_segment(segment, times=self._times)
            self._num_printed += 1
        sys.stdout.flush()


def _bar_line(meter: Meter) -> RenderableType:
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(no_wrap=True, max_width=_LONGEST_NAME)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    total_s = meter.total_s
    # Of recordings whose turn has not come nobody knows the length: then it shows their number.
    total, done = (total_s, meter.done_s) if total_s else (meter.num_files, meter.num_finished)
    bar = ProgressBar(total=total, completed=done, pulse=total == 1 and total_s is None)
    line.add_row(Text(meter.subject, style="bold"), bar, Text(meter.figures, style="dim"))
    return line


@contextmanager
def text_display(*, in_place: bool) -> Iterator[Callable[[str], None]]:
    """Give what shows a text, on a terminal perhaps in place of the one before; no word is broken.

    In a pipe or a file it is as it is.
    """
    console = Console(highlight=False)
    if not sys.stdout.isatty():
        yield typer.echo
    elif not in_place:
        yield lambda text: console.print(Text(text, overflow="fold"))
    else:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            yield lambda text: live.update(Text(text, overflow="fold"), refresh=True)
