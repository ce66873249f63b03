"""The command line: arguments in, one call below, text and an exit code out.

Knows how things are shown and nothing of how they are done. Only what `--help` needs is imported
at the top: a shell completes and a user reads without waiting for torch, Ray or Arrow.

Exit codes: 0 done; 1 done, but more recordings failed than the configuration allows (for
`transcribe`: a file failed); 2 the configuration, the command line or the model is unusable; 3 the
work could not go on; 130 interrupted, 143 by SIGTERM. `CORPUS_ASR_DEBUG=1` shows the traceback of
an error.
"""

import atexit
import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TextIO

import typer

from corpus_asr.commands.evaluate import evaluate
from corpus_asr.commands.export import export
from corpus_asr.commands.failures import (
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    EXIT_TERMINATED,
    readable_errors,
    say,
)
from corpus_asr.commands.label import label
from corpus_asr.commands.nightly import nightly
from corpus_asr.commands.report import report
from corpus_asr.errors import ItemError
from corpus_asr.logs import LogFormat, LogLevel, LogSettings, configure, speaks_json
from corpus_asr.report.transcript import Format, printer
from corpus_asr.runtime.stopping import ended_by_sigterm
from corpus_asr.threads import spin_briefly

if TYPE_CHECKING:
    from corpus_asr.config.choices import Choices
    from corpus_asr.config.load import Setting
    from corpus_asr.config.run import RunConfig
    from corpus_asr.runtime.summary import RunSummary
    from corpus_asr.storage.plan import Plan

WATCH_EVERY_S = 5.0

_PLAIN_WORD = re.compile(r"[A-Za-z/][\w/.@+-]*(?::[\w/.@+-]+)*", re.ASCII)
_NOT_TEXT = {"true", "false", "null"}

app = typer.Typer(
    name="corpus-asr",
    help="Transcribe or classify audio corpora: object storage in, Parquet tables out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/podcasts.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as extract.part_s=300."),
]
Output = Annotated[
    str, typer.Argument(metavar="OUTPUT_URI", help="The output.uri of a run, done or not.")
]
Endpoint = Annotated[str | None, typer.Option(help="S3 endpoint, where it is not Amazon's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class _Pipeline(Protocol):
    def run(
        self, config: "RunConfig", *, local: bool, progress: TextIO | None, choices: "Choices"
    ) -> "RunSummary":
        """Do the job and return what came of it."""


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
    from corpus_asr.storage.addresses import without_secrets

    usual = LogSettings.from_environment()
    settings = LogSettings(format=log_format or usual.format, level=log_level or usual.level)
    configure(settings, redact=without_secrets)


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="Run in this process, without Ray.")
    ] = False,
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
    steal_lock: Annotated[
        bool,
        typer.Option("--steal-lock", help="Take over a lock without a sign of life for 90 s."),
    ] = False,
) -> None:
    """Transcribe or classify a corpus, or continue where an earlier run stopped."""
    from corpus_asr.config.choices import Choices, Retry
    from corpus_asr.config.load import load_config

    advice = "run the same command again to continue"
    with readable_errors(on_interrupt=advice), ended_by_sigterm():
        settings = load_config(config, overrides or ())
        # Pipelines stand above the command line in the layers, so they are found by name.
        pipeline: _Pipeline = importlib.import_module(f"pipelines.{settings.pipeline}")
        retry = Retry.retryable if retry_failed else Retry.none
        choices = Choices(
            steal_lock=steal_lock, new_run=new_run, retry=Retry.all if retry_all_failed else retry
        )
        lines = None if speaks_json() else sys.stderr
        summary = pipeline.run(settings, local=local, progress=lines, choices=choices)
        typer.echo(_summary_words(summary))
        allowed = settings.output.max_failed_fraction
        if summary.failed_fraction > allowed:
            say(
                f"{summary.failed} of {summary.files} recordings failed "
                f"({summary.failed_fraction:.1%}), more than output.max_failed_fraction allows "
                f"({allowed:.1%}); see corpus-asr report {summary.output_uri}"
            )
            raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Show what a run would do: every setting, the listing, what is done already."""
    from corpus_asr.config.load import load_config, settings_of
    from corpus_asr.runtime.weights import fetch_weights
    from corpus_asr.storage.plan import make_plan
    from corpus_asr.storage.tables import OUTCOMES_FOLDER, OutputStore

    with readable_errors():
        settings = load_config(config, overrides or ())
        _print_settings(list(settings_of(settings)))
        store = OutputStore(settings.output.uri, endpoint_url=settings.output.endpoint_url)
        # Weights are large; they matter here only where results of the same ones may lie.
        begun = bool(store.names(OUTCOMES_FOLDER))
        weights = fetch_weights(settings, hashed=begun)
        drawn = make_plan(settings, store, model_revision=weights.name if begun else None)
        # Nobody will work it off, and a report takes the newest plan for that of the last run.
        for name in list(store.all_names(drawn.name)):
            store.remove(name)
        _print_plan(drawn, store.uri)


@app.command()
def status(
    output_uri: Output,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every 5 s until the run has ended.")
    ] = False,
) -> None:
    """Show whether a run lives, how far it is, where its time goes and what has failed."""
    from corpus_asr.report.status import as_data, load_status, render
    from corpus_asr.storage.tables import OutputStore

    with readable_errors():
        store = OutputStore(output_uri, endpoint_url=endpoint_url)
        while True:
            found = load_status(store)
            typer.echo(json.dumps(as_data(found), ensure_ascii=False) if as_json else render(found))
            if not watch or not found.alive:
                return
            time.sleep(WATCH_EVERY_S)


@app.command()
def transcribe(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files or addresses.")],
    model: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help="A folder, an address or a hub name.")
    ],
    language: Annotated[str | None, typer.Option(help="Code such as en; default: detect.")] = None,
    task: Annotated[str | None, typer.Option(help="transcribe or translate.")] = None,
    strategy: Annotated[str | None, typer.Option(help="sequential or chunked.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the decoding section."),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="txt: lines of text; jsonl: one object per file.")
    ] = Format.txt,
) -> None:
    """Transcribe a few files and print the text with its times."""
    from corpus_asr.config.load import decoding_from, decoding_options

    with readable_errors():
        options = decoding_options(overrides or ())
        flags = {"language": language, "task": task, "strategy": strategy}
        options |= {name: value for name, value in flags.items() if value is not None}
        decoding_from(options)  # a wrong option is told before the model is loaded

        from corpus_asr.runtime.transcriber import Transcriber

        failed: list[str] = []

        def tell(uri: str, error: ItemError) -> None:
            failed.append(uri)
            say(str(error))

        show = printer(output_format, many=len(files) > 1)
        with Transcriber.from_pretrained(model, device=device, dtype=dtype, **options) as loaded:
            for transcript in loaded.transcribe_many(files, on_error=tell):
                show(transcript)
        if failed:
            say(f"{len(failed)} of {len(files)} files failed")
            raise typer.Exit(EXIT_SOME_FAILED)


app.command()(report)
app.command()(export)
app.command()(evaluate)
app.command()(nightly)
app.command()(label)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="An OpenAI .pt file, or a checkpoint folder.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new .pt file, or a new folder.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; default: as stored.")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Size of one file of weights in a folder.")
    ] = "5GB",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="For a .pt SRC: a Whisper folder, or openai-whisper's .tiktoken file."),
    ] = None,
) -> None:
    """Convert a Whisper checkpoint between OpenAI's layout and Hugging Face's, both ways."""
    with readable_errors():
        from corpus_asr.models.convert.folder import convert as convert_checkpoint

        typer.echo(
            convert_checkpoint(
                source, target, dtype=dtype, max_shard_size=max_shard_size, tokenizer=tokenizer
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


def _print_settings(settings: "list[Setting]") -> None:
    """Print every value as YAML that could be saved and run, defaults marked as such."""
    section = ""
    for setting in settings:
        above, _, name = setting.key.rpartition(".")
        if above != section:
            typer.echo(f"{above}:")
            section = above
        line = f"{'  ' if above else ''}{name}: {_yaml(setting.value)}"
        if setting.is_default:
            line = typer.style(f"{line}  # default", dim=True)
        typer.echo(line)


def _yaml(value: object) -> str:
    """Write a value in YAML: JSON, which YAML includes, but plain words without quotes."""
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)


def _print_plan(drawn: "Plan", output_uri: str) -> None:
    unknown = f", {drawn.num_unknown_sizes:,} of unknown size" if drawn.num_unknown_sizes else ""
    left_out = f"{drawn.num_excluded:,} excluded, {drawn.num_duplicates:,} named twice"
    typer.echo(f"\n# listed     {drawn.num_files:,} files, {_size(drawn.num_bytes)}{unknown}")
    typer.echo(f"# left out   {left_out}")
    typer.echo(f"# done       {drawn.num_done:,} files, in {output_uri}")
    typer.echo(
        f"# to do      {drawn.num_remaining:,} files, {_size(drawn.num_remaining_bytes)}, "
        f"in {drawn.num_packs:,} pack{'' if drawn.num_packs == 1 else 's'}"
    )


def _size(num_bytes: int) -> str:
    if num_bytes < 1_000_000:
        return f"{num_bytes / 1e3:,.1f} kB"
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"


if __name__ == "__main__":
    main()
