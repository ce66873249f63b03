"""A web server on one machine: pages, answers as JSON, audio by ranges, files, corrections.

No file is found by a path of a request. A request needs the token of the URL and a `Host` that is
known; what changes something has to come from a page of this server.

Source: RFC 9110, section 14 (ranges); https://www.w3.org/TR/CSP3/.
"""

import asyncio
import functools
import ipaddress
import json
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from typing import Any
from urllib.parse import quote, urlsplit

from aiohttp import web

from corpus_asr.errors import ConfigError, CorpusAsrError, FetchError, ItemError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.json_values import load
from corpus_asr.logs import event
from corpus_asr.report.formatting import shared, visible
from corpus_asr.view.answers import Answers, NotFoundError
from corpus_asr.view.catalogue import GoneError
from corpus_asr.view.connections import Connections, Refusals
from corpus_asr.view.editing import ConflictError
from corpus_asr.view.request import (
    PublicUrl,
    RefusedError,
    Request,
    TokenAccess,
    check_change,
    parse_request,
)
from corpus_asr.view.sound import Playable

_LOG = logging.getLogger(__name__)

_PAGES = {"": "index.html", "recording": "recording.html"} | {
    name: name
    for name in ("style.css", "view.css", "page.js", "search.js", "player.js",
                 "transcript.js", "waveform.js", "editor.js", "speakers.js", "recording.js")
}  # fmt: skip
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_ANSWERS = frozenset({"run", "recordings", "search", "recording", "segments", "unsure", "sound"})
# A correction of the longest text, and some room.
_MAX_BODY_BYTES = 64 * 1024
_BODY_S = 10.0
# Requests of one decoder wait in a thread each; other requests are not to wait for these.
_THREADS = 32
# A player that pauses keeps its request open: Ctrl-C does not wait for it.
_SHUTDOWN_S = 0.5

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "corpus-asr",
}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ViewServer:
    """Listens from the start, and answers while `serve` runs.

    Raises `OSError` if the port is taken, or the address is not one of this machine.
    """

    def __init__(
        self,
        answers: Answers,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        public: PublicUrl | None = None,
    ) -> None:
        self.access = TokenAccess()
        self._answers = answers
        self._public = public
        self._refusals = Refusals()
        self._connections = Connections(self._refusals)
        self._names = {"localhost", host.lower()} | ({public.host} if public else set())
        ipv6 = ":" in host
        self._socket = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),
        )
        self._app = web.Application(middlewares=[self._guard], client_max_size=_MAX_BODY_BYTES)
        self._app.on_response_prepare.append(_add_headers)
        prefix = "/{token}"
        self._app.add_routes(
            [
                web.get(prefix + "/audio", self._audio),
                web.get(prefix + "/saved", self._saved),
                web.get(prefix + "/api/clip", self._clip),
                web.get(prefix + "/api/{name}", self._answer),
                web.post(prefix + "/api/{what:correct|undo|name}", self._change),
                web.get(prefix + "/{name:[^/]*}", self._page),
            ]
        )

    @property
    def url(self) -> str:
        """URL of the first page."""
        if self._public is not None:
            return self._public.url.rstrip("/") + f"{self.access.prefix}/"
        host, port = self._socket.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}{self.access.prefix}/"

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    async def serve(self) -> None:
        """Answer requests until canceled."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        runner = web.AppRunner(
            self._app, access_log=None, logger=self._refusals, shutdown_timeout=_SHUTDOWN_S
        )
        await runner.setup()
        assert runner.server is not None
        try:
            await self._connections.accept(self._socket, runner.server)
        finally:
            self.close()
            self._connections.end()
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        more = {}
        try:
            if not self._is_known(request.host):
                raise RefusedError(403, "expected a host name of this server")
            path = self.access.redacted(request.path_qs)
            event(_LOG, logging.DEBUG, "request", what=f"{request.method} {path}")
            if not self.access.allows(request):
                raise NotFoundError("open the complete URL that corpus-asr view printed")
            self._connections.admit(request.protocol)
            return await handler(request)
        except web.HTTPException as error:
            status, why = error.status, error.text or error.reason
        except RefusedError as error:
            status, why = error.status, str(error)
        except NotFoundError as error:
            status, why = 404, str(error)
        except ConflictError as error:
            status, why, more = 409, str(error), {"seen": error.seen, **error.answer}
        except GoneError as error:
            status, why = 410, str(error)
        except ConfigError as error:
            status, why = 400, str(error)
        except ItemError as error:
            gone = isinstance(error, FetchError) and error.kind == NOT_FOUND
            status, why = 404 if gone else 502, str(error)
        except CorpusAsrError as error:
            status, why = 500, str(error)
        return web.json_response({"error": visible(why)} | more, status=status)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        check_change(request, self._public)
        try:
            async with asyncio.timeout(_BODY_S):
                data = await request.read()
        except TimeoutError:
            raise RefusedError(408, f"expected the whole request within {_BODY_S:g} s") from None
        except web.RequestPayloadError:  # not compressed as its head says
            raise RefusedError(400, "expected a body as its headers describe it") from None
        try:
            body = load(data)
        except ValueError as error:
            raise ConfigError(
                f"reading a request: found no JSON object ({error}), expected one"
            ) from error
        if not isinstance(body, dict):
            raise ConfigError("reading a request: found no JSON object, expected one")
        return body

    async def _change(self, request: web.Request) -> web.Response:
        change = getattr(self._answers, request.match_info["what"])
        return _json(await asyncio.to_thread(change, await self._body(request)))

    def _is_known(self, host: str) -> bool:
        # Another site may point its own name here (DNS rebinding), but not use an IP address.
        with suppress(ValueError):
            name = (urlsplit(f"//{host}").hostname or "").lower()
            return name in self._names or bool(ipaddress.ip_address(name))
        return False

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _PAGES:
            raise NotFoundError("no such page")
        file = _PAGES[name]
        text = shared(file) if file == "style.css" else _file(file)
        return web.Response(text=text, content_type=_TYPES[file.rpartition(".")[2]])

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _ANSWERS:
            raise NotFoundError("no such page")
        return _json(await self._read(getattr(self._answers, name), request))

    async def _read(self, answer: Callable[[Request], Any], request: web.Request) -> Any:
        parsed_request = parse_request(request.query)
        try:
            return await asyncio.to_thread(answer, parsed_request)
        except FetchError as error:
            if error.kind != NOT_FOUND:
                raise
        # A run that finished, or reprocessed recordings, has other objects than the last view.
        await asyncio.to_thread(self._answers.library.look_again)
        return await asyncio.to_thread(answer, parsed_request)

    async def _saved(self, request: web.Request) -> web.Response:
        name, content = await self._read(self._answers.saved, request)
        headers = _as_file(name)
        return web.Response(
            body=content, content_type="text/plain", charset="utf-8", headers=headers
        )

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        audio = await asyncio.to_thread(self._answers.audio, parse_request(request.query))
        size = audio.size_bytes
        try:
            start, stop, _ = request.http_range.indices(size)
            status = 206 if "Range" in request.headers else 200
        except ValueError:  # other units and multiple ranges may be ignored
            start, stop, status = 0, size, 200
        if start >= stop and status == 206:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        response = web.StreamResponse(status=status, headers={"Accept-Ranges": "bytes"})
        if status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return await _play(request, response, audio, start, stop)

    async def _clip(self, request: web.Request) -> web.StreamResponse:
        name, audio = await asyncio.to_thread(self._answers.clip, parse_request(request.query))
        response = web.StreamResponse(headers=_as_file(name))
        return await _play(request, response, audio, 0, audio.size_bytes)


async def _play(
    request: web.Request, response: web.StreamResponse, audio: Playable, start: int, stop: int
) -> web.StreamResponse:
    """Send a byte range of a recording."""
    response.content_type = audio.type
    response.content_length = stop - start
    if request.method != "HEAD":
        pieces = audio.read(start, stop)
        # Before the status is sent, so that an error gets its own response.
        piece = await asyncio.to_thread(next, pieces, b"")
        if await _write(request, response, piece, pieces) < stop - start:
            response.force_close()  # the player must not wait for the rest
    return response


def _as_file(name: str) -> dict[str, str]:
    """Return the headers that make browsers save a response under a name."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    names = f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
    return {"Content-Disposition": f"attachment; {names}"}


async def _write(
    request: web.Request, response: web.StreamResponse, piece: bytes, others: Iterator[bytes]
) -> int:
    """Send pieces until an empty one, or until disconnected; return the number of bytes."""
    sent = 0
    try:
        await response.prepare(request)
        while piece:
            await response.write(piece)
            sent += len(piece)
            piece = await asyncio.to_thread(next, others, b"")
    except CorpusAsrError as error:
        event(_LOG, logging.WARNING, "response_ended_early", why=str(error))
    except ConnectionError:
        pass  # players disconnect frequently
    return sent


def _json(value: dict[str, Any]) -> web.Response:
    return web.json_response(value, dumps=functools.partial(json.dumps, allow_nan=False))


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


@functools.cache
def _file(name: str) -> str:
    return resources.files(__package__).joinpath("static", name).read_text("utf-8")
