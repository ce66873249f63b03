"""`corpus-asr transcribe`: files in; text on standard output, or files in a folder.

Everything that can be wrong with the options is found before a model is loaded. Each recording that
is over is written at once, so that an interrupt costs those under way alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.file_results import (
    check_keys,
    checked_inputs,
    formats_of,
    keys_of,
    layout_of,
    work_on_files,
)
from corpus_asr.cli.parsing import with_groups
from corpus_asr.cli.transcribe_options import FileOptions, Files, Overrides, RecognitionOptions
from corpus_asr.errors import ConfigError
from corpus_asr.runtime.shutdown import ended_by_sigterm

if TYPE_CHECKING:
    from corpus_asr.cli.inputs import Input
    from corpus_asr.formats.transcript import Transcript
    from corpus_asr.runtime.transcriber import Transcriber


@with_groups
def transcribe(
    files: Files, chosen: FileOptions, options: RecognitionOptions, overrides: Overrides = None
) -> None:
    """Transcribe files: print the text as it comes, or write subtitles, text and JSON."""
    with readable_errors(), ended_by_sigterm():
        channels = options.channels
        keys = keys_of(overrides, asdict(options) | {
            "language": _listed(options.language),
            "temperature": _numbers(options.temperature),
            "channels": int(channels) if channels and channels.isdecimal() else channels,
            "diarize": options.diarize or None,
        })  # fmt: skip
        formats = formats_of(chosen)
        if "rttm" in formats and not keys.get("diarize"):
            raise ConfigError(
                "writing rttm: found no --diarize, expected it: the file holds who speaks when; "
                "add it, or leave out the format"
            )
        needs_words = chosen.highlight_words or "ctm" in formats or keys.get("diarize")
        if options.word_timestamps is not None or needs_words:
            keys["word_timestamps"] = chosen.highlight_words or options.word_timestamps is not False
        check_keys(keys)
        layout = layout_of(formats, chosen)
        work_on_files(checked_inputs(files, layout, chosen), layout, chosen, keys, _transcribed)


def _transcribed(
    loaded: "Transcriber", inputs: "Sequence[Input]", **calls: Any
) -> "Iterator[Transcript]":
    return loaded.transcribe_many((each.audio for each in inputs), **calls)


def _listed(text: str | None) -> str | list[str] | None:
    return text.split(",") if text and "," in text else text


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f'reading --temperature: found "{text}", expected numbers with commas between, such as '
            "0 or 0,0.2,0.4; correct it"
        ) from error
