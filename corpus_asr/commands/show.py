"""`corpus-asr show`: the transcripts of a run on the screen.

In: the command line. Out: lines on stdout. Imports nothing that `--help` would have to wait for.
"""

from typing import Annotated

import typer

from corpus_asr.commands.failures import readable_errors


def show(
    output_uri: Annotated[
        str, typer.Argument(metavar="OUTPUT_URI", help="The output.uri of a run, done or not.")
    ],
    uri: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only recordings whose address matches, as '*.mp3'."),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Only segments in this language, such as en.")
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(help="Only segments as sure as that, 0-1.")
    ] = 0.0,
    endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint, where it is not Amazon's.")
    ] = None,
) -> None:
    """Print the transcripts of a run with their times, as far as it is."""
    from corpus_asr.export.index import read_index
    from corpus_asr.export.load import Selection, chosen, recordings
    from corpus_asr.report.transcript import Format, printer
    from corpus_asr.segments import Transcript
    from corpus_asr.storage.addresses import shown
    from corpus_asr.storage.tables import OutputStore

    with readable_errors():
        selection = Selection(
            languages=tuple(language or ()),
            uris=tuple(uri or ()),
            min_confidence=min_confidence,
            partial=True,
        )
        store = OutputStore(output_uri, endpoint_url=endpoint_url)
        index = read_index(store)
        print_one = printer(Format.txt, many=True)
        for _, found in recordings(store, index, chosen(index, selection), selection):
            print_one(
                Transcript(
                    uri=shown(found.uri),
                    segments=found.segments,
                    language=found.language,
                    language_probability=None,
                    duration_s=found.duration_s,
                )
            )
