"""Store for all other fsspec schemes: gs://, az://, memory://, sftp:// and so on."""

import contextlib
import datetime
import difflib
import functools
import importlib
import inspect
import logging
import shutil
from collections.abc import Iterable, Iterator
from typing import IO, Any

import fsspec.asyn
from fsspec import AbstractFileSystem

from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.failure_kinds import FETCH
from corpus_asr.logs import event
from corpus_asr.storage.stores.local import PAGE_ROWS
from corpus_asr.storage.stores.store import (
    ObjectInfo,
    Page,
    RetryPolicy,
    Store,
    StoreError,
    from_os_error,
    from_status,
    no_conditions,
    page_of,
    usable_options,
    with_retries,
)
from corpus_asr.storage.stores.uri import REST, redact_uri, scheme_of, without_secrets
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)

_GOOGLE = {"gs", "gcs"}
_AZURE = {"az", "abfs", "abfss"}
_MEMORY = "memory"  # of this process, which no other run can reach
_NO_OBJECT = "0"  # Google's generation of an object that does not exist
_PRECONDITION_FAILED = 412
_VERSION_KEYS = ("etag", "ETag", "md5Hash", "content_md5", "checksum")
_TIME_KEYS = ("mtime", "modified", "last_modified", "LastModified", "updated", "created")
_COPY_BYTES = 16 * MEBIBYTE
_PAGE_KEYS = 1000  # as on S3


def _status_of(error: Exception) -> int:
    for name in ("status", "code", "status_code"):  # aiohttp, gcsfs, azure
        if isinstance(status := getattr(error, name, None), int):
            return status
    return 0


def _info(details: dict[str, Any]) -> ObjectInfo:
    if details.get("type") == "directory":
        raise IsADirectoryError
    size = details.get("size")
    time = next((details[key] for key in _TIME_KEYS if details.get(key)), None)
    # Some libraries return a number from a lookup and a date from a listing.
    seconds: Any = time.timestamp() if isinstance(time, datetime.datetime) else time
    for key in _VERSION_KEYS:
        if details.get(key):
            etag = str(details[key]).strip('"')
            return ObjectInfo(size_bytes=size, etag=etag, time=seconds and str(seconds))
    return ObjectInfo(size_bytes=size, etag=seconds and f"{size}-{seconds}")


class FsspecStore(Store):
    """Store of one scheme and, where the scheme has one, one host."""

    def __init__(self, uri: str, policy: RetryPolicy, storage: StorageOptions = NO_OPTIONS) -> None:
        self._uri, self._policy, self._storage = uri, policy, storage
        self._scheme = scheme_of(uri)
        with self._usable():
            self._class = fsspec.get_filesystem_class(self._scheme)
            # Not `url_to_fs`, which parses "::" within a name as chained stores.
            self._options = storage.values() | self._class._get_kwargs_from_urls(uri)
            self.block_bytes = self._options.get("default_block_size")
            if self._scheme in _GOOGLE | _AZURE:
                self._check_names(storage.values())

    def _check_names(self, names: Iterable[str]) -> None:
        # These classes accept any option name and ignore unknown ones.
        option_names = {
            name
            for base in self._class.__mro__
            for name, parameter in inspect.signature(base.__init__).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        for name in names:
            if name not in option_names:
                near = difflib.get_close_matches(name, option_names, n=1)
                hint = f"did you mean {near[0]}?" if near else "leave it out"
                raise ConfigError(
                    f"opening {redact_uri(self._uri)}: storage_options: {self._scheme}:// has no "
                    f"option {name}, expected one of {self._class.__name__}; {hint}"
                )

    @functools.cached_property
    def filesystem(self) -> AbstractFileSystem:
        """The library's file system; creating it may connect, so this may fail like any request."""
        with self._usable():
            filesystem: AbstractFileSystem = self._class(**self._options)
        # Not an option: some libraries pass unknown options on to their server.
        filesystem.dircache.use_listings_cache = False
        return filesystem

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            with usable_options(self._uri, self._storage):
                yield
        except ImportError as error:
            missing = getattr(error.__cause__ or error, "name", None)
            named = missing is not None and missing in str(error)  # not the import of another one
            cure = f"pip install {missing}" if named else "install the package it names"
            raise ConfigError(
                f"opening {redact_uri(self._uri)}: the library for {self._scheme}:// is not "
                f"installed ({without_secrets(str(error))}), expected it on every machine of the "
                f"cluster; {cure}"
            ) from error

    def translate(self, error: Exception) -> StoreError:
        failure = self._meaning(error)
        failure.found = self._storage.hide(failure.found)
        return failure

    def _meaning(self, error: Exception) -> StoreError:
        if isinstance(error, OSError):
            return from_os_error(error)
        status = _status_of(error)
        if status >= 400:
            return from_status(status, type(error).__name__)
        # Each library has its own errors; an unknown one may be transient.
        return StoreError(FETCH, f"{type(error).__name__}: {error}", transient=True)

    def _path(self, uri: str) -> str:
        return str(self._class._strip_protocol(uri))

    def info(self, uri: str) -> ObjectInfo:
        return _info(self.filesystem.info(self._path(uri)))

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        info = self.info(uri)
        return self._read(uri, start, end, info), info

    def _read(self, uri: str, start: int, end: int, info: ObjectInfo) -> bytes:
        stop = end if info.size_bytes is None else min(end, info.size_bytes)
        if stop <= start:
            return b""
        return bytes(self.filesystem.cat_file(self._path(uri), start=start, end=stop))

    def download(self, uri: str, target: IO[bytes]) -> None:
        with self.filesystem.open(self._path(uri), "rb") as source:
            shutil.copyfileobj(source, target, _COPY_BYTES)

    def write(self, uri: str, data: bytes) -> None:
        self.filesystem.pipe_file(self._path(uri), data)

    def upload(self, path: str, uri: str) -> None:
        self.filesystem.put_file(path, self._path(uri))

    def create(self, uri: str, data: bytes) -> bool:
        path = self._path(uri)
        try:
            if self._scheme in _GOOGLE:
                self._put_google(path, data, _NO_OBJECT)
            elif self._scheme in _AZURE:
                self.filesystem.pipe_file(path, data, overwrite=False)
            elif self._scheme == _MEMORY:
                self.filesystem.pipe_file(path, data, mode="create")
            else:
                raise no_conditions(f"none for {self._scheme}:// in fsspec")
        except FileExistsError:
            return False
        return True

    def swap(self, uri: str, data: bytes, expected: bytes) -> bool:
        # Google and Azure enforce the condition that the version is unchanged.
        path = self._path(uri)
        try:
            # The version is read before the content. If the object changes in between, the content
            # may match `expected`, but the condition fails.
            details = self.filesystem.info(path)
            if self._read(uri, 0, len(expected) + 1, _info(details)) != expected:
                return False
            if self._scheme in _GOOGLE:
                self._put_google(path, data, details.get("generation"))
            elif self._scheme in _AZURE:
                self._put_azure(path, data, details.get("etag"))
            elif self._scheme == _MEMORY:
                self.filesystem.pipe_file(path, data)
            else:
                raise no_conditions(f"none for {self._scheme}:// in fsspec")
        except (FileNotFoundError, FileExistsError, IsADirectoryError):
            return False
        return True

    def _put_google(self, path: str, data: bytes, generation: str | None) -> None:
        # gcsfs methods support only the condition that no object exists, so this is a media upload
        # of Google's JSON API; gcsfs raises FileExistsError if the condition fails.
        filesystem = self.filesystem
        if generation is None or not hasattr(filesystem, "call"):
            raise _no_version("gcsfs")
        bucket, _, key = path.partition("/")
        filesystem.call(
            "POST", f"{filesystem._location}/upload/storage/v1/b/{bucket}/o", uploadType="media",
            name=key, ifGenerationMatch=generation, data=data, json_out=True,
            headers={"Content-Type": "application/octet-stream"},
        )  # fmt: skip

    def _put_azure(self, path: str, data: bytes, etag: str | None) -> None:
        if etag is None:
            raise _no_version("adlfs")
        # A dependency of adlfs, not of this package.
        unmodified = importlib.import_module("azure.core").MatchConditions.IfNotModified
        try:
            self.filesystem.pipe_file(
                path, data, overwrite=True, etag=etag, match_condition=unmodified
            )
        except Exception as error:
            if _status_of(error) != _PRECONDITION_FAILED:
                raise
            raise FileExistsError(path) from error

    def remove(self, uri: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self._path(uri))

    def pages(self, prefix: str, *, depth: int | None = None) -> Iterator[Page]:
        # Google and Azure are listed page by page, sorted by key, as on S3. For other stores fsspec
        # returns whole folders: one folder is in memory, sorted by name.
        folder = prefix.rpartition("/")[0]
        if folder.endswith(":/"):  # scheme:// itself
            folder += "/"
        root = self._path(folder).rstrip("/")
        bucket, slash, key = root.partition("/")
        key += slash + prefix[len(folder) :].removeprefix("/")
        delimiter = "/" if depth == 1 else None
        listings: Iterator[list[dict[str, Any]]]
        if bucket and self._scheme in _GOOGLE and hasattr(self.filesystem, "call"):
            listings = self._google_pages(bucket, key, delimiter)
        elif bucket and self._scheme in _AZURE and hasattr(self.filesystem, "service_client"):
            listings = self._azure_pages(bucket, key, delimiter)
        else:
            listings = self._folders(root, folder.rstrip("/"), depth)
        for listing in listings:
            infos = [_info(details) for details in listing]
            names = (details["name"].removeprefix(root).lstrip("/") for details in listing)
            uris = [f"{folder.rstrip('/')}/{name}" for name in names]
            yield page_of(uris, infos)

    def _folders(
        self, path: str, uri: str, depth: int | None, *, is_root: bool = True
    ) -> Iterator[list[dict[str, Any]]]:
        # Not by `walk`, which takes subfolders that cannot be listed for empty ones.
        entries = functools.partial(self.filesystem.ls, path, detail=True)
        try:
            listing = with_retries("listing", uri, entries, policy=self._policy, store=self)
        except FetchError as error:
            if is_root or error.retryable:
                raise
            event(logger, logging.WARNING, "folder_unread", uri=redact_uri(uri), why=str(error))
            yield [{"name": f"{path}/{REST}"}]
            return
        by_name = {entry["name"].rstrip("/"): entry for entry in listing}
        subfolders = {
            name for name, entry in by_name.items() if entry["type"] == "directory" and name != path
        }
        names = sorted(by_name.keys() - subfolders)
        for start in range(0, len(names), PAGE_ROWS):
            yield [by_name[name] for name in names[start : start + PAGE_ROWS]]
        if depth is None or depth > 1:
            below = None if depth is None else depth - 1
            for name in sorted(subfolders):
                step = name.rpartition("/")[2]
                yield from self._folders(name, f"{uri}/{step}", below, is_root=False)

    def _google_pages(
        self, bucket: str, key: str, delimiter: str | None
    ) -> Iterator[list[dict[str, Any]]]:
        query = {"prefix": key, "delimiter": delimiter, "maxResults": _PAGE_KEYS,
                 "fields": "nextPageToken,items(name,size,etag,md5Hash)"}  # fmt: skip
        while True:
            answer = self.filesystem.call("GET", "b/{}/o", bucket, json_out=True, **query)
            yield [
                blob | {"name": f"{bucket}/{blob['name']}", "size": int(blob["size"])}
                for blob in answer.get("items", ())
                # A key that ends in a slash and holds nothing stands for a folder.
                if int(blob["size"]) or not blob["name"].endswith("/")
            ]
            if not answer.get("nextPageToken"):
                return
            query["pageToken"] = answer["nextPageToken"]

    def _azure_pages(
        self, container: str, key: str, delimiter: str | None
    ) -> Iterator[list[dict[str, Any]]]:
        # adlfs identifies folders of hierarchical accounts, and its own, by their metadata.
        query = {"name_starts_with": key, "include": ["metadata"], "results_per_page": _PAGE_KEYS}

        async def page(token: str | None) -> tuple[list[dict[str, Any]], str | None]:
            service = self.filesystem.service_client
            async with service.get_container_client(container=container) as client:
                blobs = client.walk_blobs if delimiter else client.list_blobs
                pages = blobs(**query).by_page(continuation_token=token)
                batch = [blob async for blob in await anext(pages)]
                return await self.filesystem._details(batch), pages.continuation_token

        token = None
        while True:
            entries, token = fsspec.asyn.sync(self.filesystem.loop, page, token)
            yield [details for details in entries if details["type"] != "directory"]
            if not token:
                return


def _no_version(library: str) -> StoreError:
    return StoreError(
        FETCH,
        f"{library} returned no object version, expected one for conditional writes, without which "
        "two runs may get the lock",
        advice=f"pip install --upgrade {library}, here and on every machine of a cluster",
    )
