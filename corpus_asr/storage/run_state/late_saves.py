"""What people save of a recording that is forgotten, moved or removed meanwhile.

A page shows an output folder as it was some time ago. Whoever saves what a page sends looks here
before and after: a command that begins in between either leaves a note that the second look finds,
or finds what was saved. What a viewer that is killed in between leaves is swept by the next run.
"""

from collections.abc import Collection, Mapping
from typing import Any

from corpus_asr.storage.run_state.corrections import CORRECTIONS_FOLDER
from corpus_asr.storage.run_state.forgotten import Forgotten
from corpus_asr.storage.run_state.moved import addresses, noted_moves
from corpus_asr.storage.run_state.rewriting import (
    Changes,
    earlier_addresses,
    rewrite_corrections,
    rewrite_names,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id


def is_there(
    store: OutputStore, recording: Mapping[str, Any], outcomes_names: Collection[str]
) -> bool:
    """Tell whether a recording is still in the folder, and is to stay under its address.

    Args:
        recording: recording_id and uri.
        outcomes_names: objects that had its outcomes; others are read only where these are gone.
    """
    own = recording["recording_id"]
    if Forgotten.read(store).has(recording["uri"]):  # another may be of its version
        return False
    if own in noted_moves(store):
        return False
    if store.missing(outcomes_names) != {*outcomes_names}:
        return True
    return any(True for _ in addresses(store, {own}))


def moved_to(store: OutputStore, own: str) -> str | None:
    """Return the address that a recording has moved to; None if it has not, or is gone."""
    if move := noted_moves(store).get(own):
        return move.uri
    later = {each for each, uris in earlier_addresses(store).items()
             if own in map(recording_id, uris)}  # fmt: skip
    return next((uri for _, uri in addresses(store, later)), None) if later else None


def sweep_late_saves(store: OutputStore) -> None:
    """Remove what was saved of recordings once they were forgotten; let others follow theirs."""
    forgotten = Forgotten.read(store)
    later = {recording_id(uri): now
             for now, uris in earlier_addresses(store).items() for uri in uris}  # fmt: skip
    if not (forgotten.entries or later):
        return
    saved = {name.split("/")[1] for name in store.all_names(CORRECTIONS_FOLDER)}
    to: dict[str, str | None] = dict.fromkeys(filter(forgotten.has_id, saved))
    to |= _followed(store, saved & later.keys(), later)
    if to:
        rewrite_corrections(store, Changes(to))

    def address(uri: str, _: str) -> str | None:
        own = recording_id(uri)
        strays = {own} & later.keys()
        return None if forgotten.has(uri) else _followed(store, strays, later).get(own, uri)

    rewrite_names(store, address)


def _followed(
    store: OutputStore, strays: Collection[str], later: Mapping[str, str]
) -> dict[str, str]:
    """Return the addresses now of recordings that moved, by the IDs that they had before."""
    if not strays:
        return {}
    known = dict(addresses(store, {*strays, *(later[each] for each in strays)}))
    # Another recording may have come to an address since.
    return {
        each: known[later[each]] for each in strays if each not in known and later[each] in known
    }
