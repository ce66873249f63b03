"""Console text: labeled rows, wrapped lines and columns of reports; transcripts."""

import datetime
import math
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

from corpus_asr.confidence import LOW_CONFIDENCE
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.segments import Segment, timestamp
from corpus_asr.units import counted

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from rich.console import Console

    from corpus_asr.formats.transcript import Transcript

# Width in logs, pipes and issues; terminals use their own width, within these bounds.
WIDTH = 100
_LEAST_WIDTH, _MOST_WIDTH = 30, 120
_LABEL_WIDTH = 12  # longest label, "last commit", and a space


def line_width() -> int:
    """Return the line width: of the terminal, or `COLUMNS`; otherwise `WIDTH`."""
    if not sys.stdout.isatty():
        return WIDTH
    columns = shutil.get_terminal_size((WIDTH, 24)).columns
    return min(max(columns, _LEAST_WIDTH), _MOST_WIDTH)


def now() -> str:
    """Return the present time as ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def clock(seconds: float) -> str:
    """Format a time within a recording, or a remaining time, in whole seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def row(label: str, text: str) -> str:
    """Return a line with a label."""
    return f"  {label:<{_LABEL_WIDTH}}{text}"


def aligned(rows: Sequence[Sequence[str]], *, least: int = 0) -> list[list[str]]:
    """Pad cells to columns of at least `least`: the first left-aligned, others right-aligned."""
    widths = [max(least, *map(len, column)) for column in zip(*rows, strict=True)]
    return [[first.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for first, *cells in rows]


def table(label: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines of aligned columns, the first with a label."""
    for cells in aligned(rows):
        yield row(label, harmless("  ".join(cells))).rstrip()
        label = ""


def printable(text: str) -> str:
    """Return a text on one line, without control characters."""
    return " ".join(harmless(text).split())


def harmless(text: str) -> str:
    """Return a text with control characters replaced by spaces."""
    # File names may contain escape sequences that rewrite the terminal.
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def cell(text: str) -> str:
    """Return a text safe for spreadsheets, which interpret some prefixes as formulas.

    Source: OWASP, CSV Injection.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def rounded(value: Any) -> Any:
    """Return JSON data with numbers rounded to six digits, and NaN replaced by null."""
    if isinstance(value, dict):
        return {name: rounded(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(member) for member in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def wrapped(
    text: str, *, bullet: str = "", label: str = "", indented: bool = True
) -> Iterator[str]:
    """Wrap a long text into lines, the first with its label."""
    indent = " " * (_LABEL_WIDTH + 2) if indented else ""
    yield from textwrap.wrap(
        harmless(text),
        line_width(),
        initial_indent=(row(label, "") if label else indent) + bullet,
        subsequent_indent=indent + " " * len(bullet),
        break_long_words=False,  # keeps URIs intact for copying
        break_on_hyphens=False,
    )


def text_template(package: str, name: str, **filters: Callable[..., str]) -> "Template":
    """Return a text or Markdown template with these filters in addition to the common ones."""
    templates = _templates(package)
    templates.filters |= filters
    return templates.get_template(name)


@cache
def _templates(package: str) -> "Environment":
    """Return the templates of a package, which keeps them compiled: that takes 10 to 30 ms each."""
    # Imported here: `transcribe` prints through this module, and starts 45 ms faster without Jinja.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader(package),
        autoescape=False,  # console text; Markdown has its own filters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    common: dict[str, Callable[..., str]] = {
        "commas": "{:,}".format,
        "counted": counted,
        "duration": duration,
        "percent": "{:.0%}".format,
        # Complete lines, since templates strip the newline after a block.
        "row": lambda text, label: "\n".join([*wrapped(text, label=label), ""]),
        "wrap": lambda text, **options: "\n".join([*wrapped(text, **options), ""]),
    }
    templates.filters |= common
    templates.globals |= {
        "failure_kind": failure_kind,
        "table": lambda label, rows: "\n".join(table(label, rows)),
    }
    return templates


def print_transcript(transcript: "Transcript") -> None:
    """Print a transcript below its name, in color on a terminal."""
    print_heading(transcript.uri or "", transcript)
    for segment in transcript.segments:
        print_segment(segment)


def print_heading(name: str, found: "Transcript | Segment | None") -> None:
    """Print a transcript's name; on a terminal with the language of `found`."""
    if not sys.stdout.isatty():
        typer.echo(f"{printable(name)}:")
        return
    from rich.text import Text

    line = Text(f"{printable(name)}  ", style="bold")
    if found is not None:
        has_text = isinstance(found, Segment) or bool(found.segments)
        language = found.language or ("language unknown" if has_text else "no speech")
        if found.language_probability is not None:
            language += f" {found.language_probability:.0%}"
        line.append(language, style="not bold dim")
    _console().print(line, soft_wrap=True)


def print_segment(segment: Segment, *, times: bool = True) -> None:
    """Print a line of a transcript."""
    clocks = f"[{timestamp(segment.start_s)} --> {timestamp(segment.end_s)}] " if times else ""
    if segment.speaker is not None:
        clocks += f"[{printable(segment.speaker)}] "
    # Rich would wrap and color output for other programs.
    if not sys.stdout.isatty():
        typer.echo(f"{clocks}{printable(segment.text)}")
        return
    from rich.text import Text

    # Low confidence or possible hallucinations are highlighted.
    doubtful = segment.confidence < LOW_CONFIDENCE or segment.known_hallucination
    line = Text(clocks, style="cyan")
    line.append(printable(segment.text), style="yellow" if doubtful else "default")
    _console().print(line, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)
