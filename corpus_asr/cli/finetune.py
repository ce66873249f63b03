"""`corpus-asr finetune`: its options.

In: the command line. Out: lines about the training, and an exit code. Imports nothing that `--help`
would have to wait for.
"""

import sys
from typing import Annotated

import typer

from corpus_asr.cli import completion
from corpus_asr.cli.failures import readable_errors
from corpus_asr.logs import speaks_json
from corpus_asr.threads import one_thread_for_arrays


def finetune(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/finetune.yaml.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key: training.steps=300.",
            autocompletion=completion.training_override,
        ),
    ] = None,
) -> None:
    """Fine-tune a Whisper checkpoint on labelled audio, or resume a training that was stopped."""
    one_thread_for_arrays()
    with readable_errors(on_interrupt="run the same command again to resume"):
        from corpus_asr.config.load import load_finetune
        from corpus_asr.pipelines.finetune import run

        settings = load_finetune(config, overrides or ())
        done = run(settings, progress=None if speaks_json() else sys.stderr)
        for step, wer in done.error_rates:
            typer.echo(f"step {step:,}: wer {wer:.2%}")
        if done.kept_step == 0:
            typer.echo(
                f"{done.model_uri}: nothing was gained: the WER was lowest at step 0, so the "
                "starting checkpoint was kept"
            )
        else:
            typer.echo(f"{done.model_uri}: kept step {done.kept_step:,} of {done.steps:,}")
