"""`corpus-asr show`: the transcripts of a run on the screen.

In: the command line. Out: lines on stdout. Imports nothing that `--help` would have to wait for.
"""

from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.options import (
    DropKnownHallucinations,
    EndpointUrl,
    Languages,
    MinConfidence,
    OutputUri,
    Uris,
)


def show(
    output_uri: OutputUri,
    uri: Uris = None,
    language: Languages = None,
    min_confidence: MinConfidence = 0.0,
    drop_known_hallucinations: DropKnownHallucinations = False,
    endpoint_url: EndpointUrl = None,
) -> None:
    """Print the transcripts of a run with their times, as far as it is."""
    from corpus_asr.export.recordings import Selection, chosen, read_index, recordings
    from corpus_asr.report.text import Format, printer
    from corpus_asr.segments import Transcript
    from corpus_asr.storage.run_state.tables import OutputStore
    from corpus_asr.storage.stores.uri import redact_uri

    with readable_errors():
        selection = Selection(
            languages=tuple(language or ()),
            uris=tuple(uri or ()),
            min_confidence=min_confidence,
            drop_known_hallucinations=drop_known_hallucinations,
            partial=True,
        )
        store = OutputStore(output_uri, endpoint_url=endpoint_url)
        index = read_index(store)
        print_one = printer(Format.txt, many=True)
        for _, found in recordings(store, index, chosen(index, selection), selection):
            print_one(
                Transcript(
                    uri=redact_uri(found.uri),
                    segments=found.segments,
                    language=found.language,
                    language_probability=None,
                    duration_s=found.duration_s,
                )
            )
