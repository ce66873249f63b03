"""Contents of a source's archives: recordings with columns beside them, as in WebDataset.

Members whose names are equal up to their first dot are one sample: its audio becomes recordings,
its `.json`, `.txt` and `.cls` their metadata. Several archives are read at once, by their headers.
"""

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from corpus_asr.errors import FetchError
from corpus_asr.failure_kinds import BAD_ARCHIVE, failure_kind
from corpus_asr.logs import event
from corpus_asr.storage.manifest import MAX_METADATA_CHARACTERS, metadata_text
from corpus_asr.storage.stores.cells import TABLE_BLOCK_BYTES, audio_table, place_of
from corpus_asr.storage.stores.filesystem import (
    StoreOptions,
    open_binary,
    open_container,
    read_ahead,
)
from corpus_asr.storage.stores.members import HEADER_BLOCK_BYTES, TarMember, tar_members
from corpus_asr.storage.stores.store import ObjectInfo, Page, StoreError
from corpus_asr.storage.stores.uri import (
    REST,
    SIZE,
    is_archive,
    is_table,
    member_address,
    member_uri,
    member_version,
    redact_uri,
)

_LOG = logging.getLogger(__name__)

_CHUNK_ROWS = 1_000
_CHUNKS_AHEAD = 4
_MOST_KEPT = 300_000  # places, in some 100 MB
# Source: webdataset, `autodecode`: what endings mean. The others hold no audio either.
_JSON = ("json", "jsn")
_TEXTS = ("txt", "text", "transcript")
_COLUMNS = {**dict.fromkeys(_TEXTS, "text"), "cls": "cls"}
_NO_AUDIO = frozenset((
    "cls2", "class", "count", "index", "inx", "id", "pyd", "pickle", "pkl", "pth", "pt", "ten",
    "tb", "mp", "msg", "cbor", "npy", "npz",
))  # fmt: skip


@dataclass(slots=True)
class ShardRows:
    """Some recordings of an archive, column by column, and how many members are none."""

    uris: list[str] = field(default_factory=list)
    sizes: list[int | None] = field(default_factory=list)
    etags: list[str | None] = field(default_factory=list)
    metadata: list[str | None] = field(default_factory=list)
    num_ignored: int = 0
    num_excluded: int = 0
    num_dangling: int = 0

    def add(self, uri: str, size: int | None, etag: str | None, metadata: str | None) -> None:
        """Append a recording."""
        self.uris.append(uri)
        self.sizes.append(size)
        self.etags.append(etag)
        self.metadata.append(metadata)


@dataclass(slots=True)
class _Sample:
    key: str
    audio: list[TarMember] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    num_columns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLister:
    """Lists archives; what is no recording is told by its name."""

    store: StoreOptions
    by_size: bool
    """Whether members of equal size are of one version (`source.version: size`)."""
    ignored: re.Pattern[str]
    excluded: re.Pattern[str]
    is_strict: bool = True
    """Whether a store that does not answer ends the listing, instead of being one failure."""

    def rows(self, uris: Sequence[str]) -> Iterator[ShardRows]:
        """Yield the recordings of archives in their order, in batches.

        An archive's unreadable rest is one recording, `ARCHIVE#*`, whose failure gives the cause.

        Raises:
            FetchError: a store is unavailable, if the listing is strict.
        """
        listings = (_Rows(self, uri) if is_table(uri) else _Listing(self, uri) for uri in uris)
        for _, rows in read_ahead(listings, iter, values_ahead=_CHUNKS_AHEAD):
            yield rows


@dataclass(frozen=True, slots=True)
class _Listing:
    lister: ShardLister
    uri: str

    def __iter__(self) -> Iterator[ShardRows]:
        shard_rows = ShardRows()
        try:
            file = open_container(self.uri, self.lister.store)
        except FetchError as error:
            if self.lister.is_strict and failure_kind(error.kind).transient:
                raise  # the whole archive would be missing
            yield _rest(self.uri, shard_rows, None, error)
            return
        with closing(file):
            etag = file.info.etag
            sample = _Sample("")
            try:
                for member in tar_members(file, self.uri):
                    key = _key_of(member.name)
                    if key != sample.key:
                        self._add(sample, file, shard_rows)
                        sample = _Sample(key)
                        if len(shard_rows.uris) >= _CHUNK_ROWS:
                            yield shard_rows
                            shard_rows = ShardRows()
                    self._take(member, sample, shard_rows, file)
                self._add(sample, file, shard_rows)
            except (StoreError, FetchError) as error:
                if error.kind != BAD_ARCHIVE and self.lister.is_strict:
                    raise
                self._add(sample, file, shard_rows)
                shard_rows = _rest(self.uri, shard_rows, etag, error)
        yield shard_rows

    def _take(self, member: TarMember, sample: _Sample, found: ShardRows, file: Any) -> None:
        path = f"{self.uri}/{member.name}"
        ending = path.rpartition(".")[2].lower()
        if member.offset is not None and (ending in _JSON or ending in _COLUMNS):
            sample.num_columns += 1
            if member.size_bytes <= MAX_METADATA_CHARACTERS:
                columns = _columns(ending, b"".join(_pieces(file, member)))
                # A member file takes precedence over a key of the JSON, in either order.
                both = (
                    (sample.columns, columns) if ending in _COLUMNS else (columns, sample.columns)
                )
                sample.columns = both[0] | both[1]
        elif member.offset is None:
            found.num_dangling += 1
        elif ending in _NO_AUDIO or self.lister.ignored.match(path):
            found.num_ignored += 1
        elif self.lister.excluded.match(path):
            found.num_excluded += 1
        else:
            sample.audio.append(member)

    def _add(self, sample: _Sample, file: Any, found: ShardRows) -> None:
        if not sample.audio:
            found.num_ignored += sample.num_columns
        metadata = _short(metadata_text(sample.columns) if sample.columns else None)
        for member in sample.audio:
            told = f"{SIZE}{member.size_bytes}" if self.lister.by_size else None
            version = member_version(file.info.etag, member.place, told)
            found.add(member_uri(self.uri, member.name), member.size_bytes, version, metadata)


@dataclass(frozen=True, slots=True)
class _Rows:
    lister: ShardLister
    uri: str

    def __iter__(self) -> Iterator[ShardRows]:
        shard_rows, etag = ShardRows(), None
        store = self.lister.store
        try:
            with open_binary(self.uri, store, block_bytes=TABLE_BLOCK_BYTES) as file:
                info: ObjectInfo = file.raw.info  # type: ignore[attr-defined]
                etag = info.etag
                # A row has no size of its own.
                told = f"{SIZE}{info.size_bytes}" if self.lister.by_size else None
                with audio_table(file, store.audio_column) as table:
                    first = 0
                    for group in range(table.num_groups):
                        expected, index = table.expected_bytes(group), 0
                        for rows in table.others(group):
                            for row in rows:
                                place = place_of(group, index, expected)
                                version = member_version(etag, place, told)
                                text = _short(metadata_text(row) if row else None)
                                uri = member_uri(self.uri, str(first + index))
                                shard_rows.add(uri, None, version, text)
                                index += 1
                            yield shard_rows
                            shard_rows = ShardRows()
                        first += table.num_rows(group)
        except (StoreError, FetchError) as error:
            if self.lister.is_strict and failure_kind(error.kind).transient:
                raise
            yield _rest(self.uri, shard_rows, etag, error)


class MemberPlaces:
    """Sizes and versions of members that manifests name; the headers of an archive are read once.

    Those of a manifest in any order are not all kept: a member without a place is looked for when
    it is opened.
    """

    def __init__(self, lister: ShardLister) -> None:
        self._lister = lister
        self._read: set[str] = set()
        self._places: OrderedDict[str, dict[str, tuple[int | None, str | None]]] = OrderedDict()

    def of(self, uris: list[str]) -> Page:
        """Return recordings with sizes and versions, where they are members of tar files."""
        containers = [_tar_of(uri) for uri in uris]
        unread = [
            container
            for container in dict.fromkeys(containers)
            if container and container not in self._read
        ]
        self._read.update(unread)
        for shard_rows in self._lister.rows(unread):
            for uri, size, etag in zip(
                shard_rows.uris, shard_rows.sizes, shard_rows.etags, strict=True
            ):
                container = str(_tar_of(uri))
                self._places.setdefault(container, {})[uri] = (size, etag)
        places = [
            self._places.get(container, {}).get(uri, (None, None)) if container else (None, None)
            for uri, container in zip(uris, containers, strict=True)
        ]
        while len(self._places) > 1 and sum(map(len, self._places.values())) > _MOST_KEPT:
            self._places.popitem(last=False)
        sizes, etags = [size for size, _ in places], [etag for _, etag in places]
        return Page(uris, sizes, etags, [None] * len(uris))


def _tar_of(uri: str) -> str | None:
    member = member_address(uri)
    return member.container if member and is_archive(member.container) else None


def with_columns(metadata: str | None, columns: str | None) -> str | None:
    """Return the metadata of a member merged with the columns of the row that names its archive."""
    if metadata is None or columns is None:
        return columns if metadata is None else metadata
    both = metadata_text(json.loads(columns) | json.loads(metadata))
    return both if len(both) <= MAX_METADATA_CHARACTERS else metadata


def _short(metadata: str | None) -> str | None:
    too_long = metadata is not None and len(metadata) > MAX_METADATA_CHARACTERS
    return None if too_long else metadata


def _rest(uri: str, found: ShardRows, etag: str | None, error: Exception) -> ShardRows:
    found.add(member_uri(uri, REST), None, etag, None)
    event(_LOG, logging.WARNING, "archive_broken", uri=redact_uri(uri), why=str(error))
    return found


def _key_of(name: str) -> str:
    # Source: webdataset, `base_plus_ext`: the first dot of the last path step ends the key.
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _pieces(file: Any, member: TarMember) -> Iterator[bytes]:
    file.seek(member.offset or 0)
    remaining_bytes = member.size_bytes
    while remaining_bytes and (piece := file.read(min(remaining_bytes, HEADER_BLOCK_BYTES))):
        yield piece
        remaining_bytes -= len(piece)


def _columns(ending: str, content: bytes) -> dict[str, Any]:
    text = content.decode("utf-8-sig", "replace")
    if ending in _COLUMNS:
        return {_COLUMNS[ending]: text.strip()}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {"json": value}
