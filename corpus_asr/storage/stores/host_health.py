"""Web hosts that are left alone for a while: some asked for it, some only cost time.

Without this a host that throttles, or sends a byte every few seconds, would hold a worker for
minutes with each of its files.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from corpus_asr.failure_kinds import TIMEOUT
from corpus_asr.storage.stores.store import StoreError

# As long as one file is tried by default: a host that gave nothing for so long has had its chance.
HOST_PATIENCE_S = 180.0
# How often such a host is tried again, with one request.
PROBE_EVERY_S = 60.0
# Failures further apart than this have nothing to do with each other.
FORGET_S = 300.0


@dataclass(slots=True)
class _Failing:
    since_s: float
    last_s: float
    not_before_s: float = 0.0


class HostHealth:
    """What the requests of this process found about each host; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: dict[str, _Failing] = {}

    def check(self, host: str) -> None:
        """Raise a `StoreError` before a request to a host that is to be left alone."""
        with self._lock:
            failing = self._failing.get(host)
            if failing is None:
                return
            wait_s = failing.not_before_s - self._clock()
            given_up = self._given_up(failing)
            if given_up and wait_s <= 0:  # this request is the probe, and the only one for a while
                failing.not_before_s = self._clock() + PROBE_EVERY_S
                return
        if given_up:
            raise StoreError(TIMEOUT, f"no request of its host succeeded for {_since(failing)}")
        if wait_s > 0:
            found = f"its host asked for no request within the next {wait_s:.0f} s"
            raise StoreError(TIMEOUT, found, transient=True, retry_after_s=wait_s)

    def succeeded(self, host: str) -> None:
        """Forget the failures of a host that answers."""
        with self._lock:
            self._failing.pop(host, None)

    def failed(self, host: str, error: StoreError, *, started_s: float) -> StoreError:
        """Note a transient failure; return it, final if the host had its chance."""
        now_s = self._clock()
        with self._lock:
            failing = self._failing.get(host)
            if failing is None or now_s - failing.last_s > FORGET_S:
                failing = self._failing[host] = _Failing(since_s=started_s, last_s=now_s)
            failing.last_s = now_s
            failing.not_before_s = max(failing.not_before_s, now_s + error.retry_after_s)
            if self._given_up(failing):
                failing.not_before_s = max(failing.not_before_s, now_s + PROBE_EVERY_S)
                error.transient = False
                error.found += f"; no request of its host succeeded for {_since(failing)}"
        return error

    @staticmethod
    def _given_up(failing: _Failing) -> bool:
        return failing.last_s - failing.since_s >= HOST_PATIENCE_S


def _since(failing: _Failing) -> str:
    return f"{failing.last_s - failing.since_s:.0f} s"
