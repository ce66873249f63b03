"""Text on a console: labelled rows, wrapped lines and columns of reports; transcripts of files.

Lines of reports have at most about 100 characters and are the same on a terminal and in a log.
"""

import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from corpus_asr.confidence import LOW_CONFIDENCE
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.segments import Segment, Transcript, timestamp

if TYPE_CHECKING:
    from jinja2 import Template

WIDTH = 100
_LABEL_WIDTH = 12  # of the longest, "last commit", and a blank


def duration(seconds: float) -> str:
    """Write a length of time with the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun."""
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


def shortened(text: str, most: int) -> str:
    """Return at most so many characters of a text; dots stand for the rest."""
    return text if len(text) <= most else f"{text[:most]}..."


def rounded(value: Any) -> Any:
    """Return data for JSON with numbers rounded to six digits; one that is not a number is null."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


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


def text_template(package: str, name: str, **filters: Callable[..., str]) -> "Template":
    """Return a template of text or Markdown; filters of Markdown escape what comes from tables."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader(package),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    usual: dict[str, Callable[..., str]] = {
        "commas": "{:,}".format,
        "counted": counted,
        "duration": duration,
        "percent": "{:.0%}".format,
        # Of whole lines: templates take the line's end after a block away.
        "row": lambda text, label: f"{row(label, text).rstrip()}\n",
        "wrap": lambda text, **where: "\n".join([*wrapped(text, **where), ""]),
    }
    templates.filters |= usual | filters
    templates.globals |= {
        "failure_kind": failure_kind,
        "table": lambda label, rows: "\n".join(table(label, rows)),
    }
    return templates.get_template(name)


class Format(StrEnum):
    """How `transcribe` prints."""

    txt = "txt"
    jsonl = "jsonl"


def printer(output_format: Format, *, many: bool) -> Callable[[Transcript], None]:
    """Return what prints a transcript, in colour on a terminal; of many files, with its name."""
    if output_format is Format.jsonl:
        return _print_json
    if not sys.stdout.isatty():
        return lambda transcript: _print_plain(transcript, heading=many)
    return _print_rich


def _print_json(transcript: Transcript) -> None:
    typer.echo(json.dumps(asdict(transcript), ensure_ascii=False))


def _print_plain(transcript: Transcript, *, heading: bool) -> None:
    if heading:
        typer.echo(f"{transcript.uri}:")
    for segment in transcript.segments:
        typer.echo(f"{_times(segment)} {printable(segment.text)}")


def _print_rich(transcript: Transcript) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    language = transcript.language or ("language unknown" if transcript.segments else "no speech")
    if transcript.language_probability is not None:
        language += f" {transcript.language_probability:.0%}"
    console.print(Text(f"{transcript.uri}  ", style="bold").append(language, style="not bold dim"))
    for segment in transcript.segments:
        line = Text(f"{_times(segment)} ", style="cyan")
        # What the model was unsure of, or may have invented, is worth a second look.
        doubtful = segment.confidence < LOW_CONFIDENCE or segment.known_hallucination
        line.append(printable(segment.text), style="yellow" if doubtful else "")
        console.print(line, soft_wrap=True)


def _times(segment: Segment) -> str:
    return f"[{timestamp(segment.start_s)} --> {timestamp(segment.end_s)}]"
