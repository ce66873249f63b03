"""Command-line interface: parses arguments, calls one function, prints text, sets the exit code.

Contains no business logic. Only modules needed for `--help` are imported at the top, so that shell
completion and help do not wait for torch, Ray or Arrow. Underscores in an option are equivalent to
hyphens.

Exit codes: 0 success; 1 completed, but more recordings failed than the configuration allows (for
`transcribe`: a file failed); 2 invalid configuration, command line or model, or a permanent store
error; 3 the work could not continue; 128 plus the signal number if a signal ended it, such as
130 for Ctrl-C and 143 for SIGTERM. `CORPUS_ASR_DEBUG=1` shows the traceback of an error.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from corpus_asr.cli.archive import remove
from corpus_asr.cli.failures import (
    as_process,
    configure_logging,
    readable_errors,
)
from corpus_asr.cli.files import transcribe
from corpus_asr.cli.jobs import finetune, init, label, nightly, plan, run
from corpus_asr.cli.options import StorageOption
from corpus_asr.cli.results import correct, evaluate, export, report, show, status, view
from corpus_asr.formats.options import CUE_LIMITS
from corpus_asr.logs import LogFormat, LogLevel


class Command(TyperCommand):
    """A command whose help shows an example, given as its epilog."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`."""
        return _without_type(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters."""
        return [_without_type(param) for param in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line; the error for an unknown option suggests a known one."""
        if ctx.resilient_parsing or ctx.ignore_unknown_options:
            return super().parse_args(ctx, args)
        params = self.get_params(ctx)
        try:
            return super().parse_args(ctx, list(args))
        except Exception as error:
            # By its attributes: the class's package depends on Typer's version.
            refused: Any = error
            if hasattr(refused, "option_name") and hasattr(refused, "possibilities"):
                unknown = _as_typed(refused.option_name, args)
                refused.message = f"No such option: {unknown}. {_meant(unknown, self.name, params)}"
                refused.possibilities = None
            raise


class Group(TyperGroup):
    """The commands of the program."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Commands inherit it from the group.
        self.context_settings.setdefault("token_normalize_func", _with_hyphens)

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`."""
        return _without_type(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters."""
        return [_without_type(param) for param in super().get_params(ctx)]


def _with_hyphens(name: str) -> str:
    return name.replace("_", "-")


def _without_type(param: Any) -> Any:
    # Typer shows `<bool>` after a flag, which takes no value, and `<list[str]>` after FILE.
    if getattr(param, "is_flag", False):
        param.metavar = ""
    elif getattr(param, "param_type_name", None) == "argument":
        param.display_type_rich = lambda ctx: None
    return param


def _as_typed(option: str, args: Sequence[str]) -> str:
    names = (word.partition("=")[0] for word in args)
    return next((name for name in names if _with_hyphens(name) == option), option)


def _meant(unknown: str, command: str | None, params: Sequence[Any]) -> str:
    from corpus_asr.config.load import name_hint

    spelled = (name for param in params for name in (*param.opts, *param.secondary_opts))
    options = [name for name in spelled if name.startswith("--")]
    # Keys without a command-line option.
    keys = list(CUE_LIMITS) if command in ("transcribe", "export") else []
    if command == "transcribe":
        from corpus_asr.config.options import OPTION_NAMES

        param_names = {param.name for param in params}
        keys += [key for key in OPTION_NAMES if key not in param_names]
    hint = name_hint(unknown, [*options, *keys])
    for key in keys:
        hint = hint.replace(f" {key}?", f" --set {key}=...?")
    return hint[:1].upper() + hint[1:] or "See --help for all of them."


app = typer.Typer(
    name="corpus-asr",
    cls=Group,
    help="Transcribe or classify audio: files as text and subtitles, corpora as Parquet tables.",
    epilog="Example: corpus-asr transcribe talk.mp3",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the `corpus-asr` command."""
    with as_process(), readable_errors():
        app()


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"corpus-asr {version('corpus-asr')}")
        raise typer.Exit
    return wanted


@app.callback()
def program_options(
    context: typer.Context,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(help="Log format on stderr: text, or one JSON object per line."),
    ] = None,
    log_level: Annotated[
        LogLevel | None, typer.Option(help="Minimum log level; default: warning.")
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    storage_option: StorageOption = None,
) -> None:
    """Set up logging; CORPUS_ASR_LOG_FORMAT and CORPUS_ASR_LOG_LEVEL say the same."""
    configure_logging(log_format, log_level)
    context.obj = storage_option


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="An OpenAI .pt file, or a checkpoint: a folder, URI or name.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new .pt file, or a new folder.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16, bfloat16 or int8; default: as stored."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="For a .pt SRC: a checkpoint of the same size, such as tiny.en."),
    ] = None,
) -> None:
    """Convert checkpoints between OpenAI's and Hugging Face's layout."""
    with readable_errors():
        from corpus_asr.models.convert import OPENAI_SUFFIX
        from corpus_asr.models.convert import convert as convert_checkpoint
        from corpus_asr.storage.model_files import fetch_checkpoint

        tokenizer_folder = None if tokenizer is None else Path(tokenizer)
        if tokenizer_folder is not None and not tokenizer_folder.exists():
            tokenizer_folder = fetch_checkpoint(str(tokenizer), weights=False)
        is_file = source.endswith(OPENAI_SUFFIX) or Path(source).exists()
        typer.echo(
            convert_checkpoint(
                Path(source) if is_file else fetch_checkpoint(source),
                target,
                dtype=dtype,
                tokenizer=tokenizer_folder,
            )
        )


# By help panel, each with an example.
_COMMANDS: dict[str, dict[Callable[..., None], str]] = {
    "Files": {
        transcribe: "corpus-asr transcribe talk.mp3 -o subtitles -f srt",
    },
    "Corpora": {
        init: "corpus-asr init job.yaml --source 's3://podcasts/**/*.mp3' --output s3://transcripts",
        plan: "corpus-asr plan job.yaml --check",
        run: "corpus-asr run job.yaml --set decoding.language=en",
        nightly: "corpus-asr nightly job.yaml",
        status: "corpus-asr status s3://transcripts --watch",
        remove: "corpus-asr remove s3://transcripts --gone --older-than 30d",
    },
    "Results": {
        report: "corpus-asr report s3://transcripts --html report.html",
        show: "corpus-asr show s3://transcripts --uri '*/talk.mp3'",
        export: "corpus-asr export s3://transcripts --to subtitles --format srt",
        correct: "corpus-asr correct s3://transcripts subtitles/talk.srt",
        evaluate: "corpus-asr evaluate s3://transcripts --references references.jsonl",
        view: "corpus-asr view s3://transcripts",
    },
    "Models and training data": {
        label: "corpus-asr label pseudo_label.yaml",
        finetune: "corpus-asr finetune finetune.yaml",
        convert: "corpus-asr convert large-v3.pt whisper-large-v3",
    },
}
for _panel, _commands in _COMMANDS.items():
    for _command, _example in _commands.items():
        app.command(
            cls=Command,
            rich_help_panel=_panel,
            epilog=f"Example: {_example}",
        )(_command)

if __name__ == "__main__":
    main()
