"""A web server for one person on one machine: pages, answers as JSON, audio by ranges.

No file is found by a path of a request; a request needs the token of the URL and a local `Host`.

Source: RFC 9110, section 14 (ranges); https://www.w3.org/TR/CSP3/.
"""

import asyncio
import functools
import hmac
import ipaddress
import json
import logging
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from urllib.parse import quote, urlsplit

from aiohttp import web

from corpus_asr.errors import ConfigError, CorpusAsrError, FetchError, ItemError
from corpus_asr.failure_kinds import NOT_FOUND
from corpus_asr.logs import event
from corpus_asr.report.html.formatting import shared, visible
from corpus_asr.view.answers import Answers, NotFoundError, parse_request

_LOG = logging.getLogger(__name__)

_PAGES = {"": "index.html", "recording": "recording.html"} | {
    name: name
    for name in ("style.css", "view.css", "page.js", "search.js", "player.js", "transcript.js",
                 "recording.js")
}  # fmt: skip
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_ANSWERS = frozenset({"run", "recordings", "search", "recording", "segments", "unsure", "sound"})
_TOKEN_BYTES = 16  # as many as a UUID: other users of the machine cannot guess it
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

    def __init__(self, answers: Answers, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._answers = answers
        self._names = {"localhost", host.lower()}
        ipv6 = ":" in host
        self._socket = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),
        )
        self._app = web.Application(middlewares=[self._guard])
        self._app.on_response_prepare.append(_add_headers)
        self._app.add_routes(
            [
                web.get("/{token}/audio", self._audio),
                web.get("/{token}/saved", self._saved),
                web.get("/{token}/api/{name}", self._answer),
                web.get("/{token}/{name:[^/]*}", self._page),
            ]
        )

    @property
    def url(self) -> str:
        """The address of the first page."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/{self.token}/"

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    async def serve(self) -> None:
        """Answer requests until cancelled."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            if not self._is_local(request.headers.get("Host", "")):
                why = "no such path on this server"
                raise web.HTTPForbidden(text=f"{why}; open the one that corpus-asr view printed")
            token, slash, _ = request.path.removeprefix("/").partition("/")
            if not slash or not hmac.compare_digest(token.encode(), self.token.encode()):
                raise NotFoundError("open the complete URL that corpus-asr view printed")
            what = request.path_qs.replace(self.token, "…")
            event(_LOG, logging.DEBUG, "request", what=f"{request.method} {what}")
            return await handler(request)
        except web.HTTPException as error:
            status, why = error.status, error.text or error.reason
        except NotFoundError as error:
            status, why = 404, str(error)
        except ConfigError as error:
            status, why = 400, str(error)
        except ItemError as error:
            gone = isinstance(error, FetchError) and error.kind == NOT_FOUND
            status, why = 404 if gone else 502, str(error)
        except CorpusAsrError as error:
            status, why = 500, str(error)
        return web.json_response({"error": visible(why)}, status=status)

    def _is_local(self, host: str) -> bool:
        # Another site can make its name point here (DNS rebinding), but not an address.
        with suppress(ValueError):
            name = (urlsplit(f"//{host}").hostname or "").lower()
            return name in self._names or bool(ipaddress.ip_address(name))
        return False

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _PAGES:
            raise NotFoundError("there is no such page")
        file = _PAGES[name]
        text = shared(file) if file == "style.css" else _file(file)
        return web.Response(text=text, content_type=_TYPES[file.rpartition(".")[2]])

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _ANSWERS:
            raise NotFoundError("there is no such page")
        answer = getattr(self._answers, name)
        value = await asyncio.to_thread(answer, parse_request(request.query))
        return web.json_response(value, dumps=functools.partial(json.dumps, allow_nan=False))

    async def _saved(self, request: web.Request) -> web.Response:
        name, text = await asyncio.to_thread(self._answers.saved, parse_request(request.query))
        plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
        names = f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
        return web.Response(
            body=text.encode("utf-8", "replace"),
            content_type="text/plain",
            charset="utf-8",
            headers={"Content-Disposition": f"attachment; {names}"},
        )

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        audio = await asyncio.to_thread(self._answers.audio, parse_request(request.query))
        size = audio.size_bytes
        try:
            start, stop, _ = request.http_range.indices(size)
            status = 206 if "Range" in request.headers else 200
        except ValueError:  # other units and several ranges may be ignored
            start, stop, status = 0, size, 200
        if start >= stop and status == 206:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        response = web.StreamResponse(status=status, headers={"Accept-Ranges": "bytes"})
        response.content_type = audio.type
        response.content_length = left = stop - start
        if status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if request.method == "HEAD":
            return response
        pieces = audio.read(start, stop)
        # Before the status is sent, so that an error is a response of its own.
        piece = await asyncio.to_thread(next, pieces, b"")
        await response.prepare(request)
        try:
            while piece:
                await response.write(piece)
                left -= len(piece)
                piece = await asyncio.to_thread(next, pieces, b"")
        except CorpusAsrError as error:
            event(_LOG, logging.WARNING, "sound_ended_early", why=str(error))
        except ConnectionError:
            pass  # players go away all the time
        if left:
            response.force_close()  # so that the player does not wait for the rest
        return response


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


@functools.cache
def _file(name: str) -> str:
    return resources.files(__package__).joinpath("static", name).read_text("utf-8")
