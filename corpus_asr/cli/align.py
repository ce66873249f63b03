"""`corpus-asr align`: recordings and their texts in; the texts with times out.

The text is that of a file, of a file beside it per recording, or of a manifest. Everything that can
be wrong with texts and options is found before a model is loaded.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corpus_asr.cli.failures import readable_errors, say
from corpus_asr.cli.file_results import (
    check_keys,
    checked_inputs,
    formats_of,
    keys_of,
    layout_of,
    work_on_files,
)
from corpus_asr.cli.parsing import with_groups
from corpus_asr.cli.transcribe_options import FileOptions, Language, Overrides
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


@with_groups
def align(
    audio: Audio,
    text: Text = None,
    *,
    chosen: FileOptions,
    language: Language = None,
    overrides: Overrides = None,
) -> None:
    """Find when each word of a known text is said: subtitles and word times of your own words."""
    with readable_errors(), ended_by_sigterm():
        keys = keys_of(overrides, {"language": language})
        check_keys(keys)
        formats = formats_of(chosen)
        if "rttm" in formats:
            raise ConfigError(
                "writing rttm: found a text without speakers, expected who speaks when; leave out "
                "the format"
            )
        layout = layout_of(formats, chosen)
        inputs, texts = _inputs(audio, text, layout, chosen)

        def aligned(
            loaded: "Transcriber", to_do: "Sequence[Input]", *, on_segment: object, **calls: Any
        ) -> "Iterator[Transcript]":
            del on_segment  # segments are known once all of a recording is
            return loaded.align_many(((each.audio, texts[each.name]) for each in to_do), **calls)

        work_on_files(inputs, layout, chosen, keys, aligned, texts=texts)


def _inputs(
    audio: str, text: str | None, layout: "Layout", chosen: FileOptions
) -> "tuple[Inputs, Mapping[str, str]]":
    """Return the recordings and the text of each by its name; what has none is a problem."""
    if text is None:
        from corpus_asr.storage.stores.uri import escaped_path

        # By the names of inputs, which are escaped.
        of_uri = {escaped_path(uri): said for uri, said in _manifest_texts(audio).items()}
        inputs = checked_inputs([*of_uri], layout, chosen)
        return inputs, {each.name: of_uri[each.name] for each in inputs.found}
    if audio == text == _STDIN:
        raise ConfigError(
            "reading -: found it for audio and text, expected it for one of them; name a file for "
            "the other"
        )
    inputs = checked_inputs([audio], layout, chosen)
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
