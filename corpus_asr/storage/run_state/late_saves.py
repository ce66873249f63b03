"""Corrections saved while their recording is being removed.

A page shows an outdated state of an output folder. The viewer checks for the recording before and
after it saves: a removal that starts in between either leaves a note, which the second check sees,
or sees the save. The next run removes saves of a viewer that was killed in between.
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
    """Return whether a recording is still in the folder and not being removed.

    `outcomes_names` are objects that held its outcomes; others are read only if these are gone.
    """
    if Forgotten.read(store).has_id(recording_id):
        return False
    if store.missing(outcomes_names) != {*outcomes_names}:
        return True
    return any(True for _ in addresses(store, {recording_id}))


def sweep_late_saves(store: OutputStore) -> None:
    """Remove corrections of recordings that were forgotten."""
    forgotten = Forgotten.read(store)
    if not forgotten.entries:
        return
    saved = {name.split("/")[1] for name in store.all_names(CORRECTIONS_FOLDER)}
    remove_corrections(store, set(filter(forgotten.has_id, saved)))
    remove_names(store, lambda recording, _: forgotten.has_id(recording))
    rewrite_names(store, lambda uri, _: None if forgotten.has(uri) else uri)
