"""Transcripts of single files on the screen: for people, for a pipe, or as JSON.

In: transcripts, one after the other. Out: lines on stdout, in colour on a terminal. Knows nothing
of where they come from.
"""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import Protocol

import typer

from corpus_asr.confidence import LOW_CONFIDENCE
from corpus_asr.report.text import printable
from corpus_asr.segments import Segment, Transcript


class Format(StrEnum):
    """How `transcribe` prints."""

    txt = "txt"
    jsonl = "jsonl"


class Printer(Protocol):
    """Shows transcripts, one by one."""

    def __call__(self, transcript: Transcript) -> None:
        """Print one transcript."""


def printer(output_format: Format, *, many: bool) -> Printer:
    """Return what prints a transcript; of many files, each with its name."""
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
    return f"[{_clock(segment.start_s)} --> {_clock(segment.end_s)}]"


def _clock(seconds: float) -> str:
    """Write a time as MM:SS.mmm, with hours in front from the first hour on."""
    total_ms = round(seconds * 1000)
    minutes, rest_ms = divmod(total_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{minutes:02d}:{rest_ms / 1000:06.3f}"
    return f"{hours:02d}:{shown}" if hours else shown
