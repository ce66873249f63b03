"""`corpus-asr evaluate`: its options, and when it fails.

In: the command line. Out: text or JSON, and an exit code. Imports nothing that `--help` would have
to wait for.
"""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli.failures import EXIT_SOME_FAILED, readable_errors, say
from corpus_asr.cli.options import EndpointUrl, OutputUri

if TYPE_CHECKING:
    from corpus_asr.report.accuracy.evaluation import Comparison


def evaluate(
    output_uri: OutputUri,
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
    max_cer: Annotated[
        float | None, typer.Option(help="Exit with 1 above this character error rate.")
    ] = None,
    not_worse: Annotated[
        bool,
        typer.Option("--not-worse", help="Exit with 1 if it is clearly worse than --against."),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Fit confidence to this run, for later runs of its model."
        ),
    ] = False,
    language: Annotated[
        str | None, typer.Option(help="Language of references that say none.")
    ] = None,
    endpoint_url: EndpointUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare a run's transcripts with references: word and character error rates."""
    if not_worse and against is None:
        raise typer.BadParameter("--not-worse needs --against: the run that is good enough")
    with readable_errors():
        from corpus_asr.pipelines.calibrate import calibrate as fit_calibration
        from corpus_asr.pipelines.evaluate import evaluate as evaluate_run
        from corpus_asr.report.accuracy.calibration import calibration_data, render_calibration
        from corpus_asr.report.accuracy.evaluation import as_data, render

        found = evaluate_run(
            output_uri,
            references,
            against=against,
            language=language,
            endpoint_url=endpoint_url,
        )
        data = as_data(found)
        if not as_json:
            typer.echo(render(found))
        if calibrate:
            calibration = fit_calibration(
                output_uri, references, language=language, endpoint_url=endpoint_url
            )
            data["calibration"] = calibration_data(calibration)
            if not as_json:
                typer.echo(render_calibration(calibration))
        if as_json:
            typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        missed = [
            _above("word error rate", found.everything.words.rate, "--max-wer", max_wer),
            _above("character error rate", found.everything.characters.rate, "--max-cer", max_cer),
            _worse(found.comparison) if not_worse else None,
        ]
        for words in missed:
            if words is not None:
                say(words)
        if any(missed):
            raise typer.Exit(EXIT_SOME_FAILED)


def _above(what: str, rate: float | None, option: str, bar: float | None) -> str | None:
    if bar is None or (rate is not None and rate <= bar):
        return None
    found = "unknown: nothing was said" if rate is None else f"{rate:.2%}"
    return f"the {what} is {found}, more than {option} allows ({bar:.2%})"


def _worse(beside: "Comparison | None") -> str | None:
    if beside is None:
        return "nothing was said in any recording of both runs, so --not-worse cannot be told"
    if not beside.clearly_worse:
        return None
    return (
        f"the word error rate is {beside.wer:.2%}, clearly worse than that of {beside.other} "
        f"({beside.other_wer:.2%})"
    )
