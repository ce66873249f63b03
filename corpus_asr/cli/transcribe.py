"""`corpus-asr transcribe`: its options, and what is checked before a model is loaded."""

import os
from typing import Annotated, Literal

import typer

from corpus_asr.cli.failures import EXIT_SOME_FAILED, readable_errors, say
from corpus_asr.cli.options import (
    Model,
    complete_decoding_override,
    complete_device,
    complete_language,
    complete_strategy,
    complete_task,
    model_or_default,
    overrides_of,
)
from corpus_asr.errors import ItemError
from corpus_asr.report.text import Format, print_transcript

# The same as `model.compute_type`, whose module is too slow to import for `--help`.
ComputeType = Literal["auto", "float32", "float16", "bfloat16", "int8"]


def transcribe(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files or URIs.")],
    model: Model = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="Code or name, such as en or English; default: detect.",
            autocompletion=complete_language,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="transcribe or translate.", autocompletion=complete_task),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="sequential or chunked.", autocompletion=complete_strategy),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=complete_device),
    ] = "auto",
    compute_type: Annotated[
        ComputeType, typer.Option(help="Data type of weights and computation.")
    ] = "auto",
    overrides: Annotated[
        list[str] | None,
        overrides_of("Any key of the decoding section.", complete_decoding_override),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="txt: lines of text; jsonl: one object per file.")
    ] = Format.txt,
) -> None:
    """Transcribe a few files and print the text with timestamps."""
    from corpus_asr.config.options import option_overrides, options_from

    with readable_errors():
        options = option_overrides(overrides or ())
        flags = {"language": language, "task": task, "strategy": strategy}
        options |= {name: value for name, value in flags.items() if value is not None}
        # A wrong option is reported before a model is fetched and loaded.
        options_from(options)
        failed = [file for file in files if not _is_there(file)]
        readable = [file for file in files if file not in failed]

        def note_failure(uri: str, error: ItemError) -> None:
            failed.append(uri)
            say(str(error))

        if readable:
            checkpoint = model_or_default(model)
            from corpus_asr.runtime.transcriber import Transcriber

            with Transcriber.from_pretrained(
                checkpoint, device=device, compute_type=compute_type, **options
            ) as loaded:
                for transcript in loaded.transcribe_many(readable, on_error=note_failure):
                    print_transcript(transcript, output_format, heading=len(files) > 1)
        if failed:
            say(f"{len(failed)} of {len(files)} files failed")
            raise typer.Exit(EXIT_SOME_FAILED)


def _is_there(file: str) -> bool:
    # Names of this machine are checked before a model is loaded; a store would take its time.
    from corpus_asr.storage.stores.uri import LOCAL, normalize, scheme_of

    if scheme_of(file) != LOCAL:
        return True
    path = normalize(file)
    if os.path.isdir(path):
        say(
            f"reading {file}: found a folder, expected a file; name its files ({file.rstrip('/')}"
            f"/*), or make a job of it: corpus-asr init --source {file}"
        )
        return False
    if not os.path.exists(path):
        say(f"reading {file}: found no such file; correct its name")
        return False
    return True
