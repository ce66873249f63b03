"""S3 and its relatives as a store.

In: s3://bucket/key, the key taken literally. Out: bytes, and pages of keys in the store's order.
Failures are `StoreError`s; trying again is `failures.persist`'s business, so the client's own
retries are off. Credentials, region and (without `endpoint_url`) endpoint come from the usual
chain: environment, profile, instance role.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import IO, Any, TypeVar

import s3fs
from botocore import exceptions
from fsspec.asyn import sync

from corpus_asr.storage.ranges import ObjectInfo
from corpus_asr.storage.s3_failures import from_exception
from corpus_asr.storage.stores.local import Page
from corpus_asr.storage.stores.retry import (
    FETCH,
    NOT_FOUND,
    RetryPolicy,
    StoreError,
    fetch_error,
    persist,
)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
PAGE_KEYS = 1000  # the protocol's limit
READ_TIMEOUT_S = 30  # silence on an open connection
SLOWEST_UPLOAD_BYTES_PER_S = 256 * 1024  # merged tables are large, and some uplinks slow
CLIENT_OPTIONS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": READ_TIMEOUT_S,
    "retries": {"total_max_attempts": 1, "mode": "standard"},
    "max_pool_connections": 32,
    # Stores other than Amazon's refuse the checksum trailers that newer clients send by default.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


class _NoConditionsError(Exception):
    """The store has no conditional put."""


def _status_of(error: StoreError) -> int:
    """Return the HTTP status behind a failure; 0 where there was no answer."""
    cause = error.__cause__
    if not isinstance(cause, exceptions.ClientError):
        return 0
    return int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


class S3Store:
    """Objects of one endpoint. Safe for threads; not shared across processes."""

    def __init__(self, endpoint_url: str | None, policy: RetryPolicy) -> None:
        self._policy = policy
        self._renew = False
        self.filesystem = s3fs.S3FileSystem(
            endpoint_url=endpoint_url, config_kwargs=dict(CLIENT_OPTIONS),
            use_listings_cache=False, skip_instance_cache=True,
        )  # fmt: skip

    def _run(self, call: Callable[[Any], Awaitable[T]], *, sent_bytes: int = 0) -> T:
        limit_s = self._policy.request_timeout_s + sent_bytes / SLOWEST_UPLOAD_BYTES_PER_S

        async def limited() -> T:
            # Making a client reads files and asks for credentials: not part of a request's time.
            client = await self.filesystem.set_session(refresh=self._renew)
            self._renew = False
            return await asyncio.wait_for(call(client), limit_s)

        try:
            result: T = sync(self.filesystem.loop, limited)
        except StoreError:
            raise
        except Exception as error:
            failure = from_exception(error)
            self._renew = self._renew or failure.expired
            raise failure from error
        return result

    def info(self, uri: str) -> ObjectInfo:
        """Return size and ETag of an object."""
        bucket, key = split(uri)
        if not key:
            raise StoreError(NOT_FOUND, "found a bucket, expected an object")
        answer = self._run(lambda client: client.head_object(Bucket=bucket, Key=key))
        return ObjectInfo(size_bytes=answer["ContentLength"], etag=_bare(answer.get("ETag")))

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        """Return bytes of the object as it is now; one request."""
        bucket, key = split(uri)
        if not key:
            raise StoreError(NOT_FOUND, "found a bucket, expected an object")

        async def get(client: Any) -> tuple[bytes, ObjectInfo]:
            answer = await client.get_object(
                Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}"
            )
            async with answer["Body"] as body:
                data: bytes = await body.read()
            total = str(answer.get("ContentRange", "")).rpartition("/")[2]
            size = int(total) if total.isdecimal() else int(answer["ContentLength"])
            return data, ObjectInfo(size_bytes=size, etag=_bare(answer.get("ETag")))

        try:
            return self._run(get)
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, exceptions.ClientError) and "InvalidRange" in str(cause):
                # An empty object has no range; a shorter one than expected shows in its size.
                return b"", self.info(uri)
            raise

    def download(self, uri: str, target: IO[bytes]) -> None:
        """Write the whole object to `target`."""
        _, info = self.read_range(uri, 0, 1)
        data, _ = self.read_range(uri, 0, max(1, info.size_bytes or 0))
        target.write(data)

    def write(self, uri: str, data: bytes) -> None:
        """Put the object, in one request."""
        self._put(uri, data)

    def create(self, uri: str, data: bytes) -> bool:
        """Put the object if there is none; on stores without conditions after a look."""
        try:
            return self._put_if(uri, data, IfNoneMatch="*")
        except _NoConditionsError:
            if self._content(uri, 1) is not None:
                return False
            self._put(uri, data)
            return True

    def swap(self, uri: str, data: bytes, expected: bytes) -> bool:
        """Replace the object if it holds `expected`; on stores without conditions after a look."""
        found = self._content(uri, len(expected) + 1)
        if found is None or found[0] != expected:
            return False
        try:
            return self._put_if(uri, data, IfMatch=f'"{found[1].etag}"')
        except _NoConditionsError:
            self._put(uri, data)
            return True

    def move(self, uri: str, target: str) -> None:
        """Copy the object within the store, then remove it; of 5 GB at most, as S3 copies."""
        bucket, key = split(uri)
        target_bucket, target_key = split(target)
        source = {"Bucket": bucket, "Key": key}
        self._run(
            lambda client: client.copy_object(
                Bucket=target_bucket, Key=target_key, CopySource=source
            )
        )
        self.remove(uri)

    def _put(self, uri: str, data: bytes, **conditions: str) -> None:
        bucket, key = split(uri)
        self._run(
            lambda client: client.put_object(Bucket=bucket, Key=key, Body=data, **conditions),
            sent_bytes=len(data),
        )

    def _put_if(self, uri: str, data: bytes, **condition: str) -> bool:
        """Put the object under a condition; tell whether that held.

        Raises:
            _NoConditionsError: the store does not know conditions.
        """
        try:
            self._put(uri, data, **condition)
        except StoreError as error:
            status = _status_of(error)
            if status == 501:
                raise _NoConditionsError from error
            if status == 412 or (status == 404 and "IfMatch" in condition):
                return False
            if status == 409:  # another conditional put at the same moment
                raise StoreError(FETCH, str(error), transient=True) from error
            raise
        return True

    def _content(self, uri: str, num_bytes: int) -> tuple[bytes, ObjectInfo] | None:
        """Return the first bytes and the version of an object; None where there is none."""
        try:
            return self.read_range(uri, 0, num_bytes)
        except StoreError as error:
            if error.kind == NOT_FOUND:
                return None
            raise

    def remove(self, uri: str) -> None:
        """Remove the object; one that is gone already is as good."""
        bucket, key = split(uri)
        self._run(lambda client: client.delete_object(Bucket=bucket, Key=key))

    def pages(self, prefix: str, *, depth: int | None = None) -> Iterator[Page]:
        """List the objects whose key starts with that of `prefix`, a page per request."""
        bucket, key = split(prefix)
        options: dict[str, Any] = {"Bucket": bucket, "Prefix": key, "MaxKeys": PAGE_KEYS}
        if depth == 1:
            options["Delimiter"] = "/"
        while True:
            answer = persist(
                "listing",
                prefix,
                lambda: self._run(lambda client: client.list_objects_v2(**options)),
                policy=self._policy,
            )
            # A key that ends in a slash and holds nothing stands for a folder.
            found = [
                entry
                for entry in answer.get("Contents", ())
                if entry["Size"] or not entry["Key"].endswith("/")
            ]
            yield Page(
                [f"s3://{bucket}/{entry['Key']}" for entry in found],
                [entry["Size"] for entry in found],
                [_bare(entry.get("ETag")) for entry in found],
            )
            if not answer.get("IsTruncated"):
                return
            following = answer.get("NextContinuationToken")
            if not following or following == options.get("ContinuationToken"):
                failure = StoreError(FETCH, "a page is not the last but names none after it")
                raise fetch_error("listing", prefix, failure)
            options["ContinuationToken"] = following


def _bare(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None
