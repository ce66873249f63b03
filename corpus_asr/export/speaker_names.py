"""SpeakerNames that people give to speakers: `speakers.csv` beside the tables of a run.

Columns are uri, speaker and name; others are kept. People write the file with any program, the
viewer a row at a time: it is replaced only if it still is what was read, so that nothing that
somebody else wrote meanwhile is lost. Tables are never changed.
"""

import csv
import io
from collections.abc import Mapping

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.corrections import MAX_NAME_CHARS, plain_text
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import public, recording_id, redact_uri

NAMES_NAME = "speakers.csv"
"""File of an output folder in which people name speakers."""
_COLUMNS = ["uri", "speaker", "name"]
# Spreadsheets take a cell that begins so for a formula, and people open the file in them.
_FORMULA = ("=", "+", "-", "@")
# Others write it at the same moment; more often than this in a row they do not.
_ATTEMPTS = 8

SpeakerNames = Mapping[tuple[str, str], str]
"""Given names by `recording_id` and speaker."""


def read_names(store: OutputStore) -> dict[tuple[str, str], str]:
    """Return the names that people gave; of two for one speaker the last counts.

    Raises:
        ConfigError: the file has no columns uri, speaker and name.
    """
    return _names(_rows(store, _read(store)))


def with_voices(given: SpeakerNames, voices: SpeakerNames) -> SpeakerNames:
    """Return the names of all speakers that have one: given, or of their voice.

    A name that was given to a speaker is that of the voice in all recordings, unless several were;
    without any it is `V1` and so on. `voices` is empty where voices were not compared.
    """
    of_voice: dict[str, set[str]] = {}
    for key, name in given.items():
        if key in voices:
            of_voice.setdefault(voices[key], set()).add(name)
    shared = {voice: min(names) for voice, names in of_voice.items() if len(names) == 1}
    return {key: shared.get(voice, voice) for key, voice in voices.items()} | dict(given)


def name_speaker(store: OutputStore, uri: str, speaker: str, name: str, *, seen: str) -> str | None:
    """Give a speaker a name, or none if it is empty, where the name is still `seen`.

    Returns:
        None, or the name that somebody else gave meanwhile, and that was left.

    Raises:
        ConfigError: the name is too long or no text, or the file has other columns.
        FetchError: the output folder cannot be written to.
    """
    name = plain_text("the name", name, MAX_NAME_CHARS)
    if name.startswith(_FORMULA):
        raise ConfigError(
            f"saving the name: found {name[0]} at its start, which spreadsheets take for a "
            "formula, expected a name; leave it out"
        )
    address = store.address(NAMES_NAME)
    for _ in range(_ATTEMPTS):
        data = _read(store)
        rows = _rows(store, data)
        found = _names(rows).get((recording_id(uri), speaker), "")
        if found == name:
            return None
        if found != seen:
            return found
        text = _written(rows, uri, speaker, name)
        if data is None:
            saved = filesystem.create(address, text, store.options)
        else:
            saved = filesystem.swap(address, text, data, store.options)
        if saved:
            return None
    raise ConfigError(
        f"saving the name in {redact_uri(address)}: found it changed by others {_ATTEMPTS} times "
        "in a row; try again"
    )


def _read(store: OutputStore) -> bytes | None:
    if not store.exists(NAMES_NAME):
        return None
    return filesystem.read_bytes(store.address(NAMES_NAME), store.options)


def _rows(store: OutputStore, data: bytes | None) -> list[dict[str, str]]:
    """Return the rows; the first one names every column, whatever is missing below it."""
    address = redact_uri(store.address(NAMES_NAME))
    try:
        text = ",".join(_COLUMNS) if data is None else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"reading {address}: found bytes that are no UTF-8 ({error}), expected a CSV in "
            "UTF-8; save it again as such"
        ) from error
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    header = lines[0] if lines else []
    if not {*_COLUMNS} <= {*header}:
        raise ConfigError(
            f"reading {address}: found the columns {', '.join(header) or 'none'}, expected "
            f"{', '.join(_COLUMNS)}; correct its first line"
        )
    blank = dict.fromkeys(header, "")
    return [dict(zip(header, header, strict=True))] + [
        blank | dict(zip(header, line, strict=False)) for line in lines[1:]
    ]


def _names(rows: list[dict[str, str]]) -> dict[tuple[str, str], str]:
    names = {_key(row): row["name"].strip() for row in rows[1:]}
    return {key: name for key, name in names.items() if name}


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    return recording_id(row["uri"]), row["speaker"].strip()


def _written(rows: list[dict[str, str]], uri: str, speaker: str, name: str) -> bytes:
    said = {"uri": public(uri), "speaker": speaker, "name": name}
    same = [at for at, row in enumerate(rows) if at and _key(row) == (recording_id(uri), speaker)]
    if same:
        rows[same[-1]]["name"] = name
    else:
        rows.append(dict.fromkeys(rows[0], "") | said)
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([*row.values()] for row in rows)
    return file.getvalue().encode()
