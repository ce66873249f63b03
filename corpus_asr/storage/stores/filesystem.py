"""The one door to every store: local paths, s3://, http(s):// and any fsspec scheme.

In: addresses. Out: bytes and file objects. Timeouts, retries, credentials and the wording of
failures are settled behind it; names are taken literally. Knows nothing of what is stored.
"""

import contextlib
import functools
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from typing import Protocol

import fsspec
from fsspec import AbstractFileSystem

from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.storage.ranges import ObjectInfo, RangeFile, RangeStore
from corpus_asr.storage.stores.host_allowlist import ANY_NAMED_HOST, HostRules
from corpus_asr.storage.stores.local import TEMPORARY_PREFIX, LocalStore, Page
from corpus_asr.storage.stores.retry import (
    DEFAULT_POLICY,
    FETCH,
    NOT_FOUND,
    UNSUPPORTED_SCHEME,
    RetryPolicy,
    StoreError,
    fetch_error,
    from_os_error,
    persist,
)
from corpus_asr.storage.stores.uri import LOCAL, join, normalise, parent, scheme_of, without_secrets

READ_BUFFER_BYTES = 128 * 1024  # what a demuxer's many small reads are served from


class Store(RangeStore, Protocol):
    """What each kind of store offers this module; failures are `StoreError`s."""

    def write(self, uri: str, data: bytes) -> None:
        """Put the whole object, or leave things as they were."""

    def create(self, uri: str, data: bytes) -> bool:
        """Put the whole object where there is none; tell whether there was none."""

    def swap(self, uri: str, data: bytes, expected: bytes) -> bool:
        """Replace the object if it holds exactly `expected`; tell whether it did."""

    def move(self, uri: str, target: str) -> None:
        """Give the object another name in the same store, replacing what has it."""

    def remove(self, uri: str) -> None:
        """Remove the object if it is there."""

    def pages(self, prefix: str, *, depth: int | None = None) -> Iterator[Page]:
        """List objects below a folder (`prefix` ends with a slash) or with a common prefix.

        `depth` bounds the levels below the folder that are of interest; more may come.
        """


def store_for(
    uri: str,
    *,
    endpoint_url: str | None = None,
    policy: RetryPolicy = DEFAULT_POLICY,
    hosts: HostRules = ANY_NAMED_HOST,
) -> Store:
    """Return the store an address belongs to.

    Raises:
        ConfigError: no library for the scheme is installed, or the address is not usable with it.
    """
    scheme = scheme_of(uri)
    if scheme == LOCAL:
        return LocalStore()
    # Connections of a parent process cannot be used after a fork: the process is part of the key.
    place = "" if scheme in ("s3", "http", "https") else uri
    return _connected(os.getpid(), scheme, endpoint_url, policy, place, hosts)


@functools.lru_cache(maxsize=64)
def _connected(
    process: int,
    scheme: str,
    endpoint_url: str | None,
    policy: RetryPolicy,
    uri: str,
    hosts: HostRules,
) -> Store:
    # Imported here: workers that read local files need none of these libraries.
    if scheme == "s3":
        from corpus_asr.storage.stores.s3 import S3Store

        return S3Store(endpoint_url, policy)
    if scheme in ("http", "https"):
        from corpus_asr.storage.stores.http import WebStore

        return WebStore(policy, hosts)
    from corpus_asr.storage.stores.fsspec_store import FsspecStore

    return FsspecStore(uri)


def open_store(uri: str, *, endpoint_url: str | None = None) -> tuple[AbstractFileSystem, str]:
    """Return an fsspec filesystem and the path in it, for libraries that ask for one.

    Raises:
        ConfigError: no library for the scheme is installed.
    """
    uri = normalise(uri)
    if scheme_of(uri) == LOCAL:
        return fsspec.filesystem("file"), uri
    store = store_for(uri, endpoint_url=endpoint_url)
    filesystem: AbstractFileSystem = store.filesystem  # type: ignore[attr-defined]
    return filesystem, str(filesystem._strip_protocol(uri))


def open_binary(
    uri: str,
    *,
    endpoint_url: str | None = None,
    policy: RetryPolicy = DEFAULT_POLICY,
    hosts: HostRules = ANY_NAMED_HOST,
) -> io.BufferedReader:
    """Open an object for reading by ranges; a few blocks of it are in memory at a time.

    Args:
        uri: its address.
        endpoint_url: the S3 endpoint, where it is not Amazon's.
        policy: how patiently the store is asked.
        hosts: which hosts a web address may lead to; by default the one it names, and public ones.

    Raises:
        FetchError: also from later reads. Kinds: not_found, access_denied, timeout, changed,
            fetch, unsupported_scheme, refused_host.
    """
    try:
        return _open(uri, endpoint_url=endpoint_url, policy=policy, hosts=hosts)
    except ConfigError as error:
        # One bad address among many is that recording's failure.
        raise FetchError(str(error), uri=uri, kind=UNSUPPORTED_SCHEME, retryable=False) from error


def _open(
    uri: str,
    *,
    endpoint_url: str | None,
    policy: RetryPolicy,
    hosts: HostRules = ANY_NAMED_HOST,
) -> io.BufferedReader:
    uri = normalise(uri)
    store = store_for(uri, endpoint_url=endpoint_url, policy=policy, hosts=hosts)
    raw = RangeFile(store, uri, policy=policy)
    return io.BufferedReader(raw, READ_BUFFER_BYTES)


def read_bytes(
    uri: str, *, endpoint_url: str | None = None, policy: RetryPolicy = DEFAULT_POLICY
) -> bytes:
    """Return a whole object.

    Raises:
        ConfigError: no library reads such an address.
        FetchError: it cannot be read.
    """
    with _open(uri, endpoint_url=endpoint_url, policy=policy) as file:
        return file.read()


def write_atomic(
    uri: str,
    data: bytes,
    *,
    endpoint_url: str | None = None,
    policy: RetryPolicy = DEFAULT_POLICY,
) -> None:
    """Put an object so that readers see all of it or none, whatever happens meanwhile.

    Raises:
        FetchError: it cannot be written.
    """
    uri = normalise(uri)
    store = store_for(uri, endpoint_url=endpoint_url, policy=policy)
    persist("writing", uri, lambda: store.write(uri, data), policy=policy)


def upload(path: str, uri: str, *, endpoint_url: str | None = None) -> None:
    """Put a local file as an object, piece by piece; readers see all of it or what was before.

    Raises:
        ConfigError: no library writes to such an address.
        FetchError: it cannot be written.
    """
    uri = normalise(uri)
    if scheme_of(uri) == LOCAL:
        beside = join(parent(uri), f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            os.makedirs(parent(uri), exist_ok=True)
            shutil.copyfile(path, beside)
            os.replace(beside, uri)
        except OSError as error:
            with contextlib.suppress(OSError):  # a full disk has room again
                os.remove(beside)
            raise fetch_error("writing", uri, from_os_error(error)) from error
        return
    store, key = open_store(uri, endpoint_url=endpoint_url)
    try:
        store.put_file(path, key)
    except Exception as error:
        failure = StoreError(FETCH, f"{type(error).__name__}: {without_secrets(str(error))}")
        raise fetch_error("writing", uri, failure) from error


def remove(
    uri: str, *, endpoint_url: str | None = None, policy: RetryPolicy = DEFAULT_POLICY
) -> None:
    """Remove an object; one that is not there is as good.

    Raises:
        FetchError: it cannot be removed.
    """
    uri = normalise(uri)
    store = store_for(uri, endpoint_url=endpoint_url, policy=policy)
    persist("removing", uri, lambda: store.remove(uri), policy=policy)


def remove_folder(uri: str) -> None:
    """Remove a local folder if nothing is in it; stores of objects have no folders."""
    uri = normalise(uri)
    if scheme_of(uri) == LOCAL:
        with contextlib.suppress(OSError):  # not there, or something is in it
            os.rmdir(uri)


def move(
    uri: str, target: str, *, endpoint_url: str | None = None, policy: RetryPolicy = DEFAULT_POLICY
) -> None:
    """Give an object another name in the same store; one that was moved already is as good.

    Raises:
        FetchError: it cannot be moved, or is neither here nor there.
    """
    uri, target = normalise(uri), normalise(target)
    store = store_for(uri, endpoint_url=endpoint_url, policy=policy)
    try:
        persist("moving", uri, lambda: store.move(uri, target), policy=policy)
    except FetchError as error:
        # A request whose answer was lost has done its work, and so had a run that was killed.
        if error.kind != NOT_FOUND or not exists(target, endpoint_url=endpoint_url, policy=policy):
            raise


def describe(
    uri: str, *, endpoint_url: str | None = None, policy: RetryPolicy = DEFAULT_POLICY
) -> ObjectInfo:
    """Return size and version of an object.

    Raises:
        FetchError: there is no such object, or the store does not answer.
    """
    uri = normalise(uri)
    store = store_for(uri, endpoint_url=endpoint_url, policy=policy)
    return persist("looking up", uri, lambda: store.info(uri), policy=policy)


def exists(
    uri: str, *, endpoint_url: str | None = None, policy: RetryPolicy = DEFAULT_POLICY
) -> bool:
    """Tell whether there is an object (not a folder) of this name.

    Raises:
        FetchError: the store does not say.
    """
    try:
        describe(uri, endpoint_url=endpoint_url, policy=policy)
    except FetchError as error:
        if error.kind == NOT_FOUND:
            return False
        raise
    return True


def list_pages(
    prefix: str,
    *,
    depth: int | None = None,
    endpoint_url: str | None = None,
    policy: RetryPolicy = DEFAULT_POLICY,
) -> Iterator[Page]:
    """List objects page by page in stable order; a folder that is not there has none.

    Args:
        prefix: a folder with a trailing slash, or that and the first letters of names.
        depth: levels below the folder that are of interest; None for all.

    Raises:
        FetchError: the store does not list.
    """
    store = store_for(prefix, endpoint_url=endpoint_url, policy=policy)
    try:
        yield from store.pages(prefix, depth=depth)
    except StoreError as error:
        if error.kind != NOT_FOUND:
            raise fetch_error("listing", prefix, error) from error
    except FetchError as error:
        if error.kind != NOT_FOUND:
            raise


def list_objects(
    prefix: str, *, endpoint_url: str | None = None
) -> Iterator[tuple[str, int | None, str | None]]:
    """List address, size and version of every object below a folder, in stable order.

    Raises:
        FetchError: the store does not list.
    """
    folder = normalise(prefix).rstrip("/") + "/"
    for page in list_pages(folder, endpoint_url=endpoint_url):
        yield from zip(page.uris, page.sizes, page.etags, strict=True)
