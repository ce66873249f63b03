"""JSON to a webhook: an address that is itself a secret, and a server that may not answer.

In: an address and a value. Out: nothing, or a `FetchError` that names the host and no more of the
address. The address is the user's own word, so its host may be any; a redirect is another's, and
is not followed. Plain http, which shows the secret to whoever listens, goes only to hosts that
`source.allow_hosts` admits. Knows nothing of what is told.
"""

import json
import urllib.parse
from collections.abc import Sequence
from typing import Any

import aiohttp
from fsspec.asyn import get_loop, sync

from corpus_asr.errors import FetchError
from corpus_asr.storage.stores.host_allowlist import HostRules, Verdict, host_of
from corpus_asr.storage.stores.http import web_failure
from corpus_asr.storage.stores.retry import (
    FETCH,
    REFUSED_HOST,
    RetryPolicy,
    StoreError,
    from_status,
    persist,
)

# Nobody waits for a message longer than for about a minute.
PATIENCE = RetryPolicy(attempts=3, patience_s=30.0, longest_wait_s=10.0, request_timeout_s=15.0)
_DOING = "telling the webhook at"


def post_json(
    url: str,
    value: Any,
    *,
    allow_hosts: Sequence[str] | None = None,
    policy: RetryPolicy = PATIENCE,
) -> None:
    """Post a value, again where the server does not answer or says that it cannot now.

    Args:
        url: an https address, of any form that gives access.
        value: plain data.
        allow_hosts: where http is good enough.
        policy: how often and how long.

    Raises:
        FetchError: it was not taken.
    """
    host = host_of(url)
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")

    def post() -> None:
        _check(url, host, allow_hosts)
        try:
            sync(get_loop(), _post, url, body, policy.request_timeout_s)
        except StoreError:
            raise
        except Exception as error:
            raise web_failure(error) from None  # its text holds the address

    try:
        persist(_DOING, host or "?", post, policy=policy)
    except FetchError as error:
        cause = error.__cause__
        assert isinstance(cause, StoreError)
        raise FetchError(
            f"{_DOING} {host or '?'}: {cause}; check its address and its server",
            kind=error.kind,
        ) from None


def _check(url: str, host: str, allow_hosts: Sequence[str] | None) -> None:
    """Return if the address may be asked.

    Raises:
        StoreError: it may not.
    """
    scheme = urllib.parse.urlsplit(url).scheme if host else ""
    if scheme not in ("http", "https"):
        raise StoreError(FETCH, "found no https address with a host")
    rules = HostRules(listed=tuple(allow_hosts or ()))
    if scheme == "http" and rules.verdict(host, redirected=False) is not Verdict.ADMITTED:
        raise StoreError(
            REFUSED_HOST,
            "refused to send a secret address over http: expected https, or a host that "
            "source.allow_hosts admits",
        )


async def _post(url: str, body: bytes, limit_s: float) -> None:
    limits = aiohttp.ClientTimeout(total=limit_s)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    async with (
        aiohttp.ClientSession(timeout=limits, trust_env=True) as session,
        session.post(url, data=body, headers=headers, allow_redirects=False) as response,
    ):
        if 300 <= response.status < 400:
            found = f"the server answered {response.status}, a redirect, which is not followed"
            raise StoreError(FETCH, found)
        if response.status >= 400:
            retry_after = response.headers.get("Retry-After")
            found = f"the server answered {response.status} {response.reason or ''}".rstrip()
            like = from_status(response.status, "", retry_after=retry_after)
            raise StoreError(
                like.kind, found, transient=like.transient, retry_after_s=like.retry_after_s
            )
