"""`corpus-asr init`: writes the YAML of a job, with a comment on every key."""

import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.options import LARGER_OPTION, Model
from corpus_asr.config.default_model import PACKAGED_CHECKPOINT, default_model_notice
from corpus_asr.errors import ConfigError


class Job(StrEnum):
    """What the file is for."""

    transcribe = "transcribe"
    classify = "classify"
    pseudo_label = "pseudo-label"


_DEFAULT_MODELS = {
    Job.transcribe: PACKAGED_CHECKPOINT,
    Job.classify: "small",  # it has to know several languages
    Job.pseudo_label: "large-v3",  # labels are no better than their model
}
_PIPELINES = {
    Job.transcribe: "transcribe_corpus",
    Job.classify: "classify_audio",
    Job.pseudo_label: "pseudo_label",
}


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path(
        "corpus-asr.yaml"
    ),
    pipeline: Annotated[Job, typer.Option(help="What is to be done.")] = Job.transcribe,
    source: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Recordings: a file, folder or glob.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the tables go.")
    ] = None,
    model: Model = None,
    full: Annotated[bool, typer.Option("--full", help="Every key, not only the usual ones.")] = (
        False
    ),
    ask: Annotated[bool, typer.Option("--ask", help="Ask for what no option says.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = (
        False
    ),
) -> None:
    """Write the YAML file of a job, with a comment on every key."""
    with readable_errors():
        if file.exists() and not force:
            raise ConfigError(
                f"writing {file}: found such a file, expected none; choose another name, or "
                "replace it with --force"
            )
        if ask and not _is_terminal():
            raise ConfigError(
                "asking for settings: found no terminal to ask at; leave --ask out, and give "
                "--source, --output and --model"
            )
        chosen = {
            "source.uri": _answer(ask, "Recordings (file, folder or glob)", source, "recordings"),
            "model.checkpoint": _answer(ask, "Model", model, _DEFAULT_MODELS[pipeline]),
            "output.uri": _answer(ask, "Folder for the tables", output, "output"),
        }
        if pipeline is Job.pseudo_label:
            chosen["dataset.uri"] = f"{chosen['output.uri'].rstrip('/')}-dataset"
        _write(file, _PIPELINES[pipeline], chosen, full=full)
        typer.echo(f"{file}: written")
        if model is None and not ask:
            typer.echo(_model_line(pipeline))
        if source is None and not ask:
            typer.echo("first set source.uri there to where your recordings are")
        for command, words in _next(file, pipeline):
            typer.echo(f"  {command:<{_WIDTH}}  {words}")


_WIDTH = 46


def _model_line(pipeline: Job) -> str:
    """Say which model the file names where the user named none."""
    if pipeline is Job.transcribe:
        return default_model_notice(LARGER_OPTION)
    return f"model: {_DEFAULT_MODELS[pipeline]}, fetched from the hub; --model names another one"


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _answer(ask: bool, question: str, given: str | None, default: str) -> str:
    if given is None and ask:
        return str(typer.prompt(question, default=default)).strip()
    return given if given is not None else default


def _write(file: Path, pipeline: str, chosen: dict[str, str], *, full: bool) -> None:
    from corpus_asr.config.load import load_config, written

    text = (
        "# Written by `corpus-asr init`. Keys that are comments show the default that they keep."
        "\n# Relative paths start at the folder that you call from. Credentials do not belong here:"
        "\n# the environment, a profile or the machine's role has them.\n\n"
    ) + written(pipeline, chosen, full=full)
    try:
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / file.name
            draft.write_text(text, encoding="utf-8")
            load_config(draft)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(draft), f"what {file} would be")) from error
    except OSError as error:
        raise ConfigError(
            f"writing {file}: {error.strerror}, expected a place for a file; choose another"
        ) from error


def _next(file: Path, pipeline: Job) -> list[tuple[str, str]]:
    steps = [
        (f"corpus-asr plan {file} --check", "what would be done, and whether it can be"),
        (f"corpus-asr run {file}", "do it; again, to continue"),
        (f"corpus-asr run {file} --local", "likewise, in this process, without Ray"),
    ]
    if pipeline is Job.pseudo_label:
        steps.append((f"corpus-asr label {file}", "select again, with other rules"))
    return steps
