"""A seekable file over range reads, with a few blocks kept and the next one read ahead.

In: a store and an address. Out: a binary file object. Knows nothing of what the bytes mean, nor
how a store is reached. Memory is bounded by `KEPT_BLOCKS + 1` blocks however large the object.
"""

import io
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeVar

from corpus_asr.storage.stores.retry import (
    CHANGED,
    FETCH,
    FEW_ATTEMPTS,
    RetryPolicy,
    StoreError,
    persist,
)
from corpus_asr.units import MEBIBYTE

T = TypeVar("T")

BLOCK_BYTES = 4 * MEBIBYTE  # about four minutes of mp3: few requests, little waste after a seek
KEPT_BLOCKS = 4  # containers jump between their index and two or three places


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a store says of an object's present version."""

    size_bytes: int | None
    etag: str | None


class RangesUnsupportedError(Exception):
    """The store can only give this object as a whole, from its start."""


class RangeStore(Protocol):
    """The reading half of a store; failures are `StoreError`s."""

    def info(self, uri: str) -> ObjectInfo:
        """Return size and version of the object."""

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        """Return bytes `start` to `end` (less at the object's end) and the version they are of."""

    def download(self, uri: str, target: IO[bytes]) -> None:
        """Write the whole object to `target`."""


class RangeFile(io.RawIOBase):
    """The raw file; wrap it in `io.BufferedReader`.

    Raises:
        FetchError: on opening or reading, with the kinds of `failures.py`; `changed` where the
            object is no longer the one that was opened.
    """

    def __init__(
        self, store: RangeStore, uri: str, *, policy: RetryPolicy, block_bytes: int | None = None
    ) -> None:
        super().__init__()
        self._store, self._uri, self._policy = store, uri, policy
        self._block_bytes = block_bytes or BLOCK_BYTES
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._ahead: tuple[int, Future[bytes]] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._whole: IO[bytes] | None = None
        self.info = self._open()
        self.size_bytes = self.info.size_bytes or 0

    def _open(self) -> ObjectInfo:
        """Read the first block, which also tells size and version: one request, not two."""

        def first() -> ObjectInfo:
            block, info = self._store.read_range(self._uri, 0, self._block_bytes)
            if info.size_bytes is None:
                raise RangesUnsupportedError
            self._check_length(0, block, info.size_bytes)
            self._blocks[0] = block
            return info

        try:
            return self._persist(first)
        except RangesUnsupportedError:
            return self._persist(self._download)

    def _download(self) -> ObjectInfo:
        whole = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this file
        try:
            self._store.download(self._uri, whole)
        except BaseException:
            whole.close()
            raise
        size_bytes = whole.tell()
        self._whole = whole
        return ObjectInfo(size_bytes=size_bytes, etag=None)

    def _persist(self, operation: Callable[[], T]) -> T:
        return persist("reading", self._uri, operation, policy=self._policy)

    def _check_length(self, start: int, block: bytes, size_bytes: int) -> None:
        expected = min(self._block_bytes, size_bytes - start)
        if len(block) != expected:
            found = f"short read: {len(block)} bytes from {start}, expected {expected}"
            raise StoreError(FETCH, found, transient=True)

    def _fetch(self, index: int) -> bytes:
        start = index * self._block_bytes
        end = min(start + self._block_bytes, self.size_bytes)

        def attempt() -> bytes:
            block, info = self._store.read_range(self._uri, start, end)
            self._check_unchanged(info)
            self._check_length(start, block, self.size_bytes)
            return block

        return self._persist(attempt)

    def _check_unchanged(self, info: ObjectInfo) -> None:
        for name, before, now in (
            ("size", self.info.size_bytes, info.size_bytes),
            ("version", self.info.etag, info.etag),
        ):
            if before is not None and now is not None and before != now:
                found = f"the object changed while it was read ({name} {before}, now {now})"
                # A replica that lags behind answers like this, too: asked again, another may not.
                raise StoreError(CHANGED, found, transient=True, attempts=FEW_ATTEMPTS)

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == index:
                block = ahead[1].result()
            else:
                block = self._fetch(index)
            self._blocks[index] = block
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
            if index - 1 in self._blocks:
                self._read_ahead(index + 1)
        self._blocks.move_to_end(index)
        return self._blocks[index]

    def _read_ahead(self, index: int) -> None:
        if index in self._blocks or index * self._block_bytes >= self.size_bytes:
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead = (index, self._executor.submit(self._fetch, index))

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the present position; 0 at the end."""
        wanted = min(len(buffer), self.size_bytes - self._position)
        if wanted <= 0:
            return 0
        if self._whole is not None:
            self._whole.seek(self._position)
            data = self._whole.read(wanted)
        else:
            index, offset = divmod(self._position, self._block_bytes)
            data = self._block(index)[offset : offset + wanted]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is fetched before the next read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"seeking to {start + offset}: before the start of the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the present position."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Drop blocks and temporary files; a block being read ahead is not waited for."""
        if not self.closed:
            executor = getattr(self, "_executor", None)
            if executor is not None:
                executor.shutdown(wait=False, cancel_futures=True)
            whole = getattr(self, "_whole", None)
            if whole is not None:
                whole.close()
            getattr(self, "_blocks", OrderedDict()).clear()
        super().close()
