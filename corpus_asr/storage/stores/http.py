"""Read-only store of objects behind http(s) URLs, and JSON posts to a webhook."""

import asyncio
import html
import ipaddress
import json
import logging
import re
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import IO, Any, TypeVar

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from fsspec.asyn import get_loop, sync
from fsspec.implementations.http import HTTPFileSystem

from corpus_asr.failure_kinds import ACCESS_DENIED, FETCH, REFUSED, REFUSED_HOST, TIMEOUT
from corpus_asr.logs import event
from corpus_asr.storage.stores.host_allowlist import WEB, HostRules, Verdict, host_of, is_public
from corpus_asr.storage.stores.store import (
    ObjectInfo,
    RangesUnsupportedError,
    RetryPolicy,
    Store,
    StoreError,
    answer_of,
    from_os_error,
    from_status,
    with_retries,
)
from corpus_asr.units import MEBIBYTE

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10
CONNECT_ATTEMPTS = 5  # about four seconds
READ_TIMEOUT_S = 30  # maximum silence on an open connection
# Byte offsets of a compressed response differ from those of the object.
_IDENTITY = {"Accept-Encoding": "identity"}
_FETCH_IT = "download it with another program, and name the file"
_DENIED_ADVICE = (
    "renew the signature or password in the URL if it has one; servers that want a login, cookies "
    f"or a browser's User-Agent are not asked so: {_FETCH_IT}"
)
_CODINGS = {"br", "compress", "deflate", "gzip", "x-gzip", "zstd"}
_RANGES_MISSING = 200
_REDIRECTS = {301, 302, 303, 307, 308}
MAX_REDIRECTS = 10
# Lower than the bit rate of speech at 64 kbit/s.
LEAST_BYTES_PER_S = 8_000


def web_failure(error: Exception) -> StoreError:
    """Translate a connection error; no message contains the URL."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return StoreError(TIMEOUT, "no answer within the time limit", transient=True)
    if isinstance(error, aiohttp.InvalidURL | UnicodeError):  # also from a redirect
        return StoreError(FETCH, "no valid http URL")
    if isinstance(error, aiohttp.ClientSSLError):
        return StoreError(FETCH, f"no trusted connection ({type(error).__name__})")
    if isinstance(error, aiohttp.ClientConnectorError):
        # URLs expire: a host that no longer exists must not block a run for minutes.
        return StoreError(FETCH, f"the host cannot be reached ({type(error).__name__})",
                          transient=True, attempts=CONNECT_ATTEMPTS)  # fmt: skip
    if isinstance(error, aiohttp.ClientError):
        # Their messages contain the full URL, signature included.
        return StoreError(FETCH, f"the connection failed ({type(error).__name__})", transient=True)
    if isinstance(error, OSError):
        return from_os_error(error)
    return StoreError(FETCH, type(error).__name__)


def _info(headers: Mapping[str, str], size_bytes: int | None) -> ObjectInfo:
    etag = headers.get("ETag", "").removeprefix("W/").strip('"')
    time = headers.get("Last-Modified")
    if not etag and time:
        return ObjectInfo(size_bytes=size_bytes, etag=f"{size_bytes}-{time}")
    return ObjectInfo(size_bytes=size_bytes, etag=etag or None, time=time)


def _decimal(text: str | None) -> int | None:
    size = int(text) if text and text.isdecimal() and len(text) <= 19 else None
    return size if size is not None and size < 2**63 else None  # fits the size column


class _PublicResolver(AbstractResolver):
    # Checked at the lookup, not before it: a second lookup might return another address.

    def __init__(self) -> None:
        self._inner = ThreadedResolver()
        # The user's proxy may serve public hosts; it decides where it connects.
        self._proxies = _proxy_hosts()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = await self._inner.resolve(host, port, family)
        if host.lower() not in self._proxies:
            for entry in addresses:
                address = ipaddress.ip_address(entry["host"].partition("%")[0])
                if not is_public(address):
                    raise _refused(host, str(address))
        return addresses

    async def close(self) -> None:
        await self._inner.close()


def _proxy_hosts() -> set[str]:
    proxies = urllib.request.getproxies()
    return {host_of(proxies[scheme]) for scheme in WEB if scheme in proxies} - {""}


def _refused(host: str, address: str | None = None) -> StoreError:
    leads = f", which is {address}" if address and address != host else ""
    return StoreError(
        REFUSED_HOST,
        f"refused to connect to the host {host}{leads}, expected a public host, a host named in "
        "source, or one in source.allow_hosts",
    )


async def _public_client(**options: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=_PublicResolver())
    return aiohttp.ClientSession(connector=connector, **options)


class WebStore(Store):
    """Objects of any web server that the rules allow."""

    def __init__(self, policy: RetryPolicy, hosts: HostRules) -> None:
        self._policy = policy
        self._hosts = hosts
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
        )
        options = {"timeout": limits, "trust_env": True, "auto_decompress": False}
        self.filesystem = HTTPFileSystem(client_kwargs=options, skip_instance_cache=True)
        # Separate connections: none made without checking the address is reused.
        self._public = HTTPFileSystem(
            client_kwargs=options, get_client=_public_client, skip_instance_cache=True
        )

    def translate(self, error: Exception) -> StoreError:
        return web_failure(error)

    async def _session(self, address: yarl.URL, *, redirected: bool) -> aiohttp.ClientSession:
        host = address.host or ""
        verdict = self._hosts.verdict(host, redirected=redirected)
        public_only = verdict is Verdict.IF_PUBLIC
        # The resolver accepts the proxy's host, so it must not be requested as a target.
        proxied = public_only and host in _proxy_hosts()
        if address.scheme not in WEB or verdict is Verdict.REFUSED or proxied:
            raise _refused(host)
        chosen = self._public if public_only else self.filesystem
        session: aiohttp.ClientSession = await chosen.set_session()
        return session

    def _request(
        self,
        method: str,
        uri: str,
        headers: Mapping[str, str],
        use: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        *,
        limit_s: float | None,
    ) -> T:
        async def ask() -> T:
            address = _address(uri)
            first_host, wants_cookies = address.host, False
            for _ in range(MAX_REDIRECTS + 1):
                # Redirects to https or signed URLs, for example; the host may be requested twice.
                session = await self._session(address, redirected=address.host != first_host)
                # Redirects are followed here, so that every host is checked before the request.
                async with session.request(
                    method, address, headers={**_IDENTITY, **headers}, allow_redirects=False
                ) as response:
                    target = response.headers.get("Location")
                    if response.status in _REDIRECTS and target:
                        wants_cookies = wants_cookies or "Set-Cookie" in response.headers
                        address = address.join(_address(target))
                        continue
                    if response.status >= 400 and response.status != 416:
                        retry_after = response.headers.get("Retry-After")
                        reason = answer_of(response.reason or "", await _words_of(response))
                        failure = from_status(response.status, reason, retry_after=retry_after)
                        if failure.kind == ACCESS_DENIED:
                            failure.advice = _DENIED_ADVICE
                        raise failure
                    coding = response.headers.get("Content-Encoding", "").strip().lower()
                    if coding in _CODINGS:
                        raise StoreError(FETCH, f"found content encoding {coding}, expected none")
                    return await use(response)
            raise StoreError(
                FETCH,
                f"found more than {MAX_REDIRECTS} redirects"
                + ", which set cookies" * wants_cookies,
                advice=_FETCH_IT if wants_cookies else None,
            )

        async def limited() -> T:
            return await asyncio.wait_for(ask(), limit_s)

        result: T = sync(self.filesystem.loop, limited)
        return result

    def info(self, uri: str) -> ObjectInfo:

        async def use(response: aiohttp.ClientResponse) -> ObjectInfo:
            sent = _decimal(response.headers.get("Content-Length"))
            return _info(response.headers, sent)

        limit_s = self._policy.request_timeout_s
        try:
            return self._request("HEAD", uri, {}, use, limit_s=limit_s)
        except StoreError as error:
            # URLs signed for GET return 403 for HEAD; simple servers 405 or 501.
            if error.kind not in (ACCESS_DENIED, FETCH, REFUSED) or (
                error.transient and "501" not in str(error)
            ):
                raise
        try:
            return self.read_range(uri, 0, 1)[1]
        except RangesUnsupportedError:
            return ObjectInfo(size_bytes=None, etag=None)

    def read_range(self, uri: str, start: int, end: int) -> tuple[bytes, ObjectInfo]:
        """Return a byte range of the object; raise a `RangesUnsupportedError` without a size."""

        async def use(response: aiohttp.ClientResponse) -> tuple[bytes, ObjectInfo]:
            content_range = response.headers.get("Content-Range", "")
            total = _decimal(content_range.rpartition("/")[2])
            if response.status == 416:
                return b"", _info(response.headers, total or 0)
            if response.status == _RANGES_MISSING or total is None:
                raise RangesUnsupportedError
            received = bytearray()
            try:
                async for piece in response.content.iter_any():
                    received += piece
            except aiohttp.ClientPayloadError:  # the reader goes on behind what has come
                if not received:
                    raise
            return bytes(received), _info(response.headers, total)

        headers = {"Range": f"bytes={start}-{end - 1}"}
        return self._request("GET", uri, headers, use, limit_s=self._policy.request_timeout_s)

    def download(self, uri: str, target: IO[bytes]) -> None:
        """Write the whole object to `target`; limits silence and slowness, not the total time."""

        async def use(response: aiohttp.ClientResponse) -> None:
            expected = _decimal(response.headers.get("Content-Length"))
            started_s = time.monotonic()
            received = 0
            async for piece in response.content.iter_chunked(MEBIBYTE):
                received += len(piece)
                target.write(piece)
                took_s = time.monotonic() - started_s
                if received < (took_s - self._policy.request_timeout_s) * LEAST_BYTES_PER_S:
                    problem = f"too slow: {received:,} bytes in {took_s:.0f} s"
                    raise StoreError(TIMEOUT, problem, transient=True, attempts=1)
            if expected is not None and received != expected:
                problem = f"short read: {received} bytes, expected {expected}"
                raise StoreError(FETCH, problem, transient=True)

        self._request("GET", uri, {}, use, limit_s=None)


# A page of HTML is no use in a message; API errors are short.
_MOST_ANSWER_BYTES = 4096
_WORDS = re.compile(r"<Message>([^<]*)</Message>|\"(?:message|detail|error)\"\s*:\s*\"([^\"]*)\"")


async def _words_of(response: aiohttp.ClientResponse) -> str:
    """Return the error text of a response: plain text, or a message in XML or JSON."""
    if response.status >= 500:  # retried, so the text is not needed
        return ""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            body = await response.content.read(_MOST_ANSWER_BYTES)
    except (TimeoutError, aiohttp.ClientError) as error:
        event(_LOG, logging.DEBUG, "no_words", why=repr(error))
        return ""
    text = body.decode("utf-8", "replace").strip()
    if match := _WORDS.search(text):
        return html.unescape(match[1] or match[2])
    return text if response.content_type == "text/plain" and "<" not in text else ""


def _address(uri: str) -> yarl.URL:
    # Requoting would break signatures; ASCII URLs are sent unchanged.
    return yarl.URL(uri, encoded=uri.isascii() and uri.isprintable() and " " not in uri)


# Retries of a message are limited to about a minute.
PATIENCE = RetryPolicy(attempts=3, patience_s=30.0, longest_wait_s=10.0, request_timeout_s=15.0)


def post_json(
    url: str,
    value: Any,
    *,
    allow_hosts: Sequence[str] | None = None,
    policy: RetryPolicy = PATIENCE,
) -> None:
    """Post a value as JSON, retrying transient failures; raise a `FetchError` if it is refused."""
    host = host_of(url)
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")

    def post() -> None:
        try:
            _check(url, host, allow_hosts)
            sync(get_loop(), _post, url, body, policy.request_timeout_s)
        except Exception as error:
            failure = error if isinstance(error, StoreError) else web_failure(error)
            failure.advice = "check its URL and its server"
            raise failure from None  # the library's message contains the URL

    with_retries("telling the webhook at", host or "?", post, policy=policy)


def _check(url: str, host: str, allow_hosts: Sequence[str] | None) -> None:
    # The URL is itself a secret given by the user, so any host is allowed; plain http, which is
    # unencrypted, is limited to hosts in `source.allow_hosts`.
    scheme = urllib.parse.urlsplit(url).scheme if host else ""
    if scheme not in ("http", "https"):
        raise StoreError(FETCH, "found no valid https URL")
    rules = HostRules(listed=tuple(allow_hosts or ()))
    if scheme == "http" and rules.verdict(host, redirected=False) is not Verdict.ADMITTED:
        raise StoreError(
            REFUSED_HOST,
            "refused to send a secret URL by http, expected https or a host in source.allow_hosts",
        )


async def _post(url: str, body: bytes, limit_s: float) -> None:
    limits = aiohttp.ClientTimeout(total=limit_s)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    async with (
        aiohttp.ClientSession(timeout=limits, trust_env=True) as session,
        session.post(url, data=body, headers=headers, allow_redirects=False) as response,
    ):
        if 300 <= response.status < 400:  # redirects are untrusted and not followed
            problem = f"the server answered {response.status}, a redirect, which is not followed"
            raise StoreError(FETCH, problem)
        if response.status >= 400:
            retry_after = response.headers.get("Retry-After")
            failure = from_status(response.status, "", retry_after=retry_after)
            failure.found = (
                f"the server answered {response.status} {response.reason or ''}".rstrip()
            )
            raise failure
