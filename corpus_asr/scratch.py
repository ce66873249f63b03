"""Folders and files that a process keeps for a while; those of killed processes do not stay.

Each is locked as long as its process lives, and the system frees the locks of the dead: whoever
makes the next one removes what nobody holds, also where processes of several containers share a
disk and their numbers say nothing.
"""

import atexit
import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "corpus-asr-scratch-"
_NAME = re.compile(rf"{PREFIX}\w+")
# What is younger may not be locked yet.
_MIN_AGE_S = 1.0
# Not a function of `atexit` for each: it keeps a place for each that was ever registered.
_FOLDERS: set[Path] = set()
os.register_at_fork(after_in_child=_FOLDERS.clear)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder in `TMPDIR` that its owner alone can read, and remove it at the end."""
    remove_abandoned(tempfile.gettempdir(), _NAME)
    folder, descriptor = _held_folder()
    _FOLDERS.add(folder)
    try:
        yield folder
    finally:
        os.close(descriptor)
        if folder in _FOLDERS:  # not in a fork, which ends with what its parent had open
            shutil.rmtree(folder, ignore_errors=True)
            _FOLDERS.discard(folder)


def _held_folder() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            if hold(descriptor) and folder.exists():
                return folder, descriptor
            os.close(descriptor)


@atexit.register
def _remove_folders() -> None:
    # Where the process ends while a thread waits, for a pipe say.
    for folder in tuple(_FOLDERS):
        shutil.rmtree(folder, ignore_errors=True)


def hold(descriptor: int) -> bool:
    """Keep an open file or folder from `remove_abandoned` until it is closed.

    False if another process took it for abandoned before: on a busy machine more than
    `_MIN_AGE_S` may pass between making and holding it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # without locks it is not known what is abandoned
        return True
    return os.fstat(descriptor).st_nlink > 0


def remove_abandoned(folder: str, name: re.Pattern[str]) -> None:
    """Remove this user's files, or scratch folders, of such names that no process holds."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if name.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_abandoned(entry.path)


def _remove_abandoned(path: str) -> None:
    is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    # NFS locks only files that may be written.
    flags = os.O_DIRECTORY if is_folder else os.O_RDWR
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > _MIN_AGE_S:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_folder:
                os.unlink(path)
            elif _NAME.fullmatch(os.path.basename(path)):
                shutil.rmtree(path)
    finally:
        os.close(descriptor)
