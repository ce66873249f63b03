"""What S3 stores and their client library say when they fail, in the words of `StoreError`.

In: an exception. Out: what it means, whether another try may help, and what to do. Asks no store.
"""

import asyncio

from botocore import exceptions
from botocore.parsers import ResponseParserError

from corpus_asr.storage.stores.retry import (
    ACCESS_DENIED,
    FETCH,
    FEW_ATTEMPTS,
    NO_BUCKET,
    NOT_FOUND,
    TIMEOUT,
    StoreError,
    asked_wait_s,
    from_os_error,
    from_status,
)

_NO_SUCH = {"NoSuchKey", "NotFound", "404"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "InvalidObjectState", "403"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired"}
_BUSY = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException", "InternalError",
         "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed"}  # fmt: skip
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint",
              "IllegalLocationConstraintException"}  # fmt: skip
_WRONG_KEYS = {
    "InvalidAccessKeyId": (
        "the store does not know this access key",
        "check AWS_ACCESS_KEY_ID or the profile, and that endpoint_url is of the store that gave "
        "the key",
    ),
    "SignatureDoesNotMatch": (
        "the secret does not belong to the access key",
        "check AWS_SECRET_ACCESS_KEY or the profile: it may be cut off or of another key",
    ),
}
_ENDPOINT_ADVICE = (
    "check endpoint_url (where it is left out, Amazon is asked) or AWS_ENDPOINT_URL, and the "
    "network"
)


def from_exception(error: Exception) -> StoreError:
    """Translate whatever the client raised."""
    if isinstance(error, exceptions.ClientError):
        return _from_answer(error)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return StoreError(
            ACCESS_DENIED,
            "no credentials found in environment, profile or role",
            advice="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this "
            "machine a role",
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return StoreError(
            ACCESS_DENIED, str(error), advice="correct AWS_PROFILE, or add it to ~/.aws/config"
        )
    if isinstance(error, exceptions.UnauthorizedSSOTokenError):
        return _expired("single sign-on")
    if isinstance(
        error,
        TimeoutError
        | asyncio.TimeoutError
        | exceptions.ConnectTimeoutError
        | exceptions.ReadTimeoutError,
    ):
        return StoreError(TIMEOUT, "no answer within the time limit", transient=True)
    if isinstance(error, exceptions.SSLError):
        return StoreError(
            FETCH,
            f"no secure connection ({error})",
            advice="begin endpoint_url with http:// if the store has no TLS, or name its "
            "certificate in AWS_CA_BUNDLE",
        )
    if isinstance(error, exceptions.EndpointConnectionError):
        # A store that starts again is back soon; where there is none, nobody wants to wait.
        return StoreError(FETCH, f"nobody answers ({error})", transient=True,
                          attempts=FEW_ATTEMPTS, advice=_ENDPOINT_ADVICE)  # fmt: skip
    if isinstance(error, exceptions.HTTPClientError | exceptions.IncompleteReadError):
        return StoreError(FETCH, f"the connection failed ({error})", transient=True)
    if isinstance(error, ResponseParserError):  # the page of a proxy, or half an answer
        return StoreError(FETCH, "the store's answer is no valid XML", transient=True)
    if isinstance(error, exceptions.ParamValidationError):
        return StoreError(NOT_FOUND, f"no possible name of an object ({error})")
    if isinstance(error, OSError):
        return from_os_error(error)
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return StoreError(
            FETCH,
            f"{error}, expected an address such as http://127.0.0.1:9000",
            advice="correct endpoint_url or AWS_ENDPOINT_URL",
        )
    # Body reads fail with the HTTP library's own errors (payload cut short, disconnects).
    transient = "aiohttp" in type(error).__module__ or "aiobotocore" in type(error).__module__
    return StoreError(FETCH, f"{type(error).__name__}: {error}", transient=transient)


def _from_answer(error: exceptions.ClientError) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    told = str(error.response.get("Error", {}).get("Message", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return StoreError(NO_BUCKET, "there is no such bucket (NoSuchBucket)")
    if code in _NO_SUCH:
        return StoreError(NOT_FOUND, f"not found ({code})")
    # Presigned requests and other stores say it in words only.
    if code in _EXPIRED or (status in (401, 403) and "expired" in told.lower()):
        return _expired(f"{status} {code}")
    if code in _WRONG_KEYS:
        meaning, advice = _WRONG_KEYS[code]
        return StoreError(ACCESS_DENIED, f"access denied ({code}): {meaning}", advice=advice)
    if code in _DENIED:
        return StoreError(ACCESS_DENIED, f"access denied ({code})")
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if code in _ELSEWHERE:
        region = headers.get("x-amz-bucket-region") or error.response["Error"].get("Region")
        return StoreError(
            FETCH,
            f"the store answered {status} {code} ({told})",
            advice=f"set AWS_DEFAULT_REGION to the bucket's region{f', {region}' * bool(region)}",
        )
    asked_for = headers.get("retry-after")
    if code in _BUSY:
        return StoreError(FETCH, f"the store answered {status} {code}", transient=True,
                          retry_after_s=asked_wait_s(asked_for))  # fmt: skip
    return from_status(status, code, retry_after=asked_for)


def _expired(told: str) -> StoreError:
    # Asked again with what profile, role or environment hold by then.
    return StoreError(ACCESS_DENIED, f"access denied ({told})", expired=True, transient=True,
                      attempts=FEW_ATTEMPTS)  # fmt: skip
