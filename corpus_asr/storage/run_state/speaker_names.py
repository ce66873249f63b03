"""The file of names that people gave to speakers, and the recordings that people worked on."""

import csv
import io
from typing import Final

from corpus_asr.storage.run_state.corrections import CORRECTIONS_FOLDER
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem

NAMES_NAME: Final = "speakers.csv"
"""File of an output folder in which people name speakers."""


def with_notes(store: OutputStore) -> set[str]:
    """Return the recordings that people corrected, or whose speakers they named."""
    noted = {name.split("/")[1] for name in store.all_names(CORRECTIONS_FOLDER)}
    if store.exists(NAMES_NAME):
        data = filesystem.read_bytes(store.address(NAMES_NAME), store.options)
        lines, at, _ = named_lines(data)
        uris = [line[at] for line in lines[1:] if len(line) > at]
        noted.update(Identities.read(store).ids_of(uris))
    return noted


def named_lines(data: bytes) -> tuple[list[list[str]], int, int]:
    """Return the lines of a names file, and the column indices of address and speaker."""
    text = data.decode("utf-8-sig", "surrogateescape")
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    if not lines or not {"uri", "speaker"} <= {*lines[0]}:
        return [], 0, 0  # not a names file
    return lines, lines[0].index("uri"), lines[0].index("speaker")
