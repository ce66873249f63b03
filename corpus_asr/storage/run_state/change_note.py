"""Which command is changing the tables of a run that is over, so that what was killed is continued.

The note is there before the first change and goes after the last; `_SUCCESS` is away meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from corpus_asr.storage.run_state.run_files import SUCCESS_NAME
from corpus_asr.storage.run_state.tables import OutputStore

CHANGE_NAME: Final = "_run/change.json"

AtTheEnd = Callable[[OutputStore], object]
"""What is done with the folder once its tables are changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeNote:
    """What a command does to a folder."""

    command: str
    """As in `corpus-asr remove --gone`."""
    finished: bool
    """Whether a run had finished the folder."""
    arguments: dict[str, Any]
    """What the function that does it takes, as JSON has it."""


def read_change(store: OutputStore) -> ChangeNote | None:
    """Return what a command is doing, or began and was killed; None where there is none."""
    noted = store.read_json(CHANGE_NAME)
    return None if noted is None else ChangeNote(**noted)


def is_finished(store: OutputStore) -> bool:
    """Tell whether a run has finished the folder, also while a command changes it."""
    noted = read_change(store)
    return store.exists(SUCCESS_NAME) or (noted is not None and noted.finished)


@contextmanager
def changing(
    store: OutputStore, command: str, at_the_end: AtTheEnd | None, **arguments: Any
) -> Iterator[None]:
    """Note what is being done in the context; the folder is locked by the caller."""
    note = ChangeNote(command=command, finished=is_finished(store), arguments=arguments)
    store.write_json(CHANGE_NAME, asdict(note))
    store.remove(SUCCESS_NAME)
    yield
    if note.finished:
        store.write_bytes(SUCCESS_NAME, b"")
    if at_the_end is not None:
        at_the_end(store)
    store.remove(CHANGE_NAME)
