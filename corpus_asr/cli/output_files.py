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
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from corpus_asr.cli.inputs import Input
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.formats.cue_rules import CueRules
from corpus_asr.formats.names import JSON_LINES, ExportFormat, WordStyle
from corpus_asr.formats.transcript import Transcript
from corpus_asr.formats.writers import file_contents, file_suffix
from corpus_asr.logs import event
from corpus_asr.scratch import remove_abandoned
from corpus_asr.storage.listing import RECORDS_FOLDER
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions
from corpus_asr.storage.stores.local import TEMPORARY_NAME
from corpus_asr.storage.stores.uri import (
    LOCAL,
    normalize,
    public,
    recording_id,
    redact_uri,
    scheme_of,
    within,
)

if TYPE_CHECKING:  # reads tables
    from corpus_asr.cli.kept_run import KeptRun

_LOG = logging.getLogger(__name__)
Version = tuple[str | None, int | None]
"""ETag and size of a recording."""


def suffix_of(name: str) -> str:
    """Return the suffix of files in a format: one of `ExportFormat`, or `jsonl`."""
    return ".jsonl" if name == JSON_LINES else file_suffix(ExportFormat(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How transcripts look as text."""

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


class Existing(StrEnum):
    """What is done where outputs exist."""

    known = "known"
    """Those of the same recording, model and options are kept; other files are not replaced."""
    skip = "skip"
    """A recording is skipped by the names of its files, whatever made them."""
    overwrite = "overwrite"
    """All is done again, and replaces what the record knows, also where a person changed it."""


@dataclass(slots=True, kw_only=True)
class _Record:
    """What was written for a recording; one object below `RECORDS_FOLDER`."""

    source: str
    name: str
    """Of its files, without their suffixes."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By suffix: `of`, what made it or null while it is written, and `hashes` of its content."""
    kept: list[str] = field(default_factory=list)
    """Objects of the kept run that hold it, or may."""

    def is_current(self, suffix: str, of: str) -> bool:
        return suffix in self.files and self.files[suffix]["of"] == of

    def wrote(self, suffix: str, content: bytes) -> bool:
        return suffix in self.files and _hash_of(content) in self.files[suffix]["hashes"]


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
        existing: Existing,
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
            existing: what is done where files exist.
            apart: what has files of its own, if anything.
            made_by: model and options that change what is written.
            texts: known text of each recording, by its name.
            store: how recordings are reached.
        """
        self.folder = redact_uri(folder).rstrip("/") or "/"
        """As it is shown."""
        self._root = _checked_folder(folder)
        self._layout = layout
        self._existing = existing
        self._model, self._revision = (
            str(made_by.get(name, "")) for name in ("model", "model_revision")
        )
        self._apart = apart
        self._options = made_by
        # Not by its name: the revision is of that, too, however it is spelled.
        changing = sorted((name, value) for name, value in made_by.items() if name != "model")
        self._made_by = repr((changing, layout.rules, layout.words))
        self._texts = texts or {}
        self._store = store
        self._inputs = {each.name: each for each in inputs}
        self._records: dict[str, _Record] = {}
        self._of: dict[str, str] = {}
        self._versions: dict[str, Version] = {}
        self._run: KeptRun | None = None
        # What comes through a pipe is another recording each time.
        self._ids = {
            each.name: uuid.uuid4().hex if each.piped else recording_id(public(each.uri))
            for each in inputs
        }
        # Here and below, as it reads tables: for a text that is printed alone nothing of it is
        # needed, and to import it takes a tenth of a second.
        from corpus_asr.export.write import WRITERS

        self._wanted = self._named(inputs)
        if scheme_of(self._root) == LOCAL:
            places = {within(self._root, name).rpartition("/")[0] for name in self._wanted.values()}
            places |= {place for place, _, _ in os.walk(f"{self._root}/{RECORDS_FOLDER}")}
            for place in places:
                remove_abandoned(place, TEMPORARY_NAME)
        # As many at once as are written: each is some questions to the stores.
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="look-up") as pool:
            found = list(pool.map(self._read, self._inputs.values()))
            for each, record in zip(inputs, found, strict=True):
                fresh = _Record(source=public(each.shown_uri), name=self._wanted[each.name])
                self._records[each.name] = record or fresh
            missing = pool.map(self._look_up, self._inputs)
            self._missing = dict(zip(self._inputs, missing, strict=True))

    def is_done(self, name: str) -> bool:
        """Return whether all files of a recording were there at first, and are current."""
        return not self._missing[name]

    def write(self, name: str, whole: Transcript, transcripts: Sequence[Transcript]) -> str:
        """Write the files of a recording that are missing, each whole or not at all.

        `transcripts` are more than one where channels are apart: each of theirs, and the whole, or
        without it. Returns what was written, for a person.

        Raises:
            FetchError: the folder cannot be written to.
        """
        uri, contents = self._inputs[name].shown_uri, {}
        # The first channel comes last: where its files are, all others are, too.
        for transcript in sorted(transcripts, key=_order, reverse=True):
            channel = self._channel(transcript.channel)
            for suffix, content in self._layout.contents(transcript, uri, self._missing[name]):
                contents[channel + suffix] = content
        record = self._claim(name, contents)
        run, earlier, stem, reserved = self._kept_run(name), record.kept, "", record.kept
        if run is not None:
            stem, reserved = run.reserve()
            record.kept = [*earlier, *reserved]
        # What a file may hold is known before it does: a call that is cut short finds its own.
        for suffix, content in contents.items():
            before = record.files.get(suffix, {"hashes": []})["hashes"]
            record.files[suffix] = {"of": None, "hashes": [*before[-1:], _hash_of(content)]}
        self._note(name, record)
        if run is not None:
            run.keep(self._inputs[name].uri, self._versions[name], whole, stem=stem)
            run.forget(earlier)
            record.kept = reserved
        for suffix, content in contents.items():
            filesystem.write_atomic(within(self._root, record.name + suffix), content)
            record.files[suffix] = {"of": self._of[name], "hashes": [_hash_of(content)]}
        self._note(name, record)
        if len(contents) == 1:
            return f"{self.folder}/{record.name}{next(iter(contents))}"
        return f"{self.folder}/{record.name}.* ({len(contents)} files)"

    def _kept_run(self, name: str) -> "KeptRun | None":
        """Return the run by which `view` shows a recording; None where nothing is kept of it."""
        # Nothing is known of a folder by names alone. What came through a pipe cannot be played,
        # and may have had another content each time.
        if self._existing is Existing.skip or self._inputs[name].piped:
            return None
        if self._run is None:
            from corpus_asr.cli.kept_run import KeptRun

            uris = [one.uri for one in self._inputs.values() if not one.piped]
            self._run = KeptRun(
                self._root, uris, model=self._model, revision=self._revision, options=self._options
            )
        return self._run

    def _named(self, inputs: Sequence[Input]) -> dict[str, str]:
        import pyarrow as pa

        from corpus_asr.export.write import distinct_names

        uris = [each.uri for each in inputs]
        ids = [recording_id(uri) for uri in uris]
        table = pa.table({"uri": uris, "recording_id": ids})
        parts = {"", *self._first_parts}
        suffixes = [each + suffix_of(name) for name in self._layout.formats for each in parts]
        names = distinct_names(table, suffixes, [recording.base for recording in inputs])
        return {each.name: name for each, name in zip(inputs, names, strict=True)}

    def _channel(self, channel: int | None) -> str:
        return "" if channel is None or not self._apart else f".{self._apart}{channel}"

    @property
    def _first_parts(self) -> tuple[str, ...]:
        # What is written last: where it is, all is. Tracks count from 1, and one has no number.
        return ("", self._channel(1)) if self._apart == "track" else (self._channel(0),)

    def _read(self, each: Input) -> _Record | None:
        """Return the record of a recording, and note what its files are to be made of."""
        version = self._versions[each.name] = _version_of(each, self._store)
        of = (self._made_by, version, self._texts.get(each.name))
        self._of[each.name] = _hash_of(repr(of).encode("utf-8", "surrogatepass"))
        address = self._record_address(each.name)
        if self._existing is Existing.skip or not filesystem.exists(address):
            return None
        try:
            record = _Record(**json.loads(filesystem.read_bytes(address)))
            within(self._root, record.name)
            return record
        except (ValueError, TypeError) as error:
            # Its files then count as unknown ones, which nothing replaces.
            event(_LOG, logging.WARNING, "record_unreadable", uri=address, why=str(error))
            return None

    def _look_up(self, name: str) -> tuple[str, ...]:
        """Return the formats of a recording that are to be written."""
        if self._existing is Existing.overwrite:
            return self._layout.formats
        record, skip = self._records[name], self._existing is Existing.skip

        def is_there(suffix: str) -> bool:
            current = skip or record.is_current(suffix, self._of[name])
            return current and filesystem.exists(within(self._root, record.name + suffix))

        return tuple(
            each
            for each in self._layout.formats
            if not any(is_there(part + suffix_of(each)) for part in self._first_parts)
        )

    def _claim(self, name: str, contents: Mapping[str, bytes]) -> _Record:
        """Return the record of a recording under a name at which all its files may be written."""
        record = self._records[name]
        if self._existing is Existing.skip:
            return record
        wanted, owner = self._wanted[name], self._ids[name].encode()
        others = (f"{wanted}-{number}" for number in itertools.count(2))
        for candidate in itertools.chain([record.name, wanted], others):
            if candidate != record.name:
                record.name, record.files = candidate, {}
            if not all(self._may_replace(record, suffix) for suffix in contents):
                continue
            claim = f"{RECORDS_FOLDER}/names/{_hash_of(candidate.encode())}"
            if filesystem.create(within(self._root, claim), owner):
                return record
        raise AssertionError("numbers end")

    def _may_replace(self, record: _Record, suffix: str) -> bool:
        address = within(self._root, record.name + suffix)
        if not filesystem.exists(address):
            return True
        if self._existing is Existing.overwrite:
            return suffix in record.files
        return record.wrote(suffix, filesystem.read_bytes(address))

    def _note(self, name: str, record: _Record) -> None:
        if self._existing is not Existing.skip:
            text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
            filesystem.write_atomic(self._record_address(name), text.encode("utf-8", "replace"))

    def _record_address(self, name: str) -> str:
        return within(self._root, f"{RECORDS_FOLDER}/{self._ids[name]}.json")


def _order(transcript: Transcript) -> float:
    return inf if transcript.channel is None else transcript.channel


def _version_of(each: Input, store: StoreOptions) -> Version:
    if each.piped:
        return (None, None)
    try:
        info = filesystem.describe(each.uri, store)
    except FetchError as error:  # it is told when the recording is read
        event(_LOG, logging.DEBUG, "version_unknown", uri=redact_uri(each.uri), why=str(error))
        return (None, None)
    return (info.etag, info.size_bytes)


def _hash_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


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
