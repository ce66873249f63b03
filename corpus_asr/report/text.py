"""How reports lay out text: labelled rows, wrapped lines, columns, stretches of time.

In: words and numbers. Out: lines of at most about 100 characters, the same on a terminal and in a
log. Knows nothing of what they say.
"""

import textwrap
from collections.abc import Iterator, Sequence

WIDTH = 100
_LABEL_WIDTH = 12


def duration(seconds: float) -> str:
    """Say a stretch of time with the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def counted(count: int, noun: str) -> str:
    """Say how many of something there are."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def row(label: str, text: str) -> str:
    """Return a line with a label in front."""
    return f"  {label:<{_LABEL_WIDTH}}{text}"


def table(label: str, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    for number, (first, *rest) in enumerate(rows):
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield row(label if number == 0 else "", "  ".join(cells)).rstrip()


def printable(text: str) -> str:
    """Return a text in one line, without what a terminal would obey."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def wrapped(text: str, *, bullet: str = "", label: str = "") -> Iterator[str]:
    """Break a long text into lines below each other, the first behind its label."""
    indent = " " * (_LABEL_WIDTH + 2)
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=(row(label, "") if label else indent) + bullet,
        subsequent_indent=indent + " " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
