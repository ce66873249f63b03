"""The command line: arguments in, one call below, text and an exit code out.

Knows how things are shown and nothing of how they are done. Only what `--help` needs is imported
at the top: a shell completes and a user reads without waiting for torch, Ray or Arrow.

Exit codes: 0 done; 1 done, but more recordings failed than the configuration allows (for
`transcribe`: a file failed); 2 the configuration, the command line or the model is unusable, or a
store refuses; 3 the work could not go on; 130 interrupted, 143 by SIGTERM. `CORPUS_ASR_DEBUG=1`
shows the traceback of an error.
"""

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli.failures import (
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    EXIT_TERMINATED,
    readable_errors,
    say,
)
from corpus_asr.cli.init import init
from corpus_asr.cli.jobs import finetune, label, nightly, plan
from corpus_asr.cli.options import (
    AsJson,
    Config,
    EndpointUrl,
    Local,
    OutputUri,
    Overrides,
    StealLock,
    note_model_of,
    progress_lines,
    run_pipeline,
)
from corpus_asr.cli.results import evaluate, export, report, show
from corpus_asr.cli.transcribe import transcribe
from corpus_asr.cli.view import view
from corpus_asr.logs import LogFormat, LogLevel, LogSettings, configure
from corpus_asr.runtime.shutdown import ended_by_sigterm
from corpus_asr.threads import spin_briefly

if TYPE_CHECKING:
    from corpus_asr.config.run import RunConfig
    from corpus_asr.runtime.progress import RunSummary

WATCH_EVERY_S = 5.0

app = typer.Typer(
    name="corpus-asr",
    help="Transcribe or classify audio corpora: object storage in, Parquet tables out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the `corpus-asr` command."""
    for stream in (sys.stdout, sys.stderr):
        # File names need not be UTF-8, nor need the terminal be: show the byte, never fail on it.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    spin_briefly()
    try:
        app()
    except SystemExit as end:
        if end.code not in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            raise
        # An orderly end would wait for the threads that are in the middle of the network; what Ray
        # and others have registered is done all the same.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(end.code)


@app.callback()
def logging_options(
    log_format: Annotated[
        LogFormat | None, typer.Option(help="How stderr looks: text, or a JSON object per line.")
    ] = None,
    log_level: Annotated[
        LogLevel | None, typer.Option(help="What is logged at least; default: warning.")
    ] = None,
) -> None:
    """Set up logging; CORPUS_ASR_LOG_FORMAT and CORPUS_ASR_LOG_LEVEL say the same."""
    from corpus_asr.storage.stores.uri import without_secrets

    usual = LogSettings.from_environment()
    settings = LogSettings(format=log_format or usual.format, level=log_level or usual.level)
    configure(settings, redact=without_secrets)


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    local: Local = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do again what failed and may go well now.")
    ] = False,
    retry_all_failed: Annotated[
        bool, typer.Option("--retry-all-failed", help="Do again all that failed, hopeless or not.")
    ] = False,
    new_run: Annotated[
        bool,
        typer.Option("--new-run", help="First move results of other settings to OUTPUT/_earlier."),
    ] = False,
    steal_lock: StealLock = False,
) -> None:
    """Transcribe or classify a corpus, or continue where an earlier run stopped."""
    from corpus_asr.config.load import load_config
    from corpus_asr.config.run import Retry, RunOptions

    advice = "run the same command again to continue"
    with readable_errors(on_interrupt=advice), ended_by_sigterm():
        settings = load_config(config, overrides or ())
        note_model_of(settings)
        retry = Retry.retryable if retry_failed else Retry.none
        options = RunOptions(
            steal_lock=steal_lock, new_run=new_run, retry=Retry.all if retry_all_failed else retry
        )
        summary = run_pipeline(settings, local=local, progress=progress_lines(), options=options)
        typer.echo(_summary_words(summary))
        allowed = settings.output.max_failed_fraction
        if summary.failed_fraction > allowed:
            say(
                f"{summary.failed} of {summary.files} recordings failed "
                f"({summary.failed_fraction:.1%}), more than output.max_failed_fraction allows "
                f"({allowed:.1%}){_mostly(settings)}; see corpus-asr report {summary.output_uri}"
            )
            raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def status(
    output_uri: OutputUri,
    endpoint_url: EndpointUrl = None,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every 5 s until the run has ended.")
    ] = False,
) -> None:
    """Show whether a run lives, how far it is, where its time goes and what has failed."""
    from corpus_asr.report.status import as_data, load_status, render
    from corpus_asr.storage.run_state.tables import OutputStore

    with readable_errors():
        store = OutputStore(output_uri, endpoint_url=endpoint_url)
        while True:
            found = load_status(store)
            typer.echo(json.dumps(as_data(found), ensure_ascii=False) if as_json else render(found))
            if not watch or not found.alive:
                return
            time.sleep(WATCH_EVERY_S)


app.command()(init)
app.command()(plan)
app.command()(transcribe)
app.command()(report)
app.command()(show)
app.command()(export)
app.command()(evaluate)
app.command()(view)
app.command()(nightly)
app.command()(label)
app.command()(finetune)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="An OpenAI .pt file, or a checkpoint: a folder, URI or name."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new .pt file, or a new folder.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16, bfloat16 or int8; default: as stored."),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Size of one file of weights in a folder.")
    ] = "5GB",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="For a .pt SRC: a Whisper folder, or openai-whisper's .tiktoken file."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="For a folder SRC: a LoRA adapter in PEFT's layout to merge."),
    ] = None,
) -> None:
    """Convert a Whisper checkpoint between OpenAI's layout and Hugging Face's; merge adapters."""
    with readable_errors():
        from corpus_asr.models.convert.folder import OPENAI_SUFFIX
        from corpus_asr.models.convert.folder import convert as convert_checkpoint
        from corpus_asr.storage.model_files import fetch_checkpoint

        is_file = source.endswith(OPENAI_SUFFIX) or Path(source).exists()
        typer.echo(
            convert_checkpoint(
                Path(source) if is_file else fetch_checkpoint(source),
                target,
                dtype=dtype,
                max_shard_size=max_shard_size,
                tokenizer=tokenizer,
                adapter=adapter,
            )
        )


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
def bench(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Time this engine beside faster-whisper, transformers and openai-whisper."""
    # Its options are its own: the benchmark also runs where this command line is not installed.
    from corpus_asr.benchmark.command import run as run_benchmark

    with readable_errors():
        run_benchmark(arguments or [])


def _mostly(config: "RunConfig") -> str:
    from corpus_asr.failure_kinds import failure_kind
    from corpus_asr.storage.run_state.run_files import read_snapshot
    from corpus_asr.storage.run_state.tables import OutputStore

    store = OutputStore(config.output.uri, endpoint_url=config.output.endpoint_url)
    snapshot = read_snapshot(store)
    kinds = snapshot.failures if snapshot is not None else ()
    most = max(kinds, key=lambda kind: kind.count, default=None)
    if most is None:
        return ""
    example = f", such as {most.examples[0]}" if most.examples else ""
    advice = failure_kind(most.kind, retryable=most.retryable).advice
    return f"; {most.count} {most.kind}{example}: {advice}"


def _summary_words(summary: "RunSummary") -> str:
    from corpus_asr.report.text import duration

    return (
        f"{summary.output_uri}: {summary.files:,} recordings, {summary.done:,} done "
        f"({summary.no_speech:,} without speech), {summary.failed:,} failed; "
        f"{summary.segments:,} {summary.made} from {duration(summary.audio_s)} of audio\n"
        f"this run: {summary.processed_files:,} recordings, "
        f"{duration(summary.processed_audio_s)} of audio in {duration(summary.wall_s)} "
        f"({summary.speed:.1f} hours of audio per hour)"
    )


if __name__ == "__main__":
    main()
