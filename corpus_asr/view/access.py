"""Who may ask the server: those who know the token of its URL, or a password.

With a token the URL is new at each start. With a password it stays the same: a session begins with
the password and is a cookie that scripts cannot read and that other sites do not send along.

Source: RFC 6265bis (`SameSite`, `HttpOnly`); RFC 7617 (Basic); OWASP, Cross-Site Request Forgery.
"""

import hashlib
import os
import secrets
import stat
from collections import deque
from dataclasses import dataclass
from hmac import compare_digest
from time import monotonic
from urllib.parse import urlsplit

from aiohttp import BasicAuth, web

from corpus_asr.errors import ConfigError

TOKEN_BYTES = 16  # as many as a UUID: other users of the machine cannot guess it
MIN_PASSWORD_CHARS = 8
_MAX_PASSWORD_BYTES = 1_000
SESSION_S = 30 * 24 * 3600
# Of one process; the oldest ends first.
MAX_SESSIONS = 1_000
# Wrong ones a minute that are told so, of an address and of all: the right one is always taken.
WRONG_TRIES = 5
ALL_WRONG_TRIES = 60
_TRIES_S = 60.0
# Browsers let no other site send this without asking first, and nothing here answers yes.
CHANGE_HEADER = "X-Corpus-ASR"


class RefusedError(Exception):
    """A request that is not answered, with its status."""

    def __init__(self, status: int, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


def read_password(path: str) -> str:
    """Read the password in the first line of a file.

    Raises:
        ConfigError: it cannot be read, others than owner and group may read or write it, or it
            holds no password.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            line = file.readline(_MAX_PASSWORD_BYTES).strip()
    except OSError as error:
        raise ConfigError(
            f"reading --password-file {path}: {error.strerror}, expected a file with the password "
            "in its first line; correct the path"
        ) from error
    if mode & stat.S_IRWXO:
        raise ConfigError(
            f"reading --password-file {path}: found mode {mode:04o}, expected a file that other "
            f"users can neither read nor write; run chmod 600 {path}"
        )
    try:
        password = line.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"reading --password-file {path}: found no UTF-8; correct it") from error
    if len(password) < MIN_PASSWORD_CHARS:
        raise ConfigError(
            f"reading --password-file {path}: found {len(password)} characters in its first line, "
            f"expected a password of at least {MIN_PASSWORD_CHARS}; write a longer one"
        )
    return password


class Tries:
    """Counts wrong passwords of the last minute."""

    def __init__(self) -> None:
        self._wrong: deque[tuple[float, str]] = deque()

    def check(self, address: str) -> None:
        """Refuse an address, or all, that had too many wrong passwords."""
        now = monotonic()
        while self._wrong and now - self._wrong[0][0] >= _TRIES_S:
            self._wrong.popleft()
        theirs = [at for at, who in self._wrong if who == address]
        everyones = [at for at, _ in self._wrong]
        for times, limit in ((theirs, WRONG_TRIES), (everyones, ALL_WRONG_TRIES)):
            if len(times) >= limit:
                wait_s = times[0] + _TRIES_S - now
                raise RefusedError(
                    429,
                    f"too many wrong passwords: try again in {wait_s:.0f} s",
                    retry_after_s=wait_s,
                )

    def failed(self, address: str) -> None:
        """Count a wrong password; `check` bounds how many are kept."""
        self._wrong.append((monotonic(), address))


class TokenAccess:
    """The first step of each path is a secret."""

    asks_for_password = False

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


class PasswordAccess:
    """A password begins a session; scripts send it with each request instead (Basic)."""

    asks_for_password = True
    prefix = ""

    def __init__(self, password: str) -> None:
        self._password = _digest(password)
        self._sessions: dict[bytes, float] = {}
        self._tries = Tries()

    def redacted(self, path: str) -> str:
        """Return a path for the log."""
        return path

    def allows(self, request: web.Request) -> bool:
        """Tell whether a request may be answered.

        Raises:
            RefusedError: a wrong password, or too many of them.
        """
        ends_s = self._sessions.get(_digest(request.cookies.get(_cookie(request), "")), 0.0)
        if ends_s > monotonic():
            return True
        header = request.headers.get("Authorization")
        if header is None:
            return False
        try:
            password = BasicAuth.decode(header, encoding="utf-8").password
        except ValueError:
            raise RefusedError(401, "expected Authorization: Basic") from None
        self._check(request, password)
        return True

    def log_in(self, request: web.Request, password: str, *, secure: bool) -> web.Response:
        """Begin a session.

        Raises:
            RefusedError: a wrong password, or too many of them.
        """
        self._check(request, password)
        session = secrets.token_urlsafe(TOKEN_BYTES)
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[_digest(session)] = monotonic() + SESSION_S
        response = web.json_response({})
        response.set_cookie(
            _cookie(request), session, max_age=SESSION_S, path="/", httponly=True,
            samesite="Strict", secure=secure,
        )  # fmt: skip
        return response

    def log_out(self, request: web.Request) -> web.Response:
        """End a session."""
        self._sessions.pop(_digest(request.cookies.get(_cookie(request), "")), None)
        response = web.json_response({})
        # del_cookie() of older aiohttp has fewer attributes.
        response.set_cookie(
            _cookie(request), "", max_age=0, path="/", httponly=True, samesite="Strict"
        )
        return response

    def _check(self, request: web.Request, password: str) -> None:
        # First: behind a proxy, a guesser has the address of all who know the password.
        if compare_digest(_digest(password), self._password):
            return
        address = request.remote or ""
        self._tries.check(address)
        self._tries.failed(address)
        raise RefusedError(401, "this is not the password")


Access = TokenAccess | PasswordAccess


def _digest(secret: str) -> bytes:
    # Of equal length, so that comparing takes equally long whatever was sent.
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def _cookie(request: web.Request) -> str:
    # Cookies do not know ports: two servers of one machine have one each.
    transport = request.transport
    port = transport.get_extra_info("sockname")[1] if transport is not None else 0
    return f"corpus-asr-{port}"


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """Where people open the server, if not where it listens: behind a proxy, or by another name."""

    url: str
    host: str
    netloc: str
    is_https: bool

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
        return cls(
            url=f"{parts.scheme}://{parts.netloc}/",
            host=host,
            netloc=parts.netloc.lower(),
            is_https=parts.scheme == "https",
        )


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
