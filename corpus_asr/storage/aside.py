"""Results of other settings are put aside, so that a new run may use their folder.

In: an output folder, and where its results go. Out: a folder without results, and all of them
below `_earlier/`, which readers of tables pass over. What is to be moved is noted before anything
is, and the note goes last: killed in between, the next call goes on. Nothing is ever removed.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from corpus_asr.storage.results import PART_ROWS_FOLDERS
from corpus_asr.storage.run_state.tables import (
    OUTCOMES_FOLDER,
    READERS,
    RECORDINGS_FOLDER,
    OutputStore,
)
from corpus_asr.storage.stores import filesystem

logger = logging.getLogger(__name__)

ASIDE_NAME = "_run/aside.json"
EARLIER_FOLDER = "_earlier"
_TABLES = (RECORDINGS_FOLDER, *PART_ROWS_FOLDERS, OUTCOMES_FOLDER)


def interrupted(store: OutputStore) -> dict[str, Any] | None:
    """Return the note of a move that was begun and not completed: `folder`, `fingerprint`."""
    note: dict[str, Any] | None = store.read_json(ASIDE_NAME)
    return note


def set_aside(
    store: OutputStore, *, fingerprint: str, folder: str, names: tuple[str, ...], mark: str
) -> None:
    """Move an output folder's results below another one, or go on with it.

    Args:
        store: the output folder.
        fingerprint: of the run that is to begin.
        folder: where to, relative to the output folder; that of a move that was begun stays.
        names: what is moved beside the tables, in this order.
        mark: name of the mark of a finished run: the first to go here, the last to come there.

    Raises:
        FetchError: the store failed beyond its retries; do it again.
    """
    note = interrupted(store) or {"folder": folder, "finished": store.exists(mark)}
    store.write_json(ASIDE_NAME, {**note, "fingerprint": fingerprint})
    store.remove(mark)

    def move(name: str) -> None:
        source, target = store.address(name), store.address(f"{note['folder']}/{name}")
        filesystem.move(source, target, endpoint_url=store.endpoint_url)

    with ThreadPoolExecutor(READERS, thread_name_prefix="set-aside") as pool:
        for table in _TABLES:
            list(pool.map(move, list(store.all_names(table))))
    for name in names:
        if store.exists(name):
            move(name)
    if note["finished"]:
        store.write_bytes(f"{note['folder']}/{mark}", b"")
    store.remove(ASIDE_NAME)
    logger.info("set aside folder=%s", note["folder"])
