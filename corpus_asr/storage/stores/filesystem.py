"""The single entry point to every store: local paths, s3://, http(s):// and any fsspec scheme.

Every function raises a `FetchError` when a store fails after all retries, and all but `open_binary`
a `ConfigError` when no library supports the URI's scheme.
"""

import contextlib
import functools
import importlib
import io
import itertools
import os
import tempfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from corpus_asr.storage.stores.members import HEADER_BLOCK_BYTES, MemberStore
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
    may_be_same,
    with_retries,
)
from corpus_asr.storage.stores.uri import (
    LOCAL,
    is_table,
    located,
    member_address,
    normalize,
    redact_uri,
    scheme_of,
)
from corpus_asr.units import MEBIBYTE

if TYPE_CHECKING:  # importing takes 0.1 s in each process that reads audio
    from fsspec import AbstractFileSystem

    from corpus_asr.config.run import DatasetSettings, OutputSettings, SourceSettings

T = TypeVar("T")
N = TypeVar("N")

READERS = 8  # objects: reading many small ones is waiting for the store
BLOCK_BYTES = 4 * MEBIBYTE  # about four minutes of mp3: few requests, little waste after a seek
KEPT_BLOCKS = 4  # containers jump between their index and two or three positions
READ_BUFFER_BYTES = 128 * 1024  # serves a demuxer's many small reads
LEAST_GROWTH_BYTES = 1024  # of a range whose connection ended: the rest is asked for at once
PEEK_BYTES = MEBIBYTE // 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Store access options; picklable, and the same for all objects of a job's source."""

    endpoint_url: str | None = None  # S3 endpoint, if not Amazon's
    storage: StorageOptions = NO_OPTIONS
    policy: RetryPolicy = DEFAULT_POLICY
    hosts: HostRules = ANY_NAMED_HOST  # hosts that http(s) URLs may point to
    files: FileRules | None = None  # local files that may be read; None: any
    audio_column: str | None = None  # audio column of tables; None: the only one
    private: bool = False  # write local files with permissions for the owner only

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
        """Return the options for a job's output."""
        storage = output.storage_options.bound((output.uri,))
        return cls(storage=storage)


DEFAULT_STORE = StoreOptions()


def store_for(uri: str, options: StoreOptions = DEFAULT_STORE) -> Store:
    """Return the store a URI belongs to."""
    if options.files is not None and not options.files.admits(uri):
        reason = "refused to read it: no run of this user on this machine read recordings there"
        raise fetch_error("opening", uri, StoreError(REFUSED_FILE, reason))
    scheme = scheme_of(uri)
    if scheme == LOCAL:
        return LocalStore(private=options.private)
    # Connections of a parent process are unusable after a fork: the process ID is part of the key.
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

    return FsspecStore(uri, options.policy, options.storage.for_scheme(scheme))


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
        import fsspec  # with asyncio 0.06 s, not needed for local runs

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
        # One invalid URI fails its own recording, not the run.
        raise FetchError(str(error), uri=uri, kind=UNSUPPORTED_SCHEME, retryable=False) from error


def _open(uri: str, options: StoreOptions, *, block_bytes: int | None = None) -> io.BufferedReader:
    store, uri = _read_from(normalize(uri), options)
    raw = RangeFile(store, uri, policy=options.policy, block_bytes=block_bytes)
    return io.BufferedReader(raw, READ_BUFFER_BYTES)


def open_container(uri: str, options: StoreOptions = DEFAULT_STORE) -> "RangeFile":
    """Open an archive for reading headers at scattered offsets."""
    uri = normalize(uri)
    store = store_for(uri, options)
    return RangeFile(store, uri, policy=options.policy, block_bytes=HEADER_BLOCK_BYTES)


def _read_from(uri: str, options: StoreOptions) -> tuple[Store, str]:
    """Return the store of a URI, possibly of an archive member, and the URI within that store."""
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
    # `#` is legal in object keys, but not in URLs.
    if scheme_of(uri) in WEB:
        return False
    try:
        _request("looking up", uri, options, lambda store, uri: store.info(uri))
    except FetchError as error:
        if error.kind not in (NOT_FOUND, ACCESS_DENIED, REFUSED_FILE):
            raise
        return False
    return True


File = tuple[str, str | None]
"""URI and version of a listed file."""
Inspection = Callable[[str, Sequence[File], StoreOptions, int | None], list[Any]]
"""As `inspect_files`, in this process or where a file that ends it costs only itself."""


def inspect_files(
    function: str, files: Sequence[File], options: StoreOptions, block_bytes: int | None = None
) -> list[Any]:
    """Return what `module:function` returns of each open file; None where reading it failed."""
    inspect = functools.partial(inspect_file, function, options, block_bytes)
    with ThreadPoolExecutor(READERS, thread_name_prefix="inspect-files") as pool:
        return known_answers(pool.map(inspect, files))


def known_answers(answers: Iterable[Any]) -> list[Any]:
    """Return answers of `inspect_file`, with None in place of errors."""
    return [None if isinstance(answer, FetchError) else answer for answer in answers]


def inspect_file(
    function: str,
    options: StoreOptions,
    block_bytes: int | None,
    file: File,
    watch: Callable[[io.BufferedReader], Any] = lambda opened: opened,
    **arguments: Any,
) -> Any:
    """Return what `module:function` returns of a file, whose bytes it reads by `watch`.

    An error of reading it is returned: a failure of this recording, if it is processed.
    """
    # Libraries are loaded where files are read: a plan that reads none starts sooner.
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    try:
        with open_binary(located(*file), options, block_bytes=block_bytes) as opened:
            return call(watch(opened), uri=redact_uri(file[0]), **arguments)
    except FetchError as error:
        return error


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
    """Write an object atomically: readers see all of it or nothing.

    `before` is called before each attempt; an exception that it raises ends the retries.
    """

    def attempt(store: Store, uri: str) -> None:
        before()
        store.write(uri, data)

    _request("writing", uri, options, attempt)


def upload(path: str, uri: str, options: StoreOptions = DEFAULT_STORE) -> None:
    """Upload a local file in parts; readers see the whole new object or the previous one."""
    _request("writing", uri, options, lambda store, uri: store.upload(path, uri))


def remove(uri: str, options: StoreOptions = DEFAULT_STORE) -> None:
    """Remove an object; succeeds if it does not exist."""
    _request("removing", uri, options, lambda store, uri: store.remove(uri))


def sweep(folder: str, options: StoreOptions = DEFAULT_STORE) -> None:
    """Remove what killed processes left below a folder; what a living one writes stays."""
    _request("sweeping", folder, options, lambda store, uri: store.sweep(uri))


def remove_folder(uri: str) -> None:
    """Remove a local folder if it is empty; object stores have no folders."""
    uri = normalize(uri)
    if scheme_of(uri) == LOCAL:
        with contextlib.suppress(OSError):  # missing, or not empty
            os.rmdir(uri)


def describe(uri: str, options: StoreOptions = DEFAULT_STORE) -> ObjectInfo:
    """Return the size and version of an object."""
    store, uri = _read_from(normalize(uri), options)
    return with_retries(
        "looking up", uri, lambda: store.info(uri), policy=options.policy, store=store
    )


def exists(uri: str, options: StoreOptions = DEFAULT_STORE) -> bool:
    """Return whether an object (not a folder) of this name exists."""
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
    """List objects page by page in stable order; a missing folder is empty.

    What an unreadable folder below it holds is one object, `FOLDER/*`, without size.
    `prefix` is a folder with a trailing slash, or that plus the first characters of names; `depth`
    is the number of levels below the folder to list.
    """
    store = store_for(prefix, options)
    is_begun = False  # what is missing later is no empty folder: the rest would be missing as well
    try:
        for page in store.pages(prefix, depth=depth):
            yield page
            is_begun = True
    except FetchError as error:
        if is_begun or error.kind != NOT_FOUND:
            raise
    except Exception as raised:
        failure = failure_of(raised, store)
        if is_begun or failure.kind != NOT_FOUND:
            raise fetch_error("listing", prefix, failure) from failure


def list_objects(
    prefix: str, options: StoreOptions = DEFAULT_STORE
) -> Iterator[tuple[str, int | None, str | None]]:
    """Yield the URI, size and version of every object below a folder, in stable order."""
    folder = normalize(prefix).rstrip("/") + "/"
    for page in list_pages(folder, options):
        yield from zip(page.uris, page.sizes, page.etags, strict=True)


def read_ahead(
    objects: Iterable[N], read: Callable[[N], Iterator[T]], *, values_ahead: int = 1
) -> Iterator[tuple[N, T]]:
    """Yield what is read of objects, in their order, each with its object.

    Of the next `READERS` objects the first `values_ahead` values are read ahead.
    """
    waiting = iter(objects)

    def begin(item: N) -> tuple[list[T], Iterator[T]]:
        values = read(item)
        return list(itertools.islice(values, values_ahead)), values

    with ThreadPoolExecutor(READERS, thread_name_prefix="read-objects") as pool:
        started = deque(
            (item, pool.submit(begin, item)) for item in itertools.islice(waiting, READERS)
        )
        try:
            while started:
                item, beginning = started.popleft()
                for following in itertools.islice(waiting, 1):
                    started.append((following, pool.submit(begin, following)))
                first_values, rest = beginning.result()
                for value in itertools.chain(first_values, rest):
                    yield item, value
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# Conditional writes: of concurrent writers one wins. Some stores ignore conditions: the lock finds
# that out. `data` must be unique to the writer.


def peek(uri: str, options: StoreOptions = DEFAULT_STORE) -> bytes | None:
    """Return a small object, or the first `PEEK_BYTES` of a large one; None if it is missing."""
    # A single request, so that an object replaced meanwhile is never read as a mix of both.
    try:
        return _request(
            "reading", uri, options, lambda store, uri: store.read_range(uri, 0, PEEK_BYTES)[0]
        )
    except FetchError as error:
        if error.kind == NOT_FOUND:
            return None
        raise


def create(uri: str, data: bytes, options: StoreOptions = DEFAULT_STORE) -> bool:
    """Create a small object if the name is free; return whether the object now holds `data`."""
    written = _request("creating", uri, options, lambda store, uri: store.create(uri, data))
    # A first attempt may have succeeded and its response been lost.
    return written or peek(uri, options) == data


def swap(uri: str, data: bytes, expected: bytes, options: StoreOptions = DEFAULT_STORE) -> bool:
    """Replace a small object that equals `expected`; return whether it now holds `data`."""
    written = _request(
        "replacing", uri, options, lambda store, uri: store.swap(uri, data, expected)
    )
    return written or peek(uri, options) == data


class RangeFile(io.RawIOBase):
    """A seekable file over range reads of at most `KEPT_BLOCKS + 1` blocks in memory.

    Opening and reading raise a `FetchError`, of kind `changed` if the object was replaced.
    """

    def __init__(
        self, store: Store, uri: str, *, policy: RetryPolicy, block_bytes: int | None = None
    ) -> None:
        super().__init__()
        self._store, self._uri, self._policy = store, uri, policy
        self._block_bytes = block_bytes or store.block_bytes or BLOCK_BYTES
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
        # The response also holds size and version: one request instead of two.
        block, info = self._store.read_range(self._uri, 0, self._block_bytes)
        if info.size_bytes is None:
            raise RangesUnsupportedError
        self.info = info
        self._blocks[0] = self._range(0, min(self._block_bytes, info.size_bytes), block)
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

    def _check_unchanged(self, info: ObjectInfo) -> None:
        for name, old_value, new_value in (
            ("size", self.info.size_bytes, info.size_bytes),
            ("version", self.info.etag, info.etag),
        ):
            known = old_value is not None and new_value is not None
            if known and not may_be_same(str(old_value), str(new_value)):
                problem = (
                    f"the object changed while it was read ({name} {old_value}, now {new_value})"
                )
                # A replica that lags behind responds like this, too; a retry may reach another one.
                raise StoreError(CHANGED, problem, transient=True, attempts=FEW_ATTEMPTS)

    def _fetch(self, index: int) -> bytes:
        start = index * self._block_bytes
        return self._range(start, min(start + self._block_bytes, self.size_bytes))

    def _range(self, start: int, end: int, beginning: bytes = b"") -> bytes:
        data, expected = bytearray(beginning), end - start

        def attempt() -> bytes:
            is_growing = True
            while is_growing and len(data) < expected:
                piece, info = self._store.read_range(self._uri, start + len(data), end)
                self._check_unchanged(info)
                data.extend(piece)
                is_growing = len(piece) >= LEAST_GROWTH_BYTES
            if len(data) != expected:
                problem = f"short read: {len(data)} bytes from {start}, expected {expected}"
                if len(data) > expected:
                    data.clear()
                raise StoreError(FETCH, problem, transient=True)
            return bytes(data)

        return self._with_retries(attempt)

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == index:
                self._blocks[index] = ahead[1].result()
            else:
                self._blocks[index] = self._fetch(index)
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
            # Read ahead only in sequential reads: after a jump the next position is unknown.
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
        """Read into `buffer` from the current position; return 0 at the end."""
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
        """Set the position; nothing is fetched before the next read."""
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
        """Free blocks and temporary files, without waiting for a block that is being read ahead."""
        if not self.closed and hasattr(self, "_whole"):  # else construction failed
            if self._executor is not None:
                self._executor.shutdown(wait=False, cancel_futures=True)
            if self._whole is not None:
                self._whole.close()
            self._blocks.clear()
        super().close()
