"""`corpus-asr export`: its options, and what it says when it is done.

In: the command line. Out: files through `export/`, and a line or two. Imports nothing that `--help`
would have to wait for.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.options import (
    DropKnownHallucinations,
    EndpointUrl,
    Languages,
    MinConfidence,
    OutputUri,
    Uris,
)

if TYPE_CHECKING:
    from corpus_asr.export.write import ExportSummary

_PANEL = "Subtitles"


class FormatName(StrEnum):
    """The formats by name; the same as `export.formats.ExportFormat`."""

    srt = "srt"
    vtt = "vtt"
    txt = "txt"
    tsv = "tsv"
    json = "json"
    whisperx = "whisperx"
    nemo = "nemo"


class WordsName(StrEnum):
    """How spoken words are shown; the same as `export.formats.WordStyle`."""

    plain = "plain"
    highlight = "highlight"
    karaoke = "karaoke"


def export(
    output_uri: OutputUri,
    to: Annotated[
        str, typer.Option("--to", metavar="FOLDER", help="Where the files go: any address.")
    ],
    formats: Annotated[
        list[FormatName], typer.Option("--format", help="What to write; may be given repeatedly.")
    ],
    single: Annotated[
        bool, typer.Option("--single", help="One file for all recordings; not of srt and vtt.")
    ] = False,
    language: Languages = None,
    uri: Uris = None,
    min_confidence: MinConfidence = 0.0,
    drop_known_hallucinations: DropKnownHallucinations = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Also recordings that are not done yet.")
    ] = False,
    max_line_chars: Annotated[
        int | None, typer.Option(help="Characters of a line.", rich_help_panel=_PANEL)
    ] = None,
    max_lines: Annotated[
        int | None, typer.Option(help="Lines shown at a time.", rich_help_panel=_PANEL)
    ] = None,
    max_duration_s: Annotated[
        float | None, typer.Option(help="How long lines are shown.", rich_help_panel=_PANEL)
    ] = None,
    min_duration_s: Annotated[
        float, typer.Option(help="How long, at least, if there is time.", rich_help_panel=_PANEL)
    ] = 0.0,
    min_gap_s: Annotated[
        float, typer.Option(help="Pause before the next lines.", rich_help_panel=_PANEL)
    ] = 0.0,
    words: Annotated[
        WordsName,
        typer.Option(help="How the spoken word is shown, with word times.", rich_help_panel=_PANEL),
    ] = WordsName.plain,
    endpoint_url: EndpointUrl = None,
) -> None:
    """Write a run's transcripts as subtitles, text, tables, JSON or a manifest."""
    from corpus_asr.export.cues import CueRules
    from corpus_asr.export.formats import ExportFormat, WordStyle
    from corpus_asr.export.recordings import Selection
    from corpus_asr.export.write import ExportOptions
    from corpus_asr.export.write import export as write_files
    from corpus_asr.storage.run_state.tables import OutputStore

    with readable_errors(on_interrupt="run the same command again to replace it"):
        options = ExportOptions(
            formats=tuple(dict.fromkeys(ExportFormat(each) for each in formats)),
            single=single,
            rules=CueRules(
                max_line_chars=max_line_chars,
                max_lines=max_lines,
                max_duration_s=max_duration_s,
                min_duration_s=min_duration_s,
                min_gap_s=min_gap_s,
            ),
            words=WordStyle(words),
        )
        selection = Selection(
            languages=tuple(language or ()),
            uris=tuple(uri or ()),
            min_confidence=min_confidence,
            drop_known_hallucinations=drop_known_hallucinations,
            partial=partial,
        )
        store = OutputStore(output_uri, endpoint_url=endpoint_url)
        typer.echo(_words(write_files(store, to, options, selection)))


def _words(summary: "ExportSummary") -> str:
    from corpus_asr.report.text import counted

    done = (
        f"{summary.to}: {counted(summary.recordings, 'recording')}, "
        f"{counted(summary.segments, 'segment')} in {counted(summary.files, 'file')}"
    )
    if summary.partly_failed:
        done += f"; {summary.partly_failed:,} with parts that failed"
    left = [
        f"{count:,} {what}"
        for count, what in ((summary.failed, "failed"), (summary.unfinished, "not done yet"))
        if count
    ]
    return f"{done}\nleft out: {', '.join(left)}" if left else done
