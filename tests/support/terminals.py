"""Commands on a pseudo-terminal, and what is on its screen in the end."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# A watched run is looked at more often than people would.
_MAIN = (
    "import corpus_asr.cli.results as results; results.WATCH_EVERY_S = 0.2; "
    "from corpus_asr.__main__ import main; main()"
)
_CODE = re.compile(r"\x1b\[\??(\d*)(?:;[\d;]*)?([A-Za-z])")


class Screen:
    """A terminal of so many columns that knows what `rich` uses: lines, moves up, erasing."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0
        self.moves_up = 0
        self.colors = 0

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            code = _CODE.match(text, at)
            if code is not None:
                self._obey(code[2], int(code[1] or 1))
                at = code.end()
                continue
            self._put(text[at])
            at += 1

    def _obey(self, command: str, count: int) -> None:
        if command == "A":
            self._row -= count
            self.moves_up += 1
        elif command == "K":
            self._lines[self._row] = []
        elif command == "m":
            self.colors += 1

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
            return
        if character == "\n" or self._column == self._columns:
            self._row, self._column = self._row + 1, 0
            while self._row >= len(self._lines):
                self._lines.append([])
        if character != "\n":
            line = self._lines[self._row]
            line += " " * (self._column + 1 - len(line))
            line[self._column] = character
            self._column += 1

    @property
    def lines(self) -> list[str]:
        """What is to be seen, scrolled-off lines included."""
        return ["".join(line).rstrip() for line in self._lines]


def on_terminal(
    arguments: Sequence[str],
    *,
    columns: int,
    rows: int = 30,
    meanwhile: Callable[[str], None] = lambda _: None,
) -> Screen:
    """Run a command of this program on a terminal; `meanwhile` sees what it has printed so far."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", _MAIN, *arguments],
        stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=REPOSITORY,
    )  # fmt: skip
    os.close(follower)
    printed, deadline = b"", time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            try:
                printed += os.read(leader, 65_536)
            except OSError:  # its other end is closed
                break
            meanwhile(printed.decode(errors="replace"))
    finally:
        if time.monotonic() >= deadline:
            process.kill()
        process.wait(10)
        os.close(leader)
    screen = Screen(columns)
    screen.feed(printed.decode())
    return screen
