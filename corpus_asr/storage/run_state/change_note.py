"""Note of the command that is changing a finished run's tables, to resume it if it was killed.

The note is written before the first change and removed last; `_SUCCESS` is absent meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from corpus_asr.storage.run_state.run_files import SUCCESS_NAME
from corpus_asr.storage.run_state.tables import OutputStore

CHANGE_NAME: Final = "_run/change.json"

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
    store: OutputStore, command: str, at_the_end: AtTheEnd | None, **arguments: Any
) -> Iterator[None]:
    """Keep a change note while the context is open; the caller holds the folder's lock."""
    note = ChangeNote(command=command, finished=is_finished(store), arguments=arguments)
    store.write_json(CHANGE_NAME, asdict(note))
    store.remove(SUCCESS_NAME)
    yield
    if note.finished:
        store.write_bytes(SUCCESS_NAME, b"")
    if at_the_end is not None:
        at_the_end(store)
    store.remove(CHANGE_NAME)
