"""Blocked recordings: salted hashes of their URIs, sounds and sizes.

The file reveals no URIs. A sound is stored if only one recording had it; to find it again, new
files at its address or of its size are read. Other sounds at the address are other recordings; only
where no sound is known of it, as no run read it to the end, the address is blocked. A file that was
found to be an erased one is read again once its size or ETag is another.
"""

import hashlib
import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Self

import pyarrow as pa

from corpus_asr.errors import CorpusAsrError
from corpus_asr.storage.run_state.moved import SOUND_DIGEST, addresses
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import Inspection, StoreOptions, inspect_files
from corpus_asr.storage.stores.uri import public, redact_uri

FORGOTTEN_NAME: Final = "_run/forgotten.json"
_SALT_BYTES = _HASH_BYTES = 16
_WITHOUT_CONTENT = 2  # hashes of an entry: URI and ID
# Possibly blocked files that are new at their URI.
_NEW = """
select position, uri, etag, size_bytes from doubtful anti join committed
on doubtful.recording_id = committed.recording_id and fits(committed.etag, doubtful.etag)
  and coalesce(committed.size_bytes = doubtful.size_bytes, true)
"""


@dataclass(slots=True, kw_only=True)
class Forgotten:
    """Recordings that no run of an output folder may process."""

    salt: str
    entries: list[tuple[str, ...]] = field(default_factory=list)
    """Hashes of each one's URI and ID, and of its contents and their sizes."""
    blocked_versions: dict[str, str] = field(default_factory=dict)
    """Hash of the version of each file that was read and is an erased one, by hash of its URI."""
    num_left_out: int = 0
    is_changed: bool = False
    """Whether reading files changed `blocked_versions`."""
    _hashes: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, store: OutputStore) -> Self:
        """Return the blocked recordings of an output folder.

        Raises:
            CorpusAsrError: the file exists but was not written by this program.
        """
        content = store.read_json(FORGOTTEN_NAME)
        if content is None:
            return cls(salt=secrets.token_hex(_SALT_BYTES))
        try:
            entries = [tuple(map(str, entry)) for entry in content["recordings"]]
            forgotten = cls(
                salt=bytes.fromhex(content["salt"]).hex(),
                entries=entries,
                blocked_versions=dict(content.get("blocked_versions", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorpusAsrError(
                f"reading {redact_uri(store.address(FORGOTTEN_NAME))}: found {error!r}, expected "
                "the list that `corpus-asr remove --uri` writes; restore it"
            ) from error
        forgotten._hashes = {digest for entry in entries for digest in entry}
        return forgotten

    def write(self, store: OutputStore) -> None:
        """Write the blocked recordings to an output folder."""
        entries = [list(entry) for entry in sorted(self.entries)]
        store.write_json(
            FORGOTTEN_NAME,
            {"salt": self.salt, "recordings": entries, "blocked_versions": self.blocked_versions},
        )
        self.is_changed = False

    def add(self, uri: str, recording_id: str, contents: Iterable[tuple[str, int]]) -> None:
        """Block a recording, and any other file with one of its contents: digest and bytes."""
        entry = [self._hash("uri", public(uri)), self._hash("id", recording_id)]
        for digest, size_bytes in contents:
            entry += [self._hash("content", digest), self._hash("size", size_bytes)]
        if not {*entry} <= self._hashes:
            self.entries.append(tuple(entry))
            self._hashes |= {*entry}

    def allow(self, uri: str) -> bool:
        """Unblock a recording and its sounds; return whether it was blocked."""
        allowed = [entry for entry in self.entries if self._hash("uri", public(uri)) in entry]
        sounds = {sound for entry in allowed for sound, _ in _contents_of(entry)}
        self.entries = [
            entry[:_WITHOUT_CONTENT]
            + tuple(chain(*(pair for pair in _contents_of(entry) if pair[0] not in sounds)))
            for entry in self.entries
            if entry not in allowed
        ]
        self._hashes = {digest for entry in self.entries for digest in entry}
        self.blocked_versions.clear()
        return bool(allowed)

    def without(
        self,
        files: pa.Table,
        tables: RunTables,
        options: StoreOptions,
        inspect: Inspection = inspect_files,
    ) -> pa.Table:
        """Return FILES rows without blocked ones, and count those.

        `tables` determine which files are new; these are read with the source's `options`.
        """
        if not self._hashes:
            return files
        uris, sizes = (files.column(name).to_pylist() for name in ("uri", "size_bytes"))
        stays = [not self._is_closed(uri) for uri in uris]
        of_forgotten = {size for size in {*sizes} if self._hash("size", size) in self._hashes}
        doubtful = [
            at for at, size in enumerate(sizes)
            if stays[at] and (size in of_forgotten or self.has(uris[at]))
        ]  # fmt: skip
        if doubtful:
            rows = files.take(doubtful)
            tables.add("doubtful", rows.append_column("position", pa.array(doubtful)))
            new = list[tuple[int, str, str | None, str, str]]()
            for at, uri, etag, size_bytes in tables.rows(_NEW):
                name = self._hash("uri", public(uri))
                version = self._hash("version", f"{size_bytes} {etag}")
                stays[at] = self.blocked_versions.get(name) != version
                if stays[at]:
                    new.append((at, uri, etag, name, version))
            digests = inspect(SOUND_DIGEST, [row[1:3] for row in new], options, None)
            for (at, uri, etag, name, version), digest in zip(new, digests, strict=True):
                if digest is None:  # it may be the erased one
                    stays[at] = not self.has(uri)
                elif self.has_content(digest):
                    stays[at] = False
                    if etag is not None:
                        self.blocked_versions[name], self.is_changed = version, True
        self.num_left_out += len(stays) - sum(stays)
        return files if all(stays) else files.filter(pa.array(stays, pa.bool_()))

    def has(self, uri: str) -> bool:
        """Return whether a recording is blocked, by its URI."""
        return self._hash("uri", public(uri)) in self._hashes

    def _is_closed(self, uri: str) -> bool:
        """Return whether all files at a URI are blocked, as no sound is known of it."""
        name = self._hash("uri", public(uri))
        return name in self._hashes and any(
            name in entry and len(entry) == _WITHOUT_CONTENT for entry in self.entries
        )

    def has_content(self, digest: str) -> bool:
        """Return whether a sound is blocked."""
        return self._hash("content", digest) in self._hashes

    def has_id(self, recording_id: str) -> bool:
        """Return whether a recording is blocked, by its ID."""
        return self._hash("id", recording_id) in self._hashes

    def _hash(self, kind: str, value: object) -> str:
        data = f"{kind} {value}".encode("utf-8", "surrogatepass")
        salt = bytes.fromhex(self.salt)
        return hashlib.blake2b(data, digest_size=_HASH_BYTES, salt=salt).hexdigest()


def _contents_of(entry: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    values = iter(entry[_WITHOUT_CONTENT:])
    return zip(values, values, strict=True)


def is_there(store: OutputStore, recording_id: str, outcomes_names: Collection[str]) -> bool:
    """Return whether a recording is still in the folder and not being removed.

    A viewer asks before and after it saves: a removal that starts in between either has an entry,
    which the second call sees, or sees the save. `outcomes_names` are objects that held its
    outcomes; others are read only if these are gone.
    """
    if Forgotten.read(store).has_id(recording_id):
        return False
    if store.missing(outcomes_names) != {*outcomes_names}:
        return True
    return any(True for _ in addresses(store, {recording_id}))
