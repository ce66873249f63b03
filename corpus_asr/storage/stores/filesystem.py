"""The single entry point to every store: local paths, s3://, http(s):// and any fsspec scheme.

Every function raises a `FetchError` where a store fails beyond its retries, and all but
`open_binary` a `ConfigError` where no library knows the address.
"""

import contextlib
import functools
import hashlib
import io
import os
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar

from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.failure_kinds import (
    ACCESS_DENIED,
    CHANGED,
    FETCH,
    NOT_FOUND,
    REFUSED_FILE,
    UNSUPPORTED_SCHEME,
)
from corpus_asr.storage.stores.host_allowlist import ANY_NAMED_HOST, WEB, FileRules, HostRules
from corpus_asr.storage.stores.local import LocalStore
from corpus_asr.storage.stores.members import (
    HEADER_BLOCK_BYTES,
    MemberStore,
    is_table,
    member_address,
)
from corpus_asr.storage.stores.store import (
    DEFAULT_POLICY,
    FEW_ATTEMPTS,
    ObjectInfo,
    Page,
    RangesUnsupportedError,
    RetryPolicy,
    Store,
    StoreError,
    failure_of,
    fetch_error,
    with_retries,
)
from corpus_asr.storage.stores.uri import LOCAL, normalize, scheme_of
from corpus_asr.units import MEBIBYTE

if TYPE_CHECKING:  # 0.1 s in each process that reads audio
    from fsspec import AbstractFileSystem

    from corpus_asr.config.run import DatasetSettings, OutputSettings, SourceSettings

T = TypeVar("T")

BLOCK_BYTES = 4 * MEBIBYTE  # about four minutes of mp3: few requests, little waste after a seek
KEPT_BLOCKS = 4  # containers jump between their index and two or three places
READ_BUFFER_BYTES = 128 * 1024  # what a demuxer's many small reads are served from
PEEK_BYTES = MEBIBYTE // 16
SAMPLE_BYTES = MEBIBYTE // 16  # at the head, in the middle and at the tail of a file
_MOST_WHOLE_BYTES = MEBIBYTE  # of files up to this size all is read
# Packed, every fourth byte of the middle takes more unless it is silence, alike in many files.
_LEAST_PACKED_BYTES = SAMPLE_BYTES // 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How stores are reached; picklable, and the same for all objects of a job's source."""

    endpoint_url: str | None = None  # the S3 endpoint, where it is not Amazon's
    storage: StorageOptions = NO_OPTIONS
    policy: RetryPolicy = DEFAULT_POLICY
    hosts: HostRules = ANY_NAMED_HOST  # which hosts a web address may lead to
    files: FileRules | None = None  # which files of this machine may be read; None: any
    audio_column: str | None = None  # of tables; None: the only one of audio
    private: bool = False  # whether local files that are written are for their owner alone

    @classmethod
    def of(cls, source: "SourceSettings") -> "StoreOptions":
        """Return the options for a source's recordings."""
        return cls(
            storage=source.bound_options,
            hosts=HostRules.of(source),
            audio_column=source.audio_column,
        )

    @classmethod
    def of_output(cls, output: "OutputSettings | DatasetSettings") -> "StoreOptions":
        """Return the options for what a job writes."""
        storage = output.storage_options.bound((output.uri,))
        return cls(storage=storage)


DEFAULT_STORE = StoreOptions()


def store_for(uri: str, options: StoreOptions = DEFAULT_STORE) -> Store:
    """Return the store a URI belongs to."""
    if options.files is not None and not options.files.admits(uri):
        found = "refused to read it: no run of this user on this machine read recordings there"
        raise fetch_error("opening", uri, StoreError(REFUSED_FILE, found))
    scheme = scheme_of(uri)
    if scheme == LOCAL:
        return LocalStore(private=options.private)
    # Connections of a parent process cannot be used after a fork: the process is part of the key.
    place = "" if scheme in ("s3", "http", "https") else uri
    return _connected(os.getpid(), scheme, place, options)


@functools.lru_cache(maxsize=64)
def _connected(process: int, scheme: str, uri: str, options: StoreOptions) -> Store:
    # Imported here: workers that read local files need none of these libraries.
    if scheme == "s3":
        from corpus_asr.storage.stores.s3 import S3Store

        return S3Store(options.endpoint_url, options.policy, options.storage.for_scheme(scheme))
    if scheme in ("http", "https"):
        from corpus_asr.storage.stores.http import WebStore

        return WebStore(options.policy, options.hosts)
    from corpus_asr.storage.stores.fsspec_store import FsspecStore

    return FsspecStore(uri, options.storage.for_scheme(scheme))


def _request(
    doing: str, uri: str, options: StoreOptions, operation: Callable[[Store, str], T]
) -> T:
    uri = normalize(uri)
    store = store_for(uri, options)
    return with_retries(
        doing, uri, lambda: operation(store, uri), policy=options.policy, store=store
    )


def open_store(uri: str, options: StoreOptions = DEFAULT_STORE) -> tuple["AbstractFileSystem", str]:
    """Return an fsspec filesystem and the path in it, for libraries that ask for one."""
    uri = normalize(uri)
    if scheme_of(uri) == LOCAL:
        import fsspec  # with asyncio 0.06 s, which nothing else of a local run needs

        return fsspec.filesystem("file"), uri
    store = store_for(uri, options)
    filesystem: AbstractFileSystem = store.filesystem  # type: ignore[attr-defined]
    return filesystem, str(filesystem._strip_protocol(uri))


def open_binary(
    uri: str, options: StoreOptions = DEFAULT_STORE, *, block_bytes: int | None = None
) -> io.BufferedReader:
    """Open an object for reading by ranges; opening and later reads raise a `FetchError`."""
    try:
        return _open(uri, options, block_bytes=block_bytes)
    except ConfigError as error:
        # One bad address among many is that recording's failure.
        raise FetchError(str(error), uri=uri, kind=UNSUPPORTED_SCHEME, retryable=False) from error


def digest_content(file: io.BufferedIOBase) -> str | None:
    """Return the `RangeFile.content_digest` of what `open_binary` opened; None of other files."""
    raw = getattr(file, "raw", None)
    return raw.content_digest if isinstance(raw, RangeFile) else None


def _open(uri: str, options: StoreOptions, *, block_bytes: int | None = None) -> io.BufferedReader:
    store, uri = _read_from(normalize(uri), options)
    block_bytes = block_bytes or options.storage.values().get("default_block_size")
    raw = RangeFile(store, uri, policy=options.policy, block_bytes=block_bytes)
    return io.BufferedReader(raw, READ_BUFFER_BYTES)


def open_container(uri: str, options: StoreOptions = DEFAULT_STORE) -> "RangeFile":
    """Open an archive for reading headers here and there in it."""
    uri = normalize(uri)
    store = store_for(uri, options)
    return RangeFile(store, uri, policy=options.policy, block_bytes=HEADER_BLOCK_BYTES)


def _read_from(uri: str, options: StoreOptions) -> tuple[Store, str]:
    """Return the store of an address, which may be that of a member, and what to call it there."""
    member = member_address(uri)
    if member is None or (member.place is None and _is_object(uri, options)):
        return store_for(uri, options), uri
    store = store_for(member.container, options)
    if is_table(member.container):
        # Imported here: few sources need it.
        from corpus_asr.storage.stores.cells import TABLE_BLOCK_BYTES, CellStore

        table = functools.partial(_open, member.container, options, block_bytes=TABLE_BLOCK_BYTES)
        return CellStore(store, member, table, options.audio_column), member.uri
    opened = functools.partial(open_container, member.container, options)
    return MemberStore(store, member, opened), member.uri


def _is_object(uri: str, options: StoreOptions) -> bool:
    # `#` is legal in the names of objects, but not in those of the web.
    if scheme_of(uri) in WEB:
        return False
    try:
        _request("looking up", uri, options, lambda store, uri: store.info(uri))
    except FetchError as error:
        if error.kind not in (NOT_FOUND, ACCESS_DENIED, REFUSED_FILE):
            raise
        return False
    return True


def read_bytes(uri: str, options: StoreOptions = DEFAULT_STORE) -> bytes:
    """Return a whole object."""
    with _open(uri, options) as file:
        return file.read()


def write_atomic(
    uri: str,
    data: bytes,
    options: StoreOptions = DEFAULT_STORE,
    *,
    before: Callable[[], object] = lambda: None,
) -> None:
    """Put an object so that readers see all of it or none, whatever happens meanwhile.

    `before` is called before each attempt; what it raises ends them.
    """

    def attempt(store: Store, uri: str) -> None:
        before()
        store.write(uri, data)

    _request("writing", uri, options, attempt)


def upload(path: str, uri: str, options: StoreOptions = DEFAULT_STORE) -> None:
    """Put a local file as an object, piece by piece; readers see all of it or what was before."""
    _request("writing", uri, options, lambda store, uri: store.upload(path, uri))


def remove(uri: str, options: StoreOptions = DEFAULT_STORE) -> None:
    """Remove an object; one that is not there is as good."""
    _request("removing", uri, options, lambda store, uri: store.remove(uri))


def remove_folder(uri: str) -> None:
    """Remove a local folder if nothing is in it; stores of objects have no folders."""
    uri = normalize(uri)
    if scheme_of(uri) == LOCAL:
        with contextlib.suppress(OSError):  # not there, or something is in it
            os.rmdir(uri)


def move(uri: str, target: str, options: StoreOptions = DEFAULT_STORE) -> None:
    """Give an object another name in the same store; one that was moved already is as good."""
    target = normalize(target)
    try:
        _request("moving", uri, options, lambda store, uri: store.move(uri, target))
    except FetchError as error:
        # A request whose answer was lost has done its work, and so had a run that was killed.
        if error.kind != NOT_FOUND or not exists(target, options):
            raise


def describe(uri: str, options: StoreOptions = DEFAULT_STORE) -> ObjectInfo:
    """Return size and version of an object."""
    store, uri = _read_from(normalize(uri), options)
    return with_retries(
        "looking up", uri, lambda: store.info(uri), policy=options.policy, store=store
    )


def exists(uri: str, options: StoreOptions = DEFAULT_STORE) -> bool:
    """Tell whether there is an object (not a folder) of this name."""
    try:
        describe(uri, options)
    except FetchError as error:
        if error.kind == NOT_FOUND:
            return False
        raise
    return True


def list_pages(
    prefix: str, options: StoreOptions = DEFAULT_STORE, *, depth: int | None = None
) -> Iterator[Page]:
    """List objects page by page in stable order; a folder that is not there has none.

    `prefix` is a folder with a trailing slash, or that and the first letters of names; `depth`
    bounds the levels below the folder that are of interest.
    """
    store = store_for(prefix, options)
    try:
        yield from store.pages(prefix, depth=depth)
    except FetchError as error:
        if error.kind != NOT_FOUND:
            raise
    except Exception as raised:
        failure = failure_of(raised, store)
        if failure.kind != NOT_FOUND:
            raise fetch_error("listing", prefix, failure) from failure


def list_objects(
    prefix: str, options: StoreOptions = DEFAULT_STORE
) -> Iterator[tuple[str, int | None, str | None]]:
    """List address, size and version of every object below a folder, in stable order."""
    folder = normalize(prefix).rstrip("/") + "/"
    for page in list_pages(folder, options):
        yield from zip(page.uris, page.sizes, page.etags, strict=True)


# Conditional writes, for one writer among many to win. On S3, Google Cloud Storage, Azure and
# local disks exactly one wins. Some stores do not enforce conditions: there the last writer has
# won, and a caller that must know reads back after a while. `data` is what nobody else would put.


def peek(uri: str, options: StoreOptions = DEFAULT_STORE) -> bytes | None:
    """Return a small object, or the first `PEEK_BYTES` of a large one; None if there is none."""
    # One request, so that an object that is replaced meanwhile is seen as it was or as it is.
    try:
        return _request(
            "reading", uri, options, lambda store, uri: store.read_range(uri, 0, PEEK_BYTES)[0]
        )
    except FetchError as error:
        if error.kind == NOT_FOUND:
            return None
        raise


def create(uri: str, data: bytes, options: StoreOptions = DEFAULT_STORE) -> bool:
    """Put a small object if there is none of this name; tell whether it holds `data` now."""
    written = _request("creating", uri, options, lambda store, uri: store.create(uri, data))
    # The first of two attempts may have done it, its answer lost.
    return written or peek(uri, options) == data


def swap(uri: str, data: bytes, expected: bytes, options: StoreOptions = DEFAULT_STORE) -> bool:
    """Replace a small object if it holds exactly `expected`; tell whether it holds `data` now."""
    written = _request(
        "replacing", uri, options, lambda store, uri: store.swap(uri, data, expected)
    )
    return written or peek(uri, options) == data


class RangeFile(io.RawIOBase):
    """A seekable file over range reads of at most `KEPT_BLOCKS + 1` blocks in memory.

    Opening and reading raise a `FetchError`, of kind `changed` where the object was replaced.
    """

    def __init__(
        self, store: Store, uri: str, *, policy: RetryPolicy, block_bytes: int | None = None
    ) -> None:
        super().__init__()
        self._store, self._uri, self._policy = store, uri, policy
        self._block_bytes = block_bytes or BLOCK_BYTES
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._ahead: tuple[int, Future[bytes]] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._whole: IO[bytes] | None = None
        try:
            self.info = self._with_retries(self._first_block)
        except RangesUnsupportedError:
            self.info = self._with_retries(self._download)
        self.size_bytes = self.info.size_bytes or 0

    def _with_retries(self, operation: Callable[[], T]) -> T:
        return with_retries("reading", self._uri, operation, policy=self._policy, store=self._store)

    def _first_block(self) -> ObjectInfo:
        # It also tells size and version: one request, not two.
        block, info = self._store.read_range(self._uri, 0, self._block_bytes)
        if info.size_bytes is None:
            raise RangesUnsupportedError
        self._check_length(0, block, min(self._block_bytes, info.size_bytes))
        self._blocks[0] = block
        return info

    def _download(self) -> ObjectInfo:
        whole = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this file
        try:
            self._store.download(self._uri, whole)
        except BaseException:
            whole.close()
            raise
        self._whole = whole
        return ObjectInfo(size_bytes=whole.tell(), etag=None)

    def _check_length(self, start: int, block: bytes, expected: int) -> None:
        if len(block) != expected:
            found = f"short read: {len(block)} bytes from {start}, expected {expected}"
            raise StoreError(FETCH, found, transient=True)

    def _check_unchanged(self, info: ObjectInfo) -> None:
        for name, before, now in (
            ("size", self.info.size_bytes, info.size_bytes),
            ("version", self.info.etag, info.etag),
        ):
            if before is not None and now is not None and before != now:
                found = f"the object changed while it was read ({name} {before}, now {now})"
                # A replica that lags behind answers like this, too: asked again, another may not.
                raise StoreError(CHANGED, found, transient=True, attempts=FEW_ATTEMPTS)

    def _fetch(self, index: int) -> bytes:
        start = index * self._block_bytes
        return self._range(start, min(start + self._block_bytes, self.size_bytes))

    def _range(self, start: int, end: int) -> bytes:
        def attempt() -> bytes:
            data, info = self._store.read_range(self._uri, start, end)
            self._check_unchanged(info)
            self._check_length(start, data, end - start)
            return data

        return self._with_retries(attempt)

    @functools.cached_property
    def content_digest(self) -> str | None:
        """Hash of size and content, by which files are taken for the same; None if unreadable.

        Of a large file three samples are read, unless the middle one is almost silence.
        """
        size, digest = self.size_bytes, hashlib.blake2b(b"%d\n" % self.size_bytes, digest_size=16)
        starts, step = list(range(0, size, BLOCK_BYTES)), BLOCK_BYTES
        try:
            if size > _MOST_WHOLE_BYTES:
                middle = (size - SAMPLE_BYTES) // 2
                packed = zlib.compress(self._at(middle, SAMPLE_BYTES)[::4], 1)
                if len(packed) >= _LEAST_PACKED_BYTES:
                    starts, step = [0, middle, size - SAMPLE_BYTES], SAMPLE_BYTES
            for start in starts:
                digest.update(self._at(start, step))
        except FetchError:
            return None
        return digest.hexdigest()

    def _at(self, start: int, count: int) -> bytes:
        """Return bytes without moving; they are not kept."""
        end = min(start + count, self.size_bytes)
        if self._whole is not None:
            self._whole.seek(start)
            return self._whole.read(end - start)
        index, offset = divmod(start, self._block_bytes)
        kept = self._blocks.get(index, b"")[offset : offset + end - start]
        return kept if len(kept) == end - start else self._range(start, end)

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == index:
                self._blocks[index] = ahead[1].result()
            else:
                self._blocks[index] = self._fetch(index)
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
            # Only behind another block: after a jump nobody knows what is read next.
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
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Drop blocks and temporary files; a block being read ahead is not waited for."""
        if not self.closed and hasattr(self, "_whole"):  # else it was not even started
            if self._executor is not None:
                self._executor.shutdown(wait=False, cancel_futures=True)
            if self._whole is not None:
                self._whole.close()
            self._blocks.clear()
        super().close()
