"""Options and output that several commands have, and the pipeline that a job asks for."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from corpus_asr.cli import completion
from corpus_asr.cli.failures import note
from corpus_asr.config.default_model import PACKAGED_CHECKPOINT, default_model_notice
from corpus_asr.logs import speaks_json

if TYPE_CHECKING:
    from corpus_asr.config.run import RunConfig
    from corpus_asr.runtime.summary import RunSummary
    from corpus_asr.runtime.weights import Weights
    from corpus_asr.stages.transcribe import EngineFactory


def config_file(example: str) -> Any:
    """Return the argument CONFIG."""
    return typer.Argument(metavar="CONFIG", help=f"A YAML file, {example}.")


def overrides_of(words: str, complete: Callable[[str], list[str]] = completion.override) -> Any:
    """Return the option --set."""
    return typer.Option("--set", metavar="KEY=VALUE", help=words, autocompletion=complete)


Config = Annotated[str, config_file("such as configs/podcasts.yaml")]
Overrides = Annotated[list[str] | None, overrides_of("Override a key, such as extract.part_s=300.")]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]
StealLock = Annotated[
    bool, typer.Option("--steal-lock", help="Take over a lock without a sign of life for 90 s.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
OutputUri = Annotated[
    str, typer.Argument(metavar="OUTPUT_URI", help="The output.uri of a run, done or not.")
]
EndpointUrl = Annotated[str | None, typer.Option(help="S3 endpoint, where it is not Amazon's.")]
Languages = Annotated[
    list[str] | None, typer.Option(help="Only segments in this language, such as en.")
]
Uris = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Only recordings whose address matches, as '*.mp3'."),
]
DropKnownHallucinations = Annotated[
    bool,
    typer.Option(
        "--drop-known-hallucinations",
        help='Without segments that say "Thanks for watching!" or its like and nothing else.',
    ),
]
MinConfidence = Annotated[
    float, typer.Option(help="Only segments of this confidence or more, 0-1.")
]


def progress_lines() -> TextIO | None:
    """Return where lines about progress go; None where stderr holds nothing but JSON."""
    return None if speaks_json() else sys.stderr


def print_result(data: object, words: str, *, as_json: bool) -> None:
    """Print what a command found, for people or as JSON."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False) if as_json else words)


def run_pipeline(config: "RunConfig", **options: Any) -> "RunSummary":
    """Run the pipeline of a configuration; see `run_over_corpus` for options and errors."""
    from corpus_asr.pipelines import classify, pseudo_label, transcribe

    run: Callable[..., RunSummary] = {
        "transcribe_corpus": transcribe.run,
        "classify_audio": classify.run,
        "pseudo_label": pseudo_label.run,
    }[config.pipeline]
    return run(config, **options)


def prepare_pipeline(config: "RunConfig") -> "tuple[Weights, EngineFactory]":
    """Fetch the checkpoints of a configuration and choose its engine."""
    from corpus_asr.pipelines import classify, transcribe

    prepare = classify.prepare if config.pipeline == "classify_audio" else transcribe.prepare
    return prepare(config)


LARGER_OPTION = "--model small or large-v3"
Model = Annotated[
    str | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="A name such as base, small, medium, turbo or large-v3, OWNER/NAME of the hub, a "
        f"folder or an address; default to transcribe: {PACKAGED_CHECKPOINT}, of the package.",
        autocompletion=completion.checkpoint,
    ),
]


def model_or_default(model: str | None) -> str:
    """Return the model that a command was given, or the packaged one, saying so."""
    if model is None:
        note(default_model_notice(LARGER_OPTION))
    return model or PACKAGED_CHECKPOINT


def note_model_of(config: "RunConfig") -> None:
    """Say which model transcribes where a job names none."""
    if not config.model.is_named:
        note(default_model_notice("model.checkpoint: small or large-v3"))
