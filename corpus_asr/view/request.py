"""A page's request: its parameters, parsed from its URL, and whether it is allowed.

Requests need the token in the server's URL, new at each start.

Source: OWASP, Cross-Site Request Forgery.
"""

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from hmac import compare_digest
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from corpus_asr.errors import ConfigError
from corpus_asr.view.search import Filters, Order, Query, RecordingOrder, State, parse_query

TOKEN_BYTES = 16  # as long as a UUID: other users of the machine cannot guess it
# Browsers send this header cross-site only after a preflight request, which always fails here.
CHANGE_HEADER = "X-Corpus-ASR"

MAX_CHARS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Filters):
    """Parameters of a request."""

    q: str = ""
    """A query, to search or to highlight."""
    whole_words: bool = False
    order: Order = Order.recording
    recording_order: RecordingOrder = RecordingOrder.name
    page: int = 0
    block: int = 0
    from_s: float = 0.0
    to_s: float | None = None
    back: bool = False
    decode: bool = False
    """Decode audio even if browsers support it."""
    channel: int | None = None
    format: str = ""

    @property
    def query(self) -> Query:
        """The parsed query."""
        return parse_query(self.q, whole_words=self.whole_words)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 2**31:
        raise ValueError(text)
    return value


# Parsers of non-text parameters, and descriptions of valid values.
_READ: Mapping[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("whole_words", "back", "decode", "unchecked"), ("1".__eq__, "1")),
    **dict.fromkeys(("from_s", "to_s", "min_confidence", "max_confidence"), (_number, "a number")),
    **dict.fromkeys(("page", "block", "channel"), (_count, "a whole number from 0")),
    "state": (State, ", ".join(State)),
    "order": (Order, ", ".join(Order)),
    "recording_order": (RecordingOrder, ", ".join(RecordingOrder)),
}


def parse_request(parameters: Mapping[str, str]) -> Request:
    """Parse the parameters of a request; unknown ones are ignored."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Request)):
        text = parameters.get(name.removesuffix("_s"), "")
        if len(text) > MAX_CHARS:
            raise ConfigError(f"reading {name}: found {len(text)} characters, expected fewer")
        read, expected = _READ.get(name, (str, "text"))
        try:
            text.encode()  # a lone surrogate is no text
            if text:
                values[name] = read(text)
        except ValueError:
            raise ConfigError(f"reading {name}: found {text!r}, expected {expected}") from None
    return Request(**values)


class RefusedError(Exception):
    """A refused request, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TokenAccess:
    """Requires a secret as the first step of each path."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)

    @property
    def prefix(self) -> str:
        """Prefix of all paths."""
        return f"/{self.token}"

    def redacted(self, path: str) -> str:
        """Return a path with the token hidden, for the log."""
        return path.replace(self.token, "…")

    def allows(self, request: web.Request) -> bool:
        """Return whether a request has the token."""
        token, slash, _ = request.path.removeprefix("/").partition("/")
        return bool(slash) and compare_digest(token.encode(errors="replace"), self.token.encode())


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """URL under which people open the server if it differs: behind a proxy, or another name."""

    url: str
    host: str
    netloc: str

    @classmethod
    def parse(cls, url: str) -> "PublicUrl":
        """Parse --public-url.

        Raises:
            ConfigError: it is not the URL of a server.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
            more = parts.query or parts.fragment or parts.username or parts.path.strip("/")
            usable = parts.scheme in ("http", "https") and host and port != 0 and not more
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(
                f"reading --public-url {url}: expected http:// or https:// and a host, perhaps "
                "a port, and no path, such as https://transcripts.example.org; correct it"
            )
        return cls(f"{parts.scheme}://{parts.netloc}/", host, parts.netloc.lower())


def check_change(request: web.Request, public: PublicUrl | None) -> None:
    """Raise an error for a change request that may come from another site's page (CSRF).

    Raises:
        RefusedError: the header is missing, or the browser reports another site.
    """
    hosts = {request.host.lower()} | ({public.netloc} if public is not None else set())
    origin = request.headers.get("Origin")
    try:
        foreign = origin is not None and urlsplit(origin).netloc.lower() not in hosts
    except ValueError:  # an unclosed bracket
        raise RefusedError(400, "expected the Origin of a page, such as http://localhost") from None
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if foreign or site not in ("same-origin", "none"):
        raise RefusedError(403, "only pages of this server may make changes")
    if request.headers.get(CHANGE_HEADER) != "1" or request.content_type != "application/json":
        raise RefusedError(403, f"expected Content-Type: application/json and {CHANGE_HEADER}: 1")
