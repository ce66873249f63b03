"""Text on a terminal: in color, with a bar, drawn again in place; elsewhere as it is."""

import itertools
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

_BAR_WIDTH = 40
_LABEL = re.compile(r"  (\S.{0,10}?)  ")
_LABELS = {"failed": "bold red", "progress": "bold cyan", "ETA": "bold cyan"}
_STATES = {
    "finished": "bold green",
    "running": "bold cyan",
    "not ": "bold yellow",
    "its ": "bold red",
}


class Show(Protocol):
    """What shows a text whose first line is its title."""

    def __call__(self, text: str, *, share: float | None = None) -> None:
        """Show it, with a bar of what is done of it."""


def show_text(text: str, *, share: float | None = None) -> None:
    """Print a text; on a terminal in color and with its bar, in a pipe or a file as it is."""
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    Console(highlight=False).print(_drawn(text, share))


@contextmanager
def redrawn() -> Iterator[Show]:
    """Give what shows a text in the place of the one before; the last one stays."""
    with Live(
        console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop"
    ) as live:

        def show(text: str, *, share: float | None = None) -> None:
            live.update(_drawn(text, share), refresh=True)

        yield show


def _drawn(text: str, share: float | None) -> RenderableType:
    # Lines are broken already; what is longer has no blank: an address, which is to be copied.
    lines = text.splitlines()
    head = list(itertools.takewhile(lambda line: not line.startswith(" "), lines))
    title = "\n".join(head)
    shown: list[RenderableType] = [Text(title, style=_style_of(title), overflow="fold")]
    if share is not None:
        # Padded by nothing: that ends its line, which a bar by itself does not.
        shown.append(Padding(ProgressBar(total=1.0, completed=share, width=_BAR_WIDTH), 0))
    shown += [_labelled(line) for line in lines[len(head) :]]
    return Group(*shown)


def _style_of(title: str) -> str:
    return next((style for words, style in _STATES.items() if f"({words}" in title), "bold")


def _labelled(line: str) -> Text:
    text = Text(line, overflow="fold")
    if (label := _LABEL.match(line)) is not None:
        text.stylize(_LABELS.get(label[1], "cyan"), *label.span(1))
    return text
