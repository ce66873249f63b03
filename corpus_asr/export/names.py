"""Names for files made of recordings: like theirs, safe on any file system, and all distinct.

Folders below the common one are kept. A name is the recording's without its suffix; with it, where
another recording has the same; with the recording's ID, where that is not enough either. Names that
differ in case only, or in how accents are encoded, count as equal, as some file systems have it;
so do a file and a folder.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.storage.stores.uri import scheme_of

MAX_NAME_BYTES = 240  # file systems allow 255; the local store's temporary names add to it
_HASH_DIGITS = 16
_LAST_STAGE = 9
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|%\u2028\u2029\ufeff\u202a-\u202e\u2066-\u2069]')
_AUDIO_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}")
_CHUNK = 10_000


class Names:
    """Names of recordings' files.

    Args:
        recordings: `uri` and `recording_id` of all of them.
        suffixes: of the files that are made of each, such as `.srt`.
    """

    def __init__(self, recordings: pa.Table, suffixes: Sequence[str]) -> None:
        self._uris = recordings["uri"]
        self._ids = recordings["recording_id"]
        self._suffixes = tuple(suffixes)
        self._room = MAX_NAME_BYTES - max(len(suffix) for suffix in suffixes)
        self._prefix = common_folder(self._uris)
        self._stage = np.zeros(recordings.num_rows, dtype=np.uint8)
        self._make_distinct()

    def __getitem__(self, position: int) -> str:
        """Return a recording's name, with slashes between folders."""
        return self._name(self._uris[position].as_py(), self._ids[position].as_py(),
                          int(self._stage[position]))  # fmt: skip

    def _name(self, uri: str, recording_id: str, stage: int) -> str:
        *folders, name = _steps(uri, self._prefix)
        if stage == 0:
            root, suffix = os.path.splitext(name)
            name = root if root and _AUDIO_SUFFIX.fullmatch(suffix) else name
        name = _safe(name, self._room - _HASH_DIGITS - _LAST_STAGE)
        if stage > 1:
            # More than one mark only where somebody has guessed the name with fewer.
            name += "~" * (stage - 1) + recording_id
        return "/".join([*(_safe(folder, MAX_NAME_BYTES) for folder in folders), name])

    def _make_distinct(self) -> None:
        """Lengthen all names that are equal, until none are."""
        while True:
            files, folders = self._keys()
            values, counts = np.unique(files, return_counts=True)
            equal = np.isin(files, values[counts > 1]) | np.isin(files, folders)
            again = equal.any(axis=1) & (self._stage < _LAST_STAGE)
            if not again.any():
                return
            self._stage[again] += 1

    def _keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a number for each file (recording, suffix) and each folder: equal, if equal."""
        files = np.zeros((len(self._uris), len(self._suffixes)), dtype=np.uint64)
        folders: set[int] = set()
        for at, (uri, recording_id) in enumerate(self._pairs()):
            name = self._name(uri, recording_id, int(self._stage[at]))
            files[at] = [_key(name + suffix) for suffix in self._suffixes]
            while name := name.rpartition("/")[0]:
                key = _key(name)
                if key in folders:
                    break
                folders.add(key)
        return files, np.fromiter(folders, dtype=np.uint64, count=len(folders))

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for start in range(0, len(self._uris), _CHUNK):
            uris = self._uris.slice(start, _CHUNK).to_pylist()
            yield from zip(uris, self._ids.slice(start, _CHUNK).to_pylist(), strict=True)


def common_folder(uris: pa.ChunkedArray) -> str:
    """Return the common prefix of all URIs up to a slash, which may be empty."""
    bounds = pc.min_max(uris).as_py()
    if bounds["min"] is None:
        return ""
    low, high = str(bounds["min"]), str(bounds["max"])
    # The common prefix of the first and the last in order is common to all.
    same = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: low.rfind("/", 0, same) + 1]


def _steps(uri: str, prefix: str) -> list[str]:
    if scheme_of(uri) in ("http", "https"):
        # A query is no part of a file's name; the common folder may end within it.
        path = uri.partition("?")[0].rstrip("/")
        prefix = prefix if path.startswith(prefix) else prefix[: path.rfind("/") + 1]
        uri = path if path.startswith(prefix) else uri
    return uri.removeprefix(prefix).replace("://", "/").lstrip("/").split("/")


def _safe(step: str, max_bytes: int) -> str:
    safe = _UNSAFE.sub(lambda match: _escaped(match.group()), step)
    if not safe.strip(". ") or safe.startswith(".tmp-"):
        safe = safe.replace(".", "%2E").replace(" ", "%20") or "%"
    encoded = safe.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode("utf-8")
    mark = "~" + hashlib.blake2b(encoded, digest_size=_HASH_DIGITS // 2).hexdigest()
    return encoded[: max_bytes - len(mark)].decode("utf-8", "ignore") + mark


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _key(name: str) -> int:
    plain = unicodedata.normalize("NFKC", name.casefold()).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest())
