"""`corpus-asr align`: recordings and their texts in; the texts with times out.

The text is that of a file, of a file beside it per recording, or of a manifest. Everything that can
be wrong with texts and options is found before a model is loaded.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corpus_asr.cli import transcribe_options as options
from corpus_asr.cli.failures import readable_errors, say
from corpus_asr.cli.file_results import (
    OF_THE_MODEL,
    FileResults,
    checked_inputs,
    existing_of,
    formats_of,
    inputs_to_do,
    layout_of,
    made_by,
    work_on_files,
)
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.runtime.shutdown import ended_by_sigterm

if TYPE_CHECKING:
    from corpus_asr.cli.inputs import Input, Inputs
    from corpus_asr.cli.output_files import Layout
    from corpus_asr.formats.transcript import Transcript
    from corpus_asr.runtime.transcriber import Transcriber

_STDIN = "-"
_SUFFIX = ".txt"

Audio = Annotated[
    str,
    typer.Argument(
        metavar="AUDIO", help="A recording, a folder of them, or a manifest with a column text."
    ),
]
Text = Annotated[
    str | None,
    typer.Argument(
        metavar="[TEXT]",
        help="File with what is said, - for standard input; for a folder of recordings, a folder "
        "of files named as they are, with .txt. Not with a manifest.",
    ),
]


def align(
    audio: Audio,
    text: Text = None,
    output_dir: options.OutputDir = None,
    formats: options.Formats = None,
    overwrite: options.Overwrite = False,
    skip_existing: options.SkipExisting = False,
    timestamps: options.Timestamps = True,
    max_line_width: options.MaxLineWidth = None,
    max_line_count: options.MaxLineCount = None,
    highlight_words: options.HighlightWords = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    model: options.Model = None,
    device: options.Device = "auto",
    compute_type: options.ComputeType = "auto",
    threads: options.Threads = None,
    language: options.Language = None,
    overrides: options.Overrides = None,
) -> None:
    """Find when each word of a known text is said: subtitles and word times of your own words."""
    with readable_errors(), ended_by_sigterm():
        from corpus_asr.config.options import option_overrides, options_from

        keys = option_overrides(overrides or ())
        keys |= {} if language is None else {"language": language}
        of_model = {name: keys.pop(name) for name in OF_THE_MODEL if name in keys}
        options_from(keys)
        to_folder = output_dir is not None
        chosen = formats_of(formats, to_folder=to_folder)
        if "rttm" in chosen:
            raise ConfigError(
                "writing rttm: found a text without speakers, expected who speaks when; leave out "
                "the format"
            )
        layout = layout_of(
            chosen,
            max_line_width=max_line_width,
            max_line_count=max_line_count,
            highlight_words=highlight_words,
        )
        inputs, texts = _inputs(audio, text, layout, to_folder=to_folder, quiet=quiet)
        output = None
        if output_dir is not None:
            from corpus_asr.cli.output_files import OutputFiles

            output = OutputFiles(
                output_dir,
                inputs.found,
                layout,
                existing=existing_of(overwrite=overwrite, skip=skip_existing),
                channels_apart=False,
                made_by=made_by(model, compute_type, of_model | keys),
                texts=texts,
            )
        left = inputs_to_do(inputs, output, quiet=quiet)
        prints_text = verbose if output else layout.formats == ("txt",)
        results = FileResults(
            left, layout, output, prints_text=prints_text, times=timestamps, quiet=quiet
        )

        def aligned(
            loaded: "Transcriber", *, on_segment: object, **calls: Any
        ) -> "Iterator[Transcript]":
            del on_segment  # segments are known once all of a recording is
            pairs = ((each.audio, texts[each.name]) for each in left)
            return loaded.align_many(pairs, **calls)

        work_on_files(
            inputs,
            results,
            aligned,
            checkpoint=model,
            arguments={"device": device, "compute_type": compute_type, "num_threads": threads}
            | of_model
            | keys,
            quiet=quiet,
        )


def _inputs(
    audio: str, text: str | None, layout: "Layout", *, to_folder: bool, quiet: bool
) -> "tuple[Inputs, Mapping[str, str]]":
    """Return the recordings and the text of each by its name; what has none is a problem."""
    if text is None:
        from corpus_asr.storage.stores.uri import escaped_path

        # By the names of inputs, which are escaped.
        of_uri = {escaped_path(uri): said for uri, said in _manifest_texts(audio).items()}
        inputs = checked_inputs([*of_uri], layout, to_folder=to_folder, quiet=quiet)
        return inputs, {each.name: of_uri[each.name] for each in inputs.found}
    if audio == text == _STDIN:
        raise ConfigError(
            "reading -: found it for audio and text, expected it for one of them; name a file for "
            "the other"
        )
    inputs = checked_inputs([audio], layout, to_folder=to_folder, quiet=quiet)
    texts: dict[str, str] = {}
    for each in list(inputs.found):
        try:
            texts[each.name] = _read(_place_of(each, text))
        except (ConfigError, FetchError) as error:
            say(str(error))
            inputs.problems.append(str(error))
            inputs.found.remove(each)
    return inputs, texts


def _manifest_texts(uri: str) -> dict[str, str]:
    from corpus_asr.storage.manifest import is_manifest, read_manifest

    if not is_manifest(uri):
        raise ConfigError(
            f"aligning {uri}: found no TEXT, expected a file with what is said, or a manifest with "
            "columns uri and text in place of the recording; name one"
        )
    texts: dict[str, str] = {}
    for row in read_manifest(uri, allow_local_files=True):
        if row.span() != (0.0, None) and row.start_s() > 0:
            raise row.wrong(
                f"a start at {row.start_s():g} s", "texts of whole recordings", "cut them out first"
            )
        if texts.setdefault(row.uri, row.needed_text()) != row.needed_text():
            raise row.wrong(f"another text for {row.uri}", "one text per recording")
    return texts


def _place_of(recording: "Input", text: str) -> str:
    """Return the file with the text of a recording; below a folder it has the same place."""
    from corpus_asr.storage.stores.uri import LOCAL, local_path, normalize, scheme_of, within

    place = normalize(text) if text != _STDIN else text
    if text == _STDIN or scheme_of(place) != LOCAL or not _is_folder(local_path(place)):
        return place
    below = recording.uri.removeprefix(recording.base)
    return within(place, below.rpartition(".")[0] + _SUFFIX)


def _is_folder(path: str) -> bool:
    import os

    return os.path.isdir(path)


def _read(place: str) -> str:
    if place == _STDIN:
        data = sys.stdin.buffer.read()
    else:
        from corpus_asr.storage.stores.filesystem import read_bytes

        data = read_bytes(place)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"reading the text {place}: found bytes that are no UTF-8 (at {error.start}), expected "
            "text in UTF-8; convert it (iconv -t utf-8)"
        ) from error
