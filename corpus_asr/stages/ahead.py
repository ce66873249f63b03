"""Files opened in threads while an earlier one is decoded, so that a far store idles nobody.

In: the addresses that come next. Out: open files whose first block is there already, which of a
short recording is all of it. Who names the addresses bounds what is held. Knows nothing of what
the files mean.
"""

import io
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

Opener = Callable[[str], io.BufferedIOBase]


class OpenedAhead:
    """Open files before they are asked for. For use by one thread.

    Args:
        opener: opens one address; called in threads.
        threads: how many are opened at a time.
    """

    def __init__(self, opener: Opener, *, threads: int) -> None:
        self._opener = opener
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._files: dict[str, Future[io.BufferedIOBase]] = {}

    def expect(self, uris: Iterable[str]) -> None:
        """Begin to open these, and close what was opened before and is not among them."""
        wanted = dict.fromkeys(uris)
        for uri in [uri for uri in self._files if uri not in wanted]:
            file = self._files.pop(uri)
            if not file.cancel():
                file.add_done_callback(_close)
        for uri in wanted:
            if uri not in self._files:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(self._threads, "open-ahead")
                self._files[uri] = self._executor.submit(self._opener, uri)

    def take(self, uri: str) -> io.BufferedIOBase:
        """Hand over a file, opened now if it was not expected; the caller closes it.

        Raises:
            FetchError: it cannot be opened.
        """
        file = self._files.pop(uri, None)
        return self._opener(uri) if file is None else file.result()


def _close(file: Future[io.BufferedIOBase]) -> None:
    if file.exception() is None:
        file.result().close()
