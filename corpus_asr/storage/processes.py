"""Which process this is, and whether another one of this machine is still alive.

In: what a process once said of itself. Out: whether it is dead for certain. Only where Linux tells
(boot, process namespace, start time) is anything certain: host names are shared by machines, and
process numbers are used again. Knows no store.
"""

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = "/proc/self/ns/pid"
_DEAD_STATES = {"Z", "X"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessName:
    """What tells a process from all others."""

    host: str
    user: str
    pid: int
    machine: str | None = None
    """Boot and process namespace; None where the system does not tell."""
    begun: str | None = None
    """When the process started, in the kernel's ticks since boot."""

    @classmethod
    def mine(cls) -> "ProcessName":
        """Name this process."""
        return cls(
            host=socket.gethostname(),
            user=_user(),
            pid=os.getpid(),
            machine=_machine(),
            begun=_begun(os.getpid()),
        )

    def is_surely_dead(self) -> bool:
        """Tell whether it ran where we can see it, and is no more."""
        if self.machine is None or self.begun is None or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # alive, of another user; or its number is used again by one
        begun = _begun(self.pid)
        return begun != self.begun


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


def _begun(pid: int) -> str | None:
    """Return a process's start time; None where it is dead, if not yet buried, or not told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything; what follows are numbers.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in _DEAD_STATES else fields[19]
