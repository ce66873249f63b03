"""`--model`, as several commands have it, and the line that says which model an unnamed one is.

In: the command line, or a job. Out: a type of parameter for typer, or a line on stderr. Imports
nothing that `--help` would have to wait for.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from corpus_asr.cli import completion
from corpus_asr.cli.failures import note
from corpus_asr.config.default_model import PACKAGED_CHECKPOINT, default_model_notice

if TYPE_CHECKING:
    from corpus_asr.config.run import RunConfig

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
