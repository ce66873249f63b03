"""What people save of a recording that is removed meanwhile.

A page shows an output folder as it was some time ago. Whoever saves what a page sends looks here
before and after: a command that begins in between either leaves a note that the second look finds,
or finds what was saved. What a viewer that is killed in between leaves is swept by the next run.
"""

from collections.abc import Collection

from corpus_asr.storage.run_state.corrections import CORRECTIONS_FOLDER
from corpus_asr.storage.run_state.forgotten import Forgotten
from corpus_asr.storage.run_state.moved import addresses
from corpus_asr.storage.run_state.rewriting import (
    remove_corrections,
    remove_names,
    rewrite_names,
)
from corpus_asr.storage.run_state.tables import OutputStore


def is_there(store: OutputStore, recording_id: str, outcomes_names: Collection[str]) -> bool:
    """Tell whether a recording is still in the folder, and is to stay.

    `outcomes_names` are objects that had its outcomes; others are read only where these are gone.
    """
    if Forgotten.read(store).has_id(recording_id):
        return False
    if store.missing(outcomes_names) != {*outcomes_names}:
        return True
    return any(True for _ in addresses(store, {recording_id}))


def sweep_late_saves(store: OutputStore) -> None:
    """Remove what was saved of recordings once they were forgotten."""
    forgotten = Forgotten.read(store)
    if not forgotten.entries:
        return
    saved = {name.split("/")[1] for name in store.all_names(CORRECTIONS_FOLDER)}
    remove_corrections(store, set(filter(forgotten.has_id, saved)))
    remove_names(store, lambda recording, _: forgotten.has_id(recording))
    rewrite_names(store, lambda uri, _: None if forgotten.has(uri) else uri)
