"""One run at a time on an output folder: a lock object with a heartbeat.

Whether a holder still lives is never read from its clock: a process of this machine is looked up,
any other is watched for whether its lock changes. Losing the lock loses no results (the tables
distinguishes commits of two runs): it keeps two runs from doing the same work, and from deleting
each other's files.
"""

import datetime
import getpass
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from corpus_asr.errors import ConfigError, EngineError, FetchError, LockedError
from corpus_asr.json_values import load, parsed
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.store import RetryPolicy
from corpus_asr.storage.stores.uri import LOCAL, redact_uri, scheme_of

logger = logging.getLogger(__name__)

LOCK_NAME = "_run/lock.json"
# A heartbeat that is left out is better than one that is stuck, and so is the end of a run.
BEAT_POLICY = RetryPolicy(attempts=6, patience_s=10.0, longest_wait_s=2.0, request_timeout_s=10.0)
_ATTEMPTS = 5  # to get hold of a lock that changes hands while we look

# A process number says nothing after a reboot or in another container; these two do.
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = "/proc/self/ns/pid"
_DEAD_STATES = {"Z", "X"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessName:
    """What tells a process from all others."""

    host: str
    user: str
    pid: int
    machine: str | None = None  # boot and process namespace; None where the system does not tell
    started_ticks: str | None = None  # when the process started, in the kernel's ticks since boot

    @classmethod
    def mine(cls) -> "ProcessName":
        """Name this process."""
        return cls(
            host=socket.gethostname(),
            user=_user(),
            pid=os.getpid(),
            machine=_machine(),
            started_ticks=_started_ticks(os.getpid()),
        )

    def is_surely_dead(self) -> bool:
        """Tell whether it ran where we can see it, and is no more."""
        if self.machine is None or self.started_ticks is None or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # alive, of another user; or its number is used again by one
        return _started_ticks(self.pid) != self.started_ticks


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return str(os.getuid())


def _machine() -> str | None:
    try:
        return f"{_BOOT.read_text().strip()}/{os.readlink(_NAMESPACE)}"
    except OSError:
        return None


def _started_ticks(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything; what follows are numbers.
    fields = text.rpartition(")")[2].split()
    # A process that has ended and was not waited for yet still has its number, but holds nothing.
    return None if fields[0] in _DEAD_STATES else fields[19]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How often the holder shows that it lives, and how long others wait for that."""

    heartbeat_s: float = 15.0
    looks: int = 6
    """A lock is stale when so many looks, a heartbeat apart, find it unchanged. Counted in looks:
    a watcher that was itself stopped for long does not take that for the holder's silence."""
    settle_s: float = 1.0
    """Stores that ignore conditions let the last of several writers win: so much later it is
    known who that was. Local disks need none."""


USUAL = Timing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lock."""

    token: str
    run_id: str
    process: ProcessName
    started_at: str
    heartbeat_at: str  # by the holder's clock: for people
    beats: int = 0

    def encoded(self) -> bytes:
        """Return the lock object's content."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def decoded(cls, content: bytes | None) -> "Holder | None":
        """Return the holder; None where there is no lock, or none we know."""
        try:
            holder: Holder = parsed(cls, load(content or b""))
        except ValueError:
            return None
        return holder

    def __str__(self) -> str:
        where = f"process {self.process.pid} of {self.process.user} on {self.process.host}"
        return (
            f"run {self.run_id} ({where}), since {self.started_at}, last heartbeat "
            f"{self.heartbeat_at} by its clock"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LockKey:
    """What a worker needs to see whether its run still holds the lock; picklable."""

    uri: str
    options: StoreOptions
    token: str
    run_id: str

    def is_of(self, content: bytes | None) -> bool:
        """Tell whether that is the content of the run's lock."""
        holder = Holder.decoded(content)
        return holder is not None and holder.token == self.token

    def check(self) -> None:
        """Return if the run holds its lock; raise an `EngineError` if it was taken over."""
        content = filesystem.peek(self.uri, self.options)
        if self.is_of(content):
            return
        found = "no lock" if content is None else f"the lock of {_called(content)}"
        raise EngineError(
            f"committing below {redact_uri(self.uri.removesuffix(LOCK_NAME))}: found {found}, "
            "expected that of this run; it was taken over or removed, so this run stops; what it "
            "committed is kept"
        )


def read_holder(store: OutputStore) -> Holder | None:
    """Return who holds an output folder's lock; None if nobody does, or nobody we know."""
    return Holder.decoded(filesystem.peek(store.address(LOCK_NAME), store.options))


class Lock:
    """The lock of an output folder, held while the context is open.

    Entering raises a `LockedError` if another run holds it; with `steal`, one whose heartbeat does
    not change is taken over after watching it.
    """

    def __init__(
        self,
        store: OutputStore,
        run_id: str,
        *,
        steal: bool = False,
        say: Callable[[str], object] = logger.info,
        timing: Timing = USUAL,
    ) -> None:
        self._store, self._steal, self._say, self._timing = store, steal, say, timing
        self._uri = store.address(LOCK_NAME)
        self._beat_options = replace(store.options, policy=BEAT_POLICY)
        now = _now()
        self._holder = Holder(
            token=uuid.uuid4().hex,
            run_id=run_id,
            process=ProcessName.mine(),
            started_at=now,
            heartbeat_at=now,
        )
        self.run_id = run_id
        self.key = LockKey(
            uri=self._uri, options=store.options, token=self._holder.token, run_id=run_id
        )
        """What workers check."""
        self.store = store
        """The folder; once the lock is held, for this run to write."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        try:
            robbed = self._acquire()
            self.store = self._store.held(self.key)
            if robbed is not None:
                self.store.close_run(robbed.run_id)
        except BaseException:
            self._release()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._release()

    def _release(self) -> None:
        try:
            if self.key.is_of(filesystem.peek(self._uri, self._beat_options)):
                filesystem.remove(self._uri, self._beat_options)
        except FetchError as failure:
            # Not worth hiding how the run ended; the next one says what to do. One that never
            # began has said as much itself.
            level = logging.WARNING if self._thread.ident is not None else logging.DEBUG
            logger.log(level, "lock not released: %s", failure)

    def _acquire(self) -> Holder | None:
        # Returns whose lock this was, if it was anybody's.
        for _ in range(_ATTEMPTS):
            content = self._peek()
            if self._take(content) and self._is_settled():
                return Holder.decoded(content)
        raise ConfigError(
            f"locking {redact_uri(self._store.uri)}: the lock changes hands all the time, expected "
            "one run at most; see that only one is started"
        )

    def _take(self, content: bytes | None) -> bool:
        # `content` is what the lock was seen to hold, None where there is none.
        mine, options = self._holder.encoded(), self._store.options
        if content is None:
            return filesystem.create(self._uri, mine, options)
        holder = Holder.decoded(content)
        if holder is None or not holder.process.is_surely_dead():
            if not self._steal:
                raise self._held(content, "")
            self._watch(content)
        if filesystem.swap(self._uri, mine, content, options):
            self._say(f"took over the lock of {_called(content)}, which is dead")
            return True
        found = self._peek()
        if holder is not None and replace(self.key, token=holder.token).is_of(found):
            raise self._held(content, " that is alive")  # a heartbeat came meanwhile
        return False

    def _watch(self, content: bytes) -> None:
        heartbeat_s, looks = self._timing.heartbeat_s, self._timing.looks
        self._say(
            f"watching the lock of {_called(content)} for {heartbeat_s * looks:g} s: it is taken "
            "over if no heartbeat comes"
        )
        for _ in range(looks):
            time.sleep(heartbeat_s)
            found = self._peek()
            if found is None:
                return
            if found != content:
                raise self._held(found, " that is alive")

    def _held(self, content: bytes, alive: str) -> LockedError:
        advice = "wait for it to end"
        if not alive:
            watch_s = self._timing.heartbeat_s * self._timing.looks
            advice += (
                f"; if it is dead, run again with --steal-lock: that takes the lock over if no "
                f"heartbeat comes for {watch_s:g} s"
            )
        return LockedError(
            f"locking {redact_uri(self._store.uri)}: found it in use by {_called(content)}{alive}, "
            f"expected no other run; {advice}"
        )

    def _is_settled(self) -> bool:
        if scheme_of(self._uri) == LOCAL:
            return True
        time.sleep(self._timing.settle_s)
        return self.key.is_of(self._peek())

    def _peek(self) -> bytes | None:
        return filesystem.peek(self._uri, self._store.options)

    def _beat_on(self) -> None:
        while not self._ended.wait(self._timing.heartbeat_s):
            try:
                if not self._beat():
                    logger.warning("lock lost: uri=%s", redact_uri(self._uri))
                    return
            except FetchError as error:
                logger.warning("heartbeat failed: %s", error)

    def _beat(self) -> bool:
        content = filesystem.peek(self._uri, self._beat_options)
        if content is None or not self.key.is_of(content):
            return False
        self._holder = replace(self._holder, beats=self._holder.beats + 1, heartbeat_at=_now())
        filesystem.swap(self._uri, self._holder.encoded(), content, self._beat_options)
        # Where that did not work another run was quicker: the next look tells.
        return True


def _called(content: bytes) -> str:
    return str(Holder.decoded(content) or "something unknown")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
