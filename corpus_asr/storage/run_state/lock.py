"""One command at a time changes an output folder: a lock with a heartbeat, a note of the change.

Liveness is never judged by the holder's clock: a process of this machine is looked up, any other is
watched for changes of its lock. A lost lock loses no results (tables distinguish the commits of two
runs): the lock keeps two runs from duplicating work and deleting each other's files.

Its holder notes a change of a finished run's tables before the first step and removes the note
last, so that the next command resumes it after a kill; `_SUCCESS` is absent meanwhile.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from corpus_asr.errors import ConfigError, EngineError, FetchError, LockedError
from corpus_asr.json_values import load, parsed
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.store import RetryPolicy
from corpus_asr.storage.stores.uri import LOCAL, redact_uri, scheme_of

logger = logging.getLogger(__name__)

LOCK_NAME = "_run/lock.json"
CHANGE_NAME: Final = "_run/change.json"
SUCCESS_NAME = "_SUCCESS"
# A skipped heartbeat is better than a blocked one, also when the run ends.
BEAT_POLICY = RetryPolicy(attempts=6, patience_s=10.0, longest_wait_s=2.0, request_timeout_s=10.0)
_ATTEMPTS = 5  # to acquire a lock that changes hands meanwhile

# A process ID is ambiguous after a reboot or in another container; these two are not.
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = "/proc/self/ns/pid"
_DEAD_STATES = {"Z", "X"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessName:
    """Unique identity of a process."""

    host: str
    user: str
    pid: int
    machine: str | None = None  # boot ID and process namespace; None if unknown
    started_ticks: str | None = None  # start time in kernel ticks since boot

    @classmethod
    def mine(cls) -> "ProcessName":
        """Return the identity of this process."""
        return cls(
            host=socket.gethostname(),
            user=_user(),
            pid=os.getpid(),
            machine=_machine(),
            started_ticks=_started_ticks(os.getpid()),
        )

    def is_surely_dead(self) -> bool:
        """Return whether it ran on this machine, visible to us, and has exited."""
        if self.machine is None or self.started_ticks is None or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # alive, of another user; or the ID was reused
        return _started_ticks(self.pid) != self.started_ticks


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user ID without a name
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
    # The name in parentheses may hold anything; the following fields are numbers.
    fields = text.rpartition(")")[2].split()
    # A zombie process still has its ID, but holds nothing.
    return None if fields[0] in _DEAD_STATES else fields[19]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Heartbeat interval, and how long other runs wait for a heartbeat."""

    heartbeat_s: float = 15.0
    looks: int = 6
    """Number of consecutive checks, one heartbeat apart, without a change after which a lock is
    stale. Counted in checks, so that a suspended watcher does not see a dead holder."""


USUAL = Timing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Holder of a lock."""

    token: str
    run_id: str
    process: ProcessName
    started_at: str
    heartbeat_at: str  # by the holder's clock; for display only
    beats: int = 0

    def encoded(self) -> bytes:
        """Return the content of the lock object."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def decoded(cls, content: bytes | None) -> "Holder | None":
        """Return the holder; None without a lock or in an unknown format."""
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
    """Lets a worker check whether its run still holds the lock; picklable."""

    uri: str
    options: StoreOptions
    token: str
    run_id: str

    def is_of(self, content: bytes | None) -> bool:
        """Return whether the content is that of the run's lock."""
        holder = Holder.decoded(content)
        return holder is not None and holder.token == self.token

    def check(self) -> None:
        """Return if the run holds its lock; raise an `EngineError` if another run took it over."""
        content = filesystem.peek(self.uri, self.options)
        if self.is_of(content):
            return
        current_lock = "no lock" if content is None else f"the lock of {_called(content)}"
        raise EngineError(
            f"committing below {redact_uri(self.uri.removesuffix(LOCK_NAME))}: found "
            f"{current_lock}, expected that of this run, so this run stops; what it committed is "
            "kept"
        )


def read_holder(store: OutputStore) -> Holder | None:
    """Return the holder of an output folder's lock; None without one or in an unknown format."""
    return Holder.decoded(filesystem.peek(store.address(LOCK_NAME), store.options))


class Lock:
    """The lock of an output folder, held while the context is open.

    Entering raises a `LockedError` if another run holds it; with `steal`, a lock is taken over if
    its heartbeat does not change while it is watched.
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
        started_at = _now()
        self._holder = Holder(
            token=uuid.uuid4().hex,
            run_id=run_id,
            process=ProcessName.mine(),
            started_at=started_at,
            heartbeat_at=started_at,
        )
        self.run_id = run_id
        self.key = LockKey(
            uri=self._uri, options=store.options, token=self._holder.token, run_id=run_id
        )
        """Lock check for workers."""
        self.store = store
        """The folder; writable by this run once the lock is held."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        try:
            robbed = self._acquire()
            self.store = self._store.held(self.key)
            if not self.store.exists(LOCK_NAME):
                raise self._refused("a store whose listing does not show what was just written")
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
            # A failed release must not hide how the run ended; the next run says what to do. A run
            # that never started has logged its own error.
            level = logging.WARNING if self._thread.ident is not None else logging.DEBUG
            logger.log(level, "lock not released: %s", failure)

    def _acquire(self) -> Holder | None:
        # Returns the previous holder, if any.
        for _ in range(_ATTEMPTS):
            content = self._peek()
            if self._take(content):
                self._check_conditions()
                return Holder.decoded(content)
        raise ConfigError(
            f"locking {redact_uri(self._store.uri)}: found several runs that take the lock in "
            "turn, expected one; start only one"
        )

    def _take(self, content: bytes | None) -> bool:
        # `content` is the lock content as read, None without a lock.
        new_content, options = self._holder.encoded(), self._store.options
        if content is None:
            return filesystem.create(self._uri, new_content, options)
        holder = Holder.decoded(content)
        if holder is None or not holder.process.is_surely_dead():
            if not self._steal:
                raise self._held(content, "")
            self._watch(content)
        if filesystem.swap(self._uri, new_content, content, options):
            self._say(f"took over the lock of {_called(content)}, which is dead")
            return True
        current_content = self._peek()
        if holder is not None and replace(self.key, token=holder.token).is_of(current_content):
            raise self._held(content, " that is alive")  # a heartbeat arrived meanwhile
        return False

    def _watch(self, content: bytes) -> None:
        heartbeat_s, looks = self._timing.heartbeat_s, self._timing.looks
        self._say(
            f"watching the lock of {_called(content)} for {heartbeat_s * looks:g} s: it is taken "
            "over if no heartbeat comes"
        )
        for _ in range(looks):
            time.sleep(heartbeat_s)
            current_content = self._peek()
            if current_content is None:
                return
            if current_content != content:
                raise self._held(current_content, " that is alive")

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

    def _check_conditions(self) -> None:
        """Raise if the store creates what is there, as some do in spite of the condition."""
        again = replace(self._holder, beats=1).encoded()
        if scheme_of(self._uri) != LOCAL and filesystem.create(
            self._uri, again, self._store.options
        ):
            raise self._refused("a store that writes over what it was to create")

    def _refused(self, found: str) -> ConfigError:
        return ConfigError(
            f"locking {redact_uri(self._store.uri)}: found {found}, expected one "
            "where one run gets the lock; choose another output, for example a local folder (the "
            "source may stay there)"
        )

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
        # If that failed, another run was faster: the next check shows it.
        return True


def _called(content: bytes) -> str:
    return str(Holder.decoded(content) or "something unknown")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


AtTheEnd = Callable[[OutputStore], object]
"""Called with the folder after its tables were changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeNote:
    """A command that changes a folder."""

    command: str
    """Command name and option, as in `corpus-asr remove --gone`."""
    finished: bool
    """Whether a run had finished the folder."""
    arguments: dict[str, Any]
    """Arguments of the function that makes the change, as JSON."""


def read_change(store: OutputStore) -> ChangeNote | None:
    """Return the note of a running or killed command; None without one."""
    noted = store.read_json(CHANGE_NAME)
    return None if noted is None else ChangeNote(**noted)


def is_finished(store: OutputStore) -> bool:
    """Return whether a run has finished the folder, also while a command changes it."""
    noted = read_change(store)
    return store.exists(SUCCESS_NAME) or (noted is not None and noted.finished)


@contextmanager
def changing(
    store: OutputStore,
    command: str,
    at_the_end: AtTheEnd | None,
    **arguments: Any,
) -> Iterator[None]:
    """Keep a change note while the context is open; the caller holds the folder's lock.

    `_SUCCESS` of a finished folder returns at the end.
    """
    note = ChangeNote(command=command, finished=is_finished(store), arguments=arguments)
    store.write_json(CHANGE_NAME, asdict(note))
    store.remove(SUCCESS_NAME)
    yield
    if note.finished:
        store.write_bytes(SUCCESS_NAME, b"")
    if at_the_end is not None:
        at_the_end(store)
    store.remove(CHANGE_NAME)
