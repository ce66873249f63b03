"""Which recordings are to stay away: salted hashes of their addresses and versions.

The file names nobody; who knows an address can ask whether it is in it, which is what a run does.
A version is kept where it was one recording's alone: so a file that was renamed stays away, too.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

import pyarrow as pa

from corpus_asr.errors import CorpusAsrError
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.store import plain_version
from corpus_asr.storage.stores.uri import public, recording_id, redact_uri

FORGOTTEN_NAME: Final = "_run/forgotten.json"
_SALT_BYTES = _HASH_BYTES = 16


@dataclass(slots=True, kw_only=True)
class Forgotten:
    """Recordings that no run of an output folder is to do."""

    salt: str
    entries: list[tuple[str, ...]] = field(default_factory=list)
    """Hashes of each one's address and ID, and of its versions."""
    num_left_out: int = 0
    _hashes: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, store: OutputStore) -> Self:
        """Return those of an output folder.

        Raises:
            CorpusAsrError: the file is there, and not what this program wrote.
        """
        found = store.read_json(FORGOTTEN_NAME)
        if found is None:
            return cls(salt=secrets.token_hex(_SALT_BYTES))
        try:
            entries = [tuple(map(str, each)) for each in found["recordings"]]
            forgotten = cls(salt=bytes.fromhex(found["salt"]).hex(), entries=entries)
        except (KeyError, TypeError, ValueError) as error:
            raise CorpusAsrError(
                f"reading {redact_uri(store.address(FORGOTTEN_NAME))}: found {error!r}, expected "
                "what `corpus-asr forget` writes: which recordings are to stay away; restore it"
            ) from error
        forgotten._hashes = {each for entry in entries for each in entry}
        return forgotten

    def write(self, store: OutputStore) -> None:
        """Replace those of an output folder."""
        entries = [list(entry) for entry in sorted(self.entries)]
        store.write_json(FORGOTTEN_NAME, {"salt": self.salt, "recordings": entries})

    def add(self, uri: str, versions: Iterable[tuple[str | None, int | None]]) -> None:
        """Let a recording stay away, and any other file that is of one of its versions."""
        known = [(etag, size) for etag, size in versions if etag is not None and size is not None]
        versions_of = (self._of_version(*version) for version in known)
        entry = (self._of_uri(uri), self._of_id(recording_id(uri)), *versions_of)
        if not {*entry} <= self._hashes:
            self.entries.append(entry)
            self._hashes |= {*entry}

    def allow(self, uri: str) -> bool:
        """Let a recording be done again; tell whether it was to stay away."""
        mine = [entry for entry in self.entries if self._of_uri(uri) in entry]
        self.entries = [entry for entry in self.entries if entry not in mine]
        self._hashes = {each for entry in self.entries for each in entry}
        return bool(mine)

    def without(self, files: pa.RecordBatch) -> pa.RecordBatch:
        """Return FILES rows without those that are to stay away, and count these."""
        if not self._hashes:
            return files
        stays = [not self.has(*row) for row in _columns(files)]
        self.num_left_out += len(stays) - sum(stays)
        return files if all(stays) else files.filter(pa.array(stays, pa.bool_()))

    def has(self, uri: str, etag: str | None = None, size_bytes: int | None = None) -> bool:
        """Tell whether a recording is to stay away, by its address or version."""
        if self._of_uri(uri) in self._hashes:
            return True
        known = etag is not None and size_bytes is not None
        return known and self._of_version(etag, size_bytes) in self._hashes

    def has_id(self, own: str) -> bool:
        """Tell whether a recording is to stay away, by its ID."""
        return self._of_id(own) in self._hashes

    def _of_id(self, own: str) -> str:
        return self._hash(f"id {own}")

    def _of_uri(self, uri: str) -> str:
        return self._hash(f"uri {public(uri)}")

    def _of_version(self, etag: str | None, size_bytes: int | None) -> str:
        return self._hash(f"version {etag and plain_version(etag)} {size_bytes}")

    def _hash(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        salt = bytes.fromhex(self.salt)
        return hashlib.blake2b(data, digest_size=_HASH_BYTES, salt=salt).hexdigest()


def _columns(files: pa.RecordBatch) -> Iterable[tuple[str, str | None, int | None]]:
    names = ("uri", "etag", "size_bytes")
    return zip(*(files.column(name).to_pylist() for name in names), strict=True)
