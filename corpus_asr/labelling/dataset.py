"""The folder of a data set: how it begins, what lies in it, how it is completed.

In: settings and what came of them. Out: objects in the folder. One folder holds one selection of
one state of a run; another is refused. The card, `README.md`, is put last: a folder without one is
not complete. Knows nothing of audio.

    data/ or audio/        the examples
    selection/             every segment with its measures, and what dropped it
    README.md              the card
    labels.json            its numbers
    _run/                  settings, and a note of every shard
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpus_asr.config.labelling import DatasetSettings, SelectionSettings
from corpus_asr.errors import ConfigError
from corpus_asr.labelling.layouts import AUDIO_FOLDER, DATA_FOLDER, MANIFESTS_FOLDER
from corpus_asr.schemas import SCHEMA_VERSION, SELECTION
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import redact_uri, without_secrets

SETTINGS_NAME = "_run/dataset.json"
SELECTION_FOLDER = "selection"
CARD_NAME, NUMBERS_NAME = "README.md", "labels.json"
_ROWS_OF_A_TABLE, _ROWS_OF_A_FILE = 5_000, 200_000
# Where things are and how fast they go changes nothing in the files.
_ELSEWHERE = {"uri", "endpoint_url", "workers"}


def result_settings(
    selection: SelectionSettings, dataset: DatasetSettings, source: str
) -> dict[str, Any]:
    """Return everything that the content of a data set depends on.

    Args:
        selection: the rules.
        dataset: how it is written.
        source: names the state of what is selected from.
    """
    flat = {
        f"{section}.{key}": value
        for section, settings in (("selection", selection), ("dataset", dataset))
        for key, value in settings.model_dump(mode="json").items()
        if section == "selection" or key not in _ELSEWHERE
    }
    safe = {
        key: without_secrets(value) if isinstance(value, str) else value
        for key, value in flat.items()
    }
    return safe | {"transcripts": source, "schema_version": SCHEMA_VERSION}


def begin(store: OutputStore, settings: dict[str, Any]) -> None:
    """Begin a data set in a folder, or go on with it.

    Raises:
        ConfigError: the folder holds another one, or files of somebody else.
        FetchError: the store does not answer.
    """
    stored = store.read_json(SETTINGS_NAME)
    if stored is None:
        for folder in (DATA_FOLDER, AUDIO_FOLDER, SELECTION_FOLDER, "segments", "outcomes"):
            for name in store.all_names(folder):
                raise ConfigError(
                    f"beginning a data set in {redact_uri(store.uri)}: found {name} without "
                    f"{SETTINGS_NAME}, expected an empty folder or a data set of this program; "
                    "choose another dataset.uri"
                )
        store.write_json(SETTINGS_NAME, settings)
        return
    if stored != settings:
        changes = ", ".join(
            f"{key}: was {json.dumps(stored.get(key))}, now {json.dumps(settings.get(key))}"
            for key in sorted({*stored, *settings})
            if stored.get(key) != settings.get(key)
        )
        raise ConfigError(
            f"beginning a data set in {redact_uri(store.uri)}: found one made otherwise "
            f"({changes}), expected the same settings and the same transcripts; choose another "
            "dataset.uri, so that nobody's training data changes under them, or remove this one"
        )


class SelectionTable:
    """Writes the rows of all segments, some files of them."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._waiting: list[dict[str, Any]] = []
        # As dictionaries, rows take many times the memory that they do in Arrow.
        self._tables: list[pa.Table] = []
        self._files = 0

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take the rows of a recording."""
        self._waiting += rows
        if len(self._waiting) >= _ROWS_OF_A_TABLE:
            self._pack()
            if sum(table.num_rows for table in self._tables) >= _ROWS_OF_A_FILE:
                self._write()

    def close(self) -> None:
        """Write what is left; a table without rows is one, too."""
        self._pack()
        if self._files == 0 or any(table.num_rows for table in self._tables):
            self._write()

    def _pack(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._waiting, schema=SELECTION))
        self._waiting = []

    def _write(self) -> None:
        name = f"{SELECTION_FOLDER}/{self._files:05d}.parquet"
        self._store.write_table(name, pa.concat_tables(self._tables))
        self._tables = []
        self._files += 1


def complete(
    store: OutputStore, *, card: str, numbers: dict[str, Any], splits: Iterable[str]
) -> None:
    """Write what stands for the whole: NeMo's manifests, the numbers, the card."""
    for split in splits:
        _join_manifests(store, split)
    store.write_json(NUMBERS_NAME, numbers)
    store.write_bytes(CARD_NAME, card.encode("utf-8", "replace"))


def manifest_name(split: str) -> str:
    """Return the name of a split's NeMo manifest."""
    return f"{split}_manifest.json"


def _join_manifests(store: OutputStore, split: str) -> None:
    names = sorted(name for name in store.all_names(MANIFESTS_FOLDER) if _is_of(name, split))
    if not names:
        return
    with tempfile.TemporaryDirectory(prefix="corpus-asr-manifest-") as folder:
        path = Path(folder) / "manifest"
        with path.open("wb") as file:
            for content in _contents(store, names):
                file.write(content)
        filesystem.upload(str(path), store.address(manifest_name(split)), store.options)


def _is_of(name: str, split: str) -> bool:
    return name.rpartition("/")[2].startswith(f"{split}-") and name.endswith(".jsonl")


def _contents(store: OutputStore, names: Iterable[str]) -> Iterator[bytes]:
    for name in names:
        yield filesystem.read_bytes(store.address(name), store.options)
