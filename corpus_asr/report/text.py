"""Text on a console: labelled rows, wrapped lines and columns of reports; transcripts of files."""

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
    from jinja2 import BytecodeCache, Template
    from rich.console import Console

    from corpus_asr.formats.transcript import Transcript

# Of a log, a pipe or an issue; lines on a terminal are as wide as that, within these bounds.
WIDTH = 100
_LEAST_WIDTH, _MOST_WIDTH = 30, 120
_LABEL_WIDTH = 12  # of the longest, "last commit", and a blank


def line_width() -> int:
    """Return the width of lines: of a terminal its own, or `COLUMNS`; elsewhere `WIDTH`."""
    if not sys.stdout.isatty():
        return WIDTH
    columns = shutil.get_terminal_size((WIDTH, 24)).columns
    return min(max(columns, _LEAST_WIDTH), _MOST_WIDTH)


def now() -> str:
    """Return this moment as ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def duration(seconds: float) -> str:
    """Write a length of time in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def clock(seconds: float) -> str:
    """Write a time within a recording, or to its end, in whole seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def row(label: str, text: str) -> str:
    """Return a line with a label in front."""
    return f"  {label:<{_LABEL_WIDTH}}{text}"


def aligned(rows: Sequence[Sequence[str]], *, least: int = 0) -> list[list[str]]:
    """Pad cells to columns at least so wide, the first to the left and the others to the right."""
    widths = [max(least, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])] for first, *others in rows
    ]


def table(label: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines of aligned columns, the first of them labelled."""
    for cells in aligned(rows):
        yield row(label, harmless("  ".join(cells))).rstrip()
        label = ""


def printable(text: str) -> str:
    """Return a text in one line, without control characters."""
    return " ".join(harmless(text).split())


def harmless(text: str) -> str:
    """Return a text with blanks for control characters."""
    # A file name may hold escape sequences that rewrite what a terminal shows.
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def cell(text: str) -> str:
    """Return a text as a spreadsheet shows it, which takes some beginnings for formulas.

    Source: OWASP, CSV Injection.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def rounded(value: Any) -> Any:
    """Return data for JSON with numbers rounded to six digits, and null in place of NaN."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def wrapped(
    text: str, *, bullet: str = "", label: str = "", indented: bool = True
) -> Iterator[str]:
    """Break a long text into lines, the first behind its label."""
    indent = " " * (_LABEL_WIDTH + 2) if indented else ""
    yield from textwrap.wrap(
        harmless(text),
        line_width(),
        initial_indent=(row(label, "") if label else indent) + bullet,
        subsequent_indent=indent + " " * len(bullet),
        break_long_words=False,  # a URI has to stay one word, to be copied
        break_on_hyphens=False,
    )


def text_template(package: str, name: str, **filters: Callable[..., str]) -> "Template":
    """Return a template of text or Markdown with these filters in addition to the common ones."""
    # Here: `transcribe` prints through this module, and starts 45 ms sooner without Jinja.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader(package),
        autoescape=False,  # text for a console; Markdown has filters of its own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        bytecode_cache=_compiled(),
    )
    common: dict[str, Callable[..., str]] = {
        "commas": "{:,}".format,
        "counted": counted,
        "duration": duration,
        "percent": "{:.0%}".format,
        # Of whole lines: templates take the line's end after a block away.
        "row": lambda text, label: "\n".join([*wrapped(text, label=label), ""]),
        "wrap": lambda text, **options: "\n".join([*wrapped(text, **options), ""]),
    }
    templates.filters |= common | filters
    templates.globals |= {
        "failure_kind": failure_kind,
        "table": lambda label, rows: "\n".join(table(label, rows)),
    }
    return templates.get_template(name)


@cache
def _compiled() -> "BytecodeCache":
    """Return where code of templates is kept: compiling one takes 10 to 30 ms."""
    from jinja2 import BytecodeCache

    class Kept(BytecodeCache):
        def __init__(self) -> None:
            self._code: dict[str, Any] = {}

        def load_bytecode(self, bucket: Any) -> None:
            bucket.code = self._code.get(bucket.key)

        def dump_bytecode(self, bucket: Any) -> None:
            self._code[bucket.key] = bucket.code

    return Kept()


def print_transcript(transcript: "Transcript", *, heading: bool) -> None:
    """Print a transcript, in color on a terminal; `heading` puts its name above it."""
    if heading or sys.stdout.isatty():
        print_heading(transcript.uri or "", transcript)
    for segment in transcript.segments:
        print_segment(segment)


def print_heading(name: str, found: "Transcript | Segment | None") -> None:
    """Print the name above a transcript; on a terminal with the language of what was found."""
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
    # Rich would wrap and color what another program reads.
    if not sys.stdout.isatty():
        typer.echo(f"{clocks}{printable(segment.text)}")
        return
    from rich.text import Text

    # What the model was unsure of, or may have invented, is worth a second look.
    doubtful = segment.confidence < LOW_CONFIDENCE or segment.known_hallucination
    line = Text(clocks, style="cyan")
    line.append(printable(segment.text), style="yellow" if doubtful else "default")
    _console().print(line, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)
