"""Options that several commands have, and the pipeline that a configuration asks for."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from corpus_asr.config.run import RunConfig
    from corpus_asr.runtime.checkpoints import Checkpoint
    from corpus_asr.runtime.progress import RunSummary

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


def run_pipeline(config: "RunConfig", **options: Any) -> "RunSummary":
    """Run the pipeline of a configuration; see `run_over_corpus` for options and errors."""
    from corpus_asr.pipelines import classify, pseudo_label, transcribe

    run: Callable[..., RunSummary] = {
        "transcribe_corpus": transcribe.run,
        "classify_audio": classify.run,
        "pseudo_label": pseudo_label.run,
    }[config.pipeline]
    return run(config, **options)


def prepare_pipeline(config: "RunConfig") -> "Checkpoint":
    """Fetch and check the checkpoints of a configuration."""
    from corpus_asr.pipelines import classify, transcribe

    prepare = classify.prepare if config.pipeline == "classify_audio" else transcribe.prepare
    return prepare(config)
