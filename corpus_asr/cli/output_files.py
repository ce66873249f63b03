"""Files of transcripts below a folder: their names, which are there already, and the writing."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from corpus_asr.cli.inputs import Input
from corpus_asr.errors import ConfigError
from corpus_asr.export.write import WRITERS, Names
from corpus_asr.formats.cues import CueRules
from corpus_asr.formats.transcript import Transcript
from corpus_asr.formats.writers import ExportFormat, WordStyle, file_suffix, file_texts
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import (
    LOCAL,
    normalize,
    public,
    recording_id,
    redact_uri,
    scheme_of,
    within,
)

JSON_LINES = "jsonl"


def suffix_of(name: str) -> str:
    """Return the suffix of files in a format: one of `ExportFormat`, or `jsonl`."""
    return ".jsonl" if name == JSON_LINES else file_suffix(ExportFormat(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How transcripts look as text."""

    formats: tuple[str, ...]
    rules: CueRules
    words: WordStyle

    def texts(
        self, transcript: Transcript, uri: str, formats: Sequence[str] | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yield the suffix and the text of a transcript's file in each format, or in `formats`."""
        named = replace(transcript, uri=public(uri))
        for name in self.formats if formats is None else formats:
            if name == JSON_LINES:
                channel = {} if named.channel is None else {"channel": named.channel}
                line = json.dumps(named.to_dict() | channel, ensure_ascii=False)
                yield ".jsonl", f"{line}\n"
            else:
                yield from file_texts(
                    named, [ExportFormat(name)], rules=self.rules, words=self.words
                )


class OutputFiles:
    """A file per recording and format; what is there is kept unless it is to be overwritten."""

    def __init__(
        self,
        folder: str,
        inputs: Sequence[Input],
        layout: Layout,
        *,
        overwrite: bool,
        channels_apart: bool,
    ) -> None:
        self.folder = redact_uri(folder).rstrip("/") or "/"
        """As it is shown."""
        self._root = _checked_folder(folder)
        self._layout = layout
        self._channels_apart = channels_apart
        self._uris = {each.name: each.shown_uri for each in inputs}
        self._names = self._named(inputs)
        self._missing: Mapping[str, tuple[str, ...]] = (
            dict.fromkeys(self._names, layout.formats) if overwrite else self._look_up()
        )

    def is_done(self, name: str) -> bool:
        """Return whether all files of a recording were there at first."""
        return not self._missing[name]

    def write(self, name: str, transcripts: Sequence[Transcript]) -> str:
        """Write the files of a recording that are missing, each whole or not at all.

        `transcripts` are more than one where channels are apart. Returns what was written, for a
        person.

        Raises:
            FetchError: the folder cannot be written to.
        """
        written = []
        # The first channel comes last: where its files are, those of the others are, too.
        for transcript in sorted(transcripts, key=lambda each: -(each.channel or 0)):
            stem = self._stem(name, transcript.channel)
            for suffix, text in self._layout.texts(
                transcript, self._uris[name], self._missing[name]
            ):
                address = within(self._root, stem + suffix)
                filesystem.write_atomic(address, text.encode("utf-8", "replace"))
                written.append(stem + suffix)
        if len(written) == 1:
            return f"{self.folder}/{written[0]}"
        return f"{self.folder}/{self._names[name]}.* ({len(written)} files)"

    def _named(self, inputs: Sequence[Input]) -> dict[str, str]:
        uris = [each.uri for each in inputs]
        ids = [recording_id(uri) for uri in uris]
        table = pa.table({"uri": uris, "recording_id": ids})
        suffixes = [self._stem("", 0) + suffix_of(name) for name in self._layout.formats]
        names = Names(table, suffixes, [each.base for each in inputs])
        return {each.name: names[at] for at, each in enumerate(inputs)}

    def _stem(self, name: str, channel: int | None) -> str:
        return f"{self._names[name] if name else ''}" + (
            f".channel{channel}" if self._channels_apart else ""
        )

    def _look_up(self) -> dict[str, tuple[str, ...]]:
        wanted = [(name, each) for name in self._names for each in self._layout.formats]

        def is_missing(file: tuple[str, str]) -> bool:
            address = within(self._root, self._stem(file[0], 0) + suffix_of(file[1]))
            return not filesystem.exists(address)

        # As many at once as are written: each is a question to the store.
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="look-up") as pool:
            missing = [
                file
                for file, is_it in zip(wanted, pool.map(is_missing, wanted), strict=True)
                if is_it
            ]
        found: dict[str, list[str]] = {name: [] for name in self._names}
        for name, each in missing:
            found[name].append(each)
        return {name: tuple(formats) for name, formats in found.items()}


def _checked_folder(folder: str) -> str:
    # Before any work, of which nothing could be kept.
    root = normalize(folder)
    if scheme_of(root) in ("http", "https"):
        raise ConfigError(
            f"writing to {redact_uri(root)}: found an http URL, expected a folder or an object "
            "store that can be written to; choose another --output-dir"
        )
    if scheme_of(root) == LOCAL:
        try:
            os.makedirs(root, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"making the folder {folder}: {error.strerror}; choose another --output-dir"
            ) from error
    return root.rstrip("/")
