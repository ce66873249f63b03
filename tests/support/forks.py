"""What a function does in a fork of this process, which must neither hang nor harm it."""

import os
import select
import signal
import warnings
from collections.abc import Callable

LIMIT_S = 60.0


def in_fork(function: Callable[[], object]) -> str:
    """Return the text of what a function returns in a fork, or the type and text of its error."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks of processes with threads
        pid = os.fork()
    if pid == 0:
        try:
            said = str(function())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], LIMIT_S)[0]:
            raise TimeoutError(f"the fork did nothing for {LIMIT_S:.0f} s")
        with os.fdopen(reader, "rb", closefd=False) as said_there:
            return said_there.read().decode()
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
