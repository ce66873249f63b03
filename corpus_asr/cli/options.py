"""Options and output that several commands have, and what shells offer when Tab is pressed."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, get_args, get_origin

import typer

from corpus_asr.cli.failures import note
from corpus_asr.config.decoding import PACKAGED_CHECKPOINT, default_model_notice
from corpus_asr.logs import speaks_json

if TYPE_CHECKING:
    from corpus_asr.config.run import RunConfig
    from corpus_asr.config.settings import Settings


def complete_override(incomplete: str) -> list[str]:
    """Complete `key=value` of a job."""
    return _assignments(incomplete, _job())


def complete_training_override(incomplete: str) -> list[str]:
    """Complete `key=value` of a training."""
    from corpus_asr.config.finetune import FinetuneConfig

    return _assignments(incomplete, _types_by_key(FinetuneConfig))


def complete_option_override(incomplete: str) -> list[str]:
    """Complete `key=value` of one transcription."""
    from corpus_asr.config.options import OPTIONS

    return _assignments(incomplete, {name: key.annotation for name, key in OPTIONS.items()})


def complete_format(incomplete: str) -> list[str]:
    """Complete the formats of transcripts, the last one behind commas."""
    from corpus_asr.cli.transcribe_options import ALL, FORMATS

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _beginning((*FORMATS, ALL), last)]


def complete_checkpoint(incomplete: str) -> list[str]:
    """Complete checkpoints of the package, short names, and well-known names of the hub."""
    from corpus_asr.storage.model_files import KNOWN_NAMES, PACKAGED, SHORT_NAMES

    return _beginning((*PACKAGED, *SHORT_NAMES, *KNOWN_NAMES), incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Complete devices."""
    return _beginning(("auto", "cpu", "cuda"), incomplete)


def complete_task(incomplete: str) -> list[str]:
    """Complete tasks."""
    return _beginning(_values(_job()["decoding.task"]), incomplete)


def complete_strategy(incomplete: str) -> list[str]:
    """Complete strategies."""
    return _beginning(_values(_job()["decoding.strategy"]), incomplete)


def complete_language(incomplete: str) -> list[str]:
    """Complete the codes of Whisper's languages."""
    from corpus_asr.languages import LANGUAGES

    return _beginning(LANGUAGES, incomplete)


def _assignments(incomplete: str, keys: dict[str, Any]) -> list[str]:
    offered = [f"{key}=" for key in keys if f"{key}=".startswith(incomplete)]
    if len(offered) == 1 or "=" in incomplete:
        key = (offered[0] if offered else incomplete).partition("=")[0]
        # More than one word, so that no shell closes with a blank what is to go on; and bash, which
        # takes `=` for the beginning of another word, shows the values now or never.
        offered = [f"{key}=", *(f"{key}={value}" for value in _values(keys.get(key)))]
    return _beginning(offered, incomplete)


def _job() -> dict[str, Any]:
    from corpus_asr.config.run import PseudoLabelConfig, RunConfig

    # Of a key that both have, the general type says more: `pipeline`.
    return _types_by_key(PseudoLabelConfig) | _types_by_key(RunConfig)


def _types_by_key(settings: "type[Settings]") -> dict[str, Any]:
    from corpus_asr.config.settings import keys_of, section_of

    keys = keys_of(settings)
    return {".".join(key): field.annotation for key, field in keys if section_of(field) is None}


def _values(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [word for part in get_args(kind) for word in _values(part)]


def _beginning(words: Any, incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def config_file(example: str) -> Any:
    """Return the argument CONFIG."""
    return typer.Argument(metavar="CONFIG", help=f"A YAML file, {example}.")


def overrides_of(words: str, complete: Callable[[str], list[str]] = complete_override) -> Any:
    """Return the option --set."""
    return typer.Option("--set", metavar="KEY=VALUE", help=words, autocompletion=complete)


Config = Annotated[str, config_file("such as configs/podcasts.yaml")]
Overrides = Annotated[list[str] | None, overrides_of("Override a key, such as extract.part_s=300.")]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]
StealLock = Annotated[
    bool, typer.Option("--steal-lock", help="Take over a lock whose heartbeat stopped 90 s ago.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
OutputUri = Annotated[
    str, typer.Argument(metavar="OUTPUT_URI", help="The output.uri of a run, finished or not.")
]
EndpointUrl = Annotated[str | None, typer.Option(help="S3 endpoint; default: Amazon's.")]
Languages = Annotated[
    list[str] | None, typer.Option(help="Only segments in this language, such as en.")
]
Uris = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Only recordings whose URI matches, as '*.mp3'."),
]
Speakers = Annotated[
    list[str] | None,
    typer.Option("--speaker", metavar="NAME", help="Only what this speaker says, such as S1."),
]
DropKnownHallucinations = Annotated[
    bool,
    typer.Option(
        "--drop-known-hallucinations",
        help='Without segments that say "Thanks for watching!" or its like and nothing else.',
    ),
]
NoCorrections = Annotated[
    bool,
    typer.Option("--no-corrections", help="The model's text, without corrections made in `view`."),
]
MinConfidence = Annotated[float, typer.Option(help="Minimum confidence of a segment, from 0 to 1.")]


def progress_lines() -> TextIO | None:
    """Return where lines about progress go; None where stderr holds nothing but JSON."""
    return None if speaks_json() else sys.stderr


def print_result(data: object, words: str, *, as_json: bool) -> None:
    """Print what a command found, for people or as JSON."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False) if as_json else words)


LARGER_OPTION = "--model small or large-v3"
CHECKPOINT_HELP = (
    "A name such as base, small, medium, turbo or large-v3, OWNER/NAME of the hub, a folder or a "
    f"URI; default to transcribe: {PACKAGED_CHECKPOINT}, of the package."
)
Model = Annotated[
    str | None,
    typer.Option(metavar="CHECKPOINT", help=CHECKPOINT_HELP, autocompletion=complete_checkpoint),
]


def model_or_default(model: str | None, *, quiet: bool = False) -> str:
    """Return the model that a command was given, or the packaged one, saying so."""
    if model is None and not quiet:
        note(default_model_notice(LARGER_OPTION))
    return model or PACKAGED_CHECKPOINT


def note_model_of(config: "RunConfig") -> None:
    """Say which model transcribes where a job names none."""
    if not config.model.is_named:
        note(default_model_notice("model.checkpoint: small or large-v3"))
