"""Members of tar archives: found by the archive's headers, read by ranges of the archive."""

import tarfile
from collections.abc import Callable, Container, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, NamedTuple, Protocol

from corpus_asr.config.storage_options import TAR
from corpus_asr.failure_kinds import BAD_ARCHIVE, CHANGED, NOT_FOUND
from corpus_asr.storage.stores.store import ObjectInfo, Store, StoreError
from corpus_asr.storage.stores.uri import (
    MemberAddress,
    escaped_path,
    is_table,
    member_address,
    member_uri,
    member_version,
    path_of,
    version_digest,
)
from corpus_asr.units import MEBIBYTE

HEADER_BLOCK_BYTES = 64 * 1024  # headers lie apart by what is between them
# Long names and pax headers are a few kilobytes; what claims more must not fill the memory.
_MOST_HEADER_BYTES = MEBIBYTE


class TarMember(NamedTuple):
    """A file in a tar archive."""

    name: str
    """Unique within the archive, of plain steps."""
    offset: int | None
    """None for a link to what is not in front of it."""
    size_bytes: int

    @property
    def place(self) -> str:
        """Position of the bytes."""
        return f"{self.offset}+{self.size_bytes}"


class ContainerFile(Protocol):
    """An open container."""

    info: ObjectInfo
    size_bytes: int

    def read(self, size: int = -1, /) -> bytes | None:
        """Return the next bytes, or fewer."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position."""

    def close(self) -> None:
        """Close it."""


def tar_members(file: ContainerFile, container: str) -> Iterator[TarMember]:
    """Yield the files and links of an open tar archive in order, reading only headers.

    What follows an end mark, as in archives that were appended to each other, is read as well.

    Raises:
        StoreError: kind `bad_archive`; members yielded before it are complete.
    """
    if not path_of(container).lower().endswith(TAR):
        raise _bad(
            "found a compressed tar archive, which cannot be read by ranges",
            "an uncompressed one",
            "decompress it to .tar, or unpack it",
        )
    places: dict[str, tuple[int, int]] = {}
    try:
        headers = _HeaderReader(file)
        with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
            while True:
                member = tar.next()
                if member is None:
                    start = _after_zeros(headers, tar.offset)
                    if start is None:
                        return
                    if start == tar.offset:  # for tarfile as much an end as the zero blocks
                        raise tarfile.ReadError(f"no header at byte {start}")
                    tar.offset = start
                    continue
                tar.members.clear()  # otherwise tarfile keeps all of them
                if not (member.isreg() or member.islnk() or member.issym()):
                    continue  # folders and devices are not recordings
                name = _unique(member.name, places)
                if not member.isreg():
                    target = plain_name(member.linkname) if member.islnk() else ""
                    offset, size_bytes = places.get(target, (None, 0))
                    if offset is not None:
                        places[name] = offset, size_bytes
                    yield TarMember(name, offset, size_bytes)
                    continue
                if member.sparse is not None:
                    raise tarfile.ReadError(f"{name} is stored as a sparse file: omit --sparse")
                if member.offset_data + member.size > file.size_bytes:
                    raise tarfile.ReadError(f"it ends within {name}")
                places[name] = member.offset_data, member.size
                yield TarMember(name, member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        advice = "copy or pack it again"
        raise _bad(f"found a broken tar archive ({error})", "a whole one", advice) from error


def _bad(problem: str, expected: str, advice: str) -> StoreError:
    return StoreError(BAD_ARCHIVE, f"{problem}, expected {expected}", advice=advice)


def plain_name(name: str) -> str:
    """Return the member name used in its URI: `./a`, `/a` and `../a` become `a`."""
    # Otherwise splitting the URI at slashes would differ.
    steps = [step for step in name.split("/") if step not in ("", ".", "..")]
    return escaped_path("/".join(steps).replace("\0", "")) or "unnamed"


def plain_member(uri: str) -> str:
    """Return the URI of a tar member as listings write it; other URIs unchanged."""
    member = member_address(uri)
    if member is None or member.place is not None or is_table(member.container):
        return uri
    return member_uri(member.container, plain_name(member.name))


def _unique(name: str, taken: Container[str]) -> str:
    plain = unique_name = plain_name(name)
    head, dot, suffix = plain.rpartition(".")
    number = 1
    while unique_name in taken:  # a tar archive may hold a name several times
        number += 1
        unique_name = f"{head}~{number}.{suffix}" if dot else f"{plain}~{number}"
    return unique_name


def _after_zeros(headers: "_HeaderReader", start: int) -> int | None:
    """Return the offset of the next block that is not empty; None at the end."""
    headers.seek(start)
    while blocks := headers.read(_MOST_HEADER_BYTES):
        first = len(blocks) - len(blocks.lstrip(b"\0"))
        if first < len(blocks):
            return start + first // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        start += len(blocks)
    return None


class _HeaderReader:
    # File object for tarfile: complete reads of at most a header.

    def __init__(self, file: ContainerFile) -> None:
        self._file = file
        self._position = 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        pieces = []
        while size and (piece := self._file.read(size)):
            pieces.append(piece)
            size -= len(piece)
        data = b"".join(pieces)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = self._file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        return self._position


@dataclass(frozen=True, slots=True)
class _MemberPosition:
    offset: int
    size_bytes: int
    container: str | None  # its version, or a digest of it
    located: bool = False

    @property
    def text(self) -> str:
        return f"{self.offset}+{self.size_bytes}"


class MemberStore(Store):
    """The store of one member: reads are ranges of its container."""

    def __init__(
        self, store: Store, address: MemberAddress, open_container: Callable[[], ContainerFile]
    ) -> None:
        self._store, self._address, self._open = store, address, open_container
        self.block_bytes = store.block_bytes
        self._found: _MemberPosition | None = None

    def translate(self, error: Exception) -> StoreError | None:
        return self._store.translate(error)

    def info(self, uri: str) -> ObjectInfo:
        place = self._place()
        container = self._store.info(self._address.container)
        return self._info(self._same(place, container) or self._look_for(), container)

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        place = self._place()
        data, container = self._read(place, start, end)
        same = self._same(place, container)
        if same is None:  # replaced since it was scanned
            same = self._look_for()
            data, container = self._read(same, start, end)
        return data, self._info(same, container)

    def download(self, uri: str, target: IO[bytes]) -> None:
        raise StoreError(
            BAD_ARCHIVE,
            "found a store without range requests, expected them for members of archives",
            advice="unpack the archive, or copy it to another store",
        )

    def _read(self, place: _MemberPosition, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        first, stop = place.offset + start, place.offset + min(end, place.size_bytes)
        if first >= stop:
            return b"", self._store.info(self._address.container)
        return self._store.read_range(self._address.container, first, stop)

    def _info(self, place: _MemberPosition, container: ObjectInfo) -> ObjectInfo:
        version = member_version(container.etag, place.text)
        return ObjectInfo(size_bytes=place.size_bytes, etag=version)

    def _same(self, place: _MemberPosition, container: ObjectInfo) -> _MemberPosition | None:
        version = version_digest(container.etag) if place.located else container.etag
        if version == place.container:
            return place
        if place.located and not self._address.may_move:
            problem = "the archive was replaced since it was listed"
            raise StoreError(CHANGED, f"{problem}, expected the version that was listed")
        return None

    def _place(self) -> _MemberPosition:
        address = self._address
        if address.place is None or self._found is not None:
            return self._found or self._look_for()
        offset, size_bytes = map(int, address.place.split("+"))
        return _MemberPosition(offset, size_bytes, address.of, located=True)

    def _look_for(self) -> _MemberPosition:
        container, name = self._address.container, self._address.name
        with closing(self._open()) as file:
            for member in tar_members(file, container):
                if member.name == name and member.offset is not None:
                    place = _MemberPosition(member.offset, member.size_bytes, file.info.etag)
                    self._found = place
                    return place
        raise StoreError(NOT_FOUND, "not found, expected a member of this name in the archive")
