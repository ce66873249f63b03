"""The table `voices/`: which speakers of a corpus's recordings are one person.

It is made of the mean embeddings in `speakers/`, as a whole, so that no table of turns is ever
rewritten for it: a finish puts a new object and then removes the one before. Of two, after a finish
that was killed in between, the newest counts. `made_of` names the speakers, so that nothing is made
twice.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.array_types import Float32, Int64
from corpus_asr.schemas import SPEAKERS, VOICES
from corpus_asr.storage.run_state.tables import (
    SPEAKERS_FOLDER,
    SUFFIX,
    VOICES_FOLDER,
    OutputStore,
    projected,
)

_COLUMNS = ("recording_id", "uri", "speaker", "embedding", "made_of")
Finder = Callable[
    [Float32[np.ndarray, "speaker width"], Int64[np.ndarray, " speaker"]],
    Int64[np.ndarray, " speaker"],
]
"""Returns a number for each speaker, given mean embeddings and numbers of recordings."""


def write_voices(store: OutputStore, find: Finder, *, settings: Any) -> int | None:
    """Write the voices of all speakers there are; return how many, or None if they are known.

    Speakers come in the order of URIs and of appearance, whatever the order of their commits.
    In memory are their embeddings, a kilobyte each. `settings` change voices.
    """
    speakers = _speakers(store)
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for name in ("recording_id", "speaker", "made_of"):
        digest.update(repr(speakers[name].to_pylist()).encode("utf-8", "surrogatepass"))
    made_of = digest.hexdigest()
    names = store.names(VOICES_FOLDER)
    if names and _made_of(store, names[-1]) == made_of:
        store.remove_all(names[:-1])
        return None
    ids = speakers["recording_id"].combine_chunks().dictionary_encode().indices
    found = find(_embeddings(speakers), ids.to_numpy().astype(np.int64))
    voices = [f"V{number + 1}" for number in found.tolist()]
    rows = speakers.select(["recording_id", "uri", "speaker"])
    rows = rows.append_column("voice", pa.array(voices, pa.string()))
    rows = rows.append_column("made_of", pa.repeat(made_of, rows.num_rows))
    store.write_table(f"{VOICES_FOLDER}/{store.stem()}{SUFFIX}", rows.cast(VOICES))
    store.remove_all(names)
    return len({*voices})


def remove_voices(store: OutputStore) -> None:
    """Remove what a run with other settings found."""
    store.remove_all(store.names(VOICES_FOLDER))


def read_voices(store: OutputStore) -> Mapping[tuple[str, str], str]:
    """Return the voice of each speaker by `recording_id` and speaker; empty without any."""
    names = store.names(VOICES_FOLDER)
    if not names:
        return {}
    table = store.read_table(names[-1], projected(VOICES, ("recording_id", "speaker", "voice")))
    ids, speakers, voices = (column.to_pylist() for column in table.columns)
    return dict(zip(zip(ids, speakers, strict=True), voices, strict=True))


def _made_of(store: OutputStore, name: str) -> str | None:
    made_of = store.read_table(name, projected(VOICES, ("made_of",)))["made_of"]
    return made_of[0].as_py() if len(made_of) else None


def _speakers(store: OutputStore) -> pa.Table:
    """Return each speaker with their embedding once, those of a recording from one object."""
    schema = projected(SPEAKERS, _COLUMNS)
    tables = [schema.empty_table()]
    known: set[str] = set()
    for name in reversed(store.names(SPEAKERS_FOLDER)):  # the newest first
        table = store.read_table(name, schema)
        ids = {*table["recording_id"].to_pylist()} - known
        known |= ids
        fresh = pc.is_in(table["recording_id"], value_set=pa.array([*ids], pa.string()))
        tables.append(table.filter(pc.and_(fresh, pc.is_valid(table["embedding"]))))
    table = pa.concat_tables(tables)
    number = pc.cast(pc.utf8_slice_codeunits(table["speaker"], 1), pa.int64())  # of S12: 12
    order = [(name, "ascending") for name in ("uri", "recording_id", "number")]
    return table.append_column("number", number).sort_by(order)


def _embeddings(speakers: pa.Table) -> Float32[np.ndarray, "speaker width"]:
    data = b"".join(speakers["embedding"].to_pylist())
    values = np.frombuffer(data, dtype="<f2").astype(np.float32)
    return values.reshape(speakers.num_rows, -1) if data else np.zeros((0, 1), dtype=np.float32)
