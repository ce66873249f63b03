"""A web server for one person on one machine: pages, answers in JSON, sound by ranges.

In: requests. Out: responses. Nothing is ever written, and nothing is found by a path: pages are a
fixed few, answers and sounds are of recordings that the run's own tables name. Whoever asks has to
know the token in the address, and has to have come by an address that no other site can point here.
Knows nothing of tables.

Source: RFC 9110, section 14 (ranges); https://www.w3.org/TR/CSP3/.
"""

import functools
import hmac
import ipaddress
import json
import logging
import re
import secrets
import socket
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from corpus_asr.errors import ConfigError, CorpusAsrError, FetchError, ItemError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.logs import event
from corpus_asr.report.html.formatting import shared, visible
from corpus_asr.view.answers import Answers, NotFoundError
from corpus_asr.view.parameters import Parameters
from corpus_asr.view.sound import Readable

_LOG = logging.getLogger(__name__)

_HTML, _CSS, _SCRIPT = "text/html", "text/css", "text/javascript"
_PAGES = {
    "": ("index.html", _HTML),
    "recording": ("recording.html", _HTML),
    "view.css": ("view.css", _CSS),
    **{
        name: (name, _SCRIPT)
        for name in ("page.js", "search.js", "player.js", "transcript.js", "recording.js")
    },
}
_ANSWERS = frozenset({"run", "recordings", "search", "recording", "passages", "unsure", "sound"})

# A listener that pauses leaves its connection full; after so long it is closed, and asked for anew.
_TIMEOUT_S = 60.0
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_TOKEN_BYTES = 16

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "media-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes that were asked for, up to `stop`."""

    start: int
    stop: int


class UnsatisfiableError(ValueError):
    """A range begins beyond the end."""


def asked_span(header: str | None, size_bytes: int) -> Span | None:
    """Read a Range header; None where all bytes are to be sent.

    Raises:
        UnsatisfiableError: the range begins beyond the end, or is empty.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None  # other units and several ranges may be ignored
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, size_bytes - int(last)), size_bytes
    else:
        start = int(first)
        stop = min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= stop:
        raise UnsatisfiableError(f"bytes {start} to {stop} of {size_bytes}")
    return Span(start, stop)


class ViewServer(ThreadingHTTPServer):
    """Serves until `shutdown`.

    Args:
        answers: what is asked.
        host: the address to listen at.
        port: 0 for any that is free.

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """

    daemon_threads = True

    def __init__(self, answers: Answers, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.answers = answers
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        self.names = {"localhost", host.lower()}
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """The address of the first page."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{name}:{port}/{self.token}/"

    def may_be_called(self, host: str | None) -> bool:
        """Tell whether a Host header is no foreign name that was made to point here."""
        name = (urllib.parse.urlsplit(f"//{host or ''}").hostname or "").lower()
        return name in self.names or _is_ip_address(name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a connection; the next one is not concerned."""
        if not isinstance(sys.exception(), ConnectionError):  # players go away all the time
            _LOG.error("request failed", exc_info=True)


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@functools.cache
def _file(name: str) -> bytes:
    return resources.files(__package__).joinpath("static", name).read_bytes()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "corpus-asr", ""
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(message)s"
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        try:
            self._respond()
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # whoever asked went away

    do_HEAD = do_GET  # noqa: N815 - as http.server calls it

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request for those who look for it, without the token in its address."""
        event(_LOG, logging.DEBUG, "request", what=(format % args).replace(self.server.token, "…"))

    def _respond(self) -> None:
        try:
            name, query = self._asked()
            if name in _PAGES:
                file, kind = _PAGES[name]
                self._send(HTTPStatus.OK, f"{kind}; charset=utf-8", _file(file))
            elif name == "style.css":
                style = shared("style.css").encode()
                self._send(HTTPStatus.OK, f"{_CSS}; charset=utf-8", style)
            elif name == "audio":
                self._send_sound(self.server.answers.audio(Parameters(query)))
            elif name == "saved":
                self._send_file(*self.server.answers.saved(Parameters(query)))
            elif name.removeprefix("api/") in _ANSWERS and name.startswith("api/"):
                answer = getattr(self.server.answers, name.removeprefix("api/"))
                self._send_json(HTTPStatus.OK, answer(Parameters(query)))
            else:
                raise NotFoundError("there is no such page")
        except _RefusedError as error:
            self._refuse(HTTPStatus.FORBIDDEN, str(error))
        except NotFoundError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except ConfigError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except ItemError as error:
            gone = isinstance(error, FetchError) and error.kind == NOT_FOUND
            status = HTTPStatus.NOT_FOUND if gone else HTTPStatus.BAD_GATEWAY
            self._refuse(status, str(error))
        except CorpusAsrError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _asked(self) -> tuple[str, str]:
        """Return the name of what is asked for, and the parameters.

        Raises:
            _RefusedError: whoever asks came by a foreign name.
            NotFoundError: they do not know the token.
        """
        if not self.server.may_be_called(self.headers.get("Host")):
            raise _RefusedError(
                "this address is not one of this server; open the one that corpus-asr view printed"
            )
        parts = urllib.parse.urlsplit(self.path)
        _, token, *rest = parts.path.split("/", 2) if parts.path.count("/") else ("", "")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()) or not rest:
            raise NotFoundError("open the whole address that corpus-asr view printed")
        return rest[0], parts.query

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        data = json.dumps(value, allow_nan=False).encode()
        self._send(status, "application/json", data)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send_json(status, {"error": visible(why)})

    def _send_file(self, name: str, text: str) -> None:
        quoted = urllib.parse.quote(name, safe="")
        plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
        self._send(
            HTTPStatus.OK,
            "text/plain; charset=utf-8",
            text.encode("utf-8", "replace"),
            {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quoted}"},
        )

    def _send_sound(self, sound: Readable) -> None:
        size = sound.size_bytes
        try:
            span = asked_span(self.headers.get("Range"), size)
        except UnsatisfiableError:
            status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            self._send(status, "text/plain", b"", {"Content-Range": f"bytes */{size}"})
            return
        headers = {"Accept-Ranges": "bytes"}
        status = HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT
        span = Span(0, size) if span is None else span
        if status is HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        pieces = sound.read(span.start, span.stop)
        # Before the status is sent: what cannot be read is told as such.
        piece = next(pieces, b"") if self.command == "GET" else b""
        self._send_head(status, sound.type, span.stop - span.start, headers)
        if self.command != "GET":
            return
        left = span.stop - span.start - len(piece)
        self.wfile.write(piece)
        try:
            for piece in pieces:
                left -= len(piece)
                self.wfile.write(piece)
        except CorpusAsrError as error:
            event(_LOG, logging.WARNING, "sound_ended_early", why=str(error))
        if left:
            self.close_connection = True  # so that nobody waits for the rest

    def _send(
        self,
        status: HTTPStatus,
        kind: str,
        data: bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._send_head(status, kind, len(data), headers or {})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_head(
        self, status: HTTPStatus, kind: str, num_bytes: int, headers: Mapping[str, str]
    ) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(num_bytes))
        self.end_headers()


class _RefusedError(Exception):
    """A request that another site may have caused."""
