"""S3 and its relatives as a store: s3://bucket/key, the key taken literally."""

import asyncio
import base64
import hashlib
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec.config
import s3fs
from botocore import exceptions
from botocore.parsers import ResponseParserError
from botocore.session import Session
from fsspec.asyn import sync

from corpus_asr.config.storage_options import (
    CREDENTIALS,
    NO_OPTIONS,
    S3,
    StorageOptions,
)
from corpus_asr.failure_kinds import (
    ACCESS_DENIED,
    ARCHIVED,
    FAILURE_KINDS,
    FETCH,
    NO_BUCKET,
    NOT_FOUND,
    TIMEOUT,
)
from corpus_asr.logs import event
from corpus_asr.storage.stores.store import (
    FEW_ATTEMPTS,
    ObjectInfo,
    Page,
    RetryPolicy,
    Store,
    StoreError,
    answer_of,
    asked_wait_s,
    failure_of,
    fetch_error,
    from_os_error,
    from_status,
    usable_options,
    with_retries,
)
from corpus_asr.storage.stores.uri import redact_uri, without_secrets
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
PAGE_KEYS = 1000  # the protocol's limit
READ_TIMEOUT_S = 30  # silence on an open connection
SLOWEST_UPLOAD_BYTES_PER_S = 256 * 1024  # merged tables are large, and some uplinks slow
PART_BYTES = 32 * MEBIBYTE
MOST_PARTS = 10_000  # the protocol's limit
PARTS_AT_ONCE = 4
# The client's own retries are off: `with_retries` knows which failures are worth another try.
CLIENT_OPTIONS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": READ_TIMEOUT_S,
    "retries": {"total_max_attempts": 1, "mode": "standard"},
    "max_pool_connections": 32,
    "response_checksum_validation": "when_required",
}
# Stores other than Amazon's refuse the checksum trailers that newer clients send by default. All
# take the older header, without which buckets with Object Lock refuse every write.
_TRAILERS = "request_checksum_calculation"
_SAID_ONCE = {"Metadata", "Tagging", "CacheControl", "ContentType"}  # a copy has its original's
_CUSTOMER_KEY = ("SSECustomerAlgorithm", "SSECustomerKey")
_PUTS = {"PutObject", "CopyObject", "CreateMultipartUpload", "UploadPart"}
_DELETES = {"DeleteObject", "DeleteObjects"}


class _NoConditionsError(Exception):
    pass


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


class S3Store(Store):
    """Objects of one side's endpoint. Safe for threads; not shared across processes."""

    def __init__(
        self, endpoint_url: str | None, policy: RetryPolicy, storage: StorageOptions = NO_OPTIONS
    ) -> None:
        self._policy, self._storage = policy, storage
        self._renew = False
        with usable_options(f"{S3}://", storage):
            options = _client_options(storage.values(), endpoint_url)
            self.filesystem = s3fs.S3FileSystem(
                **options, use_listings_cache=False, skip_instance_cache=True
            )
            self._added = self.filesystem.s3_additional_kwargs | self.filesystem.req_kw
            if self._added:
                _check_parameters(self._added)
        self._parts_at_once = options.get("max_concurrency", PARTS_AT_ONCE)

    def translate(self, error: Exception) -> StoreError:
        failure = from_exception(error)
        self._renew = self._renew or failure.expired
        if failure.kind == ACCESS_DENIED and failure.advice is None:
            failure.advice = self._advice(error)
        failure.found = self._storage.hide(failure.found)
        return failure

    def _advice(self, error: Exception) -> str | None:
        """Say which options a bucket may want that refuses those who have the right."""
        usual = FAILURE_KINDS[ACCESS_DENIED]
        if getattr(error, "operation_name", None) in _PUTS:
            return (
                f"{usual.write_advice}; if the bucket's policy wants encryption, an ACL or a "
                "storage class, set them in storage_options.s3_additional_kwargs"
            )
        if getattr(error, "operation_name", None) in _DELETES:
            return f"{usual.write_advice}: an output needs the right to delete (s3:DeleteObject)"
        if self.filesystem.anon:
            return (
                "give storage_options credentials in place of anon: this is not for anybody to read"
            )
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html: 403 in place of 404.
        hidden = "what is not there is refused, too, where they may not list"
        if "RequestPayer" in self._added:
            return f"{usual.read_advice}: {hidden}"
        return (
            f"{usual.read_advice}: {hidden}; if the requester pays, set "
            "storage_options.requester_pays"
        )

    def _ask(self, client: Any, method: str, **own: Any) -> Awaitable[Any]:
        """Call a method of the client with what the options add to it."""
        operation = client.meta.method_to_api_mapping[method]
        taken = client.meta.service_model.operation_model(operation).input_shape.members
        added = {name: value for name, value in self._added.items() if name in taken}
        if method == "copy_object":
            added = {name: value for name, value in added.items() if name not in _SAID_ONCE}
            added |= {f"CopySource{name}": added[name] for name in _CUSTOMER_KEY if name in added}
        answer: Awaitable[Any] = getattr(client, method)(**(added | own))
        return answer

    def _run(self, call: Callable[[Any], Awaitable[T]], *, sent_bytes: int = 0) -> T:
        limit_s = self._policy.request_timeout_s + sent_bytes / SLOWEST_UPLOAD_BYTES_PER_S

        async def limited() -> T:
            # Making a client reads files and asks for credentials: not part of a request's time.
            return await asyncio.wait_for(call(await self._client()), limit_s)

        result: T = sync(self.filesystem.loop, limited)
        return result

    async def _client(self) -> Any:
        with usable_options(f"{S3}://", self._storage):
            client = await self.filesystem.set_session(refresh=self._renew)
        self._renew = False
        for operation in ("PutObject", "UploadPart"):
            event = f"before-call.s3.{operation}"
            client.meta.events.register(event, _add_checksum, unique_id=f"checksum-{operation}")
        return client

    def info(self, uri: str) -> ObjectInfo:
        bucket, key = _object(uri)
        answer = self._run(lambda client: self._ask(client, "head_object", Bucket=bucket, Key=key))
        return ObjectInfo(size_bytes=answer["ContentLength"], etag=_bare(answer.get("ETag")))

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        bucket, key = _object(uri)

        async def get(client: Any) -> tuple[bytes, ObjectInfo]:
            answer = await self._ask(
                client, "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}"
            )
            async with answer["Body"] as body:
                data: bytes = await body.read()
            total = str(answer.get("ContentRange", "")).rpartition("/")[2]
            size = int(total) if total.isdecimal() else int(answer["ContentLength"])
            return data, ObjectInfo(size_bytes=size, etag=_bare(answer.get("ETag")))

        try:
            return self._run(get)
        except exceptions.ClientError as error:
            if "InvalidRange" not in str(error):
                raise
            # An empty object has no range; a shorter one than expected shows in its size.
            return b"", self.info(uri)

    def write(self, uri: str, data: bytes) -> None:
        self._put(uri, data)

    def upload(self, path: str, uri: str) -> None:
        size_bytes = os.path.getsize(path)
        if size_bytes <= PART_BYTES:
            with open(path, "rb") as file:
                self._put(uri, file.read())
            return
        # Not by s3fs: Amazon wants the checksums of the parts again at the end.
        bucket, key = split(uri)
        place = {"Bucket": bucket, "Key": key}
        started = self._run(lambda client: self._ask(client, "create_multipart_upload", **place))
        place["UploadId"] = started["UploadId"]
        try:
            parts = {"Parts": self._upload_parts(path, size_bytes, uri, place)}
            self._run(
                lambda client: self._ask(
                    client, "complete_multipart_upload", **place, MultipartUpload=parts
                )
            )
        except BaseException:
            self._abort(uri, place)
            raise

    def _abort(self, uri: str, place: Mapping[str, str]) -> None:
        try:
            self._run(lambda client: self._ask(client, "abort_multipart_upload", **place))
        except Exception as error:  # what ended the upload is the failure to tell
            found = without_secrets(str(failure_of(error, self)))
            event(logger, logging.INFO, "parts_left", uri=redact_uri(uri), found=found)

    def _upload_parts(
        self, path: str, size_bytes: int, uri: str, place: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        part_bytes = max(PART_BYTES, math.ceil(size_bytes / MOST_PARTS))

        def send(number: int) -> dict[str, Any]:
            with open(path, "rb") as file:
                file.seek((number - 1) * part_bytes)
                body = file.read(part_bytes)
            answer = with_retries(
                "writing",
                uri,
                lambda: self._run(
                    lambda client: self._ask(
                        client, "upload_part", **place, PartNumber=number, Body=body
                    ),
                    sent_bytes=len(body),
                ),
                policy=self._policy,
                store=self,
            )
            sums = {name: text for name, text in answer.items() if name.startswith("Checksum")}
            return {"PartNumber": number, "ETag": answer["ETag"]} | sums

        pool = ThreadPoolExecutor(self._parts_at_once, thread_name_prefix="upload")
        try:
            return list(pool.map(send, range(1, math.ceil(size_bytes / part_bytes) + 1)))
        finally:
            pool.shutdown(cancel_futures=True)

    def create(self, uri: str, data: bytes) -> bool:
        try:
            return self._put_if(uri, data, IfNoneMatch="*")
        except _NoConditionsError:  # so this is a look and then a put
            if self._content(uri, 1) is not None:
                return False
            self._put(uri, data)
            return True

    def swap(self, uri: str, data: bytes, expected: bytes) -> bool:
        found = self._content(uri, len(expected) + 1)
        if found is None or found[0] != expected:
            return False
        try:
            return self._put_if(uri, data, IfMatch=f'"{found[1].etag}"')
        except _NoConditionsError:
            self._put(uri, data)
            return True

    def move(self, uri: str, target: str) -> None:
        # One request copies 5 GB at most; no table of ours comes near that.
        bucket, key = split(uri)
        target_bucket, target_key = split(target)
        source = {"Bucket": bucket, "Key": key}
        self._run(
            lambda client: self._ask(
                client, "copy_object", Bucket=target_bucket, Key=target_key, CopySource=source
            )
        )
        self.remove(uri)

    def _put(self, uri: str, data: bytes, **conditions: str) -> None:
        bucket, key = split(uri)
        self._run(
            lambda client: self._ask(
                client, "put_object", Bucket=bucket, Key=key, Body=data, **conditions
            ),
            sent_bytes=len(data),
        )

    def _put_if(self, uri: str, data: bytes, **condition: str) -> bool:
        try:
            self._put(uri, data, **condition)
        except exceptions.ClientError as error:
            status = _status_of(error)
            if status == 501:
                raise _NoConditionsError from error
            if status == 412 or (status == 404 and "IfMatch" in condition):
                return False
            if status == 409:  # another conditional put at the same moment
                found = str(self.translate(error))
                raise StoreError(FETCH, found, transient=True) from error
            raise
        return True

    def _content(self, uri: str, num_bytes: int) -> tuple[bytes, ObjectInfo] | None:
        try:
            return self.read_range(uri, 0, num_bytes)
        except exceptions.ClientError as error:
            if from_exception(error).kind == NOT_FOUND:
                return None
            raise

    def remove(self, uri: str) -> None:
        bucket, key = split(uri)
        self._run(lambda client: self._ask(client, "delete_object", Bucket=bucket, Key=key))

    def pages(self, prefix: str, *, depth: int | None = None) -> Iterator[Page]:
        bucket, key = split(prefix)
        options: dict[str, Any] = {"Bucket": bucket, "Prefix": key, "MaxKeys": PAGE_KEYS}
        if depth == 1:
            options["Delimiter"] = "/"
        while True:
            answer = with_retries(
                "listing",
                prefix,
                lambda: self._run(lambda client: self._ask(client, "list_objects_v2", **options)),
                policy=self._policy,
                store=self,
            )
            # A key that ends in a slash and holds nothing stands for a folder.
            objects = [
                entry
                for entry in answer.get("Contents", ())
                if entry["Size"] or not entry["Key"].endswith("/")
            ]
            yield Page(
                [f"s3://{bucket}/{entry['Key']}" for entry in objects],
                [entry["Size"] for entry in objects],
                [_bare(entry.get("ETag")) for entry in objects],
            )
            if not answer.get("IsTruncated"):
                return
            following = answer.get("NextContinuationToken")
            if not following or following == options.get("ContinuationToken"):
                failure = StoreError(FETCH, "a page is not the last but names none after it")
                raise fetch_error("listing", prefix, failure)
            options["ContinuationToken"] = following


def _check_parameters(parameters: Iterable[str]) -> None:
    """Refuse what no request takes: it would be left out, and encryption with it."""
    model = Session().get_service_model("s3")
    shapes = (model.operation_model(name).input_shape for name in model.operation_names)
    unknown = set(parameters)
    for shape in shapes:
        unknown -= set(shape.members if shape else ())
    if unknown:
        raise ValueError(f"s3_additional_kwargs: no request has {', '.join(sorted(unknown))}")


def _client_options(given: dict[str, Any], endpoint_url: str | None) -> dict[str, Any]:
    """Return what s3fs is made with: these options, and where none is, FSSPEC_S3_ variables."""
    # Those, and its files: `fsspec` fills in the names that are missing here.
    usual: dict[str, Any] = fsspec.config.conf.get("s3", {})
    client = dict(usual.get("client_kwargs", {}))
    endpoint_url = given.get("endpoint_url") or endpoint_url
    if endpoint_url is not None:
        given["endpoint_url"] = endpoint_url
        client.pop("endpoint_url", None)
    if given.keys() & set(CREDENTIALS):  # of one account: not half of another's
        given = {**dict.fromkeys(CREDENTIALS), "anon": False} | given
        client = {name: each for name, each in client.items() if not name.startswith("aws_")}
    config = {**usual.get("config_kwargs", {}), **given.get("config_kwargs", {})}
    config.pop("retries", None)
    # Whoever sets it wants these trailers, or none: the client reads the setting itself.
    chosen = f"AWS_{_TRAILERS.upper()}" in os.environ or _TRAILERS in _aws_settings(
        given.get("profile")
    )
    return given | {
        "client_kwargs": client | given.get("client_kwargs", {}),
        "config_kwargs": CLIENT_OPTIONS | ({} if chosen else {_TRAILERS: "when_required"}) | config,
    }


def _aws_settings(profile: str | None) -> dict[str, Any]:
    try:
        found: dict[str, Any] = Session(profile=profile).get_scoped_config()
    except exceptions.BotoCoreError:  # such as a profile that is not there: said at a request
        return {}
    return found


def _add_checksum(params: dict[str, Any], **_: Any) -> None:
    """Add the MD5 of what is sent, unless another checksum goes with it."""
    headers, body = params["headers"], params["body"]
    # The client adds its own later, over TLS as a trailer in a body of another form.
    if params["context"].get("checksum", {}).get("request_algorithm"):
        return
    digest = hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes | bytearray):
        digest.update(body)
    else:  # a file
        start = body.tell()
        while piece := body.read(MEBIBYTE):
            digest.update(piece)
        body.seek(start)
    headers["Content-MD5"] = base64.b64encode(digest.digest()).decode()


def _object(uri: str) -> tuple[str, str]:
    bucket, key = split(uri)
    if not key:
        raise StoreError(NOT_FOUND, "found a bucket, expected an object")
    return bucket, key


def _status_of(error: exceptions.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _bare(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None


_NO_SUCH = {"NoSuchKey", "NotFound", "404"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "403"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired"}
_BUSY = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "InternalError",
         "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed"}  # fmt: skip
# What was sent did not arrive as it was.
_GARBLED = {"BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch",
            "XAmzContentSHA256Mismatch"}  # fmt: skip
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint",
              "IllegalLocationConstraintException"}  # fmt: skip
_WRONG_KEYS = {
    "InvalidAccessKeyId": (
        "the store does not know this access key",
        "check AWS_ACCESS_KEY_ID, the profile or storage_options.key, and that endpoint_url is of "
        "the store that gave the key",
    ),
    "SignatureDoesNotMatch": (
        "the secret does not belong to the access key",
        "check AWS_SECRET_ACCESS_KEY, the profile or storage_options.secret: it may be cut off or "
        "of another key",
    ),
}
_ENDPOINT_ADVICE = (
    "check endpoint_url (without it, AWS is used) or AWS_ENDPOINT_URL, and the network"
)


_TIMED_OUT = (
    TimeoutError, asyncio.TimeoutError, exceptions.ConnectTimeoutError,
    exceptions.ReadTimeoutError,
)  # fmt: skip


def from_exception(error: Exception) -> StoreError:
    """Translate whatever the client raised."""
    if isinstance(error, exceptions.ClientError):
        return _from_answer(error)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return StoreError(
            ACCESS_DENIED,
            "no credentials found in environment, profile or role",
            advice="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or key and secret "
            "in storage_options, or give this machine a role; for a public bucket, set "
            "storage_options.anon",
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return StoreError(
            ACCESS_DENIED,
            str(error),
            advice="correct AWS_PROFILE or storage_options.profile, or add it to ~/.aws/config",
        )
    if isinstance(error, exceptions.UnauthorizedSSOTokenError):
        return _expired("single sign-on")
    if isinstance(error, _TIMED_OUT):
        return StoreError(TIMEOUT, "no answer within the time limit", transient=True)
    if isinstance(error, exceptions.SSLError):
        return StoreError(
            FETCH,
            f"no secure connection ({error})",
            advice="start endpoint_url with http:// if the store has no TLS, or name its "
            "certificate in AWS_CA_BUNDLE",
        )
    if isinstance(error, exceptions.EndpointConnectionError):
        # A store that starts again is back soon; where there is none, nobody wants to wait.
        return StoreError(FETCH, f"no server answers ({error})", transient=True,
                          attempts=FEW_ATTEMPTS, advice=_ENDPOINT_ADVICE)  # fmt: skip
    if isinstance(error, exceptions.HTTPClientError | exceptions.IncompleteReadError):
        return StoreError(FETCH, f"the connection failed ({error})", transient=True)
    if isinstance(error, ResponseParserError):  # the page of a proxy, or half an answer
        return StoreError(FETCH, "the store's answer is no valid XML", transient=True)
    if isinstance(error, exceptions.ParamValidationError):
        return StoreError(NOT_FOUND, f"no possible name of an object ({error})")
    if isinstance(error, OSError):
        # An upload's has the client's own error behind it.
        if isinstance(error.__cause__, exceptions.ClientError):
            return _from_answer(error.__cause__)
        return from_os_error(error)
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return StoreError(
            FETCH,
            f"{error}, expected a URL such as http://127.0.0.1:9000",
            advice="correct endpoint_url or AWS_ENDPOINT_URL",
        )
    # Body reads fail with the HTTP library's own errors (payload cut short, disconnects).
    transient = "aiohttp" in type(error).__module__ or "aiobotocore" in type(error).__module__
    return StoreError(FETCH, f"{type(error).__name__}: {error}", transient=transient)


def _from_answer(error: exceptions.ClientError) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    message = str(error.response.get("Error", {}).get("Message", ""))
    status = _status_of(error)
    if code == "NoSuchBucket":
        return StoreError(NO_BUCKET, "there is no such bucket (NoSuchBucket)")
    if code in _NO_SUCH:
        return StoreError(NOT_FOUND, f"not found ({answer_of(code, message)})")
    # Presigned requests and other stores say it in words only.
    if code in _EXPIRED or (status in (401, 403) and "expired" in message.lower()):
        return _expired(f"{status} {code}")
    if code in _WRONG_KEYS:
        meaning, advice = _WRONG_KEYS[code]
        found = f"access denied ({answer_of(code, message)}): {meaning}"
        return StoreError(ACCESS_DENIED, found, advice=advice)
    if code == "InvalidObjectState":  # such as in Glacier
        return StoreError(ARCHIVED, f"the object is in the store's archive ({code}: {message})")
    if code in _DENIED:
        return StoreError(ACCESS_DENIED, f"access denied ({answer_of(code, message)})")
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if code in _ELSEWHERE:
        region = headers.get("x-amz-bucket-region") or error.response["Error"].get("Region")
        return StoreError(
            FETCH,
            f"the store answered {status} {code} ({message})",
            advice=f"set AWS_DEFAULT_REGION to the bucket's region{f', {region}' * bool(region)}",
        )
    if code in _GARBLED:
        found = f"the store answered {status} {answer_of(code, message)}"
        return StoreError(FETCH, found, transient=True, attempts=FEW_ATTEMPTS)
    asked_for = headers.get("retry-after")
    if code in _BUSY:
        return StoreError(FETCH, f"the store answered {status} {code}", transient=True,
                          retry_after_s=asked_wait_s(asked_for))  # fmt: skip
    return from_status(status, answer_of(code, message), retry_after=asked_for)


def _expired(reason: str) -> StoreError:
    # Asked again with what profile, role or environment hold by then.
    return StoreError(ACCESS_DENIED, f"access denied ({reason})", expired=True, transient=True,
                      attempts=FEW_ATTEMPTS)  # fmt: skip
