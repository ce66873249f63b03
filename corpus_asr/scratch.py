"""Temporary files and folders, which are removed even if their process is killed.

Each is locked while its process lives, and the operating system releases the locks of dead
processes: the next creator removes those without a lock, even if processes of several containers
share a disk and process IDs are ambiguous.
"""

import atexit
import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "corpus-asr-scratch-"
_NAME = re.compile(rf"{PREFIX}\w+")
# A single `atexit` function: it would keep an entry for each folder ever registered.
_FOLDERS: set[Path] = set()
os.register_at_fork(after_in_child=_FOLDERS.clear)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder in `TMPDIR`, accessible by its owner only, and remove it at the end."""
    remove_abandoned(tempfile.gettempdir(), _NAME)
    folder, descriptor = _held_folder()
    _FOLDERS.add(folder)
    try:
        yield folder
    finally:
        os.close(descriptor)
        if folder in _FOLDERS:  # not in a fork, which exits with its parent's contexts open
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
    # If the process exits while a thread is blocked, on a pipe for example.
    for folder in tuple(_FOLDERS):
        shutil.rmtree(folder, ignore_errors=True)


def hold(descriptor: int) -> bool:
    """Protect an open file or folder from `remove_abandoned` until it is closed.

    Returns False if another process removes it: between its creation and this call nobody holds it,
    and it has to be made again.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # without locks, abandoned files cannot be detected
        return True
    return os.fstat(descriptor).st_nlink > 0


def remove_abandoned(folder: str, name: re.Pattern[str]) -> None:
    """Remove files, and this user's scratch folders, with matching names that no process holds."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if name.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_abandoned(entry.path)


def _remove_abandoned(path: str) -> None:
    is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    # NFS locks only files that are open for writing.
    is_writable = not is_folder and os.access(path, os.W_OK)
    flags = os.O_DIRECTORY if is_folder else os.O_RDWR if is_writable else os.O_RDONLY
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_folder:
            os.unlink(path)
        elif _NAME.fullmatch(os.path.basename(path)) and (
            os.fstat(descriptor).st_uid == os.getuid()
        ):
            shutil.rmtree(path)
    finally:
        os.close(descriptor)
