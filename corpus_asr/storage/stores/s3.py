"""Store of S3-compatible services: s3://bucket/key, the key taken literally."""

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
    no_conditions,
    page_of,
    usable_options,
    with_retries,
)
from corpus_asr.storage.stores.uri import redact_uri, without_secrets
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
PAGE_KEYS = 1000  # the protocol's limit
READ_TIMEOUT_S = 30  # maximum silence on an open connection
SLOWEST_UPLOAD_BYTES_PER_S = 256 * 1024  # merged tables are large, and some uplinks slow
PART_BYTES = 32 * MEBIBYTE
MOST_PARTS = 10_000  # the protocol's limit
PARTS_AT_ONCE = 4
# The client's own retries are off: `with_retries` classifies transient failures.
CLIENT_OPTIONS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": READ_TIMEOUT_S,
    "retries": {"total_max_attempts": 1, "mode": "standard"},
    "max_pool_connections": 32,
    "response_checksum_validation": "when_required",
}
# Stores other than Amazon's refuse the checksum trailers that newer clients send by default. All
# accept the older header, without which buckets with Object Lock refuse every write.
_TRAILERS = "request_checksum_calculation"
_PUTS = {"PutObject", "CreateMultipartUpload", "UploadPart"}
_DELETES = {"DeleteObject", "DeleteObjects"}


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


class S3Store(Store):
    """Objects of one endpoint. Thread-safe; not shared across processes."""

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
        self.block_bytes = options.get("default_block_size")

    def translate(self, error: Exception) -> StoreError:
        failure = from_exception(error)
        self._renew = self._renew or failure.expired
        if failure.kind == ACCESS_DENIED and failure.advice is None:
            failure.advice = self._advice(error)
        failure.found = self._storage.hide(failure.found)
        return failure

    def _advice(self, error: Exception) -> str | None:
        """Return which request options a bucket may require although access is granted."""
        usual = FAILURE_KINDS[ACCESS_DENIED]
        if getattr(error, "operation_name", None) in _PUTS:
            return (
                f"{usual.write_advice}; if the bucket policy requires encryption, an ACL or a "
                "storage class, set them in storage_options.s3_additional_kwargs"
            )
        if getattr(error, "operation_name", None) in _DELETES:
            return f"{usual.write_advice}: an output needs s3:DeleteObject"
        if self.filesystem.anon:
            return "set credentials in storage_options in place of anon, since this is not public"
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html: 403 in place of 404.
        hidden = "without permission to list, missing objects are denied too"
        if "RequestPayer" in self._added:
            return f"{usual.read_advice}: {hidden}"
        return (
            f"{usual.read_advice}: {hidden}; if the requester pays, set "
            "storage_options.requester_pays"
        )

    def _ask(self, client: Any, method: str, **own: Any) -> Awaitable[Any]:
        """Call a client method with the parameters that the options add to it."""
        operation = client.meta.method_to_api_mapping[method]
        taken = client.meta.service_model.operation_model(operation).input_shape.members
        added = {name: value for name, value in self._added.items() if name in taken}
        answer: Awaitable[Any] = getattr(client, method)(**(added | own))
        return answer

    def _run(self, call: Callable[[Any], Awaitable[T]], *, sent_bytes: int = 0) -> T:
        limit_s = self._policy.request_timeout_s + sent_bytes / SLOWEST_UPLOAD_BYTES_PER_S

        async def limited() -> T:
            # Creating a client reads files and credentials: not counted in the time limit.
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

    def _of_object(self, method: str, uri: str, *, sent_bytes: int = 0, **parameters: Any) -> Any:
        """Call a client method for an object."""
        bucket, key = _object(uri)
        return self._run(
            lambda client: self._ask(client, method, Bucket=bucket, Key=key, **parameters),
            sent_bytes=sent_bytes,
        )

    def info(self, uri: str) -> ObjectInfo:
        answer = self._of_object("head_object", uri)
        return _info(answer, int(answer["ContentLength"]))

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
            return data, _info(answer, size)

        try:
            return self._run(get)
        except exceptions.ClientError as error:
            if "InvalidRange" not in str(error):
                raise
            # An empty object has no range; a shorter object shows in its size.
            return b"", self.info(uri)

    def write(self, uri: str, data: bytes) -> None:
        self._put(uri, data)

    def upload(self, path: str, uri: str) -> None:
        size_bytes = os.path.getsize(path)
        if size_bytes <= PART_BYTES:
            with open(path, "rb") as file:
                self._put(uri, file.read())
            return
        # Not through s3fs: Amazon requires the checksums of the parts again at completion.
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
        except Exception as error:  # report the error that ended the upload
            failure = without_secrets(str(failure_of(error, self)))
            event(logger, logging.INFO, "parts_left", uri=redact_uri(uri), found=failure)

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
        return self._put_if(uri, data, IfNoneMatch="*")

    def swap(self, uri: str, data: bytes, expected: bytes) -> bool:
        content = self._content(uri, len(expected) + 1)
        if content is None or content[0] != expected:
            return False
        version = content[1].etag
        if version is None:
            raise no_conditions("no ETag of its own for each object")
        return self._put_if(uri, data, IfMatch=f'"{version}"')

    def _put(self, uri: str, data: bytes, **conditions: str) -> None:
        self._of_object("put_object", uri, sent_bytes=len(data), Body=data, **conditions)

    def _put_if(self, uri: str, data: bytes, **condition: str) -> bool:
        try:
            self._put(uri, data, **condition)
        except exceptions.ClientError as error:
            status = _status_of(error)
            code = str(error.response.get("Error", {}).get("Code", ""))
            if (
                status == 501
                or code in _NO_CONDITIONS
                or (status in (400, 405) and code in ("", str(status)))
            ):
                named = " and ".join(condition)
                raise no_conditions(f"{code or status} for a write with {named}") from error
            if status == 412 or (status == 404 and "IfMatch" in condition):
                return False
            if status == 409:  # a concurrent conditional write
                reason = str(self.translate(error))
                raise StoreError(FETCH, reason, transient=True) from error
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
        self._of_object("delete_object", uri)

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
            # An empty object whose key ends in a slash stands for a folder.
            objects = [
                entry
                for entry in answer.get("Contents", ())
                if entry["Size"] or not entry["Key"].endswith("/")
            ]
            uris = [f"s3://{bucket}/{entry['Key']}" for entry in objects]
            yield page_of(uris, [_info(entry, entry["Size"]) for entry in objects])
            if not answer.get("IsTruncated"):
                return
            following = answer.get("NextContinuationToken")
            if not following or following == options.get("ContinuationToken"):
                failure = StoreError(FETCH, "a listing page is not the last but has no next one")
                raise fetch_error("listing", prefix, failure)
            options["ContinuationToken"] = following


def _check_parameters(parameters: Iterable[str]) -> None:
    """Reject parameters unknown to every request: they would be ignored, encryption included."""
    model = Session().get_service_model("s3")
    shapes = (model.operation_model(name).input_shape for name in model.operation_names)
    unknown = set(parameters)
    for shape in shapes:
        unknown -= set(shape.members if shape else ())
    if unknown:
        raise ValueError(f"s3_additional_kwargs: no S3 request takes {', '.join(sorted(unknown))}")


def _client_options(options: dict[str, Any], endpoint_url: str | None) -> dict[str, Any]:
    """Return the s3fs options: these, with defaults from FSSPEC_S3_ variables."""
    # Variables and config files; `fsspec` fills in options missing here.
    usual: dict[str, Any] = fsspec.config.conf.get("s3", {})
    client = dict(usual.get("client_kwargs", {}))
    endpoint_url = options.get("endpoint_url") or endpoint_url
    if endpoint_url is not None:
        options["endpoint_url"] = endpoint_url
        client.pop("endpoint_url", None)
    if options.keys() & set(CREDENTIALS):  # never mix credentials of two accounts
        options = {**dict.fromkeys(CREDENTIALS), "anon": False} | options
        client = {name: setting for name, setting in client.items() if not name.startswith("aws_")}
    config = {**usual.get("config_kwargs", {}), **options.get("config_kwargs", {})}
    config.pop("retries", None)
    # An explicit setting of trailers is respected: the client reads it itself.
    chosen = f"AWS_{_TRAILERS.upper()}" in os.environ or _TRAILERS in _aws_settings(
        options.get("profile")
    )
    return options | {
        "client_kwargs": client | options.get("client_kwargs", {}),
        "config_kwargs": CLIENT_OPTIONS | ({} if chosen else {_TRAILERS: "when_required"}) | config,
    }


def _aws_settings(profile: str | None) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = Session(profile=profile).get_scoped_config()
    except exceptions.BotoCoreError:  # a missing profile, for example; reported at a request
        return {}
    return settings


def _add_checksum(params: dict[str, Any], **_: Any) -> None:
    """Add the MD5 of the request body, unless another checksum is sent."""
    headers, body = params["headers"], params["body"]
    # The client adds its own later; over TLS as a trailer, which changes the body.
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


def _info(answer: Mapping[str, Any], size_bytes: int) -> ObjectInfo:
    etag, time = answer.get("ETag"), answer.get("LastModified")
    return ObjectInfo(
        size_bytes=size_bytes,
        etag=etag.strip('"') if etag else None,
        time=str(int(time.timestamp())) if time else None,
    )


_NO_CONDITIONS = {"NotImplemented", "XNotImplemented", "NotSupported", "UnsupportedOperation"}
_NO_SUCH = {"NoSuchKey", "NotFound", "404"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "403"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired"}
_BUSY = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "InternalError",
         "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed"}  # fmt: skip
# The body was corrupted in transit.
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
    """Translate any exception of the client."""
    if isinstance(error, exceptions.ClientError):
        return _from_answer(error)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return StoreError(
            ACCESS_DENIED,
            "no credentials found in environment, profile or role",
            advice=(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or key and secret "
                "in storage_options, or a role of this machine; for a public bucket, set "
                "storage_options.anon"
            ),
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
        # A restarting store is back soon; if there is none, waiting is pointless.
        return StoreError(FETCH, f"no server answers ({error})", transient=True,
                          attempts=FEW_ATTEMPTS, advice=_ENDPOINT_ADVICE)  # fmt: skip
    if isinstance(error, exceptions.HTTPClientError | exceptions.IncompleteReadError):
        return StoreError(FETCH, f"the connection failed ({error})", transient=True)
    if isinstance(error, ResponseParserError):  # a proxy's page, or a truncated response
        return StoreError(FETCH, "the response is not valid XML", transient=True)
    if isinstance(error, exceptions.ParamValidationError):
        return StoreError(NOT_FOUND, f"not a valid object key ({error})")
    if isinstance(error, OSError):
        # An upload error is caused by the client's own error.
        if isinstance(error.__cause__, exceptions.ClientError):
            return _from_answer(error.__cause__)
        return from_os_error(error)
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return StoreError(
            FETCH,
            f"{error}, expected a URL such as http://127.0.0.1:9000",
            advice="correct endpoint_url or AWS_ENDPOINT_URL",
        )
    # Body reads fail with the HTTP library's errors (truncated payload, disconnects).
    transient = "aiohttp" in type(error).__module__ or "aiobotocore" in type(error).__module__
    return StoreError(FETCH, f"{type(error).__name__}: {error}", transient=transient)


def _from_answer(error: exceptions.ClientError) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    message = str(error.response.get("Error", {}).get("Message", ""))
    status = _status_of(error)
    if code == "NoSuchBucket":
        return StoreError(NO_BUCKET, "no such bucket (NoSuchBucket)")
    if code in _NO_SUCH:
        return StoreError(NOT_FOUND, f"not found ({answer_of(code, message)})")
    # Presigned requests and other stores report it only in the message.
    if code in _EXPIRED or (status in (401, 403) and "expired" in message.lower()):
        return _expired(f"{status} {code}")
    if code in _WRONG_KEYS:
        meaning, advice = _WRONG_KEYS[code]
        problem = f"access denied ({answer_of(code, message)}): {meaning}"
        return StoreError(ACCESS_DENIED, problem, advice=advice)
    if code == "InvalidObjectState":  # Glacier, for example
        return StoreError(ARCHIVED, f"the object is archived ({code}: {message})")
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
        problem = f"the store answered {status} {answer_of(code, message)}"
        return StoreError(FETCH, problem, transient=True, attempts=FEW_ATTEMPTS)
    asked_for = headers.get("retry-after")
    if code in _BUSY:
        return StoreError(FETCH, f"the store answered {status} {code}", transient=True,
                          retry_after_s=asked_wait_s(asked_for))  # fmt: skip
    return from_status(status, answer_of(code, message), retry_after=asked_for)


def _expired(reason: str) -> StoreError:
    # Retried with the current credentials of the profile, role or environment.
    return StoreError(ACCESS_DENIED, f"access denied ({reason})", expired=True, transient=True,
                      attempts=FEW_ATTEMPTS)  # fmt: skip
