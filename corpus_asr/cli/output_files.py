"""Files of transcripts below a folder: their names, which are there already, and the writing.

    FOLDER/NAME.SUFFIX                     the files of a recording
    FOLDER/.corpus-asr/RECORDING_ID.json   its record: name, content version, model and options
    FOLDER/.corpus-asr/names/HASH          whose a name is: of two calls at once, one gets it
    FOLDER/.corpus-asr/run/                what `view` opens, see `kept_run`

Nothing that no record knows is replaced, so a lost record costs a transcription, never a file.
"""

import hashlib
import itertools
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from corpus_asr.cli.inputs import Input
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.formats.options import JSON_LINES, CueRules, ExportFormat, WordStyle
from corpus_asr.formats.transcript import Transcript
from corpus_asr.formats.writers import file_contents, file_suffix
from corpus_asr.logs import event
from corpus_asr.storage.listing import RECORDS_FOLDER
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions
from corpus_asr.storage.stores.uri import (
    LOCAL,
    normalize_writable,
    public,
    recording_id,
    redact_uri,
    scheme_of,
    within,
)

if TYPE_CHECKING:  # reads tables
    from corpus_asr.cli.kept_run import KeptRun, Version

_LOG = logging.getLogger(__name__)


def suffix_of(name: str) -> str:
    """Return the suffix of files in a format: one of `ExportFormat`, or `jsonl`."""
    return ".jsonl" if name == JSON_LINES else file_suffix(ExportFormat(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Settings of the text formats."""

    formats: tuple[str, ...]
    rules: CueRules
    words: WordStyle

    def contents(
        self, transcript: Transcript, uri: str, formats: Sequence[str] | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Yield suffix and content of a transcript's file in each format, or in `formats`."""
        named = replace(transcript, uri=public(uri))
        for name in self.formats if formats is None else formats:
            if name == JSON_LINES:
                channel = {} if named.channel is None else {"channel": named.channel}
                line = json.dumps(named.to_dict() | channel, ensure_ascii=False)
                yield ".jsonl", f"{line}\n".encode("utf-8", "replace")
            else:
                yield from file_contents(
                    named, [ExportFormat(name)], rules=self.rules, words=self.words
                )


@dataclass(slots=True, kw_only=True)
class _Record:
    """Record of the files of a recording; one object below `RECORDS_FOLDER`."""

    source: str
    name: str
    """Name of its files, without their suffixes."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By suffix: `of`, what made it or null while it is written, and `hashes` of its content."""
    kept: list[str] = field(default_factory=list)
    """Commits of the kept run that hold it, or may."""


@dataclass(slots=True, kw_only=True)
class _OutputFile:
    """A recording of this call and its files."""

    recording: Input
    wanted: str
    """Name of its files, unless something else has it."""
    record_id: str
    version: "Version"
    of: str
    """Hash of the content and settings of its files."""
    record: _Record
    missing: tuple[str, ...] = ()
    """Formats that are to be written."""


class OutputFiles:
    """A file per recording and format, and a record of what each was made of.

    A recording has one name in the folder, which it finds again; another recording of that name,
    or files that no record knows, make it `NAME-2`, `NAME-3` and so on.
    """

    def __init__(
        self,
        folder: str,
        inputs: Sequence[Input],
        layout: Layout,
        *,
        overwrite: bool,
        apart: Literal["", "channel", "track"],
        made_by: Mapping[str, Any],
        texts: Mapping[str, str] | None = None,
        store: StoreOptions = DEFAULT_STORE,
    ) -> None:
        """Look at what is there.

        Args:
            folder: path or URI.
            inputs: recordings.
            layout: how files look.
            overwrite: whether all files are written again and the record is replaced, also where a
                person changed it; else files of the same recording, model and options are kept.
            apart: what has files of its own, if anything.
            made_by: model and options that change what is written.
            texts: known text of each recording, by its name.
            store: how recordings are reached.
        """
        self.folder = redact_uri(folder).rstrip("/") or "/"
        """As it is shown."""
        self._root = _checked_folder(folder)
        self._layout, self._overwrite, self._apart = layout, overwrite, apart
        self._made_by, self._texts, self._store = made_by, texts or {}, store
        # Here and below, as it reads tables: for a text that is printed alone nothing of it is
        # needed, and to import it takes a tenth of a second.
        from corpus_asr.export.write import WRITERS

        names = self._names(inputs)
        # As many at once as are written: each is some questions to the stores.
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="look-up") as pool:
            outputs = pool.map(self._look_up, inputs, names)
            self._outputs = {output.recording.name: output for output in outputs}

    def is_done(self, name: str) -> bool:
        """Return whether all files of a recording existed initially and are current."""
        return not self._outputs[name].missing

    def write(self, name: str, whole: Transcript, transcripts: Sequence[Transcript]) -> str:
        """Write the files of a recording that are missing, each whole or not at all.

        `transcripts` are more than one where channels are apart: each of theirs, and the whole, or
        without it. Returns what was written, for a person.

        Raises:
            FetchError: the folder cannot be written to.
        """
        output = self._outputs[name]
        record, uri = output.record, output.recording.shown_uri
        # The first channel comes last: where its files are, all others are, too.
        contents = {
            self._part(transcript.channel) + suffix: content
            for transcript in sorted(transcripts, key=_order, reverse=True)
            for suffix, content in self._layout.contents(transcript, uri, output.missing)
        }
        self._claim(output, contents)
        # What came through a pipe cannot be played, and may have had another content each time.
        stems = [] if output.recording.piped else [self._run.stem()]
        earlier, record.kept = record.kept, [*record.kept, *stems]
        # What a file may hold is known before it does: a call that is cut short finds its own.
        for suffix, content in contents.items():
            hashes = record.files.get(suffix, {"hashes": []})["hashes"]
            record.files[suffix] = {"of": None, "hashes": [*hashes, _hash_of(content)]}
        self._note(output)
        for stem in stems:
            self._run.keep(output.recording.uri, output.version, whole, stem=stem)
            self._run.forget(earlier)
            record.kept = stems
        for suffix, content in contents.items():
            filesystem.write_atomic(within(self._root, record.name + suffix), content)
            record.files[suffix] = {"of": output.of, "hashes": [_hash_of(content)]}
        self._note(output)
        if len(contents) == 1:
            return f"{self.folder}/{record.name}{next(iter(contents))}"
        return f"{self.folder}/{record.name}.* ({len(contents)} files)"

    def close(self) -> None:
        """Finish the run that `view` opens, if a recording was written."""
        if "_run" in self.__dict__:
            self._run.close()

    @cached_property
    def _run(self) -> "KeptRun":
        """The run that `view` opens."""
        from corpus_asr.cli.kept_run import KeptRun

        recordings = [output.recording for output in self._outputs.values()]
        uris = [recording.uri for recording in recordings if not recording.piped]
        return KeptRun(self._root, uris, self._made_by)

    def _names(self, inputs: Sequence[Input]) -> list[str]:
        import pyarrow as pa

        from corpus_asr.export.write import distinct_names

        uris = [recording.uri for recording in inputs]
        table = pa.table({"uri": uris, "recording_id": list(map(recording_id, uris))})
        parts = {"", *self._first_parts}
        suffixes = [part + suffix_of(name) for name in self._layout.formats for part in parts]
        return distinct_names(table, suffixes, [recording.base for recording in inputs])

    def _part(self, channel: int | None) -> str:
        return "" if channel is None or not self._apart else f".{self._apart}{channel}"

    @property
    def _first_parts(self) -> tuple[str, ...]:
        # The last file written: if it exists, all do. Tracks count from 1; a single one has none.
        return ("", self._part(1)) if self._apart == "track" else (self._part(0),)

    def _look_up(self, recording: Input, wanted: str) -> _OutputFile:
        """Read the record of a recording, and what there is of its files."""
        version = _version_of(recording, self._store)
        # Not by the model's name: the revision is of that, too, however it is spelled.
        changing = sorted((key, value) for key, value in self._made_by.items() if key != "model")
        made_by = repr((changing, self._layout.rules, self._layout.words))
        of = repr((made_by, version, self._texts.get(recording.name)))
        output = _OutputFile(
            recording=recording,
            wanted=wanted,
            # What comes through a pipe is another recording each time.
            record_id=uuid.uuid4().hex if recording.piped else recording_id(public(recording.uri)),
            version=version,
            of=_hash_of(of.encode("utf-8", "surrogatepass")),
            record=_Record(source=public(recording.shown_uri), name=wanted),
        )
        address = self._record_address(output)
        if filesystem.exists(address):
            try:
                record = _Record(**json.loads(filesystem.read_bytes(address)))
                within(self._root, record.name)
                output.record = record
            except (ValueError, TypeError) as error:
                # Its files then count as unknown ones, which nothing replaces.
                event(_LOG, logging.WARNING, "record_unreadable", uri=address, why=str(error))
        output.missing = tuple(
            name
            for name in self._layout.formats
            if not any(self._is_done(output, part + suffix_of(name)) for part in self._first_parts)
        )
        return output

    def _is_done(self, output: _OutputFile, suffix: str) -> bool:
        record = output.record
        is_current = record.files.get(suffix, {"of": None})["of"] == output.of
        written = is_current and filesystem.exists(within(self._root, record.name + suffix))
        return written and not self._overwrite

    def _claim(self, output: _OutputFile, contents: Mapping[str, bytes]) -> None:
        """Give a recording a name at which all its files may be written."""
        record, wanted = output.record, output.wanted
        alternatives = (f"{wanted}-{number}" for number in itertools.count(2))
        for name in itertools.chain([record.name, wanted], alternatives):
            if name != record.name:
                record.name, record.files = name, {}
            claim = within(self._root, f"{RECORDS_FOLDER}/names/{_hash_of(name.encode())}")
            is_free = all(self._may_replace(record, suffix) for suffix in contents)
            if is_free and filesystem.create(claim, output.record_id.encode()):
                return

    def _may_replace(self, record: _Record, suffix: str) -> bool:
        address = within(self._root, record.name + suffix)
        if not filesystem.exists(address):
            return True
        if self._overwrite or suffix not in record.files:
            return suffix in record.files
        return _hash_of(filesystem.read_bytes(address)) in record.files[suffix]["hashes"]

    def _note(self, output: _OutputFile) -> None:
        text = json.dumps(asdict(output.record), indent=1, ensure_ascii=False)
        filesystem.write_atomic(self._record_address(output), text.encode("utf-8", "replace"))

    def _record_address(self, output: _OutputFile) -> str:
        return within(self._root, f"{RECORDS_FOLDER}/{output.record_id}.json")


def _order(transcript: Transcript) -> float:
    return inf if transcript.channel is None else transcript.channel


def _version_of(each: Input, store: StoreOptions) -> "Version":
    if each.piped:
        return (None, None)
    try:
        info = filesystem.describe(each.uri, store)
    except FetchError as error:  # reported when the recording is read
        event(_LOG, logging.DEBUG, "version_unknown", uri=redact_uri(each.uri), why=str(error))
        return (None, None)
    return (info.etag, info.size_bytes)


def _hash_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _checked_folder(folder: str) -> str:
    # Before any work, which would be lost.
    root = normalize_writable(folder, doing="writing to", choose="--output-dir")
    if scheme_of(root) == LOCAL:
        try:
            os.makedirs(root, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"making the folder {folder}: {error.strerror}; choose another --output-dir"
            ) from error
    return root.rstrip("/")
