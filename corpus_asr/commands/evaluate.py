"""`corpus-asr evaluate`: its options, and when it fails.

In: the command line. Out: text or JSON, and an exit code. Imports nothing that `--help` would have
to wait for.
"""

import importlib
import json
from typing import Annotated

import typer

from corpus_asr.commands.failures import EXIT_SOME_FAILED, readable_errors, say


def evaluate(
    output_uri: Annotated[
        str, typer.Argument(metavar="OUTPUT_URI", help="The output.uri of a run, done or not.")
    ],
    references: Annotated[
        str,
        typer.Option(metavar="MANIFEST", help="A .jsonl, .csv or .parquet of uri (or path), text."),
    ],
    against: Annotated[
        str | None, typer.Option(metavar="OUTPUT_URI", help="Another run to compare with.")
    ] = None,
    max_wer: Annotated[
        float | None, typer.Option(help="Exit with 1 above this word error rate, such as 0.12.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Language of references that say none.")
    ] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="S3 endpoint, where it is not Amazon's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare a run's transcripts with references: word and character error rates."""
    with readable_errors():
        from corpus_asr.report.accuracy_render import render
        from corpus_asr.report.accuracy_summary import as_data

        # Pipelines stand above the command line in the layers, so they are found by name.
        pipeline = importlib.import_module("pipelines.evaluate_model")
        found = pipeline.evaluate(
            output_uri,
            references,
            against=against,
            language=language,
            endpoint_url=endpoint_url,
        )
        data = json.dumps(as_data(found), indent=2, ensure_ascii=False)
        typer.echo(data if as_json else render(found))
        if max_wer is not None and not (found.wer is not None and found.wer <= max_wer):
            rate = "unknown: nothing was said" if found.wer is None else f"{found.wer:.2%}"
            say(f"the word error rate is {rate}, more than --max-wer allows ({max_wer:.2%})")
            raise typer.Exit(EXIT_SOME_FAILED)
