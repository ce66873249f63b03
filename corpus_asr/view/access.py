"""Who may ask the server: those who know the token of its URL, which is new at each start.

Source: OWASP, Cross-Site Request Forgery.
"""

import secrets
from dataclasses import dataclass
from hmac import compare_digest
from urllib.parse import urlsplit

from aiohttp import web

from corpus_asr.errors import ConfigError

TOKEN_BYTES = 16  # as many as a UUID: other users of the machine cannot guess it
# Browsers let no other site send this without asking first, and nothing here answers yes.
CHANGE_HEADER = "X-Corpus-ASR"


class RefusedError(Exception):
    """A request that is not answered, with its status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TokenAccess:
    """The first step of each path is a secret."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)

    @property
    def prefix(self) -> str:
        """What paths begin with."""
        return f"/{self.token}"

    def redacted(self, path: str) -> str:
        """Return a path for the log."""
        return path.replace(self.token, "…")

    def allows(self, request: web.Request) -> bool:
        """Tell whether a request may be answered."""
        token, slash, _ = request.path.removeprefix("/").partition("/")
        return bool(slash) and compare_digest(token.encode(), self.token.encode())


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """Where people open the server, if not where it listens: behind a proxy, or by another name."""

    url: str
    host: str
    netloc: str

    @classmethod
    def parse(cls, url: str) -> "PublicUrl":
        """Read --public-url.

        Raises:
            ConfigError: it is no URL of a server.
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
    """Refuse a request that changes something and may come from another site's page.

    Raises:
        RefusedError: the header is missing, or the browser says that another site sent it.
    """
    own = {request.host.lower()} | ({public.netloc} if public is not None else set())
    origin = request.headers.get("Origin")
    try:
        foreign = origin is not None and urlsplit(origin).netloc.lower() not in own
    except ValueError:  # a bracket that does not close
        raise RefusedError(400, "expected the Origin of a page, such as http://localhost") from None
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if foreign or site not in ("same-origin", "none"):
        raise RefusedError(403, "only pages of this server may change something")
    if request.headers.get(CHANGE_HEADER) != "1" or request.content_type != "application/json":
        raise RefusedError(403, f"expected Content-Type: application/json and {CHANGE_HEADER}: 1")
