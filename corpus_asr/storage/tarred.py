"""Members of tar files that NeMo's tarred manifests name by `shard_id` and `audio_filepath`.

Input: columns of manifest rows. The tar files are set explicitly or found at NeMo's default paths.

Source: NeMo, `LazyNeMoTarredIterator` and `convert_to_tarred_audio_dataset.py`: shard number in a
file name, default paths, and names of segments of one file.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from corpus_asr.errors import ConfigError
from corpus_asr.storage.stores.filesystem import StoreOptions, exists
from corpus_asr.storage.stores.members import is_archive, member_address, member_uri, plain_name
from corpus_asr.storage.stores.uri import join, normalize, parent, redact_uri

SHARD = "shard_id"
_SHARDED_FOLDER = "sharded_manifests"
_NUMBER_OF_MANIFEST = re.compile(r"manifest[^/]*_(\d+)[^/]*\.json")
_NUMBER_OF_TAR = re.compile(r"audio[^/]*_(\d+)[^/]*\.tar")
_PART = re.compile(r"(.+)-sub\d+(\.\w+)?", re.DOTALL)

Unusable = Callable[[str, str, str], ConfigError]
"""Builds an error from what was found, what was expected, and the advice."""


@dataclass(frozen=True, slots=True)
class TarFiles:
    """Tar files of tarred manifests."""

    named: tuple[str, ...] = ()
    """URIs from the setting; empty: the default paths of NeMo."""
    _by_number: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    _found: dict[tuple[str, int], str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, uris: Iterable[str]) -> "TarFiles":
        """Return the tar files at some URIs.

        Raises:
            ConfigError: a URI is not that of a tar file.
        """
        files = cls(tuple(map(normalize, uris)))
        for uri in files.named:
            if not is_archive(uri):
                raise ConfigError(
                    f"reading source.tarred: found {redact_uri(uri)}, expected .tar files; "
                    "correct it"
                )
            name = uri.rpartition("/")[2]
            numbers = _NUMBER_OF_TAR.findall(name) or re.findall(r"\d+", name.partition(".")[0])
            if numbers:
                files._by_number[int(numbers[-1])].append(uri)
        return files

    def member(
        self,
        name: str,
        columns: Mapping[str, Any],
        manifest: str,
        options: StoreOptions,
        unusable: Unusable,
    ) -> str | None:
        """Return the URI of the tar member that a row names; None if it names none."""
        shard = columns.get(SHARD)
        if member_address(name) or "://" in name:
            return None  # an absolute URI
        if not self.named and (shard is None or name.startswith("/")):
            return None
        if shard is None and len(self.named) == 1:
            return _member(self.named[0], name)
        number = _number_of(manifest) if shard is None else _whole(shard)
        if number is None:
            problem = f"{SHARD} {shard!r}" if shard is not None else f"no column {SHARD}"
            expected = "the number of the tar file that the row's audio is in"
            raise unusable(problem, expected, "correct the manifest")
        if self.named:
            return _member(self._numbered(number, manifest, unusable), name)
        at_home = self._at_home(number, manifest, options)
        if at_home is not None:
            return _member(at_home, name)
        if "/" in name or exists(join(parent(manifest), name), options):
            return None  # a `shard_id` column of another meaning
        raise unusable(
            f"{SHARD} {number} without audio_{number}.tar in the manifest's folder or above",
            "the tar files of these rows", "name them in source.tarred, such as audio_{0..9}.tar",
        )  # fmt: skip

    def _numbered(self, number: int, manifest: str, unusable: Unusable) -> str:
        uris = self._by_number.get(number, [])
        # Buckets reuse shard numbers, each in its own folder.
        near = [uri for uri in uris if parent(uri) in _folders(manifest)]
        if len(uris) == 1 or len(near) == 1:
            return (near or uris)[0]
        if uris:
            both = f"{SHARD} {number} of {' and '.join(map(redact_uri, uris[:2]))}"
            raise unusable(both, "one such file", "run one job per file")
        tar_numbers = sorted(self._by_number)
        numbers = f"{tar_numbers[0]} to {tar_numbers[-1]}" if tar_numbers else "names with numbers"
        advice = "add its tar file to source.tarred"
        raise unusable(f"{SHARD} {number}", f"one of source.tarred, {numbers}", advice)

    def _at_home(self, number: int, manifest: str, options: StoreOptions) -> str | None:
        key = (parent(manifest), number)
        if key not in self._found:
            places = (join(folder, f"audio_{number}.tar") for folder in _folders(manifest))
            self._found[key] = next((uri for uri in places if exists(uri, options)), None)
        return self._found[key]


def _folders(manifest: str) -> list[str]:
    folder = parent(manifest)
    is_sharded = folder.rpartition("/")[2] == _SHARDED_FOLDER
    return [parent(folder), folder] if is_sharded else [folder]


def _member(tar: str, name: str) -> str:
    part = _PART.fullmatch(name)
    return member_uri(tar, plain_name(f"{part[1]}{part[2] or ''}" if part else name))


def _number_of(manifest: str) -> int | None:
    match = _NUMBER_OF_MANIFEST.search(manifest.rpartition("/")[2])
    return int(match[1]) if match else None


def _whole(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    is_whole = not isinstance(value, bool) and number >= 0 and number.is_integer()
    return int(number) if is_whole else None
