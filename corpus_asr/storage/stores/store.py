"""The store interface, retries, and the classification of store failures."""

import contextlib
import email.utils
import errno
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import IO, NamedTuple, TypeVar

from corpus_asr.config.storage_options import StorageOptions
from corpus_asr.errors import ConfigError, CorpusAsrError, FetchError, encodable
from corpus_asr.failure_kinds import (
    ACCESS_DENIED,
    CHANGED,
    FAILURE_KINDS,
    FETCH,
    NO_SPACE,
    NOT_FOUND,
    REFUSED,
    TIMEOUT,
)
from corpus_asr.logs import event
from corpus_asr.storage.stores.uri import is_by_size, redact_uri, scheme_of, without_secrets

logger = logging.getLogger(__name__)
T = TypeVar("T")

FEW_ATTEMPTS = 3  # for failures that clear at once or last long
_WRITING = {"writing", "creating", "replacing", "removing"}
_EXPIRED_ADVICE = "the credentials expired: renew them, then retry"
# Disk full, quota exceeded or file too large.
FULL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRANSIENT_ERRNO = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET,
    errno.EHOSTUNREACH, errno.EINTR, errno.EIO, errno.ENETUNREACH, errno.EPIPE, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip


@dataclass(eq=False)
class StoreError(Exception):
    """Failure of a store; `with_retries` turns it into a `FetchError`."""

    kind: str  # a name in `FAILURE_KINDS`
    found: str  # what was found and expected, without secrets
    _: KW_ONLY
    transient: bool = False  # whether an immediate retry may succeed
    retry_after_s: float = 0.0
    expired: bool = False  # access is denied because credentials expired
    attempts: int | None = None
    """Maximum number of failures of such kinds before giving up; None: no limit."""
    advice: str | None = None  # what to do; None: the default of the kind

    def __str__(self) -> str:
        return self.found


class RangesUnsupportedError(Exception):
    """The store can return this object only as a whole, from its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """Size and version of an object as reported by its store."""

    size_bytes: int | None
    etag: str | None  # version; for local files made of size and modification time
    time: str | None = None  # of modification, where the version is not made of it

    def __post_init__(self) -> None:
        """Escape header bytes that are not UTF-8: the version is stored in tables."""
        if self.etag is not None:
            object.__setattr__(self, "etag", encodable(self.etag))


TIMED = ";"
"""Separates an ETag that several objects have from the object's time."""


def may_be_same(version: str | None, present: str | None) -> bool:
    """Return whether two versions may be equal; unknown, or a size and an ETag, may be.

    So may an ETag with a time and the same without one: not every process knows which are shared.
    """
    if version is None or present is None or is_by_size(version) != is_by_size(present):
        return True
    if is_by_size(version):
        return version.partition("@")[0] == present.partition("@")[0]
    if TIMED in version and TIMED in present:
        return version == present
    return version.partition(TIMED)[0] == present.partition(TIMED)[0]


class Page(NamedTuple):
    """Some objects of a listing, as columns."""

    uris: list[str]
    sizes: list[int | None]
    etags: list[str | None]
    times: list[str | None]


def page_of(uris: list[str], infos: Sequence[ObjectInfo]) -> Page:
    """Return a page of some objects."""
    return Page(uris, [info.size_bytes for info in infos], [info.etag for info in infos],
                [info.time for info in infos])  # fmt: skip


class Store:
    """Interface of all stores; `translate` maps the errors of a store's library."""

    block_bytes: int | None = None
    """Size of the blocks in which objects are read, by its options; None: the default."""

    def translate(self, error: Exception) -> StoreError | None:
        """Return the `StoreError` of an exception; None if the store did not fail."""
        return from_os_error(error) if isinstance(error, OSError) else None

    def info(self, uri: str) -> ObjectInfo:
        """Return the size and version of the object."""
        raise NotImplementedError

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        """Return bytes `start` to `end` (fewer at the object's end) and their version."""
        raise NotImplementedError

    def download(self, uri: str, target: IO[bytes]) -> None:
        """Write the whole object to `target`, for stores without `read_range`."""
        raise NotImplementedError

    def write(self, uri: str, data: bytes) -> None:
        """Write the whole object atomically."""
        raise _read_only(f"write {len(data)} bytes")

    def upload(self, path: str, uri: str) -> None:
        """Upload a local file in parts, atomically."""
        raise _read_only(f"write {path}")

    def create(self, uri: str, data: bytes) -> bool:
        """Write the whole object if none exists; return whether it was written."""
        raise _read_only(f"write {len(data)} bytes")

    def swap(self, uri: str, data: bytes, expected: bytes) -> bool:
        """Replace the object if it equals `expected`; return whether it was replaced."""
        raise _read_only(f"write {len(data)} bytes")

    def remove(self, uri: str) -> None:
        """Remove the object if it exists."""
        raise _read_only("remove")

    def sweep(self, folder: str) -> None:
        """Remove what killed processes left below a folder; most stores keep nothing of these."""

    def pages(self, prefix: str, *, depth: int | None = None) -> Iterator[Page]:
        """List objects below a folder (`prefix` ends with a slash) or with a common prefix."""
        # More levels than `depth` may be listed: not every store can limit them.
        raise StoreError(FETCH, "cannot list: http URLs must be complete")


def no_conditions(found: str) -> StoreError:
    """Return what to raise by a store on which two runs could hold one lock."""
    return StoreError(
        REFUSED,
        f"found {found}, expected conditional writes, without which two runs may get the lock",
        advice="choose another output, such as a local folder or a bucket of another store; the "
        "source may stay there",
    )


def _read_only(doing: str) -> StoreError:
    return StoreError(FETCH, f"cannot {doing}: http URLs are read-only")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Number of requests and time that one operation may take."""

    attempts: int = 10
    """If a store refuses one request in five, one operation in ten million fails this often."""
    patience_s: float = 180.0  # after this time, only a few attempts are made
    first_wait_s: float = 0.25
    """Doubled after each attempt, then shortened at random so that workers do not retry in step."""
    longest_wait_s: float = 20.0
    request_timeout_s: float = 60.0
    """Time limit of one request; stalled requests are canceled and retried."""

    def wait_s(self, failures: int, *, at_least_s: float = 0.0) -> float:
        """Return the pause in seconds after the `failures`-th failure (from 1)."""
        longest = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return max(at_least_s, random.uniform(0.5, 1.0) * longest)


DEFAULT_POLICY = RetryPolicy()
_retries_of_threads: dict[int, int] = {}  # by thread ID, so that no lock is needed


def retries_so_far() -> int:
    """Return how many requests this process has retried."""
    return sum(_retries_of_threads.copy().values())


def with_retries(
    doing: str,
    uri: str,
    operation: Callable[[], T],
    *,
    policy: RetryPolicy = DEFAULT_POLICY,
    store: Store = Store(),  # noqa: B008 - it has no state
) -> T:
    """Run a store operation, retrying transient failures; else raise a `FetchError`."""
    started, few = time.monotonic(), 0
    for failures in range(1, policy.attempts + 1):
        try:
            return operation()
        except Exception as raised:
            error = failure_of(raised, store)
            wait_s = policy.wait_s(failures, at_least_s=error.retry_after_s)
            late = time.monotonic() + wait_s - started > policy.patience_s
            few += error.attempts is not None
            enough = failures == policy.attempts or few == error.attempts
            # Do not retry earlier than the store asks, nor wait longer than the policy allows.
            asked_too_long = late and error.retry_after_s > policy.longest_wait_s
            few_left = late and failures >= FEW_ATTEMPTS
            if not error.transient or enough or few_left or asked_too_long:
                raise fetch_error(doing, uri, error, attempts=failures) from error
            thread = threading.get_ident()
            _retries_of_threads[thread] = _retries_of_threads.get(thread, 0) + 1
            event(
                logger, logging.INFO, "retry", doing=doing, uri=redact_uri(uri), failures=failures,
                wait_s=round(wait_s, 2), found=without_secrets(str(error)),
            )  # fmt: skip
            time.sleep(wait_s)
    raise AssertionError("a policy allows at least one attempt")


def failure_of(raised: Exception, store: Store) -> StoreError:
    """Return the `StoreError` of an exception; raise the exception again if there is none."""
    if isinstance(raised, StoreError):
        return raised
    final = isinstance(raised, CorpusAsrError | RangesUnsupportedError)
    error = None if final else store.translate(raised)
    if error is None:
        raise raised
    error.__cause__ = raised
    return error


def fetch_error(doing: str, uri: str, error: StoreError, *, attempts: int = 1) -> FetchError:
    """Return the public exception for a store's failure."""
    tries = f" ({attempts} attempts)" if attempts > 1 else ""
    kind = FAILURE_KINDS[error.kind]
    usual = (kind.write_advice if doing in _WRITING else "") or kind.read_advice
    advice = _EXPIRED_ADVICE if error.expired else error.advice or usual
    message = f"{doing} {redact_uri(uri)}: {without_secrets(str(error))}{tries}; {advice}"
    return FetchError(message, uri=uri, kind=kind.name, retryable=error.expired or kind.transient)


@contextlib.contextmanager
def usable_options(uri: str, storage: StorageOptions) -> Iterator[None]:
    """Turn a library's errors about options or the URI into a `ConfigError`."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if str(error).startswith("Invalid endpoint"):  # the library's message states the fix
            raise
        raise ConfigError(
            f"opening {redact_uri(uri)}: {scheme_of(uri)}:// does not work "
            f"({storage.hide(without_secrets(str(error)))}), expected a scheme of fsspec, such as "
            "s3://, gs:// or abfs://, and its options; correct the "
            f"URI{' or storage_options' if storage else ''}"
        ) from error


def from_os_error(error: OSError) -> StoreError:
    """Translate an error of the operating system, or of a library with the same error numbers."""
    reason = without_secrets(error.strerror or str(error) or type(error).__name__)
    reason = reason.splitlines()[0]  # libhdfs lists every folder without Java
    if isinstance(error, FileNotFoundError):
        return StoreError(NOT_FOUND, "not found, expected an object of this name")
    if isinstance(error, NotADirectoryError):
        return StoreError(NOT_FOUND, "not found: found a file, expected a folder")
    if isinstance(error, IsADirectoryError):
        return StoreError(NOT_FOUND, "found a folder, expected a file")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return StoreError(ACCESS_DENIED, f"access denied ({reason})")
    if isinstance(error, TimeoutError):
        return StoreError(TIMEOUT, "no answer within the time limit", transient=True)
    if error.errno in FULL_ERRNO:
        return StoreError(NO_SPACE, f"no space left ({reason})")
    transient = isinstance(error, ConnectionError) or error.errno in _TRANSIENT_ERRNO
    return StoreError(FETCH, f"the store failed ({reason})", transient=transient)


def asked_wait_s(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 if missing or invalid."""
    if not retry_after:
        return 0.0
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        when_s = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, OverflowError):  # numbers of twenty digits
        return 0.0
    return max(0.0, when_s - time.time())


# Long enough for any sentence of a store, short enough for a message or a table.
_MOST_WORDS_CHARS = 300
# Further signature parameters that a store repeats, and anything as long as a token.
_SECRET_WORDS = re.compile(
    r"(\b(?:credential|signature|sig|(?:\w+[_-])?key)=)[^\s&,;\"']+|\b[A-Za-z0-9+/=]{80,}",
    re.IGNORECASE,
)


def answer_of(code: str, words: str) -> str:
    """Return a store's error code and message: one line, bounded, without secrets."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    line = _SECRET_WORDS.sub(lambda match: f"{match[1] or ''}[hidden]", without_secrets(line))
    line = line if len(line) <= _MOST_WORDS_CHARS else f"{line[:_MOST_WORDS_CHARS]}..."
    # Some stores repeat the code as the message.
    return f"{code}: {line}" if line and line != code else code


def from_status(status: int, reason: str, *, retry_after: str | None = None) -> StoreError:
    """Translate an HTTP error status."""
    answer = f"the store answered {status} {reason}".rstrip()
    if status in (404, 410):
        return StoreError(NOT_FOUND, f"not found ({status} {reason})")
    if status in (401, 403):
        return StoreError(ACCESS_DENIED, f"access denied ({status} {reason})")
    if status in (408, 504):
        return StoreError(TIMEOUT, answer, transient=True)
    if status == 412:
        return StoreError(CHANGED, f"{answer}: the object changed while it was read")
    transient = status in (425, 429) or status >= 500
    return StoreError(FETCH if transient else REFUSED, answer, transient=transient,
                      retry_after_s=asked_wait_s(retry_after))  # fmt: skip
