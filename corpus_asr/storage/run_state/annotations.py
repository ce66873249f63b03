"""What people wrote of recordings, as runs and erasures see it: names of speakers, corrections.

Names are rows of one file. Corrections are JSON objects below the ID of their recording; of these,
only the speakers are read here. What a correction says, and where its text belongs, knows `edits`.
"""

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from corpus_asr.errors import CorpusAsrError
from corpus_asr.json_values import load
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.filesystem import READERS
from corpus_asr.storage.stores.uri import redact_uri

NAMES_NAME: Final = "speakers.csv"
"""File of an output folder in which people name speakers."""
CORRECTIONS_FOLDER: Final = "corrections"
CORRECTION_SUFFIX: Final = ".json"
SPEAKER_LABEL = re.compile(r"S\d+")
"""Label of a speaker numbered by diarization; other labels are names given by people."""
C = TypeVar("C")


def read_corrections(
    store: OutputStore, parse: Callable[[Any], C], known: Mapping[str, C] | None = None
) -> dict[str, C]:
    """Return all corrections by object name; `known` ones, which are immutable, are not reread.

    `parse` is given a JSON value.

    Raises:
        CorpusAsrError: an object is no correction, or of an older version.
    """

    def read(name: str) -> C:
        address = store.address(name)
        data = filesystem.read_bytes(address, store.options)
        try:
            return parse(load(data))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise CorpusAsrError(
                f"reading {redact_uri(address)}: found no correction ({error}), expected the JSON "
                "that `corpus-asr view` saves; restore or remove it"
            ) from error

    names = sorted(
        name for name in store.all_names(CORRECTIONS_FOLDER)
        if name.endswith(CORRECTION_SUFFIX) and not name.rpartition("/")[2].startswith(".")
    )  # fmt: skip
    new_names = [name for name in names if name not in (known or ())]
    with ThreadPoolExecutor(READERS, thread_name_prefix="read-corrections") as pool:
        new = dict(zip(new_names, pool.map(read, new_names), strict=True))
    saved = new | dict(known or {})
    return {name: saved[name] for name in names}


def corrected_ids(store: OutputStore) -> list[str]:
    """Return the ID of the recording of each correction."""
    return [name.split("/")[1] for name in store.all_names(CORRECTIONS_FOLDER)]


def with_notes(store: OutputStore) -> set[str]:
    """Return the recordings that people corrected, or whose speakers they named."""
    return {*corrected_ids(store), *(recording_id for recording_id, _ in _named_speakers(store))}


def remove_corrections(store: OutputStore, recording_ids: Collection[str]) -> None:
    """Remove the corrections of recordings."""
    for name in list(store.all_names(CORRECTIONS_FOLDER)):
        recording = name.split("/")[1]
        if recording in recording_ids:
            store.remove(name)
            filesystem.remove_folder(store.address(f"{CORRECTIONS_FOLDER}/{recording}"))


def rewrite_said_speakers(store: OutputStore, speakers: Collection[tuple[str, str]]) -> None:
    """Remove speaker names of recordings from corrections; turns then determine speakers."""
    for name, pairs in read_corrections(store, _said_speakers).items():
        if not {*speakers}.isdisjoint(pairs):
            correction = store.read_json(name)
            for segment in correction["segments"]:
                if (correction["recording_id"], segment.get("speaker")) in speakers:
                    segment["speaker"] = None
            store.write_json(name, correction)


def named_numbers(store: OutputStore) -> dict[str, int]:
    """Return the highest speaker number (S1, S2 ...) in names and corrections, by recording."""
    highest: dict[str, int] = {}
    for recording_id, label in (*said_speakers(store), *_named_speakers(store)):
        if SPEAKER_LABEL.fullmatch(label):
            highest[recording_id] = max(highest.get(recording_id, 0), int(label[1:]))
    return highest


def said_speakers(store: OutputStore) -> Iterator[tuple[str, str]]:
    """Yield recording ID and speaker of segments in corrections, effective or not."""
    for pairs in read_corrections(store, _said_speakers).values():
        yield from pairs


def _said_speakers(correction: Any) -> list[tuple[str, str]]:
    """Return recording ID and speaker of segments of a correction."""
    speakers = [segment.get("speaker") for segment in correction["segments"]]
    return [(correction["recording_id"], speaker) for speaker in speakers if speaker]


def _named_speakers(store: OutputStore) -> list[tuple[str, str]]:
    """Return recording ID and speaker of the rows of the names file."""
    if not store.exists(NAMES_NAME):
        return []
    data = filesystem.read_bytes(store.address(NAMES_NAME), store.options)
    lines, at, who = named_lines(data)
    lines = [line for line in lines[1:] if len(line) > max(at, who)]
    ids = Identities.read(store).ids_of([line[at] for line in lines])
    return list(zip(ids, (line[who].strip() for line in lines), strict=True))


def named_lines(data: bytes) -> tuple[list[list[str]], int, int]:
    """Return the lines of a names file, and the column indices of address and speaker."""
    text = data.decode("utf-8-sig", "surrogateescape")
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    if not lines or not {"uri", "speaker"} <= {*lines[0]}:
        return [], 0, 0  # not a names file
    return lines, lines[0].index("uri"), lines[0].index("speaker")
