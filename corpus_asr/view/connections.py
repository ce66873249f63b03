"""Accepts the connections of a server; those without a token are few and end soon.

Whoever reaches the port may connect and then send nothing. So the oldest connection that has shown
no token ends when there are too many, which lets everybody in who sends a request at once.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

from corpus_asr.logs import event

_LOG = logging.getLogger(__name__)

MOST_STRANGERS = 64
"""Connections that have shown no token, at one time."""
HEAD_S = 10.0
"""Seconds until a connection has to show it."""
# Whoever is refused may come again at once.
_NOTED_EVERY_S = 60.0
# Files that are open elsewhere in the process may take long to close.
_NO_FILES_S = 0.1


class Refusals(logging.LoggerAdapter[logging.Logger]):
    """Count of what anybody may cause, one log line a minute; all other errors are logged."""

    def __init__(self) -> None:
        super().__init__(_LOG)
        self._count = 0
        self._noted_s = float("-inf")

    def add(self, reason: object) -> None:
        """Count a refused connection or request."""
        self._count += 1
        if time.monotonic() - self._noted_s >= _NOTED_EVERY_S:
            event(_LOG, logging.WARNING, "connections_refused", count=self._count, last=reason)
            self._count, self._noted_s = 0, time.monotonic()

    def exception(self, msg: object, *args: object, exc_info: Any = True, **more: Any) -> None:
        """Log an error of aiohttp, unless a request was no HTTP, or its sender left."""
        if isinstance(exc_info, HttpProcessingError | web.RequestPayloadError):
            self.add(f"found no HTTP request ({type(exc_info).__name__})")
        elif not isinstance(exc_info, ConnectionError):
            super().exception(msg, *args, exc_info=exc_info, **more)


class Connections:
    """Connections that have shown no token."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._strangers: dict[asyncio.BaseProtocol, tuple[asyncio.Transport, asyncio.Handle]] = {}

    def admit(self, protocol: asyncio.BaseProtocol) -> None:
        """Note that a connection has shown a token."""
        if protocol in self._strangers:
            self._strangers.pop(protocol)[1].cancel()

    def end(self) -> None:
        """End all of these, so that no timer holds the server."""
        for protocol in [*self._strangers]:
            self._end_connection(protocol)

    async def accept(
        self, listening: socket.socket, make_protocol: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        """Accept connections until canceled."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:  # too many open files, for example
                self._refusals.add(f"cannot accept a connection ({error.strerror})")
                await asyncio.sleep(0 if self._end_oldest() else _NO_FILES_S)
                continue
            while len(self._strangers) >= MOST_STRANGERS:
                if self._end_oldest():
                    self._refusals.add(f"found {MOST_STRANGERS} connections without the token")
            with suppress(OSError):  # disconnected meanwhile
                transport, protocol = await loop.connect_accepted_socket(make_protocol, connection)
                ending = loop.call_later(HEAD_S, self._end_connection, protocol)
                self._strangers[protocol] = transport, ending

    def _end_oldest(self) -> bool:
        """End the oldest connection; return whether that closed one."""
        for protocol, (transport, _) in self._strangers.items():
            was_open = not transport.is_closing()
            self._end_connection(protocol)
            return was_open
        return False

    def _end_connection(self, protocol: asyncio.BaseProtocol) -> None:
        transport, ending = self._strangers.pop(protocol)
        ending.cancel()
        transport.abort()
