"""Puts that depend on what is there: for one writer among many to win.

In: addresses and bytes. Out: whether this call won. On Amazon's S3 and stores like it, and on
local disks, exactly one of many wins; stores without conditional puts are looked at before they
are written to, and whoever writes last has won: a caller that must know reads back after a while.
Knows nothing of what is stored.
"""

from collections.abc import Callable

from corpus_asr.errors import FetchError
from corpus_asr.storage.stores.filesystem import Store, store_for
from corpus_asr.storage.stores.retry import DEFAULT_POLICY, NOT_FOUND, RetryPolicy, persist
from corpus_asr.storage.stores.uri import normalise
from corpus_asr.units import MEBIBYTE

PEEK_BYTES = MEBIBYTE // 16


def peek(
    uri: str, *, endpoint_url: str | None = None, policy: RetryPolicy = DEFAULT_POLICY
) -> bytes | None:
    """Return a small object, or the first `PEEK_BYTES` of a large one; None if there is none.

    One request, so that an object that is replaced meanwhile is seen as it was or as it is.

    Raises:
        FetchError: the store does not answer.
    """
    uri = normalise(uri)
    store = store_for(uri, endpoint_url=endpoint_url, policy=policy)
    try:
        return persist("reading", uri, lambda: store.read_range(uri, 0, PEEK_BYTES)[0],
                       policy=policy)  # fmt: skip
    except FetchError as error:
        if error.kind == NOT_FOUND:
            return None
        raise


def create(
    uri: str,
    data: bytes,
    *,
    endpoint_url: str | None = None,
    policy: RetryPolicy = DEFAULT_POLICY,
) -> bool:
    """Put a small object if there is none of this name; tell whether it holds `data` now.

    Args:
        uri: address of the object.
        data: something nobody else would put.
        endpoint_url: the store, where it is not the default one.
        policy: how often the store is asked.

    Raises:
        FetchError: the store does not answer.
    """
    return _put("creating", uri, lambda store, uri: store.create(uri, data), data,
                endpoint_url=endpoint_url, policy=policy)  # fmt: skip


def swap(
    uri: str,
    data: bytes,
    expected: bytes,
    *,
    endpoint_url: str | None = None,
    policy: RetryPolicy = DEFAULT_POLICY,
) -> bool:
    """Replace a small object if it holds exactly `expected`; tell whether it holds `data` now.

    Args:
        uri: address of the object.
        data: something nobody else would put.
        expected: what it has to hold.
        endpoint_url: the store, where it is not the default one.
        policy: how often the store is asked.

    Raises:
        FetchError: the store does not answer.
    """
    return _put("replacing", uri, lambda store, uri: store.swap(uri, data, expected), data,
                endpoint_url=endpoint_url, policy=policy)  # fmt: skip


def _put(
    doing: str,
    uri: str,
    put: Callable[[Store, str], bool],
    data: bytes,
    *,
    endpoint_url: str | None,
    policy: RetryPolicy,
) -> bool:
    uri = normalise(uri)
    store = store_for(uri, endpoint_url=endpoint_url, policy=policy)
    if persist(doing, uri, lambda: put(store, uri), policy=policy):
        return True
    # The first of two attempts may have done it, its answer lost.
    return peek(uri, endpoint_url=endpoint_url, policy=policy) == data
