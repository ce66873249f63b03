"""The folder of a dataset: its layouts, its shards, and what stands for the whole.

    data/ or audio/        the examples
    selection/             every segment with its measures, and what dropped it
    README.md              the card; written last: a folder without one is not complete
    labels.json            its numbers
    _run/                  settings, and a note of every shard

Source: the Hub's layout of Parquet with audio (`data/SPLIT-*.parquet`, the feature `Audio`);
WebDataset's tar files, where names equal up to the first dot are one sample; NeMo's manifest of
`audio_filepath`, `duration` and `text`, where relative paths count from the manifest's folder.
"""

import io
import json
import re
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import pyarrow as pa

from corpus_asr.config.run import DatasetSettings, SelectionSettings
from corpus_asr.errors import CheckpointError, ConfigError, EngineError, ItemError
from corpus_asr.labelling.examples import Shard
from corpus_asr.labelling.selection import Origin
from corpus_asr.schemas import EXAMPLES, SCHEMA_VERSION, SELECTION
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import CHANGED, CUT_SHORT, Clip
from corpus_asr.storage.parquet import parquet_writer
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import redact_uri, without_secrets
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ

DATA_FOLDER, AUDIO_FOLDER, MANIFESTS_FOLDER = "data", "audio", "_run/manifests"
_GROUP_BYTES = 32 * MEBIBYTE
# What the Hub's viewer asks of files with audio: it reads whole groups of rows.
_GROUP_ROWS = 100
_DIGITS = 6
NOTES_FOLDER = "_run/shards"
CUTTER = "corpus_asr.stages.cutting:ClipCutter"
UNREADABLE, UNREACHABLE = "unreadable", "unreachable"
LOSSES = {
    CHANGED: "the recording is no longer what was transcribed",
    CUT_SHORT: "the recording ends earlier than when it was transcribed",
    UNREADABLE: "the recording cannot be read or decoded again",
    UNREACHABLE: "the recording could not be read now; the same command tries again",
}
_MESSAGES_KEPT = 5
_EXAMPLES_KEPT = 5
SETTINGS_NAME = "_run/dataset.json"
SELECTION_FOLDER = "selection"
CARD_NAME, NUMBERS_NAME = "README.md", "labels.json"
# Rows wait as dictionaries up to the first number, and in Arrow up to the second.
_ROWS_OF_A_TABLE, _ROWS_OF_A_FILE = 5_000, 200_000
# Where things are and how fast they go changes nothing in the files.
_NOT_IN_FILES = {"uri", "endpoint_url", "storage_options", "workers"}


def result_settings(
    selection: SelectionSettings, dataset: DatasetSettings, source: str
) -> dict[str, Any]:
    """Return everything that the content of a data set depends on."""
    sections = {
        "selection": selection.model_dump(mode="json"),
        "dataset": dataset.model_dump(mode="json", exclude=_NOT_IN_FILES),
    }
    settings = {
        f"{section}.{key}": without_secrets(value) if isinstance(value, str) else value
        for section, values in sections.items()
        for key, value in values.items()
    }
    return settings | {"transcripts": source, "schema_version": SCHEMA_VERSION}


def begin(store: OutputStore, settings: dict[str, Any]) -> None:
    """Begin a data set in a folder, or go on with it."""
    stored = store.read_json(SETTINGS_NAME)
    if stored is None:
        # The last two are of a run: a data set must not be written among its results.
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
    of_split = re.compile(rf"(.*/)?{split}-[^/]*\.jsonl")
    # A file per shard until now: objects in a store cannot be appended to.
    names = sorted(filter(of_split.fullmatch, store.all_names(MANIFESTS_FOLDER)))
    if not names:
        return
    with tempfile.TemporaryDirectory(prefix="corpus-asr-manifest-") as folder:
        path = Path(folder) / "manifest"
        with path.open("wb") as file:
            for name in names:
                uri = store.address(name)
                file.write(filesystem.read_bytes(uri, store.options))
        filesystem.upload(str(path), store.address(manifest_name(split)), store.options)


class ShardWriter(ABC):
    """Writes the examples of one shard to local files."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        self._folder, self._name, self._suffix = folder, name, audio_format
        self.files: dict[str, Path] = {}
        """Local files by their names in the dataset, in the order in which to upload them."""

    @abstractmethod
    def add(self, row: dict[str, Any], data: bytes) -> None:
        """Take an example and its audio."""

    @abstractmethod
    def close(self) -> None:
        """Complete the files."""


class HuggingFaceWriter(ShardWriter):
    """A Parquet file with audio inside."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        super().__init__(folder, name, audio_format)
        path = self.files[f"{DATA_FOLDER}/{name}.parquet"] = folder / f"{name}.parquet"
        self._file = parquet_writer(str(path), huggingface_schema())
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0

    def add(self, row: dict[str, Any], data: bytes) -> None:
        audio = {"bytes": data, "path": f"{row['example_id']}.{self._suffix}"}
        self._waiting.append(row | {"audio": audio})
        self._waiting_bytes += len(data)
        if len(self._waiting) == _GROUP_ROWS or self._waiting_bytes > _GROUP_BYTES:
            self._write()

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._file.close()

    def _write(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._waiting, schema=huggingface_schema()))
        self._waiting, self._waiting_bytes = [], 0


def huggingface_schema() -> pa.Schema:
    """Return the EXAMPLES table with what tells `datasets` that a column is audio."""
    features = {field.name: _feature(field) for field in EXAMPLES}
    metadata = {**EXAMPLES.metadata, b"huggingface": json.dumps({"info": {"features": features}})}
    return EXAMPLES.with_metadata(metadata)


def _feature(field: pa.Field) -> dict[str, Any]:
    if field.name == "audio":
        return {"_type": "Audio", "sampling_rate": SAMPLE_RATE_HZ}
    names = {pa.float64(): "float64", pa.float32(): "float32"}
    return {"_type": "Value", "dtype": names.get(field.type, str(field.type))}


class WebDatasetWriter(ShardWriter):
    """A tar file: of each example the audio, its text, and a JSON object with all the rest."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        super().__init__(folder, name, audio_format)
        path = self.files[f"{DATA_FOLDER}/{name}.tar"] = folder / f"{name}.tar"
        self._file = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, row: dict[str, Any], data: bytes) -> None:
        values = json.dumps(_rounded(row), ensure_ascii=False).encode("utf-8", "replace")
        text = row["text"].encode("utf-8", "replace")
        for suffix, content in ((self._suffix, data), ("txt", text), ("json", values)):
            # No times and owners: the same examples are the same bytes.
            member = tarfile.TarInfo(f"{row['example_id']}.{suffix}")
            member.size = len(content)
            self._file.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        self._file.close()


_IN_NEMO = {name: f"recording_{name}" for name in ("uri", "start_s", "end_s")}


class NemoWriter(ShardWriter):
    """An audio file of each example, and the lines of the manifest."""

    def __init__(self, folder: Path, name: str, audio_format: str) -> None:
        super().__init__(folder, name, audio_format)
        self._manifest_path = folder / f"{name}.jsonl"
        self._manifest = self._manifest_path.open("w", encoding="utf-8", errors="replace")

    def add(self, row: dict[str, Any], data: bytes) -> None:
        base = f"{row['example_id']}.{self._suffix}"
        address = f"{AUDIO_FOLDER}/{self._name}/{base}"
        path = self.files[address] = self._folder / base
        path.write_bytes(data)
        line = {
            "audio_filepath": address,
            "duration": row["duration_s"],
            "text": row["text"],
            "lang": row["language"],
        }
        # Of the recording that it was cut from: as `uri` and `start_s` they would be of this file.
        others = {_IN_NEMO.get(name, name): value for name, value in row.items()}
        others.pop("duration_s")
        self._manifest.write(json.dumps(_rounded(line | others), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._manifest.close()
        # Uploaded last: what it names is there.
        self.files[f"{MANIFESTS_FOLDER}/{self._name}.jsonl"] = self._manifest_path


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    # As they were before they had 32 bits: 0.1, not 0.10000000149011612.
    return {
        name: round(value, _DIGITS) if isinstance(value, float) else value
        for name, value in row.items()
    }


WRITERS: dict[str, type[ShardWriter]] = {
    "huggingface": HuggingFaceWriter,
    "webdataset": WebDatasetWriter,
    "nemo": NemoWriter,
}


@dataclass(slots=True)
class Note:
    """What a shard holds, and what it lost; saved beside it."""

    name: str
    split: str
    digest: str
    examples: int = 0
    seconds: float = 0.0
    lost: dict[str, list[float]] = field(default_factory=dict)
    """By reason: how many examples, and their seconds."""
    messages: list[str] = field(default_factory=list)
    """Why, of some."""
    shown: list[dict[str, Any]] = field(default_factory=list)
    """Some examples, to be read."""

    def lose(self, reason: str, rows: Iterable[dict[str, Any]], message: str) -> None:
        """Count examples that could not be cut."""
        counts = self.lost.setdefault(reason, [0, 0.0])
        for row in rows:
            counts[0] += 1
            counts[1] += row["end_s"] - row["start_s"]
        if len(self.messages) < _MESSAGES_KEPT:
            self.messages.append(without_secrets(message))


class ShardMaker:
    """Writes the shards of a dataset, each whole or not at all, and none twice.

    What cannot be decoded again, in child processes that may crash, is lost and counted.
    """

    def __init__(
        self,
        store: OutputStore,
        settings: DatasetSettings,
        origin: Origin,
        *,
        cutter: dict[str, Any],
        timeout_s: float,
        workers: int,
    ) -> None:
        self._store = store
        self._settings = settings
        self._origin = origin
        self._stopping = Event()
        self._all = [
            IsolatedGenerator(CUTTER, init_kwargs=cutter, timeout_s=timeout_s)
            for _ in range(workers)
        ]
        self._cutters: SimpleQueue[IsolatedGenerator] = SimpleQueue()
        for child in self._all:
            self._cutters.put(child)

    def write(self, shards: Iterable[Shard]) -> Iterator[Note]:
        """Write what is not there yet; yield the note of every shard as it is done."""
        waiting: set[Future[Note]] = set()
        with ThreadPoolExecutor(len(self._all), thread_name_prefix="shards") as pool:
            try:
                for shard in shards:
                    waiting.add(pool.submit(self._make, shard))
                    if len(waiting) > len(self._all):
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                yield from (future.result() for future in as_completed(waiting))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                # Decoders that are killed now are no fault of what they decode: nothing of their
                # shards is noted.
                self._stopping.set()
                for cutter in self._all:
                    cutter.close()

    def _make(self, shard: Shard) -> Note:
        name = f"{NOTES_FOLDER}/{shard.name}.json"
        digest = shard.digest()
        stored = self._store.read_json(name)
        # What could not be reached then may be now.
        if stored is not None and stored["digest"] == digest and UNREACHABLE not in stored["lost"]:
            return Note(**stored)
        note = Note(name=shard.name, split=shard.split, digest=digest)
        with tempfile.TemporaryDirectory(prefix="corpus-asr-shard-") as folder:
            writer = WRITERS[self._settings.format](
                Path(folder), shard.name, self._settings.audio_format
            )
            self._fill(writer, shard, note)
            writer.close()
            # A shard of which everything was lost is no file.
            if note.examples:
                for file, path in writer.files.items():
                    filesystem.upload(str(path), self._store.address(file), self._store.options)
        # After its files: the note says that they are whole.
        self._store.write_json(name, asdict(note))
        return note

    def _fill(self, writer: ShardWriter, shard: Shard, note: Note) -> None:
        cutter = self._cutters.get()
        try:
            for cuts in shard.cuts:
                # Clips come in any order; what is left when a recording fails is lost.
                left = dict(enumerate(cuts.rows))
                try:
                    for clip in cutter.run(cuts.request):
                        self._add(writer, left.pop(clip.number), clip, note)
                # What is wrong with settings or the machine is so for all recordings.
                except (CheckpointError, ConfigError, EngineError):
                    raise
                except Exception as error:  # whatever one recording did costs its examples alone
                    if self._stopping.is_set():
                        raise
                    note.lose(_reason(error), left.values(), str(error))
        finally:
            self._cutters.put(cutter)

    def _add(self, writer: ShardWriter, row: dict[str, Any], clip: Clip, note: Note) -> None:
        seconds = clip.num_samples / SAMPLE_RATE_HZ
        row = row | self._origin.model(row["language"]) | {"duration_s": seconds}
        writer.add(row, clip.data)
        note.examples += 1
        note.seconds += seconds
        if len(note.shown) < _EXAMPLES_KEPT:
            note.shown.append({name: row[name] for name in ("example_id", "whisper_transcript")})


def _reason(error: Exception) -> str:
    if not isinstance(error, ItemError):
        return UNREADABLE
    if error.kind in (CHANGED, CUT_SHORT):
        return error.kind
    return UNREACHABLE if error.retryable else UNREADABLE
