"""Store of local files: absolute paths, taken literally."""

import contextlib
import errno
import fcntl
import functools
import io
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from corpus_asr.failure_kinds import FETCH, NO_SPACE, NOT_FOUND
from corpus_asr.scratch import hold, remove_abandoned
from corpus_asr.storage.stores.store import (
    FULL_ERRNO,
    ObjectInfo,
    Page,
    Store,
    StoreError,
    from_os_error,
)
from corpus_asr.storage.stores.uri import REST, escaped_path, local_path

logger = logging.getLogger(__name__)

TEMPORARY_NAME = re.compile(r"\.tmp-[0-9a-f]{32}")  # hidden from Parquet readers
SWEEP_EVERY_S = 60.0  # of a folder that this process writes to
PAGE_ROWS = 10_000  # rows held as Python objects; folders may hold millions
# Errors of mounts without hard links or file locks.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EINVAL}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF}


def _info(status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(size_bytes=status.st_size, etag=f"{status.st_size}-{status.st_mtime_ns}")


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(status.st_mode):
        # Opening a pipe would wait for a writer.
        raise StoreError(
            FETCH,
            "found a pipe, socket or device, expected a regular file",
            advice="save what comes from it to a file, and name that",
        )


class LocalStore(Store):
    """Files of this machine or of a mounted folder.

    With `private`, files are written readable by their owner only; otherwise by the umask.
    """

    def __init__(self, *, private: bool = False) -> None:
        self._mode = 0o600 if private else 0o666

    def info(self, uri: str) -> ObjectInfo:
        status = os.stat(local_path(uri))
        _require_regular(status)
        return _info(status)

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        self.info(uri)
        descriptor = os.open(local_path(uri), os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = _info(os.fstat(descriptor))
            return b"".join(_pieces(descriptor, start, end)), info
        finally:
            os.close(descriptor)

    def write(self, uri: str, data: bytes) -> None:
        self._replace(uri, io.BytesIO(data), len(data))

    def upload(self, path: str, uri: str) -> None:
        with open(path, "rb") as source:
            self._replace(uri, source, os.path.getsize(path))

    def _replace(self, uri: str, source: io.BufferedIOBase, num_bytes: int) -> None:
        path = Path(uri)
        with self._whole(path, source, num_bytes) as temporary:
            os.replace(temporary, path)
            _sync_folder(path.parent)

    def create(self, uri: str, data: bytes) -> bool:
        path = Path(uri)
        with self._whole(path, io.BytesIO(data), len(data)) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create_in_place(path, data)
            _sync_folder(path.parent)
        return True

    def swap(self, uri: str, data: bytes, expected: bytes) -> bool:
        with _sole_writer(uri) as descriptor:
            if descriptor is None:
                return False
            if b"".join(_pieces(descriptor, 0, len(expected) + 1)) != expected:
                return False
            self.write(uri, data)
        return True

    @contextlib.contextmanager
    def _whole(self, path: Path, source: io.BufferedIOBase, num_bytes: int) -> Iterator[Path]:
        # Synced before the rename: after a power failure a renamed file could be empty.
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        _make_folder(path.parent)
        _sweep_at(str(path.parent), int(time.monotonic() / SWEEP_EVERY_S))
        try:
            with open(self._held(temporary), "wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
                yield temporary
        except OSError as error:
            if error.errno not in FULL_ERRNO:
                raise
            raise _no_space(path.parent, num_bytes, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _held(self, temporary: Path) -> int:
        while True:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._mode)
            if hold(descriptor):
                return descriptor
            os.close(descriptor)
            temporary.unlink(missing_ok=True)

    def sweep(self, folder: str) -> None:
        for place, _, _ in os.walk(local_path(folder)):
            remove_abandoned(place, TEMPORARY_NAME)

    def remove(self, uri: str) -> None:
        Path(uri).unlink(missing_ok=True)

    def pages(self, prefix: str, *, depth: int | None = None) -> Iterator[Page]:
        # Links are followed; a folder that contains itself through a link is entered once.
        # Unreadable entries (dangling links, link loops) are listed without size, and all that is
        # in an unreadable folder as FOLDER/*: reading them fails as that recording's failure.
        folder = local_path(prefix.rpartition("/")[0] or "/")
        yield from _walk(folder, _scan(folder), depth, frozenset([_identity(folder)]))


def _pieces(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        piece = os.pread(descriptor, end - start, start)
        if not piece:
            return
        start += len(piece)
        yield piece


@functools.lru_cache(maxsize=4_096)
def _sweep_at(folder: str, tick: int) -> None:
    """Remove what killed processes left in a folder, once in each tick of the clock."""
    remove_abandoned(folder, TEMPORARY_NAME)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
        raise StoreError(NOT_FOUND, f"cannot create {folder} ({error.strerror})") from error


def _no_space(folder: Path, num_bytes: int, error: OSError) -> StoreError:
    free = shutil.disk_usage(folder).free
    return StoreError(
        NO_SPACE,
        f"no space left ({error.strerror}): found {free:,} bytes free in {folder}, expected room "
        f"for {num_bytes:,} and permission to use it; nothing was written",
    )


def _create_in_place(path: Path, data: bytes) -> bool:
    # On a mount without hard links; readers briefly see an empty file.
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _sole_writer(uri: str) -> Iterator[int | None]:
    try:
        descriptor = os.open(uri, os.O_RDWR | os.O_CLOEXEC)  # NFS locks only files open for writing
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor if _locked(descriptor) and _still_named(uri, descriptor) else None
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        # Does not block: the holder may be suspended.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # Two simultaneous writers then re-read to see which one was last.
    return True


def _still_named(uri: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(uri), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _walk(
    folder: str,
    content: tuple[pa.Table, list[str]],
    depth: int | None,
    above: frozenset[tuple[int, int]],
) -> Iterator[Page]:
    files, subfolders = content
    yield from _sorted_pages(folder, files)
    if depth is not None and depth <= 1:
        return
    below = None if depth is None else depth - 1
    for name in sorted(subfolders):
        path = os.path.join(folder, name)
        try:
            identity = _identity(path)
            listing = None if identity in above else _scan(path)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:
            if from_os_error(error).transient:  # the whole folder would be missing
                raise
            logger.warning("listing: cannot enter folder=%s (%s)", path, error.strerror)
            yield Page([f"{escaped_path(path)}/{REST}"], [None], [None], [None])
            continue
        if listing is not None:
            yield from _walk(path, listing, below, above | {identity})


# Names are stored as bytes: Arrow strings must be UTF-8.
_FOLDER = pa.schema([("name", pa.binary()), ("size", pa.int64()), ("etag", pa.string())])
_Row = tuple[bytes, int | None, str | None]


def _scan(folder: str) -> tuple[pa.Table, list[str]]:
    # Arrow columns instead of a million Python strings.
    tables: list[pa.Table] = []
    subfolders: list[str] = []
    rows: list[_Row] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                subfolders.append(entry.name)
            elif (row := _row_of(entry)) is not None:
                rows.append(row)
            if len(rows) == PAGE_ROWS:
                tables.append(_table(rows))
                rows.clear()
    return pa.concat_tables([*tables, _table(rows)]), subfolders


def _table(rows: list[_Row]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    return pa.table(columns, schema=_FOLDER)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link loop, for example; listed, and fails when read


def _row_of(entry: os.DirEntry[str]) -> _Row | None:
    name = os.fsencode(entry.name)
    try:
        status = entry.stat()
    except OSError as error:
        # It is listed and fails later by name; a file removed meanwhile is skipped.
        gone = isinstance(error, FileNotFoundError) and not entry.is_symlink()
        return None if gone else (name, None, None)
    if not stat.S_ISREG(status.st_mode):
        return None
    info = _info(status)
    return name, info.size_bytes, info.etag


def _sorted_pages(folder: str, files: pa.Table) -> Iterator[Page]:
    base = folder.rstrip("/") + "/"
    ordered = files.sort_by("name")
    for start in range(0, len(ordered), PAGE_ROWS):
        page = ordered.slice(start, PAGE_ROWS)
        names = (os.fsdecode(name) for name in page["name"].to_pylist())
        yield Page([escaped_path(base + name) for name in names], page["size"].to_pylist(),
                   page["etag"].to_pylist(), [None] * len(page))  # fmt: skip
