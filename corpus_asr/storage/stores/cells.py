"""Recordings in columns of Parquet files, as Hugging Face's datasets have them.

    clips.parquet#17                a row, counted from 0

A row lies in a row group, of which the column of audio is read and nothing else; rows of one group
follow each other in a run, so the last groups are kept.
"""

import collections
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from corpus_asr.failure_kinds import BAD_ARCHIVE, CHANGED, NOT_FOUND
from corpus_asr.storage.stores.store import ObjectInfo, Store, StoreError
from corpus_asr.storage.stores.uri import REST, MemberAddress, member_version, version_digest
from corpus_asr.units import MEBIBYTE

if TYPE_CHECKING:
    import pyarrow as pa

    from corpus_asr.storage.parquet import AudioTable

TABLE_BLOCK_BYTES = (
    MEBIBYTE  # a footer, some columns, and one group: hardly ever a whole block more
)
# Writers of datasets make groups of some tens of MiB; a larger one is gone through each time.
_MOST_GROUP_BYTES = 128 * MEBIBYTE
_KEPT_GROUPS = 2
_ROW_DIGITS = 16


class _Group(NamedTuple):
    etag: str | None  # of its file
    column: str
    cells: "pa.Array | list[bytes | None]"


# By the file, the digest of its version, the column that was asked for, and the group's number.
_GROUPS: OrderedDict[tuple[str, str, str | None, int], _Group] = OrderedDict()
_LOCK = threading.Lock()


@contextmanager
def audio_table(file: io.BufferedReader, column: str | None) -> "Iterator[AudioTable]":
    """Open a Parquet file by its column of audio; None: the only one it has.

    Raises:
        StoreError: kind `bad_archive`; it is none, or has no such column, also of later reads.
    """
    # Imported late, since plain files need none of it.
    from corpus_asr.storage.parquet import DAMAGED, AudioTable

    try:
        with closing(AudioTable(file, column)) as table:
            yield table
    except KeyError as error:
        raise StoreError(
            BAD_ARCHIVE, str(error.args[0]),
            advice="name the column in source.audio_column, of structs {bytes, path} or of bytes",
        ) from error  # fmt: skip
    except DAMAGED as error:
        raise StoreError(
            BAD_ARCHIVE,
            f"found no readable table ({error}), expected Parquet",
            advice="write it again, such as with to_parquet of datasets",
        ) from error


def place_of(group: int, index: int, expected_bytes: int) -> str:
    """Return the position of a row: group, index in the group, approximate audio bytes."""
    return f"{group}.{index}~{expected_bytes}"


class CellStore(Store):
    """The store of one row: its audio is read when it is opened."""

    def __init__(
        self,
        store: Store,
        address: MemberAddress,
        open_container: Callable[[], io.BufferedReader],
        column: str | None,
    ) -> None:
        self._store, self._address, self._open = store, address, open_container
        self._column = column
        self._cell: tuple[bytes, ObjectInfo] | None = None

    def translate(self, error: Exception) -> StoreError | None:
        return self._store.translate(error)

    def info(self, uri: str) -> ObjectInfo:
        return self._loaded()[1]

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        data, info = self._loaded()
        return data[start:end], info

    def _loaded(self) -> tuple[bytes, ObjectInfo]:
        # One reader at a time: rows that are opened ahead are mostly in one group.
        with _LOCK:
            if self._cell is None:
                self._cell = self._kept() or self._read()
        return self._cell

    def _kept(self) -> tuple[bytes, ObjectInfo] | None:
        # No request: returns the listed version, even if the object has changed since.
        address = self._address
        if address.place is None:
            return None
        group, index, _ = _numbers(address.place)
        kept = _GROUPS.get((address.container, str(address.of), self._column, group))
        return None if kept is None else self._found(kept, index, address.place)

    def _read(self) -> tuple[bytes, ObjectInfo]:
        address = self._address
        with self._open() as file:
            container: ObjectInfo = file.raw.info  # type: ignore[attr-defined]
            digest = version_digest(container.etag)
            is_listed = address.place is not None and digest == address.of
            if address.place is not None and not (is_listed or address.may_move):
                problem = "the table was replaced since it was listed"
                raise StoreError(CHANGED, f"{problem}, expected the version that was listed")
            with audio_table(file, self._column) as table:
                group, index = self._row(table, address.place if is_listed else None)
                place = place_of(group, index, table.expected_bytes(group))
                if table.group_bytes(group) > _MOST_GROUP_BYTES:
                    kept = _Group(container.etag, table.column, [table.cell(group, index)])
                    return self._found(kept, 0, place)
                key = (address.container, digest, self._column, group)
                kept = _GROUPS.get(key) or _Group(container.etag, table.column, table.cells(group))
                _GROUPS[key] = kept
                while len(_GROUPS) > _KEPT_GROUPS:
                    _GROUPS.popitem(last=False)
                return self._found(kept, index, place)

    def _row(self, table: "AudioTable", place: str | None) -> tuple[int, int]:
        if place is not None:
            group, index, _ = _numbers(place)
            return group, index
        name = self._address.name
        row = int(name) if name.isdecimal() and len(name) < _ROW_DIGITS else -1
        for group in range(table.num_groups) if row >= 0 else ():
            num_rows = table.num_rows(group)
            if row < num_rows:
                return group, row
            row -= num_rows
        if name == REST:
            for group in range(table.num_groups):
                collections.deque(table.others(group), maxlen=0)  # what listings skipped
        raise StoreError(NOT_FOUND, "not found, expected the number of a row, from 0")

    def _found(self, kept: "_Group", index: int, place: str) -> tuple[bytes, ObjectInfo]:
        cell: Any = kept.cells[index]
        data = cell if cell is None or isinstance(cell, bytes) else cell.as_py()
        if data is None:
            raise StoreError(
                BAD_ARCHIVE, f"found no bytes in column {kept.column} of this row, expected audio",
                advice="write the table again with embedded audio",
            )  # fmt: skip
        return data, ObjectInfo(size_bytes=len(data), etag=member_version(kept.etag, place))


def _numbers(place: str) -> tuple[int, int, int]:
    group, index, expected = map(int, place.replace("~", ".").split("."))
    return group, index, expected
