"""`corpus-asr nightly`: its options, and what its exit code says.

In: the command line. Out: the night's summary, and an exit code. Imports nothing that `--help`
would have to wait for.
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli import completion
from corpus_asr.cli.failures import EXIT_LOCKED, EXIT_SOME_FAILED, readable_errors, say
from corpus_asr.cli.model_option import note_model_of
from corpus_asr.errors import LockedError
from corpus_asr.logs import speaks_json
from corpus_asr.runtime.shutdown import ended_by_sigterm

if TYPE_CHECKING:
    from corpus_asr.report.nightly import Night


def nightly(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/nightly.yaml.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key, such as nightly.max_failed=9.",
            autocompletion=completion.override,
        ),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Run in this process, without Ray.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Run a job as every night: what is new, within its time and budget, with a summary."""
    from corpus_asr.config.load import load_config
    from corpus_asr.pipelines.nightly import run as run_night
    from corpus_asr.report.nightly import as_data, markdown

    def show(night: "Night") -> None:
        data = json.dumps(as_data(night), indent=2, ensure_ascii=False)
        typer.echo(data if as_json else markdown(night).rstrip("\n"))

    with readable_errors(on_interrupt="the next night goes on"), ended_by_sigterm():
        settings = load_config(config, overrides or ())
        note_model_of(settings)
        lines = None if speaks_json() else sys.stderr
        try:
            night = run_night(settings, local=local, progress=lines, show=show)
        except LockedError as error:
            say(str(error))
            raise typer.Exit(EXIT_LOCKED) from None
        if night.over_budget is not None:
            say(f"{night.over_budget}; see corpus-asr report {night.output}")
            raise typer.Exit(EXIT_SOME_FAILED)
